"""A slide task whose encoder is adapted to each fold: adapters, features of each fold, then the usual learning."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from wsi_dino.encoders.adapt_cost import duration_in_words, measured_passes
from wsi_dino.encoders.adapter import fold_adapter_name, read_adapter
from wsi_dino.encoders.backbone import Backbone
from wsi_dino.errors import CohortError, ConfigError, WsiDinoError
from wsi_dino.evaluation.cohort import Cohort
from wsi_dino.evaluation.split import Split
from wsi_dino.item_queue import Item, ItemQueue
from wsi_dino.mil.adaptation import Adaptation, SlideTiles, adapter_item, learn_adapter
from wsi_dino.mil.examples import SlidePictures
from wsi_dino.mil.material import NOT_LABELLED, Exclusion, Material, gather_material, subsets_of
from wsi_dino.mil.run import Bars, MilOutcome, MilRequest, make_split, run_mil
from wsi_dino.mil.task_labels import read_labels
from wsi_dino.mil.tasks import Task
from wsi_dino.provenance import fingerprint
from wsi_dino.run_folder import RunFolder, safe_name

FAILED = "the slide failed"
_SUFFIX = "+lora"
_MEASURED_TILES = 4


@dataclass(frozen=True)
class AdaptedTask:
    """A task, its slides and folds, and how the encoder is adapted to them.

    Attributes:
        run: the run folder, tiled.
        task: what is predicted.
        labels: the label table.
        cohort: labelled slides with tiles that can be read.
        exclusions: all other labelled slides.
        split: the folds.
        request: how the features are learnt from.
        adaptation: how the encoder is adapted.
        tiles: reads and embeds slides.
    """

    run: RunFolder
    task: Task
    labels: Path
    cohort: Cohort
    exclusions: tuple[Exclusion, ...]
    split: Split
    request: MilRequest
    adaptation: Adaptation
    tiles: SlideTiles

    @property
    def encoder(self) -> str:
        """Name of the result: ``ENCODER+lora``."""
        return f"{self.adaptation.base.name}{_SUFFIX}"

    @property
    def folder(self) -> Path:
        """``RUN/mil/TASK/ENCODER+lora``."""
        return self.run.mil(self.task.name, self.encoder)

    @property
    def stage(self) -> str:
        """Stage of the rows and claims of its adapters."""
        return f"adapt-{self.task.name}-{self.encoder}"

    def adapter_folder(self, number: int) -> Path:
        """Folder of the adapter of one fold."""
        return self.folder / "adapter" / f"fold-{number}"

    def encoder_of_fold(self, number: int) -> str:
        """Name of the encoder adapted to one fold, and of its features."""
        return f"{self.adaptation.base.name}+{fold_adapter_name(safe_name(self.task.name), number)}"


def plan_adapted_task(
    run: RunFolder, task: Task, labels: Path, request: MilRequest, adaptation: Adaptation, tiles: SlideTiles,
    bars: Bars,
) -> AdaptedTask:  # fmt: skip
    """Read the labels, look at each slide, and make the folds.

    Raises:
        CohortError: the table is wrong, or none of its slides can be used.
        SplitError: the folds cannot be made.
    """
    if task.kind != "classes":
        raise ConfigError(
            f"Adapting the encoder to {task.name}: --adapt lora teaches classes alone, this task is {task.kind}. "
            "Leave out --adapt, or adapt on a task of classes and use `embed --adapter DIR`."
        )
    if task.scheme.kind == "external":
        raise ConfigError(
            f"Adapting the encoder to {task.name}: the task tests on another cohort, which --adapt cannot do. Adapt on "
            "a task of its own, then use `embed --adapter DIR` on both runs."
        )
    told = read_labels(task, labels)
    task, everyone = told.task, told.cohort
    with bars("looking at slides", "slides") as progress:
        progress(0, total=len(everyone))
        exclusions: list[Exclusion] = []
        for slide_id in everyone.slide_ids:
            exclusions += _unusable(tiles, slide_id)
            progress(1, text=slide_id)
    left_out = {exclusion.slide_id for exclusion in exclusions}
    usable = set(everyone.slide_ids) - left_out
    if not usable:
        first = exclusions[0]
        raise CohortError(
            f"Matching {labels} with {run.path}: no slide of the table can be used; {first.slide_id}: "
            f"{first.detail or first.reason}. Run `wsi-dino tile` first, and see that slide_id is the file's name "
            "without its ending."
        )
    exclusions += [Exclusion(slide_id, NOT_LABELLED[0]) for slide_id in everyone.unlabelled]
    exclusions += [Exclusion(slide_id, NOT_LABELLED[1]) for slide_id in tiles.rows() if slide_id not in told.names]
    cohort = everyone.only(usable)
    split = make_split(task, cohort, subsets_of(task, cohort, told.rows), bool(left_out), request)
    _require_no_twins(cohort, tiles)
    ordered = tuple(sorted(exclusions, key=lambda row: (row.reason, row.slide_id)))
    return AdaptedTask(run, task, labels, cohort, ordered, split, request, adaptation, tiles)


def _require_no_twins(cohort: Cohort, tiles: SlideTiles) -> None:
    """One slide under the names of two patients would be learnt from and tested on."""
    owner: dict[str, tuple[str, str]] = {}
    for row in cohort.rows:
        content = tiles.fingerprints(row.slide_id)[0]
        slide_id, patient_id = owner.setdefault(content, (row.slide_id, row.patient_id))
        if patient_id != row.patient_id:
            raise CohortError(
                f"Looking at the slides: {slide_id} of patient {patient_id} and {row.slide_id} of patient "
                f"{row.patient_id} are the same slide. Keep one of the two rows, or give both one patient_id."
            )


def _unusable(tiles: SlideTiles, slide_id: str) -> Iterator[Exclusion]:
    row = tiles.rows().get(slide_id)
    if row is None:
        yield Exclusion(slide_id, "no tiles", "the run does not know this slide")
    elif row.get("status") == "empty" or not row.get("tiles"):
        failed = row.get("status") == "failed"
        yield Exclusion(slide_id, FAILED if failed else "no tissue found", str(row.get("reason") or ""))
    else:
        try:
            tiles.check(slide_id)
        except WsiDinoError as error:
            yield Exclusion(slide_id, FAILED, str(error))


def run_adapted(
    planned: AdaptedTask, *, pictures: SlidePictures | None, bars: Bars, say: Callable[[str], None],
    allow_random_weights: bool = False,
) -> tuple[Material, MilOutcome]:  # fmt: skip
    """Adapt the encoder to each fold, embed the slides with it, and cross-validate on these features.

    Adapters, features and folds that are finished are kept, so that the same command goes on where another
    was killed, and several processes share the work.

    Args:
        planned: the task.
        pictures: see `run_mil`.
        bars: opens a progress bar by title and unit.
        say: told what a reader should know.
        allow_random_weights: accept an encoder without trained weights.

    Returns:
        What was learnt from, told as one, and what came of it.

    Raises:
        EncoderError: the encoder cannot be adapted, or its weights are not to be had.
        WsiDinoError: see `learn_adapter`, `run_mil`.
    """
    _learn_adapters(planned, bars, say)
    lost: dict[str, str] = {}
    for number in range(len(planned.split)):
        encoder = planned.adaptation.base.load_adapted(planned.adapter_folder(number))
        title = f"embed, fold {number + 1} of {len(planned.split)}"
        lost |= planned.tiles.embed(encoder, planned.cohort.slide_ids, title)

    @lru_cache(maxsize=1)
    def of_fold(number: int) -> Material:
        material = gather_material(
            planned.run, planned.task, planned.encoder_of_fold(number), planned.labels,
            allow_random_weights=allow_random_weights, allow_seen=True,
        )  # fmt: skip
        _require_unseen(material, planned, number)
        return material

    material = _told_as_one(planned, of_fold, lost)
    outcome = run_mil(
        planned.run, material, planned.request, pictures=pictures, bars=bars, say=say, split=planned.split,
        of_fold=of_fold,
    )  # fmt: skip
    return material, outcome


def _require_unseen(material: Material, planned: AdaptedTask, number: int) -> None:
    """No slide of a test patient may have been shown to the adapter of its fold: said by the files, not the plan."""
    tested = set(planned.cohort.slides_of(planned.split.folds[number].test))
    seen = sorted(tested & material.store.seen_by_adapter)
    if seen:
        raise CohortError(
            f"Fold {number} of {planned.task.name}: its adapter has learnt from {', '.join(seen[:3])}, which are to be "
            f"tested. Remove {planned.adapter_folder(number)} and run the command again."
        )


# adapters -------------------------------------------------------------------------------------
def _learn_adapters(planned: AdaptedTask, bars: Bars, say: Callable[[str], None]) -> None:
    loaded = planned.adaptation.base.load()
    items = [
        adapter_item(planned.cohort, fold, number, planned.adaptation, loaded.sha256, planned.tiles)
        for number, fold in enumerate(planned.split)
    ]
    missing = [item for item in items if not _is_learnt(planned, item)]
    if missing:
        say(_cost_in_words(planned, len(missing), _measure(planned, loaded.backbone)))
    del loaded
    queue = ItemQueue(planned.run, planned.stage, items, lambda item, row: _is_intact(planned, item, row))
    per_fold = [_slides_an_epoch(planned, number) for number in range(len(items))]
    epochs = planned.adaptation.spec.epochs
    with bars("adapt", "slides") as progress:
        progress(0, total=epochs * sum(per_fold))
        while (claimed := queue.take()) is not None:
            number = int(claimed.item.key.rpartition("-")[2])
            shown = _SlideProgress(progress, f"fold {number + 1} of {len(items)}", epochs * per_fold[number])
            try:
                row = _learn_adapter(planned, number, shown)
            except BaseException:
                queue.give_back(claimed)
                raise
            queue.finish(claimed, row)
            shown.finish()


def _is_learnt(planned: AdaptedTask, item: Item) -> bool:
    row = planned.run.read_row(planned.stage, item.key) or {}
    return row.get("fingerprint") == item.fingerprint and _is_intact(planned, item, row)


def _is_intact(planned: AdaptedTask, item: Item, row: Mapping[str, Any]) -> bool:
    try:
        adapter = read_adapter(planned.adapter_folder(int(item.key.rpartition("-")[2])))
    except WsiDinoError:
        return False
    return adapter.sha256 == row.get("sha256")


def _learn_adapter(planned: AdaptedTask, number: int, shown: _SlideProgress) -> dict[str, Any]:
    adapter = learn_adapter(
        planned.cohort, planned.split.folds[number], number, planned.adaptation, planned.tiles,
        planned.adapter_folder(number), planned.task.name, shown.bag, shown.epoch,
    )  # fmt: skip
    return {"status": "done", "sha256": adapter.sha256, "best_epoch": adapter.record.trained_on.best_epoch}


class _SlideProgress:
    """Moves the bar by slides; those of the epochs that early stopping saves come at once at the end."""

    def __init__(self, progress: Callable[..., None], name: str, left: int) -> None:
        self._progress, self._name, self._left = progress, name, left

    def bag(self) -> None:
        self._left -= 1
        self._progress(1)

    def epoch(self, row: dict[str, float]) -> None:
        losses = f"loss {row['train_loss']:.3f}, on validation {row['val_loss']:.3f}"
        self._progress(0, text=f"{self._name}, epoch {row['epoch'] + 1:.0f}, {losses}")

    def finish(self) -> None:
        self._progress(self._left, text=f"{self._name} done")


# what it costs --------------------------------------------------------------------------------
def _slides_an_epoch(planned: AdaptedTask, number: int) -> int:
    fold = planned.split.folds[number]
    return len(planned.cohort.slides_of((*fold.train, *fold.val)))


def _measure(planned: AdaptedTask, backbone: Backbone) -> tuple[float, float]:
    slide_id = planned.cohort.slide_ids[0]
    n_tiles = min(_MEASURED_TILES, int(planned.tiles.rows()[slide_id]["tiles"]))
    images = planned.tiles.read(slide_id, range(n_tiles))
    return measured_passes(planned.adaptation.base, backbone, planned.adaptation.spec, images)


def _cost_in_words(planned: AdaptedTask, n_missing: int, rates: tuple[float, float]) -> str:
    adaptation, n_folds = planned.adaptation, len(planned.split)
    slides = max(_slides_an_epoch(planned, number) for number in range(n_folds))
    passes = n_missing * adaptation.spec.epochs * slides * adaptation.n_tiles
    n_tiles = sum(int(planned.tiles.rows()[slide_id]["tiles"]) for slide_id in planned.cohort.slide_ids)
    seconds = passes * rates[0], n_folds * n_tiles * rates[1]
    return (
        f"Adapting {adaptation.base.name} to {planned.task.name} (LoRA, rank {adaptation.spec.adapter.rank}): "
        f"{n_missing} of {n_folds} folds learn from {adaptation.n_tiles} tiles of up to {slides} slides in at most "
        f"{adaptation.spec.epochs} epochs, at most {passes:,} tiles forward and back; then each of {n_folds} folds "
        f"embeds {n_tiles:,} tiles with its own encoder, less what is done already.\n"
        f"Estimated from {_MEASURED_TILES} tiles on {adaptation.base.device}: up to {duration_in_words(seconds[0])} "
        f"for learning and about {duration_in_words(seconds[1])} for embedding, besides reading slides."
    )


# what is told ---------------------------------------------------------------------------------
def _told_as_one(planned: AdaptedTask, of_fold: Callable[[int], Material], lost: Mapping[str, str]) -> Material:
    """Return the material of all folds together, for figures and report; each fold learns from its own."""
    prints: dict[str, list[str]] = {}
    adapters, n_epochs = [], []
    for number in reversed(range(len(planned.split))):  # the first fold comes last and is at hand then
        material = of_fold(number)
        adapters.append(material.store.identity["adapter"])
        n_epochs.append(read_adapter(planned.adapter_folder(number)).record.trained_on.best_epoch + 1)
        for slide_id in planned.cohort.slide_ids:
            prints.setdefault(slide_id, []).append(material.features_fingerprint.get(slide_id, ""))
    whole = {slide_id: fingerprint(each) for slide_id, each in prints.items() if all(each)}
    failed = [Exclusion(one, FAILED, lost.get(one, "its features are broken")) for one in prints if one not in whole]
    store = copy.copy(material.store)
    base = planned.adaptation.base.record
    named = {"encoder": planned.encoder, "adapter": fingerprint(adapters[::-1])}
    trained = f"{base.training_data}; then adapted (LoRA) to the training patients of each fold".lstrip("; ")
    record = base.model_copy(update={"name": planned.encoder, "training_data": trained})
    store.identity = {**store.identity, **named}
    store.provenance = {**store.provenance, **named, "record": record.model_dump(mode="json")}
    return replace(
        material, encoder=planned.encoder, cohort=planned.cohort.only(set(whole)), store=store,
        exclusions=(*planned.exclusions, *failed), features_fingerprint=whole,
        adaptation=_how_adapted(planned, n_epochs[::-1]),
    )  # fmt: skip


def _how_adapted(planned: AdaptedTask, n_epochs: list[int]) -> dict[str, Any]:
    spec, adaptation = planned.adaptation.spec, planned.adaptation
    return {
        "encoder_adapted": "by LoRA, anew in each fold: learnt from the slides of its training patients, stopped by "
        "those of its validation patients; slides of test patients were never shown to it",
        "adapter_layers": ", ".join(spec.adapter.targets),
        "adapter_rank": spec.adapter.rank,
        "adapter_alpha": spec.adapter.alpha,
        "adapter_dropout": spec.adapter.dropout,
        "adapter_tiles_of_a_slide": adaptation.n_tiles,
        "adapter_learning_rate": spec.learning_rate,
        "adapter_epochs_at_most": spec.epochs,
        "adapter_epochs_kept": ", ".join(map(str, n_epochs)),
        "adapter_files": "adapter/fold-K",
    }
