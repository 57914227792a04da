"""What a task is learnt from: labelled slides that have features, and why the others are left out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wsi_dino.encoders.adapter import is_adapted_to_a_fold
from wsi_dino.errors import CohortError, ConfigError, FeatureFileError, SplitError, nearest_name
from wsi_dino.evaluation.cohort import Cohort
from wsi_dino.evaluation.split import SUBSETS
from wsi_dino.feature_file import read_provenance
from wsi_dino.mil.bags import BagStore, features_fingerprint
from wsi_dino.mil.targets import AnyTarget, target_of
from wsi_dino.mil.task_labels import Labels, read_labels
from wsi_dino.mil.tasks import Task
from wsi_dino.run_folder import RunFolder, safe_name

BROKEN = "broken feature file"
NOT_LABELLED = ("no value for the target", "no row in the labels")
_SHOWN = 3
_MOST_NOTES = 10


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
        table: for each slide its whole row of the label table.
        subset_of: ``train``, ``val`` or ``test`` of each patient where the task's scheme fixes it; else empty.
        permuted_labels: seed with which the labels were permuted; None = they are the true ones.
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
    table: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    subset_of: Mapping[str, str] = field(default_factory=dict)
    permuted_labels: int | None = None
    adaptation: Mapping[str, Any] | None = None

    @property
    def target_kind(self) -> AnyTarget:
        """What kind of target it is, with the settings of the task."""
        return target_of(self.cohort, self.task)

    @property
    def n_broken(self) -> int:
        """Slides that failed here, which the exit code tells."""
        return sum(exclusion.reason == BROKEN for exclusion in self.exclusions)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the column ``note`` of the label table says, each text once, in table order."""
        texts = tuple(dict.fromkeys(text for row in self.table.values() if (text := row.get("note", ""))))
        if len(texts) > _MOST_NOTES:  # somebody's remarks on single slides
            return (f"The column note of the label table holds {len(texts)} different texts; they are not repeated.",)
        return texts

    @property
    def centre_of(self) -> dict[str, str]:
        """The column ``centre`` of the label table, for each slide that has one."""
        return {slide_id: row["centre"] for slide_id, row in self.table.items() if row.get("centre")}

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


def gather_material(
    run: RunFolder, task: Task, encoder: str, labels: Path, *, allow_random_weights: bool = False,
    allow_seen: bool = False,
) -> Material:  # fmt: skip
    """Bring the label table and the feature files of one encoder together; every bag is read once.

    Of a task with an external test cohort both sides are brought together here: the slides of the label
    table are of subset ``train``, those of `Scheme.test_labels` with features in `Scheme.test_run` ``test``.

    Args:
        run: the run folder.
        task: what is predicted.
        encoder: whose features.
        labels: the label table.
        allow_random_weights: see `BagStore`.
        allow_seen: accept features of an adapter that has learnt from some of these slides, as long as the
            caller sees to it that none of them is tested.

    Raises:
        CohortError: something is wrong with a table, no slide of it has features, or a class is left empty.
        FeatureFileError: files of different encoders or settings, or of random weights that were not allowed,
            or of an adapter that has seen these slides.
        SplitError: a patient of the test cohort is one of those to train on.
    """
    sides = [_gather_side(run, task, encoder, labels, test=False)]
    if task.scheme.kind == "external":
        test_run = RunFolder(task.scheme.test_run).require() if task.scheme.test_run else run
        sides.append(_gather_side(test_run, task, encoder, task.scheme.test_labels or labels, test=True))
        _check_apart(task, *sides)
    readable = {slide_id: path for side in sides for slide_id, path in side.readable.items()}
    store = BagStore(readable, allow_random_weights=allow_random_weights)
    fingerprints, unreadable = _read_all(store, readable)
    cohort = _one_cohort([side.labels.cohort for side in sides]).only(set(fingerprints))
    if not allow_seen:
        _refuse_seen(encoder, cohort, store)
    others = [e for side in sides for e in side.exclusions if e.slide_id not in fingerprints]  # on no side
    exclusions = [*dict.fromkeys(others), *unreadable]
    exclusions += [Exclusion(slide_id, "no tile", "its feature file is empty") for slide_id in store.empty]
    table = {one: row for side in sides for one, row in side.labels.rows.items() if one in fingerprints}
    return Material(
        sides[0].labels.task, _full_name(encoder, store), cohort, store, readable,
        tuple(sorted(exclusions, key=lambda row: (row.reason, row.slide_id))),
        all(side.labels.has_patient_id for side in sides), fingerprints, table,
        subsets_of(task, cohort, table, sides[0].labels.cohort.patients),
    )  # fmt: skip


@dataclass(frozen=True)
class _Side:
    """One label table with the feature files of its slides."""

    labels: Labels
    readable: dict[str, Path]
    exclusions: list[Exclusion]


def _gather_side(run: RunFolder, task: Task, encoder: str, labels: Path, *, test: bool) -> _Side:
    told = read_labels(task, labels, test=test)
    paths = {path.stem: path for path in sorted(run.features(encoder).glob("*.h5"))}
    wanted = {slide_id: paths[slide_id] for slide_id in told.cohort.slide_ids if slide_id in paths}
    if not wanted:
        raise _no_overlap(labels, list(told.cohort.slide_ids), run.features(encoder), list(paths))
    readable, broken = _readable(wanted)
    if not readable:
        raise FeatureFileError(f"Reading features in {run.features(encoder)}: all are broken. {broken[0].detail}")
    without = [*_without_features(run, encoder, told.cohort, paths), *_without_label(told.cohort, paths, told.names)]
    return _Side(told, readable, [*broken, *without])


def _check_apart(task: Task, train: _Side, test: _Side) -> None:
    """A slide or patient on both sides would leak."""
    slides = sorted(set(train.labels.rows) & set(test.labels.rows))
    patients = sorted(set(train.labels.cohort.patients) & set(test.labels.cohort.patients))
    for kind, shared in (("slide", slides), ("patient", patients)):
        if shared:
            raise SplitError(
                f"Testing task {task.name} on another cohort: {len(shared)} {kind}s stand in both it and the training "
                f"table ({', '.join(shared[:_SHOWN])}). The result would leak; ids of different cohorts must differ."
            )


def _one_cohort(cohorts: Sequence[Cohort]) -> Cohort:
    first = cohorts[0]
    for other in cohorts[1:]:
        if first.kind == "classes" and other.class_names != first.class_names:
            raise CohortError(
                f"Testing on another cohort: its classes of {other.target!r} are {', '.join(other.class_names)}, those "
                f"to train on {', '.join(first.class_names)}. Name `classes:` in the task."
            )
    rows = tuple(row for cohort in cohorts for row in cohort.rows)
    unlabelled = tuple(slide_id for cohort in cohorts for slide_id in cohort.unlabelled)
    longest = max((cohort.class_names for cohort in cohorts), key=len)  # combinations of labels; else all are equal
    return replace(first, rows=rows, class_names=longest, unlabelled=unlabelled)


def subsets_of(
    task: Task, cohort: Cohort, table: Mapping[str, Mapping[str, str]], trained_on: Collection[str] = ()
) -> dict[str, str]:
    """Return the subset of each patient where the task's scheme fixes it, else nothing.

    Args:
        task: with the scheme.
        cohort: slides that take part.
        table: row of each slide in its label table.
        trained_on: patients of the training table, where the scheme tests on another cohort.

    Raises:
        SplitError: a row names no subset, or a patient stands in two.
    """
    if task.scheme.kind == "external":
        return {patient: "train" if patient in trained_on else "test" for patient in cohort.patients}
    if task.scheme.kind == "k-fold":
        return {}
    subset_of: dict[str, str] = {}
    for row in cohort.rows:
        subset = table[row.slide_id][task.scheme.column].strip().lower()
        if subset not in SUBSETS:
            raise SplitError(
                f"Splitting task {task.name} by column {task.scheme.column!r}: expected train, val or test, got "
                f"{subset!r} for slide {row.slide_id}. Leave such slides out with `keep:` under `scheme:`."
            )
        if subset_of.setdefault(row.patient_id, subset) != subset:
            raise SplitError(
                f"Splitting task {task.name} by column {task.scheme.column!r}: patient {row.patient_id} stands in "
                f"{subset_of[row.patient_id]} and {subset}. A patient belongs to one subset, or the result would leak."
            )
    return subset_of


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


def _without_label(cohort: Cohort, paths: Mapping[str, Path], table: Collection[str]) -> list[Exclusion]:
    """Slides that the scheme leaves out have a row in `table` and are no loss to tell."""
    result = [Exclusion(slide_id, "no value for the target") for slide_id in cohort.unlabelled]
    return result + [Exclusion(slide_id, "no row in the labels") for slide_id in paths if slide_id not in table]


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
