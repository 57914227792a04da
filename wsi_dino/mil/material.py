"""What a task is learnt from: labelled slides that have features, and why the others are left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_dino.encoders.adapter import is_adapted_to_a_fold
from wsi_dino.errors import CohortError, ConfigError, FeatureFileError, nearest_name
from wsi_dino.evaluation.cohort import Cohort, read_cohort, read_columns
from wsi_dino.feature_file import read_provenance
from wsi_dino.mil.bags import BagStore, features_fingerprint
from wsi_dino.mil.tasks import Task, find_column
from wsi_dino.run_folder import RunFolder, safe_name

BROKEN = "broken feature file"
NOT_LABELLED = ("no value for the target", "no row in the labels")
_SHOWN = 3


@dataclass(frozen=True)
class Exclusion:
    """A slide that takes no part: why, in few words that many slides share, and in detail."""

    slide_id: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Material:
    """Slides with a label and features.

    Attributes:
        task: with `target` as the label table spells it.
        encoder: as its feature files name it.
        cohort: the slides that take part.
        store: their features.
        paths: their feature files.
        exclusions: all others, sorted by reason and slide.
        has_patient_id: whether the label table has that column.
        features_fingerprint: for each slide, changes with its features.
        adaptation: how the encoder was adapted to each fold, to be told; None for a frozen encoder.
    """

    task: Task
    encoder: str
    cohort: Cohort
    store: BagStore
    paths: Mapping[str, Path]
    exclusions: tuple[Exclusion, ...]
    has_patient_id: bool
    features_fingerprint: Mapping[str, str]
    adaptation: Mapping[str, Any] | None = None

    @property
    def n_broken(self) -> int:
        """Slides that failed here, which the exit code tells."""
        return sum(exclusion.reason == BROKEN for exclusion in self.exclusions)

    @property
    def labelled_left_out(self) -> tuple[Exclusion, ...]:
        """Slides that have a label and take no part all the same."""
        return tuple(exclusion for exclusion in self.exclusions if exclusion.reason not in NOT_LABELLED)


def choose_encoders(run: RunFolder, asked: Iterable[str]) -> list[str]:
    """Return the encoders to use: those asked for, or the only one that the run has features of.

    What ``--adapt lora`` made of an encoder for its own folds is not counted.

    Raises:
        ConfigError: the run has no features, none of that name, or several and nobody chose.
    """
    present = run.encoders()
    if not present:
        advice = f"Run `wsi-dino embed --run {run.path} --encoder NAME` first."
        raise ConfigError(f"Looking for features in {run.path / 'features'}: there are none. {advice}")
    chosen = list(dict.fromkeys(asked))
    for name in chosen:
        if safe_name(name) not in present:
            raise ConfigError(
                f"Looking for features of encoder {name!r} in {run.path}: there are none.{nearest_name(name, present)} "
                f"Features there are: {', '.join(present)}. `wsi-dino embed --encoder {name}` makes them."
            )
    plain = [name for name in present if not is_adapted_to_a_fold(name)]
    if not chosen and len(plain) != 1:
        raise ConfigError(
            f"The run {run.path} has features of several encoders: {', '.join(plain or present)}. "
            "Choose with --encoder NAME; it may be given more than once."
        )
    return chosen or plain


def read_labels(task: Task, labels: Path) -> tuple[Task, Cohort, bool]:
    """Read the label table: the task with the column's own spelling, the cohort, whether it names patients.

    Raises:
        CohortError: something is wrong with the table.
    """
    columns = read_columns(labels)
    target = find_column(task, list(columns))
    cohort = read_cohort(labels, target, classes=task.classes, class_of=task.class_of(columns[target]))
    return task.model_copy(update={"target": target}), cohort, "patient_id" in columns


def gather_material(
    run: RunFolder, task: Task, encoder: str, labels: Path, *, allow_random_weights: bool = False,
    allow_seen: bool = False,
) -> Material:  # fmt: skip
    """Bring the label table and the feature files of one encoder together; every bag is read once.

    Args:
        run: the run folder.
        task: what is predicted.
        encoder: whose features.
        labels: the label table.
        allow_random_weights: see `BagStore`.
        allow_seen: accept features of an adapter that has learnt from some of these slides, as long as the
            caller sees to it that none of them is tested.

    Raises:
        CohortError: something is wrong with the table, no slide of it has features, or a class is left empty.
        FeatureFileError: files of different encoders or settings, or of random weights that were not allowed,
            or of an adapter that has seen these slides.
    """
    task, everyone, has_patient_id = read_labels(task, labels)
    paths = {path.stem: path for path in sorted(run.features(encoder).glob("*.h5"))}
    wanted = {slide_id: paths[slide_id] for slide_id in everyone.slide_ids if slide_id in paths}
    if not wanted:
        raise _no_overlap(labels, list(everyone.slide_ids), run.features(encoder), list(paths))
    readable, broken = _readable(wanted)
    if not readable:
        raise FeatureFileError(f"Reading features in {run.features(encoder)}: all are broken. {broken[0].detail}")
    store = BagStore(readable, allow_random_weights=allow_random_weights)
    fingerprints, unreadable = _read_all(store, readable)
    cohort = everyone.only(set(fingerprints))
    if not allow_seen:
        _refuse_seen(encoder, cohort, store)
    exclusions = [*broken, *unreadable, *_without_features(run, encoder, everyone, paths)]
    exclusions += [Exclusion(slide_id, "no tile", "its feature file is empty") for slide_id in store.empty]
    exclusions += _without_label(everyone, paths)
    return Material(
        task, _full_name(encoder, store), cohort, store, readable,
        tuple(sorted(exclusions, key=lambda row: (row.reason, row.slide_id))),
        has_patient_id, fingerprints,
    )  # fmt: skip


def _refuse_seen(encoder: str, cohort: Cohort, store: BagStore) -> None:
    seen = [slide_id for slide_id in cohort.slide_ids if slide_id in store.seen_by_adapter]
    if seen:
        raise FeatureFileError(
            f"Collecting features of {encoder}: its adapter has learnt from {len(seen)} of these {len(cohort)} slides "
            f"({', '.join(seen[:_SHOWN])} ...), so that no figure on them would be of held-out slides. Use slides it "
            "has not seen, or let each fold learn its own adapter with --adapt lora."
        )


def _full_name(folder_name: str, store: BagStore) -> str:
    """Return the encoder's own name where the folder has a safe form of it; features made elsewhere name none."""
    stated = str(store.identity.get("encoder") or "")
    return stated if safe_name(stated) == safe_name(folder_name) else folder_name


def _readable(paths: Mapping[str, Path]) -> tuple[dict[str, Path], list[Exclusion]]:
    readable, broken = {}, []
    for slide_id, path in paths.items():
        try:
            read_provenance(path)
            readable[slide_id] = path
        except FeatureFileError as error:
            broken.append(Exclusion(slide_id, BROKEN, _without_folder(error, path)))
    return readable, broken


def _read_all(store: BagStore, paths: Mapping[str, Path]) -> tuple[dict[str, str], list[Exclusion]]:
    fingerprints, broken = {}, []
    for slide_id in store.slide_ids:
        try:
            features = store.features(slide_id)
        except FeatureFileError as error:
            broken.append(Exclusion(slide_id, BROKEN, _without_folder(error, paths[slide_id])))
            continue
        fingerprints[slide_id] = features_fingerprint(features)
    return fingerprints, broken


def _without_folder(error: Exception, path: Path) -> str:
    """Results hold no path of the machine that made them."""
    return str(error).replace(f"{path.parent}/", "")


def _without_features(run: RunFolder, encoder: str, cohort: Cohort, paths: Mapping[str, Path]) -> list[Exclusion]:
    result = []
    for slide_id in cohort.slide_ids:
        if slide_id in paths:
            continue
        row = run.read_row("tile", slide_id) or {}
        embedded = run.read_row(f"embed-{encoder}", slide_id) or {}
        row = embedded if embedded.get("status") == "failed" else row
        status, why = row.get("status"), _relative(row)
        if status == "failed":
            result.append(Exclusion(slide_id, "the slide failed", why))
        elif status == "empty":
            result.append(Exclusion(slide_id, "no tissue found", why))
        else:
            detail = "tiled, but not embedded" if status == "done" else "the run does not know this slide"
            result.append(Exclusion(slide_id, "no features", detail))
    return result


def _relative(row: Mapping[str, Any]) -> str:
    """Return why a slide failed, without the folder it lies in."""
    reason, path = str(row.get("reason") or ""), str(row.get("path") or "")
    return reason.replace(f"{Path(path).parent}/", "") if path else reason


def _without_label(cohort: Cohort, paths: Mapping[str, Path]) -> list[Exclusion]:
    known = set(cohort.slide_ids) | set(cohort.unlabelled)
    result = [Exclusion(slide_id, "no value for the target") for slide_id in cohort.unlabelled]
    return result + [Exclusion(slide_id, "no row in the labels") for slide_id in paths if slide_id not in known]


def _no_overlap(labels: Path, labelled: list[str], folder: Path, with_features: list[str]) -> CohortError:
    stems = {Path(slide_id).stem for slide_id in labelled}
    if stems & set(with_features):
        advice = "The table's ids carry a file ending: leave it off."
    else:
        advice = "A slide_id is the slide's file name without its ending."
    return CohortError(
        f"Matching {labels} with {folder}: no slide_id of the table has features. "
        f"Table: {', '.join(labelled[:_SHOWN])} ...; features: {', '.join(with_features[:_SHOWN])} ... {advice}"
    )
