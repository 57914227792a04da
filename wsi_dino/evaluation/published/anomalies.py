"""The known list of what does not fit together in the paper."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from wsi_dino.errors import ResultError
from wsi_dino.evaluation.published.claims import Text, read_entries
from wsi_dino.evaluation.published.outcome import Verdict

Kind = Literal["program", "reading"]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KnownFinding(_Entry):
    """An outcome that is expected not to hold; the fields are those of `Outcome`.

    Attributes:
        check: name of the check that finds it.
    """

    check: str
    table: Text = ""
    row: str = ""
    column: str = ""
    printed: Text
    recomputed: Text
    verdict: Verdict


class Anomaly(_Entry):
    """One thing that does not fit.

    Attributes:
        id: number.
        title: in a line.
        kind: ``program``: checks find it. ``reading``: it takes a reader, or figures from elsewhere.
        table: where, as numbers; empty for the text alone.
        cell: where in it; empty where `findings` say so.
        printed, recomputed: the same for a reading, as far as there is something to compare.
        note: what is known of it, and what is not.
        findings: what the checks find, one by one; empty where an identity holds and that is the point.
    """

    id: int
    title: str
    kind: Kind
    table: Text = ""
    cell: str = ""
    printed: Text = ""
    recomputed: Text = ""
    note: str
    findings: tuple[KnownFinding, ...] = ()

    @model_validator(mode="after")
    def _reading_has_no_findings(self) -> Anomaly:
        if self.kind == "reading" and self.findings:
            raise ValueError("a reading has no findings of a program")
        return self


def read_anomalies(path: Path) -> tuple[Anomaly, ...]:
    """Read the list.

    Raises:
        ResultError: it is missing or broken; an id or a finding is there twice.
    """
    anomalies = read_entries(path, Anomaly)
    ids = Counter(anomaly.id for anomaly in anomalies)
    findings = Counter(finding for anomaly in anomalies for finding in anomaly.findings)
    twice = [f"id {number}" for number, n in ids.items() if n > 1]
    twice += [f"{finding.check} of {finding.row!r}, {finding.column!r}" for finding, n in findings.items() if n > 1]
    if twice:
        raise ResultError(f"{path}: there more than once: {'; '.join(twice)}.")
    return anomalies
