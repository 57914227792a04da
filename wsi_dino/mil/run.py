"""A whole cross-validated task: material, split, folds that survive being killed, figures, files, report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wsi_dino.errors import ConfigError
from wsi_dino.evaluation.cohort import Cohort
from wsi_dino.evaluation.leaks import Finding
from wsi_dino.evaluation.report import Example, render_report
from wsi_dino.evaluation.report_looking import LookingSection
from wsi_dino.evaluation.split import Split, make_folds, make_repeats, read_split, write_split
from wsi_dino.item_queue import ItemQueue
from wsi_dino.mil.attention_file import SlideAttention, read_attention
from wsi_dino.mil.centre_section import centre_section, centre_warning
from wsi_dino.mil.class_target import ClassTarget
from wsi_dino.mil.cross_validation import FoldResult, held_out, summarise
from wsi_dino.mil.examples import SlidePictures, choose_examples, choose_extremes, make_example, render_heatmaps
from wsi_dino.mil.fold_work import FoldFiles, Learning, fold_item, fold_number, learn_fold
from wsi_dino.mil.leak_check import check_material
from wsi_dino.mil.looking import (
    PICTURES_FOLDER,
    Looked,
    LookingRequest,
    first_of_each_slide,
    look,
    make_section,
    remove_earlier,
    write_top_tiles,
)
from wsi_dino.mil.material import Material
from wsi_dino.mil.metrics_file import build_metrics
from wsi_dino.mil.report_content import Telling, report_input
from wsi_dino.mil.statistics_section import statistics_section
from wsi_dino.mil.target_sections import target_section
from wsi_dino.mil.tasks import Task
from wsi_dino.provenance import fingerprint, remove_stale_temporaries, without_nan, write_json_atomically
from wsi_dino.provenance import write_text_atomically as write_text
from wsi_dino.run_folder import RunFolder
from wsi_dino.share import end_part

Report = Callable[..., None]
Bars = Callable[[str, str], AbstractContextManager[Report]]
OfFold = Callable[[int], Material]
_NO_CENTRES = "Figures by centre are made for targets of classes alone: there are none here."
_RESULTS = ("metrics.json", "predictions.csv", "report.html", "splits.csv")


@dataclass(frozen=True)
class MilRequest:
    """What is asked of a task besides its material.

    Attributes:
        learning: how each fold is learnt.
        folds: how many; None = what the task's scheme says, or 5; not used with `splits`.
        seed: of the split and the bootstrap (that of training is in `learning.spec`).
        splits: table of folds to use instead.
        n_resamples: of the bootstrap.
        heatmaps: for how many held-out slides, those with the highest score first.
        with_report: write report.html.
        telling: what the report says besides the results.
        seeds: models of a scheme with a fixed test set; None = what the scheme says.
        top_tiles: how many of each class and end; none without a report.
        faithfulness: of how many held-out slides the attention is tested by removing tiles.
    """

    learning: Learning
    folds: int | None = 5
    seed: int = 0
    splits: Path | None = None
    n_resamples: int = 2000
    heatmaps: int = 0
    with_report: bool = True
    telling: Telling = field(default_factory=Telling)
    seeds: int | None = None
    top_tiles: int = 8
    faithfulness: int = 0

    @property
    def looking(self) -> LookingRequest:
        """What is looked at."""
        top_tiles = self.top_tiles if self.with_report else 0
        return LookingRequest(top_tiles, self.faithfulness, self.n_resamples, self.seed, self.learning.device)


@dataclass(frozen=True)
class MilOutcome:
    """What came of a task.

    Attributes:
        folder: ``RUN/mil/TASK/ENCODER``, of another model than ABMIL ``RUN/mil/TASK/ENCODER+MODEL``.
        metrics: the content of metrics.json.
        n_reused: folds that were finished before.
        no_heatmap: slides whose heatmap could not be made, and why.
        report: path of report.html, or None when none was asked for.
    """

    folder: Path
    metrics: dict[str, Any]
    n_reused: int
    no_heatmap: dict[str, str]
    report: Path | None


@contextmanager
def _no_bar(title: str, unit: str) -> Iterator[Report]:
    yield lambda *_, **__: None


def make_split(task: Task, cohort: Cohort, subset_of: Mapping[str, str], left_out: bool, request: MilRequest) -> Split:
    """Deal the patients into folds, or read how they are to be dealt.

    Args:
        task: names the scheme.
        cohort: the slides that take part.
        subset_of: subset of each patient where the scheme fixes it; else empty.
        left_out: whether labelled slides take no part; their patients may stand in a published split.
        request: how.

    Raises:
        SplitError: too few patients of a class, or the table does not fit.
    """
    if request.splits is None and subset_of:
        scheme, n = task.scheme, request.seeds or task.scheme.seeds
        what = f"column {scheme.column}" if scheme.kind == "fixed" else "trained here, tested on another cohort"
        return make_repeats(cohort, subset_of, n, request.seed, what)
    if request.splits is None:
        return make_folds(cohort, request.folds or task.scheme.folds or 5, request.seed)
    return read_split(request.splits, cohort, ignore_unknown=left_out)


def run_mil(
    run: RunFolder, material: Material, request: MilRequest, *, pictures: SlidePictures | None = None,
    bars: Bars = _no_bar, say: Callable[[str], None] = lambda _: None, split: Split | None = None,
    of_fold: OfFold | None = None,
) -> MilOutcome:  # fmt: skip
    """Cross-validate a task and write everything about it to ``RUN/mil/TASK/ENCODER``.

    Folds are shared with other processes that run the same command, finished ones are not learnt again,
    and the files are the same to the bit however often it was interrupted.

    Args:
        run: the run folder.
        material: labelled slides with features.
        request: what is asked.
        pictures: reads slides for report and heatmaps; without it the report has no pictures.
        bars: opens a progress bar by title and unit.
        say: tells what the leak check has found, and when the figures are computed.
        split: the folds; None to make them as `request` says.
        of_fold: gives the slides and features of one fold by its number, where folds have their own.

    Raises:
        SplitError, CohortError, FeatureFileError: the input cannot be used.
        StorageError: the disk is full or the folder cannot be written.
    """
    task = open_task(run, material, request, bars=bars, say=say, split=split, of_fold=of_fold)
    with bars("folds", "epochs") as progress:
        _work(task, progress)
    return finish_task(task, pictures=pictures, bars=bars)


@dataclass(frozen=True)
class OpenTask:
    """A task whose folds are known and not all learnt.

    Attributes:
        run: the run folder.
        material: labelled slides with features.
        request: what was asked.
        split: the folds.
        of_fold: slides and features of one fold by its number.
        leaks: what the leak check has found.
        files: where the folds leave their files.
        queue: the folds that are still to be learnt.
        identity: changes with anything that can change a result of the task.
    """

    run: RunFolder
    material: Material
    request: MilRequest
    split: Split
    of_fold: OfFold
    leaks: Sequence[Finding]
    files: FoldFiles
    queue: ItemQueue
    identity: str


def open_task(
    run: RunFolder, material: Material, request: MilRequest, *, bars: Bars = _no_bar,
    say: Callable[[str], None] = lambda _: None, split: Split | None = None, of_fold: OfFold | None = None,
) -> OpenTask:  # fmt: skip
    """Deal the folds, look for leaks, and take away results of another request; arguments as of `run_mil`."""
    left_out = bool(material.labelled_left_out)
    split = split or make_split(material.task, material.cohort, material.subset_of, left_out, request)
    of_fold = of_fold or (lambda number: material)
    leaks = _check_leaks(run, material, split, bars, say)
    name = request.learning.result_name(material.encoder)
    files = FoldFiles(run.mil(material.task.name, name))
    items = [fold_item(of_fold(number), fold, number, request.learning) for number, fold in enumerate(split)]
    identity = fingerprint([item.fingerprint for item in items], request.n_resamples, request.seed)
    _start(run, files.folder, f"{material.task.name}-{name}", identity)
    queue = ItemQueue(run, f"mil-{material.task.name}-{name}", items, files.is_intact, is_divided=True)
    return OpenTask(run, material, request, split, of_fold, leaks, files, queue, identity)


def finish_task(task: OpenTask, *, pictures: SlidePictures | None = None, bars: Bars = _no_bar) -> MilOutcome:
    """Write results and report of a task whose folds are all learnt; arguments as of `run_mil`.

    Raises:
        PartDone: this process has a part of the folds (`share`), and it is done.
    """
    run, material, request, split = task.run, task.material, task.request, task.split
    end_part(f"mil {material.task.name} {request.learning.result_name(material.encoder)}", task.queue.rows())
    folder, files, queue, leaks, identity = task.files.folder, task.files, task.queue, task.leaks, task.identity
    name = request.learning.result_name(material.encoder)
    rows = queue.rows()
    results = [FoldResult.from_record(row["result"]).judged(material.target_kind) for row in rows]
    evenness = [value for row in rows for value in row["evenness"].values()]
    metrics = _figures(material, split, request, results, evenness, identity, leaks)
    if request.learning.search:
        metrics["search"] = {"space": request.learning.search_space(), "folds": [row["search"] for row in rows]}
    files.remove_others({folder / name for row in rows for name in row["files"]})
    looked = _look(task, results, bars)
    metrics |= looked.metrics if looked else {}
    missing = _write_results(run, folder, material, split, request, results, metrics, pictures, bars, looked)
    run.write_row("mil", f"{material.task.name}-{name}", {"identity": identity})
    report = folder / "report.html" if request.with_report else None
    return MilOutcome(folder, metrics, queue.n_reused, missing, report)


def _figures(
    material: Material, split: Split, request: MilRequest, results: Sequence[FoldResult], evenness: Sequence[float],
    identity: str, leaks: Sequence[Finding],
) -> dict[str, Any]:  # fmt: skip
    """Return the content of metrics.json."""
    target, resampling = material.target_kind, {"n_resamples": request.n_resamples, "seed": request.seed}
    summary = summarise(results, target, **resampling)
    metrics = build_metrics(material, split, request.learning, results, summary, evenness, identity)
    told = [finding.text for finding in sorted(leaks, key=lambda finding: not finding.is_grave)]
    metrics |= {"leaks": [finding.to_record() for finding in leaks], "centres": None}
    if isinstance(target, ClassTarget):
        centres = centre_section(material, split, results, **resampling)
        own = centre_warning(centres)
        metrics |= {"centres": centres}
        metrics |= statistics_section(held_out(results, target), metrics["calibration"], **resampling)
    else:
        own = [_NO_CENTRES] if material.centre_of else []
        metrics |= target_section(target, results, summary["summary"], **resampling)
    metrics["warnings"] = [*told, *metrics["warnings"], *own]
    return without_nan(metrics)


def _look(task: OpenTask, results: Sequence[FoldResult], bars: Bars) -> Looked | None:
    """Look at tiles of each class; None where there are no classes."""
    if not isinstance(task.material.target_kind, ClassTarget):
        return None
    files = task.files
    rows = [row for result in results for row in result.predictions if row["subset"] == "test"]
    with bars("looking", "slides") as progress:
        return look(
            files, task.of_fold, rows,
            lambda row: read_attention(files.attention(int(row["fold"]), str(row["slide_id"]))),
            task.request.looking, progress,
        )  # fmt: skip


def _show_looked(
    run: RunFolder, folder: Path, looked: Looked, material: Material, pictures: SlidePictures | None
) -> LookingSection:  # fmt: skip
    """Write the table and the pictures of tiles; return what the report shows of them."""
    section = make_section(looked, material.cohort.class_names, pictures)
    write_top_tiles(run, folder, looked.tiles)
    for picture in section.pictures:
        picture.save(folder / PICTURES_FOLDER)
    return section


def _check_leaks(
    run: RunFolder, material: Material, split: Split, bars: Bars, say: Callable[[str], None]
) -> list[Finding]:
    other = material.task.scheme.test_run
    with bars("leak check", "pictures") as progress:
        leaks = check_material(material, split, [run, *([RunFolder(other)] if other else [])], progress)
    for finding in leaks:
        say(f"leak check: {finding.text}")
    return leaks


def _start(run: RunFolder, folder: Path, key: str, identity: str) -> None:
    """Take away results of another request: they must never lie beside models they do not belong to."""
    for subfolder in (folder, folder / "model", folder / "heatmaps", *folder.glob("attention/*")):
        if subfolder.is_dir():
            remove_stale_temporaries(subfolder)
    earlier = run.read_row("mil", key) or {}
    if earlier.get("identity") != identity:
        remove_earlier(folder)
        for path in [*(folder / name for name in _RESULTS), *folder.glob("heatmaps/*.png"), *folder.glob("figures/*")]:
            path.unlink(missing_ok=True)


def _work(task: OpenTask, progress: Report) -> None:
    epochs, n_folds = task.request.learning.spec.epochs * task.request.learning.n_trainings, len(task.split)
    progress(0, total=n_folds * epochs)
    while (claimed := task.queue.take()) is not None:
        number = fold_number(claimed.item)
        shown = EpochProgress(progress, f"fold {number + 1} of {n_folds}", epochs)
        try:
            row = learn_fold(task.of_fold(number), task.split, number, task.request.learning, task.files, shown)
        except BaseException:
            task.queue.give_back(claimed)
            raise
        task.queue.finish(claimed, row)
        shown.finish()
    progress(task.queue.n_reused * epochs)


class EpochProgress:
    """Moves the bar by epochs; the ones that early stopping saves come at once at the end."""

    def __init__(self, progress: Report, name: str, epochs: int) -> None:
        self._progress, self._name, self._left = progress, name, epochs

    def __call__(self, row: dict[str, float]) -> None:
        self._left -= 1
        text = f"{self._name}, epoch {row['epoch'] + 1:.0f}, validation loss {row['val_loss']:.3f}"
        self._progress(1, text=text)

    def finish(self) -> None:
        self._progress(self._left, text=f"{self._name} done")


def _write_results(
    run: RunFolder, folder: Path, material: Material, split: Split, request: MilRequest,
    results: Sequence[FoldResult], metrics: dict[str, Any], pictures: SlidePictures | None, bars: Bars,
    looked: Looked | None,
) -> dict[str, str]:  # fmt: skip
    rows = [row for result in results for row in result.predictions]
    column = material.target_kind.score_column
    test_rows = [row for row in rows if row["subset"] == "test"]
    files = FoldFiles(folder)

    def read(row: Mapping[str, Any]) -> SlideAttention:
        return read_attention(files.attention(int(row["fold"]), str(row["slide_id"])))

    write_split(folder / "splits.csv", split)
    run.write_table(folder / "predictions.csv", rows, list(rows[0]))
    # several seeds test the same slides: each is shown once
    ranked = [{**row, "score": float(row[column])} for row in first_of_each_slide(test_rows)]
    if request.with_report:
        examples = _examples(material, results, ranked, read, pictures)
        content = report_input(material, request.learning.spec, request.telling, results, metrics, test_rows, examples)
        if looked is not None:
            content = replace(content, looking=_show_looked(run, folder, looked, material, pictures))
        write_text(folder / "report.html", render_report(content))
        for picture in content.part.pictures if content.part else ():
            picture.save(folder / "figures")
    write_json_atomically(folder / "metrics.json", metrics)
    if not request.heatmaps:
        return {}
    if pictures is None:
        raise ConfigError("Heatmaps were asked for, but nothing can read slides here.")
    wanted = sorted(ranked, key=lambda row: (-row["score"], str(row["slide_id"])))[: request.heatmaps]
    with bars("heatmaps", "slides") as progress:
        progress(0, total=len(wanted))
        return render_heatmaps(wanted, read, folder / "heatmaps", pictures, progress)


def _examples(
    material: Material, results: Sequence[FoldResult], ranked: Sequence[Mapping[str, Any]],
    read: Callable[[Mapping[str, Any]], SlideAttention], pictures: SlidePictures | None,
) -> list[Example]:  # fmt: skip
    if not isinstance(material.target_kind, ClassTarget):
        return [make_example(row, read(row), (), pictures) for row in choose_extremes(ranked)]
    classes = material.cohort.class_names
    thresholds = {result.fold: result.threshold.value if result.threshold else None for result in results}
    chosen = choose_examples(ranked, thresholds, classes)
    return [make_example(row, read(row), classes, pictures) for row in chosen]
