"""`wsi-dino encoders check NAME`: an encoder of ours or of the user's put to the contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_dino.cli import console
from wsi_dino.errors import ConfigError

if TYPE_CHECKING:
    from wsi_dino.encoders.contract import ContractReport

_MARKS = {True: "ok", False: "FAILED", None: "-"}


@dataclass(frozen=True)
class CheckRequest:
    """Options of `wsi-dino encoders check`."""

    weights: Path | None = None
    random_weights: int | None = None
    px: int | None = None
    device: str = "auto"
    precision: str = "auto"
    known: Path | None = None
    write_known: Path | None = None


def check_encoders(names: Sequence[str], request: CheckRequest, *, as_json: bool) -> None:
    """Check each of `names` and leave with 1 when a check failed."""
    if not names:
        raise ConfigError(
            "wsi-dino encoders check: name the encoder to check, as in `wsi-dino encoders check dinov3-s`."
        )
    if request.weights is not None and (len(names) > 1 or request.random_weights is not None):
        raise ConfigError("--weights FILE goes with one encoder and without --random-weights.")
    from wsi_dino.encoders.registry import get_record

    for name in names:  # a wrong name costs no import of torch
        get_record(name)
    reports = []
    for name in names:
        reports.append(_report(name, request))
        if not as_json:
            _print(reports[-1])
    if as_json:
        console.print_json({"command": "encoders check", "encoders": [report.as_dict() for report in reports]})
    if request.write_known is not None:
        _write_known(request.write_known, reports)
    console.leave(sum(not report.passed for report in reports))


def _report(name: str, request: CheckRequest) -> ContractReport:
    from wsi_dino.encoders.contract import check_encoder
    from wsi_dino.encoders.known_vectors import KNOWN_FILE

    return check_encoder(
        name,
        weights=request.weights,
        random_weights=request.random_weights,
        input_px=request.px,
        device=request.device,
        precision=request.precision,
        known=request.known or KNOWN_FILE,
        always_measure=request.write_known is not None,
    )


def _print(report: ContractReport) -> None:
    ran = f"; {report.input_px} px, {report.precision} on {report.device}" if report.input_px else ""
    print(f"{report.encoder}: weights: {report.weights}{ran}")
    width = max(len(check.name) for check in report.checks)
    for check in report.checks:
        print(f"  {_MARKS[check.passed]:6s}  {check.name:{width}s}  {check.measured}")
    n_failed = sum(check.passed is False for check in report.checks)
    print(f"{report.encoder}: {'all checks passed' if report.passed else f'{n_failed} checks failed'}", flush=True)


def _write_known(path: Path, reports: Sequence[ContractReport]) -> None:
    from wsi_dino.encoders.known_vectors import read_known, write_known

    vectors = read_known(path) if path.is_file() else {}
    vectors |= {report.encoder: report.vector for report in reports if report.vector is not None}
    write_known(path, vectors)
    console.say(f"{path} holds the known vectors of {', '.join(sorted(vectors))}")
