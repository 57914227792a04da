"""What every encoder must do, checked and measured: ``wsi-dino encoders check NAME``. Imports torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wsi_dino.encoders.check import Check, NotChecked, outcome, require
from wsi_dino.encoders.known_vectors import (
    KNOWN_FILE,
    TOLERANCE,
    KnownVector,
    made_with,
    read_known,
    require_moderate,
    seeded_encoder,
)
from wsi_dino.encoders.loading import load_encoder
from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.encoders.record_checks import BUILT_BELOW_M, RECORD_CHECKS
from wsi_dino.encoders.registry import get_record
from wsi_dino.encoders.running_checks import RUNNING_CHECKS, Subject
from wsi_dino.encoders.weights_files import find_files


@dataclass(frozen=True)
class ContractReport:
    """All checks of one encoder.

    Attributes:
        encoder: its name.
        weights: where the weights came from, in words.
        checks: in the order they were made.
        input_px, device, precision: what it ran with; None where it did not run.
        vector: digest of the known tile's vector with seeded weights, or None.
    """

    encoder: str
    weights: str
    checks: tuple[Check, ...]
    input_px: int | None = None
    device: str | None = None
    precision: str | None = None
    vector: KnownVector | None = None

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        plain = {key: value for key, value in vars(self).items() if key not in ("checks", "vector")}
        return {**plain, "passed": self.passed, "checks": [asdict(check) for check in self.checks]}


def check_encoder(
    name: str,
    *,
    weights: Path | None = None,
    random_weights: int | None = None,
    input_px: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    known: Path = KNOWN_FILE,
    always_measure: bool = False,
) -> ContractReport:
    """Return what was found when the encoder `name` was put to every check.

    The network is never asked for weights. Without weights on this machine it is run with random ones, which
    serve as well: all that is checked must hold for any.

    Args:
        name: as for `load_encoder`.
        weights: checkpoint to use, else what lies on this machine.
        random_weights: seed of an untrained network to use instead.
        input_px: side of the square the network sees; None for the record's.
        device: where to run, see `load_encoder`.
        precision: number format, see `load_encoder`.
        known: file of known vectors to compare with.
        always_measure: make the known vector also where there is none to compare with.

    Raises:
        UnknownEncoderError: no encoder has that name.
        EncoderError: weights, size, device or precision that were asked for are not to be had, or `known` is no
            file of known vectors.
    """
    record = get_record(name)
    expected = read_known(known).get(name)
    checks = [outcome("record", RECORD_CHECKS["record"], record)]
    if record.dimensions != 2:
        return ContractReport(name, "none: it takes volumes, and no command runs it", tuple(checks))
    checks += [outcome(title, check, record) for title, check in RECORD_CHECKS.items() if title != "record"]
    chosen = _choose_weights(record, weights, random_weights)
    ran: dict[str, Any] = {}
    if chosen.runs:
        encoder = load_encoder(
            name, weights=weights, random_weights=chosen.seed, input_px=input_px, device=device, precision=precision
        )
        ran = {"input_px": encoder.input_px, "device": encoder.device, "precision": encoder.precision}
        subject = Subject(encoder)
        checks += [outcome(title, check, subject) for title, check in RUNNING_CHECKS.items()]
        del encoder, subject  # its memory is needed for the next one
    vectors: list[KnownVector] = []

    def compare() -> str:
        require_moderate(record)
        if expected is None and not always_measure:
            raise NotChecked(f"{known.name} has none for {name} (--write-known FILE keeps one)")
        vectors.append(seeded_encoder(record)[1])
        return _compared(expected, vectors[0], known)

    checks.append(outcome("known vector", compare))
    return ContractReport(name, chosen.said, tuple(checks), vector=vectors[0] if vectors else None, **ran)


@dataclass(frozen=True)
class _Chosen:
    """Which weights are taken, in words; the seed of random ones; whether there are any."""

    said: str
    seed: int | None = None
    runs: bool = True


def _choose_weights(record: EncoderSpec, weights: Path | None, seed: int | None) -> _Chosen:
    if weights is not None:
        return _Chosen(f"those of {weights}")
    if seed is not None:
        return _Chosen(f"random, seed {seed}", seed)
    found = find_files(record)
    if found:
        return _Chosen(f"{found[0].path.name} ({_PLACES[found[0].source]})")
    if (record.parameters_m or 0) <= BUILT_BELOW_M:
        return _Chosen("random, seed 0, because there are none on this machine", 0)
    said = (
        f"none on this machine, and {record.parameters_m:g} million random ones are not made: only shapes are checked"
    )
    return _Chosen(f"{said}; --weights FILE or --random-weights SEED runs it", runs=False)


_PLACES = {
    "file": "from a folder",
    "package": "of an installed package",
    "cache": "of the hub's cache",
    "hub": "of the hub",
}


def _compared(expected: KnownVector | None, found: KnownVector, path: Path) -> str:
    if expected is None:
        raise NotChecked(f"{path.name} had none for it")
    if (expected.layout, expected.n_blocks) != (found.layout, found.n_blocks):
        raise NotChecked(f"the network's tensors have other names or shapes than with {made_with(path)}")
    require(
        expected.made_at == found.made_at,
        f"input sizes and pooling were {expected.made_at}, now they are {found.made_at}",
    )
    distance = found.difference(expected)
    cut = f", cut to {found.n_blocks} blocks" if found.n_blocks else ""
    text = f"{distance:.1g} from it (allowed: {TOLERANCE:g}) at {found.input_px} px, seeded weights{cut}"
    require(distance <= TOLERANCE, f"{text}: preparation, pooling or network changed")
    return text
