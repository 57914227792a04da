"""Short samples of what a command would do, and what they mean for all of it; one function a command."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsi_dino.errors import ConfigError

_HEADERS = 20  # volumes whose length is looked up
_BYTES_A_VALUE = 4


@dataclass
class Estimate:
    """What a command would take.

    Attributes:
        items: what workers divide, each an `item` in words.
        tiles: of all slides, or None.
        images: that go through an encoder, all encoders together.
        hours: of one worker by device; None where no sample says it.
        measured: on what, in words.
        disk_bytes: of results.
        memory_bytes: of this process after the sample.
        not_counted: in words.
    """

    items: int
    item: str
    tiles: int | None = None
    images: int = 0
    hours: dict[str, float | None] = field(default_factory=dict)
    measured: list[str] = field(default_factory=list)
    disk_bytes: int | None = None
    memory_bytes: int = 0
    not_counted: list[str] = field(default_factory=list)

    def add_images(self, n_images: int, given: Mapping[str, Any], sample_s: float, sizes: Sequence[int] = ()) -> int:
        """Measure each encoder and add its hours for `n_images`; return bytes of one image's vectors, all of them."""
        from wsi_dino.encoders.loading import load_encoder
        from wsi_dino.encoders.rate import measure_rate

        n_bytes = 0
        for name in dict.fromkeys(given["encoder"]):
            for side in sizes or (_own_side(given, name),):
                encoder = load_encoder(  # untrained: it is as fast, and no weights are fetched for a plan
                    name, input_px=side, device=str(given["device"]).split(",")[0], random_weights=0,
                    precision=str(given.get("precision") or "auto"), runtime=str(given.get("runtime") or "torch"),
                    workers=given.get("workers") or 0,
                )  # fmt: skip
                rate = measure_rate(encoder, sample_s=sample_s)
                self.measured.append(rate.sentence())
                device = f"{rate.device} ({rate.device_name})"
                self.hours[device] = (self.hours.get(device) or 0.0) + n_images / rate.images_per_s / 3600
                self.images += n_images
                n_bytes += rate.output_bytes
        self.note_memory()
        return n_bytes

    def note_memory(self) -> None:
        """Take the largest memory of this process so far."""
        self.memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _own_side(given: Mapping[str, Any], name: str) -> int | None:
    from wsi_dino.cli.embed import per_encoder

    text = per_encoder("--input-px", given.get("input_px"), list(given["encoder"])).get(name)
    return int(text) if text and text.isdecimal() else None


def plan_tile(asked: Any, sample_s: float) -> Estimate:
    """Tile some slides, spread over all by size, into a folder that is thrown away."""
    from wsi_dino.cli.tile import make_request, on_command_line
    from wsi_dino.pathology.discovery import discover_slides
    from wsi_dino.pathology.tiling import tile_slides
    from wsi_dino.run_folder import RunFolder

    given = asked.params
    sources = sorted(discover_slides(Path(given["slides"])), key=lambda source: source.path.stat().st_size)
    sizes = {source.slide_id: source.path.stat().st_size for source in sources}
    request = make_request(given, explicit=on_command_line(asked))
    rows: list[dict[str, Any]] = []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        for place in _spread(len(sources)):
            rows += tile_slides([sources[place]], run, request, workers=1)
            if time.perf_counter() - began > sample_s:
                break
        n_bytes = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
    seconds = time.perf_counter() - began
    scale = sum(sizes.values()) / max(1, sum(sizes[row["slide_id"]] for row in rows))
    n_tiles = sum(int(row.get("tiles") or 0) for row in rows)
    estimate = Estimate(len(sources), "slides", tiles=round(n_tiles * scale), disk_bytes=round(n_bytes * scale))
    estimate.hours["cpu, one thread"] = seconds * scale / 3600
    estimate.measured.append(
        f"{len(rows)} slides of {len(sources)} in {seconds:.1f} s, scaled by the size of the files"
    )
    estimate.note_memory()
    return estimate


def _spread(n: int) -> list[int]:
    """Return places in an order in which every beginning is spread over all: the middle, the quarters ..."""
    places: list[int] = []
    step = 1.0
    while step * n > 0.5 and len(places) < n:
        step /= 2
        places += [int(n * step * k) for k in range(1, round(1 / step), 2)]
    return list(dict.fromkeys([*places, *range(n)]))


def plan_embed(asked: Any, sample_s: float) -> Estimate:
    """Count the tiles that `tile` has cut, and measure the encoders."""
    from wsi_dino.run_folder import RunFolder

    given = asked.params
    run = RunFolder(Path(given["run"])).require()
    tiles = [int(row.get("tiles") or 0) for row in run.rows("tile") if row.get("status") == "done"]
    if not tiles:
        raise ConfigError(f"plan embed: no slide of {run.path} is tiled. `wsi-dino plan tile ...` comes before it.")
    estimate = Estimate(len(tiles), "slides", tiles=sum(tiles))
    n_bytes = estimate.add_images(sum(tiles), given, sample_s)
    values = 2 if str(given.get("store_dtype")) == "float16" else 4
    estimate.disk_bytes = sum(tiles) * (n_bytes * values // _BYTES_A_VALUE + 16)  # and two coordinates
    estimate.not_counted.append("reading slides, which goes on meanwhile and is the limit where the encoder is faster")
    return estimate


def plan_ct(asked: Any, sample_s: float) -> Estimate:
    """Count volumes, look up the length of some, and measure the encoders."""
    given = asked.params
    rows, n_slices, looked = _ct_slices(given)
    estimate = Estimate(rows, "volumes")
    sizes = tuple(dict.fromkeys(given.get("size") or ()))
    n_bytes = estimate.add_images(n_slices, given, sample_s, sizes)
    estimate.measured.append(f"slices of {looked} volumes, scaled by their number")
    kept = n_slices if str(given.get("pool")) == "attention" else 4 * rows  # mean, max, mean and spread
    estimate.disk_bytes = kept * n_bytes
    estimate.not_counted.append("decoding volumes, which goes on meanwhile, and the probe")
    return estimate


def _ct_slices(given: Mapping[str, Any]) -> tuple[int, int, int]:
    from wsi_dino.errors import WsiDinoError
    from wsi_dino.radiology.datasets.reader import DataRequest, read_volumes
    from wsi_dino.volumes.reading import open_volume

    table = read_volumes(given["dataset"], Path(given["root"]), DataRequest()).limited(given["limit"])
    lengths = []
    for place in _spread(len(table.rows))[:_HEADERS]:
        row = table.rows[place]
        try:
            volume = open_volume(row.path, rescale=row.rescale, spacing_mm=row.spacing_mm, hu="auto")
        except WsiDinoError:
            continue
        lengths.append(len(volume.voxels))
    if not lengths:
        raise ConfigError("plan: none of the volumes looked at can be read.")
    return len(table.rows), round(len(table.rows) * sum(lengths) / len(lengths)), len(lengths)


def plan_chest(asked: Any, sample_s: float) -> Estimate:
    """Count images and measure the encoders."""
    from wsi_dino.radiology.datasets.reader import DataRequest, read_images

    given = asked.params
    images = read_images(given["dataset"], Path(given["root"]), DataRequest()).limited(given["limit"])
    n_images = sum(file is not None for file in images.files)
    estimate = Estimate(n_images, "images")
    n_bytes = estimate.add_images(n_images, given, sample_s, tuple(dict.fromkeys(given.get("size") or ())))
    estimate.disk_bytes = n_images * n_bytes
    estimate.not_counted.append("decoding images, which goes on meanwhile, and the probe")
    return estimate


def plan_by_rows(prefix: str, item: str) -> Callable[[Any, float], Estimate]:
    """Return a plan from what the run has done already: such work is only known once some of it is done."""

    def plan(asked: Any, sample_s: float) -> Estimate:
        from wsi_dino.run_folder import RunFolder
        from wsi_dino.run_status import RunReader

        run = RunFolder(Path(asked.params["run"]))
        stages = [stage for stage in RunReader(run).read().stages if stage.stage.startswith(prefix)]
        seconds = [float(row["seconds"]) for stage in stages for row in run.rows(stage.stage) if row.get("seconds")]
        left = sum(stage.left for stage in stages)
        estimate = Estimate(sum(stage.items for stage in stages), item)
        estimate.hours["this machine"] = left * sum(seconds) / len(seconds) / 3600 if seconds else None
        if seconds:
            estimate.measured.append(f"{len(seconds)} items that this run has done; {left} are left")
        else:
            estimate.not_counted.append(
                f"hours: nothing of it has been done in {run.path}. Run the command with --shard 1/50, then plan again."
            )
        estimate.note_memory()
        return estimate

    return plan


# of each command; its options come as click's context
SAMPLES: dict[str, Callable[[Any, float], Estimate]] = {
    "tile": plan_tile,
    "embed": plan_embed,
    "mil": plan_by_rows("mil-", "folds"),
    "radiology chest-xray": plan_chest,
    "radiology ct": plan_ct,
    "radiology segment": plan_by_rows("seg", "steps"),
    "radiology em": plan_by_rows("em", "steps"),
}
