"""Options and ways of telling that chest X-rays and CT share: encoders, thresholds, figures by label."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from wsi_dino.cli import console
from wsi_dino.cli.embed import PrecisionName, encoder_choices, per_encoder
from wsi_dino.cli.options import MODEL_PANEL
from wsi_dino.cli.options import panel_option as _option
from wsi_dino.errors import ConfigError

if TYPE_CHECKING:
    from wsi_dino.encoders.record import EncoderSpec
    from wsi_dino.evaluation.label_evaluation import EvaluationSpec
    from wsi_dino.radiology.datasets.reader import DataRequest, Holds

MODEL, JUDGING = MODEL_PANEL, "Split and figures"
_SHOWN_LABELS = ["label", "positive", "prevalence", "auc", "low", "high", "check"]
_SHOWN_FAILURES = 10


class AspectName(StrEnum):
    """What becomes of an image that is not square."""

    pad = "pad"
    squash = "squash"
    crop = "crop"


class MissingPolicy(StrEnum):
    """What becomes of rows of the table without a file."""

    fail = "fail"
    skip = "skip"


class UnlistedPolicy(StrEnum):
    """What becomes of files of which the table does not speak."""

    ignore = "ignore"
    fail = "fail"


class DuplicatePolicy(StrEnum):
    """What becomes of rows that say what an earlier row says."""

    fail = "fail"
    drop = "drop"


DATA = "Data"
MissingOption = Annotated[
    MissingPolicy,
    _option(DATA, "--missing", help="Rows of the table without a file: fail (listed, exit code 1) or skip (counted).  "
            "[default: fail]"),
]  # fmt: skip
UnlistedOption = Annotated[
    UnlistedPolicy,
    _option(DATA, "--unlisted", help="Files of which the table does not speak: ignore (counted, listed) or fail.  "
            "[default: ignore]"),
]  # fmt: skip
DuplicatesOption = Annotated[
    DuplicatePolicy,
    _option(DATA, "--duplicates", help="Rows of a table that say what an earlier row says: fail or drop (counted, "
            "listed). Rows that contradict an earlier one always fail.  [default: fail]"),
]  # fmt: skip
PoolingOption = Annotated[
    list[str] | None,
    _option(MODEL, "--pooling", help="Token: cls, mean, cls+mean ...; NAME=POOLING for one of several encoders."),
]
WeightsOption = Annotated[
    list[str] | None, _option(MODEL, "--weights", help="Checkpoint file; NAME=FILE for one of several encoders.")
]
AdapterOption = Annotated[
    list[str] | None,
    _option(MODEL, "--adapter", help="Folder of a LoRA adapter; NAME=DIR for one of several encoders."),
]
PrecisionOption = Annotated[
    PrecisionName, _option(MODEL, "--precision", help="Number format of the network.  [default: auto]")
]
PlaceOption = Annotated[
    str, _option(MODEL, "--device", metavar="auto|cpu|cuda|mps", help="Where it runs.  [default: auto]")
]
FoldsOption = Annotated[
    int, _option(JUDGING, "--folds", min=2, help="By patient, where there is no split.  [default: 5]")
]
SeedOption = Annotated[
    int, _option(JUDGING, "--seed", min=0, help="Of folds, validation, probe, bootstrap.  [default: 0]")
]
ThresholdOption = Annotated[
    str,
    _option(
        JUDGING, "--threshold", metavar="POLICY|NUMBER",
        help="youden-, corner- or f1-on-validation, or a number for all labels; ...-on-test is optimistic and "
        "flagged.  [default: youden-on-validation]",
    ),
]  # fmt: skip
OptimisticOption = Annotated[
    bool, _option(JUDGING, "--optimistic", help="Show thresholds chosen on the test labels too, flagged.")
]
BootstrapOption = Annotated[
    int, _option(JUDGING, "--bootstrap", min=100, help="Resamples of patients.  [default: 1000]")
]


PicturesOption = Annotated[
    bool,
    _option(
        JUDGING, "--pictures/--no-pictures",
        help="What the encoder is shown, patches and similarities in the report; it takes some encoding.  "
        "[default: yes]",
    ),
]  # fmt: skip


def dataset_metavar(holds: Holds) -> str:
    """Return what `--dataset` takes: the registered data sets, or a table."""
    from wsi_dino.radiology.datasets.reader import dataset_readers

    return "|".join((*dataset_readers(holds), "TABLE.csv"))


def split_option(holds: Holds) -> Any:
    """Return the option `--split` with what each registered data set has."""
    from wsi_dino.radiology.datasets.reader import AUTO, FOLDS, dataset_readers

    readers = dataset_readers(holds).values()
    every = dict.fromkeys((AUTO, *(split for reader in readers for split in reader.splits), FOLDS))
    own = "; ".join(f"{reader.name} has {', '.join(reader.splits)}" for reader in readers if reader.splits)
    return _option(
        JUDGING, "--split", metavar="|".join(every),
        help=f"auto: the data set's own ({own}), the table's column subset, else folds by patient.  [default: auto]",
    )  # fmt: skip


def release_option(panel: str) -> Any:
    """Return the option `--release` with what each registered data set of volumes has."""
    from wsi_dino.radiology.datasets.reader import AUTO, dataset_readers

    readers = [reader for reader in dataset_readers("volumes").values() if reader.releases]
    own = "; ".join(f"{reader.name} has {', '.join(reader.releases)}" for reader in readers)
    return _option(
        panel, "--release", metavar="|".join((AUTO, *(name for reader in readers for name in reader.releases))),
        help=f"Of a data set's files: {own}; auto takes of each volume the first of these that is there.  "
        "[default: auto]",
    )  # fmt: skip


def data_request(
    labels: Sequence[str] | None, baselines: Sequence[str], split: str, release: str, duplicates: DuplicatePolicy
) -> DataRequest:
    """Return how a data set is to be read."""
    from wsi_dino.radiology.datasets.reader import DataRequest

    drop = duplicates == DuplicatePolicy.drop
    return DataRequest(tuple(split_names(labels or ())), tuple(baselines), split, release, drop)


def typed_command() -> str:
    """Return the command line as it was typed."""
    return shlex.join(["wsi-dino", *sys.argv[1:]])


def split_names(texts: Sequence[str]) -> list[str]:
    """Return names that were separated by commas or repeated."""
    return [name.strip() for text in texts for name in text.split(",") if name.strip()]


@dataclass(frozen=True)
class ProbedEncoder:
    """An encoder to be judged.

    Attributes:
        record: of it.
        settings: arguments of `load_encoder`, but for size and device.
        sides: in px, each judged by itself.
    """

    record: EncoderSpec
    settings: Mapping[str, Any]
    sides: tuple[int, ...]

    @property
    def name(self) -> str:
        """As it was asked for."""
        return str(self.settings["name"])


def probed_encoders(
    encoder: Sequence[str], sizes: Sequence[int] | None, *, pooling: Sequence[str] | None,
    weights: Sequence[str] | None, adapter: Sequence[str] | None, weights_dir: Path | None,
    random_weights: int | None, precision: PrecisionName,
) -> tuple[ProbedEncoder, ...]:  # fmt: skip
    """Return the encoders, each with its sizes: those asked for, else that of its adapter or its own.

    Raises:
        ConfigError, EncoderError, WeightsError: an option is wrong, or an encoder does not take a size.
    """
    names = list(dict.fromkeys(encoder))
    chosen = encoder_choices(
        names,
        pooling=per_encoder("--pooling", pooling, names),
        input_px={},
        weights=per_encoder("--weights", weights, names),
        adapter=per_encoder("--adapter", adapter, names),
        weights_dir=weights_dir,
        random_weights=random_weights,
        called=None,
        precision=precision.value,
        runtime="torch",
    )
    return tuple(ProbedEncoder(record, settings, _sides(record, settings, sizes)) for record, settings in chosen)


def _sides(record: EncoderSpec, settings: Mapping[str, Any], sizes: Sequence[int] | None) -> tuple[int, ...]:
    from wsi_dino.encoders.adapter import read_adapter
    from wsi_dino.encoders.loading import check_choices

    own = record.input_px if settings["adapter"] is None else read_adapter(settings["adapter"]).record.input_px
    sides = tuple(dict.fromkeys(sizes or (own,)))
    for side in sides:
        check_choices(record, settings["pooling"], side)
    return sides


def evaluation_spec(threshold: str, **settings: Any) -> EvaluationSpec:
    """Return how figures are made; `threshold` is a policy, or a number for all labels.

    Raises:
        ConfigError: it is neither.
    """
    from wsi_dino.errors import nearest_name
    from wsi_dino.evaluation.label_evaluation import EvaluationSpec
    from wsi_dino.evaluation.label_thresholds import POLICIES

    if threshold in POLICIES:
        return EvaluationSpec.model_validate({**settings, "threshold": threshold})
    try:
        value = float(threshold)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        near = nearest_name(threshold, POLICIES)
        raise ConfigError(
            f"--threshold {threshold}: expected a number from 0 to 1 or {', '.join(POLICIES)}.{near}"
        )  # fmt: skip
    return EvaluationSpec.model_validate({**settings, "threshold": "fixed", "fixed_threshold": value})


def print_labels(result: Mapping[str, Any]) -> None:
    """Print the figures of each label, their mean and the notes of one result."""
    check = result.get("check") or {"labels": {}, "summary": {}}
    rows = [_label_row(name, label, check["labels"].get(name, {})) for name, label in result["labels"].items()]
    total, checked = result["summary"]["auc_macro"], check["summary"].get("auc_macro", {})
    mean = {"label": "mean (auc_macro)", "auc": total["value"], "low": total["low"], "high": total["high"]}
    console.print_table([*rows, {**mean, "check": checked.get("value")}], _SHOWN_LABELS)
    for note in result["notes"]:
        print(f"note: {note}")


def _label_row(name: str, label: Mapping[str, Any], check: Mapping[str, Any]) -> dict[str, Any]:
    auc = label["auc"]
    return {
        "label": name,
        "positive": label["n_positive"],
        "prevalence": label["prevalence"],
        "auc": auc["value"],
        "low": auc["low"],
        "high": auc["high"],
        "check": check.get("auc", {}).get("value"),
    }


def say_failures(reasons: Sequence[tuple[str, str]], listed_in: str) -> None:
    """Tell the first failures, each with its reason, and in which file the others are."""
    for name, reason in reasons[:_SHOWN_FAILURES]:
        console.say(f"failed: {name}: {reason}")
    if len(reasons) > _SHOWN_FAILURES:
        console.say(f"failed: {len(reasons) - _SHOWN_FAILURES} more; {listed_in} lists all")


def told_as_json(results: Sequence[Mapping[str, Any]], table: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one result as it is, several under ``runs`` with their `table`.

    Of one encoder and its adapted twin, the adapted one stands at the top too.
    """
    if len(results) == 1:
        return dict(results[0])
    top = results[1] if len(results) == 2 and "frozen" in results[1] else {}
    return {**top, "runs": list(results), "table": list(table)}
