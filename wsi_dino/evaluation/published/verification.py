"""Do the paper's tables contradict each other where they are known to, and nowhere else?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wsi_dino.errors import ResultError
from wsi_dino.evaluation.published.anomalies import Anomaly, KnownFinding, read_anomalies
from wsi_dino.evaluation.published.claim_checks import check_claims
from wsi_dino.evaluation.published.claims import Claim, CountedSum, read_entries
from wsi_dino.evaluation.published.outcome import Check, Outcome, Published
from wsi_dino.evaluation.published.overlap_checks import (
    check_dice_below_f1,
    check_dice_is_not_precision,
    check_distances,
    check_gain_of_size,
    check_no_overlap,
)
from wsi_dino.evaluation.published.printed_table import FOLDER, read_rows, read_tables
from wsi_dino.evaluation.published.share_checks import (
    check_auc_and_accuracy,
    check_cells,
    check_one_test_set,
    check_operating_point,
    check_test_set,
)
from wsi_dino.evaluation.published.sum_checks import (
    check_counts,
    check_datasets,
    check_msd_averages,
    check_sizes_present,
    check_split_and_merge,
    check_voi_sums,
)

_DATASET_FIELDS = ("dataset", "counted_as", "track", "described_in_section")

CHECKS = (
    Check("cells", "Every cell is a number within the bounds of its unit", check_cells),
    Check("counts", "Parts that the text counts add up to the whole", check_counts),
    Check("datasets", "Every dataset of a table is described; 14 of 3D segmentation", check_datasets),
    Check("sizes", "Every table has rows of DINOv3-S, -B and -L", check_sizes_present),
    Check("claims", "What the text says of the tables is what they show", check_claims),
    Check("auc-accuracy", "The row of best AUC is not the one of worst accuracy", check_auc_and_accuracy),
    Check("one-test-set", "Rows of one test set imply one share of positives", check_one_test_set),
    Check("test-set", "Whole-slide rows imply the share of positives of their test set", check_test_set),
    Check("operating-point", "Rows of a block call about as many cases positive", check_operating_point),
    Check("msd-average", "Average = mean of the ten MSD tasks", check_msd_averages),
    Check("size-gain", "A larger network gains alike in Tables 6 and 7", check_gain_of_size),
    Check("voi-sum", "VOI = split + merge", check_voi_sums),
    Check("split-merge", "Rows split at least as much as they merge, as all classic ones do", check_split_and_merge),
    Check("dice-precision", "Dice is not precision once more", check_dice_is_not_precision),
    Check("dice-f1", "Mean Dice is at most F1 of mean precision and recall", check_dice_below_f1),
    Check("no-overlap", "Where recall is 0, precision is 0", check_no_overlap),
    Check("distances", "HD95 is no longer than a body", check_distances),
)


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Attributes:
        check: the check.
        outcomes: all that it looked at.
    """

    check: Check
    outcomes: tuple[Outcome, ...]

    def count(self, verdict: str) -> int:
        """Return how many outcomes have a verdict."""
        return sum(outcome.verdict == verdict for outcome in self.outcomes)


@dataclass(frozen=True)
class Verification:
    """The whole answer.

    Attributes:
        results: of each check, in order.
        known: number of the anomaly that each expected finding belongs to.
        new: what does not hold and is not on the list.
        gone: what is on the list and was not found, with the number of its anomaly.
        anomalies: the list.
        claims: what the text says, by the name that outcomes of the check ``claims`` have as their row.
    """

    results: tuple[CheckResult, ...]
    known: Mapping[KnownFinding, int]
    new: tuple[KnownFinding, ...]
    gone: tuple[tuple[int, KnownFinding], ...]
    anomalies: tuple[Anomaly, ...]
    claims: Mapping[str, Claim]

    @property
    def as_known(self) -> bool:
        """Whether exactly the known list was found."""
        return not self.new and not self.gone

    def to_record(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "as_known": self.as_known,
            "checks": [_check_record(result, self.known) for result in self.results],
            "new": [finding.model_dump() for finding in self.new],
            "gone": [{"anomaly": number, **finding.model_dump()} for number, finding in self.gone],
            "anomalies": [anomaly.model_dump() for anomaly in self.anomalies],
            "claims": [claim.model_dump() for claim in self.claims.values()],
        }


def _check_record(result: CheckResult, known: Mapping[KnownFinding, int]) -> dict[str, Any]:
    counts = {verdict: result.count(verdict) for verdict in ("holds", "rounding", "differs")}
    outcomes = [
        {**asdict(outcome), "anomaly": known.get(finding_of(result.check, outcome))} for outcome in result.outcomes
    ]
    return {"check": result.check.name, "title": result.check.title, **counts, "outcomes": outcomes}


def finding_of(check: Check, outcome: Outcome) -> KnownFinding:
    """Return an outcome in the form of the known list."""
    return KnownFinding(check=check.name, **asdict(outcome))


def read_published(folder: Path = FOLDER) -> Published:
    """Read tables, counts and claims.

    Raises:
        ResultError: a file is missing or broken.
    """
    return Published(
        read_tables(folder),
        tuple(read_rows(folder / "datasets.csv", _DATASET_FIELDS)),
        read_entries(folder / "counts.yaml", CountedSum),
        read_entries(folder / "claims.yaml", Claim),
    )


def verify_paper(folder: Path = FOLDER) -> Verification:
    """Recompute every identity, and compare what does not hold with the known list.

    Args:
        folder: CSV and YAML files as shipped; a copy of them to try something.

    Raises:
        ResultError: a file is missing or broken.
    """
    if not folder.is_dir():
        raise ResultError(f"Verifying the paper: {folder} is not a folder of its tables.")
    published = read_published(folder)
    anomalies = read_anomalies(folder / "anomalies.yaml")
    results = tuple(CheckResult(check, tuple(check.run(published))) for check in CHECKS)
    found = [
        finding_of(result.check, outcome)
        for result in results for outcome in result.outcomes if outcome.verdict != "holds"
    ]  # fmt: skip
    known = {finding: anomaly.id for anomaly in anomalies for finding in anomaly.findings}
    new = tuple(finding for finding in found if finding not in known)
    gone = tuple((number, finding) for finding, number in known.items() if finding not in set(found))
    claims = {claim.id: claim for claim in published.claims}
    return Verification(results, known, new, gone, anomalies, claims)
