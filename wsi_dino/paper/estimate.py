"""What a plan will take: counts from the files, rates and bytes from short samples on this machine."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_dino.errors import WsiDinoError
from wsi_dino.paper.contestants import is_network
from wsi_dino.paper.kind import Context, Work
from wsi_dino.paper.kinds import KINDS
from wsi_dino.paper.plan import Plan
from wsi_dino.paper.roots import Entry
from wsi_dino.paper.running import INTERRUPTED
from wsi_dino.paper.step import flags
from wsi_dino.provenance import fingerprint
from wsi_dino.run_folder import RunFolder

if TYPE_CHECKING:
    from wsi_dino.encoders.rate import EncoderRate
    from wsi_dino.paper.running import RunCommand

_STAGE = "paper-rates"
_SAMPLE_S = 1.0
_SLIDES_TILED = 2


@dataclass(frozen=True)
class Estimate:
    """What encoding one dataset with one encoder takes.

    Attributes:
        dataset, encoder: of which.
        items, unit: how many slides, volumes, images or sections.
        forwards: images through the encoder; None where it could not be told.
        hours: of encoding, by the clock on this machine; None likewise, and of networks that encode nothing.
        disk_gb: of features, 10^9 bytes; None likewise.
        measured_on: the rate, and what was counted.
        left_out: what is not in it.
    """

    dataset: str
    encoder: str
    items: int
    unit: str
    forwards: int | None
    hours: float | None
    disk_gb: float | None
    measured_on: str
    left_out: str

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dict(vars(self))


def estimate_plan(
    plan: Plan, context: Context, run_command: RunCommand, say: Callable[[str], None]
) -> list[Estimate]:  # fmt: skip
    """Return an estimate for each dataset and encoder of the plan.

    Rates are kept below the run's ``.state``, so that a plan is measured once.

    Args:
        plan: what is to be run.
        context: data and weights.
        run_command: runs `tile` on a few slides.
        say: told what is measured.
    """
    pairs = dict.fromkeys((step.dataset, step.encoder) for step in plan.steps if step.encoder)
    works = {pair: _work(context.entries[pair[0]], pair[1], context, run_command, say) for pair in pairs}
    return [_estimate(pair, work, context, say) for pair, work in works.items()]


def _work(
    entry: Entry, encoder: str, context: Context, run_command: RunCommand, say: Callable[[str], None]
) -> Work | str:
    try:
        work = KINDS[entry.kind].work(entry, encoder)
        return _with_tiles(work, entry, context, run_command, say) if entry.kind == "slides" else work
    except WsiDinoError as error:  # the step itself will say it, and fail
        return str(error).splitlines()[0]


def _estimate(
    pair: tuple[str, str], work: Work | str, context: Context, say: Callable[[str], None]
) -> Estimate:  # fmt: skip
    if isinstance(work, str):
        return Estimate(*pair, 0, "items", None, None, None, "", f"could not be counted: {work}")
    if not work.images or is_network(pair[1]):
        return Estimate(*pair, work.items, work.unit, 0, None, 0.0, work.counted, work.left_out)
    try:
        rate = _rate(pair[1], work, context, say)
    except WsiDinoError as error:
        return Estimate(*pair, work.items, work.unit, round(work.images), None, None, work.counted,
                        f"not measured: {str(error).splitlines()[0]}")  # fmt: skip
    hours = work.images / rate.images_per_s / 3600
    disk = work.images * rate.output_bytes * work.kept / 1e9
    measured_on = f"{rate.sentence()}; {rate.output_bytes} bytes an image; {work.counted}"
    return Estimate(*pair, work.items, work.unit, round(work.images), hours, disk, measured_on, work.left_out)


def _rate(encoder: str, work: Work, context: Context, say: Callable[[str], None]) -> EncoderRate:
    from wsi_dino.encoders.rate import EncoderRate, measure_rate_of

    run = RunFolder(context.run)
    asked = [encoder, work.input_px, work.maps, context.device, context.workers]
    key = fingerprint(asked)
    row = run.read_row(_STAGE, key)
    if row is not None and row.get("asked") == asked:
        return EncoderRate(**row["rate"])
    say(f"measuring {encoder} at {work.input_px or 'its own'} px for {_SAMPLE_S:g} s")
    rate = measure_rate_of(
        encoder, input_px=work.input_px, device=context.device, workers=context.workers, maps=work.maps,
        weights=context.weights.get(encoder), weights_dir=context.weights_dir, sample_s=_SAMPLE_S,
    )  # fmt: skip
    run.write_row(_STAGE, key, {"asked": asked, "rate": {k: v for k, v in rate.as_dict().items()
                                                         if k != "images_per_s"}})  # fmt: skip
    return rate


def _with_tiles(
    work: Work, entry: Entry, context: Context, run_command: RunCommand, say: Callable[[str], None]
) -> Work:
    """Count the tiles of slides that are tiled already, or of some that are tiled now, in a folder of no worth."""
    options = entry.options_of("embed")
    input_px = options.get("input-px")
    kept = 0.5 if options.get("store-dtype") == "float16" else 1.0
    tiled = _tiles_of(context.run_of(entry) / "tiles.csv")
    counted = f"{len(tiled)} slides of the run tiled"
    if not tiled:
        say(f"tiling {min(_SLIDES_TILED, work.items)} slides of {entry.name} to see how many tiles they have")
        tiled = _sampled_tiles(entry, context, run_command)
        counted = f"{len(tiled)} slides tiled as a sample"
    if not tiled:
        return replace(work, left_out="no slide could be tiled: no tiles counted")
    mean = sum(tiled) / len(tiled)
    return replace(work, images=work.items * mean, input_px=None if input_px is None else int(input_px), kept=kept,
                   counted=f"{work.counted}, {mean:.0f} tiles each ({counted})")  # fmt: skip


def _sampled_tiles(entry: Entry, context: Context, run_command: RunCommand) -> list[int]:
    from wsi_dino.paper.kinds.slides import slides_folder, tile_options
    from wsi_dino.pathology.discovery import discover_slides

    slides = discover_slides(slides_folder(entry))
    step = max(1, len(slides) // _SLIDES_TILED)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "slides"
        place.mkdir()
        for source in slides[::step][:_SLIDES_TILED]:
            (place / source.path.name).symlink_to(source.path.resolve())
        run = Path(folder) / "run"
        words = ["tile", str(place), "--run", str(run), *flags(tile_options(entry)), *context.running_words()]
        if run_command(words, Path(folder) / "log") == INTERRUPTED:
            raise KeyboardInterrupt
        return _tiles_of(run / "tiles.csv")


def _tiles_of(path: Path) -> list[int]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return [int(row["tiles"]) for row in csv.DictReader(stream) if row.get("tiles")]
    except (OSError, ValueError):
        return []


def totals(estimates: Sequence[Estimate]) -> dict[str, Any]:
    """Return sums, how many estimates are not in them, and what no estimate holds: hours are of encoding alone.

    Examples:
        >>> totals([])["hours"]
        0
    """
    items: dict[str, int] = {}
    for (_, unit), n in {(e.dataset, e.unit): e.items for e in estimates}.items():
        items[unit] = items.get(unit, 0) + n
    known = [e for e in estimates if e.hours is not None]
    return {
        **items, "forwards": sum(e.forwards or 0 for e in known), "hours": sum(e.hours or 0 for e in known),
        "disk_gb": sum(e.disk_gb or 0 for e in known), "not_estimated": len(estimates) - len(known),
        "not_counted": list(dict.fromkeys(e.left_out for e in estimates if e.left_out)),
    }  # fmt: skip
