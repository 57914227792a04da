"""Tiles/s of `wsi-dino embed` over tiles/s of the bare model, its stages, and its peak memory.

    python benchmarks/embed.py [--encoder dinov3-s] [--slides FOLDER] [--work FOLDER] [--side-px 6000]
                               [--device auto] [--workers 0] [--repeats 3] [--memory]

Slides are those of FOLDER and one drawn into the work folder. Weights are random unless the encoder's come
with the package: the speed is the same. Printed, with the tiles of the first repeat that are alike in all:

- bare model: forward pass on normalised tensors that lie in memory, with the command's own threads;
- pipeline: `embed_slides` in this process, journals and feature files included, best of the repeats taken in
  turn with the bare model; the ratio of both, by the clock and by CPU seconds (a busy machine disturbs the
  clock more); how busy each stage was;
- reading alone: the same tiles through the reading threads with nobody encoding them;
- the whole command in a process of its own, and its start: the same command when all is done;
- with --memory: peak memory of the command over 1, 4 and 16 slides, and over 1 and 4 of four times the area,
  with the tiny encoder that timm keeps for tests.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.encoders.encoder import Encoder
from wsi_dino.encoders.loading import load_encoder
from wsi_dino.errors import WeightsError
from wsi_dino.pathology.discovery import SlideSource, discover_slides
from wsi_dino.pathology.embed_spec import EmbedSpec
from wsi_dino.pathology.embedding import EmbedOutcome, embed_slides
from wsi_dino.pathology.slide import open_slide
from wsi_dino.pathology.slide_tiler import TileRequest
from wsi_dino.pathology.synthetic import TissuePainter, write_pyramid
from wsi_dino.pathology.tile_grid import read_tile_grid
from wsi_dino.pathology.tile_reader import TileReader
from wsi_dino.pathology.tile_stream import TileStream
from wsi_dino.pathology.tiling import tile_slides
from wsi_dino.pathology.tiling_spec import TilingSpec
from wsi_dino.pathology.tissue_spec import TissueSpec
from wsi_dino.run_folder import RunFolder

_COMMAND = "from wsi_dino.cli import main; main()"
_TINY = "timm/test_vit.r160_in1k"


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    sources = discover_slides(arguments.slides) if arguments.slides else []
    sources.append(_drawn(arguments.work, "drawn", arguments.side_px))
    run = _tiled(arguments.work / "run", sources)
    n_tiles = sum(int(row["tiles"]) for row in run.rows("tile") if row["status"] == "done")
    encoder, weights = _load(arguments)
    print(f"{arguments.encoder} on {encoder.device} in {encoder.precision}, batches of {encoder.batch_size}; ", end="")
    print(f"{len(sources)} slides, {n_tiles} tiles")
    _print_speed(encoder, run, arguments.repeats, arguments.workers or os.cpu_count() or 1)
    _print_command(run, ["--encoder", arguments.encoder, "--device", arguments.device, *weights])
    if arguments.memory:
        _print_memory(arguments.work, arguments.side_px)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="dinov3-s")
    parser.add_argument("--slides", type=Path)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "wsi-dino-benchmark-embed")
    parser.add_argument("--side-px", type=int, default=6000, help="side of the drawn slide")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    return parser.parse_args()


def _drawn(work: Path, name: str, side_px: int) -> SlideSource:
    path = work / f"{name}-{side_px}.tif"
    if not path.exists():
        painter = TissuePainter(np.random.default_rng(side_px), (side_px, side_px), tumour=True)
        write_pyramid(path, painter, wh=(side_px, side_px), downsamples=(1, 4, 16))
    return SlideSource(path.stem, path)


def _tiled(folder: Path, sources: list[SlideSource]) -> RunFolder:
    shutil.rmtree(folder, ignore_errors=True)
    run = RunFolder(folder)
    tile_slides(sources, run, TileRequest(TissueSpec(), TilingSpec(mpp="native")))
    return run


def _load(arguments: argparse.Namespace) -> tuple[Encoder, list[str]]:
    options: dict[str, Any] = {"device": arguments.device, "workers": arguments.workers}
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # speed does not depend on weights: nothing is fetched
    try:
        return load_encoder(arguments.encoder, **options), []
    except WeightsError:
        return load_encoder(arguments.encoder, random_weights=0, **options), ["--random-weights", "0"]


def _print_speed(encoder: Encoder, run: RunFolder, repeats: int, workers: int) -> None:
    bare = _Measured(lambda: _bare(encoder))
    pipeline = _Measured(lambda: _pipeline(encoder, run, workers))
    for _ in range(repeats):
        bare.again()
        pipeline.again()
    outcome: EmbedOutcome = pipeline.result
    print(f"bare model      {bare.rate:8.1f} tiles/s  {bare.cpu_rate:8.1f} tiles a CPU second")
    print(f"pipeline        {pipeline.rate:8.1f} tiles/s  {pipeline.cpu_rate:8.1f} tiles a CPU second")
    print(f"ratio           {pipeline.rate / bare.rate:8.3f}          {pipeline.cpu_rate / bare.cpu_rate:8.3f}")
    shares = ", ".join(f"{stage} {share:.0%}" for stage, share in outcome.load.items())
    print(f"limited by {outcome.limited_by} (busy: {shares})")
    reading = _Measured(lambda: _reading(run, workers))
    reading.again()
    print(f"reading alone   {reading.rate:8.1f} tiles/s with {workers} threads")


class _Measured:
    """The best of several calls of something that returns how many tiles it did, and anything else."""

    def __init__(self, work: Callable[[], tuple[int, Any]]) -> None:
        self._work = work
        self.rate = self.cpu_rate = 0.0
        self.result: Any = None

    def again(self) -> None:
        cpu_s, begun = time.process_time(), time.perf_counter()
        n_tiles, self.result = self._work()
        self.rate = max(self.rate, n_tiles / (time.perf_counter() - begun))
        self.cpu_rate = max(self.cpu_rate, n_tiles / (time.process_time() - cpu_s))


def _bare(encoder: Encoder) -> tuple[int, None]:
    """The network alone: no decoding, no normalisation, no resizing."""
    import torch

    size = encoder.batch_size
    pixels = torch.randint(0, 256, (size, encoder.input_px, encoder.input_px, 3), dtype=torch.uint8)
    tensors = encoder._normalised(pixels)

    def forward(chunk: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return encoder._backbone.vectors(chunk, encoder.pooling)

    n_batches = max(2, 256 // size) if encoder.device == "cpu" else 40
    for _ in range(n_batches):
        for vectors in encoder._executor.run(forward, tensors):
            vectors.cpu()
    return n_batches * size, None


def _pipeline(encoder: Encoder, run: RunFolder, workers: int) -> tuple[int, EmbedOutcome]:
    _forget(run)
    outcome = embed_slides(run, [encoder], EmbedSpec(), workers=workers)
    return outcome.encoders[0].tiles_encoded, outcome


def _forget(run: RunFolder) -> None:
    shutil.rmtree(run.path / "features", ignore_errors=True)


class _OneSlide:
    """A slide's tiles for the stream alone."""

    def __init__(self, run: RunFolder, row: dict[str, Any]) -> None:
        self._grid = read_tile_grid(run.tiles / f"{row['slide_id']}.h5")
        self._reader = TileReader(open_slide(Path(row["path"])), self._grid)
        self.tile_px = self._grid.tile_px

    def blocks(self) -> Any:
        for start in range(0, len(self._grid), 64):
            stop = min(start + 64, len(self._grid))
            yield start, stop, np.arange(start, stop)

    def read_place(self, place: int) -> np.ndarray:
        return self._reader.read(place)


def _reading(run: RunFolder, workers: int) -> tuple[int, None]:
    rows = [row for row in run.rows("tile") if row["status"] == "done"]
    with TileStream((_OneSlide(run, row) for row in rows), workers) as stream:
        for event in stream:
            if hasattr(event, "pixels"):
                stream.release(event)
    return stream.n_read, None


def _command(run: RunFolder, options: list[str]) -> tuple[float, int]:
    """Run the command; return its seconds and peak memory in bytes."""
    begun = time.perf_counter()
    arguments = [sys.executable, "-c", _COMMAND, "embed", "--run", str(run.path), "--json", *options]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 1):
        raise SystemExit(f"{' '.join(arguments)} failed")
    return time.perf_counter() - begun, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _print_command(run: RunFolder, options: list[str]) -> None:
    _forget(run)
    n_tiles = sum(int(row["tiles"]) for row in run.rows("tile") if row["status"] == "done")
    whole_s, _ = _command(run, options)
    start_s, _ = _command(run, options)
    rate = n_tiles / (whole_s - start_s)
    print(f"command         {rate:8.1f} tiles/s without its start of {start_s:.1f} s (whole: {whole_s:.1f} s)")


def _print_memory(work: Path, side_px: int) -> None:
    small, large = _drawn(work, "small", side_px // 2), _drawn(work, "large", side_px)
    print(f"peak memory of the command with {_TINY} (this program: {_own_mib():.0f} MiB)")
    for name, path, n_slides in (("slides", small.path, 1), ("slides", small.path, 4), ("slides", small.path, 16),
                                 ("of 4x area", large.path, 1), ("of 4x area", large.path, 4)):  # fmt: skip
        sources = [SlideSource(f"copy{number}", path) for number in range(n_slides)]
        run = _tiled(work / "memory-run", sources)
        n_tiles = sum(int(row["tiles"]) for row in run.rows("tile"))
        _, peak = _command(run, ["--encoder", _TINY, "--random-weights", "0"])
        print(f"  {n_slides:2d} {name:10} {n_tiles:6d} tiles  {peak / 2**20:7.0f} MiB", flush=True)


def _own_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
