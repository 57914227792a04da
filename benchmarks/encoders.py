"""Images per second of each encoder, number format, runtime and size, beside a plain fp32 loop and the device's limit.

    python benchmarks/encoders.py --encoder dinov3-s --encoder efficientnet-lite0 --px 224 --px 512 \\
        --precision auto --precision fp32 --runtime torch --runtime openvino [--device cuda]

Untrained weights (speed does not depend on them; EfficientNet's come with a package) and preloaded uint8
tiles. ``plain`` is what one writes first: the network of timm in fp32, batches of 32, all cores on one batch,
pixels normalised beforehand. ``of limit`` is the arithmetic done each second over that of a large matrix
product in the same number format and the same run.

Other work on the machine disturbs the clock, so rounds of all contestants alternate and the best of each
counts, and on a CPU the last columns give what an idle machine would: images for each second of processor
time, and their share of the limit measured the same way. The load at the time stands below the table.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

_PLAIN_BATCH = 32
_DEFAULT = ["efficientnet-lite0", "dinov3-s", "resnet50", "resnet50-clam"]
_HEAD = (
    f"{'encoder':20s} {'px':>4s} {'format':>6s} {'runtime':>13s} {'images/s':>8s} {'of plain':>8s} {'GFLOP':>6s} "
    f"{'limit GFLOP/s':>13s} {'of limit':>8s} {'images/cpu-s':>12s} {'of limit':>8s}"
)


@dataclass
class Best:
    """The least time that one contestant took, by the clock and by the processor."""

    run: Callable[[], Any]
    seconds: float = float("inf")
    cpu_seconds: float = float("inf")


def main() -> None:
    """Print a line an encoder, size, number format and runtime."""
    options = _options()
    print(_HEAD)
    for name in options.encoder or _DEFAULT:
        for side_px in options.px or [None]:
            for line in _lines(name, side_px, options):
                print(line, flush=True)
    if hasattr(os, "getloadavg"):
        print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", action="append", help="by name; may be repeated")
    parser.add_argument("--px", action="append", type=int, help="input side; may be repeated; the record's by default")
    parser.add_argument("--precision", action="append", help="may be repeated; auto by default")
    parser.add_argument("--runtime", action="append", help="may be repeated; torch by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=0, help="0: 64 at 224 px on a CPU, fewer of larger ones")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def _lines(name: str, side_px: int | None, options: argparse.Namespace) -> Iterator[str]:
    encoders = list(_encoders(name, side_px, options))
    if not encoders:
        return
    first = encoders[0]
    tiles = _tiles(first, options)
    plain, gflop = _plain_loop(first.spec, tiles, first.device)
    contestants = {"plain": Best(plain)}
    for encoder in encoders:
        contestants[_key(encoder)] = Best(_embed(encoder, tiles))
        contestants[f"limit {encoder.precision}"] = Best(_matrix_product(encoder.device, encoder.precision))
    _compete(list(contestants.values()), options.rounds)
    plain_rate = len(tiles) / contestants["plain"].seconds
    yield (
        f"{name:20s} {first.input_px:4d} {'fp32':>6s} {'plain loop':>13s} {plain_rate:8.1f} {1:8.2f} {gflop:6.2f} "
        f"{'':13s} {'':8s} {len(tiles) / contestants['plain'].cpu_seconds:12.1f}"
    )
    for encoder in encoders:
        limit = contestants[f"limit {encoder.precision}"]
        yield _line(encoder, len(tiles), plain_rate, gflop, contestants[_key(encoder)], limit)


def _encoders(name: str, side_px: int | None, options: argparse.Namespace) -> Iterator[Any]:
    """Yield what can be loaded, each number format and runtime once; say why another cannot."""
    from wsi_dino.encoders.loading import load_encoder
    from wsi_dino.errors import EncoderError

    seen = set()
    seed = None if name == "efficientnet-lite0" else 0
    for runtime in options.runtime or ["torch"]:
        for precision in options.precision or ["auto"]:
            try:
                encoder = load_encoder(
                    name, random_weights=seed, device=options.device, precision=precision, runtime=runtime,
                    input_px=side_px,
                )  # fmt: skip
            except EncoderError as error:
                print(f"{name} {side_px or ''} {precision} {runtime}: {str(error).splitlines()[0]}", flush=True)
                continue
            if _key(encoder) not in seen:
                seen.add(_key(encoder))
                yield encoder


def _key(encoder: Any) -> str:
    return f"{encoder.runtime} {encoder.precision}"


def _tiles(encoder: Any, options: argparse.Namespace) -> np.ndarray:
    """Return enough images to keep the device busy for a second or so, a whole number of its batches on a GPU."""
    side = encoder.input_px
    n_images = options.images or max(8, round(64 * (224 / side) ** 2))
    if encoder.device != "cpu":
        n_images = options.images or 4 * encoder.batch_size
    return np.random.default_rng(0).integers(0, 256, (n_images, side, side, 3), dtype=np.uint8)


def _embed(encoder: Any, tiles: np.ndarray) -> Callable[[], None]:
    """Return a loop over the batches that the pipeline would give; the vectors come back, so the GPU has finished."""
    size = max(encoder.batch_size, 1)

    def run() -> None:
        for start in range(0, len(tiles), size):
            encoder.embed(tiles[start : start + size])

    return run


def _line(encoder: Any, n_images: int, plain_rate: float, gflop: float, ours: Best, limit: Best) -> str:
    work = limit.run()
    rate, limit_rate = n_images / ours.seconds, work / limit.seconds
    text = (
        f"{encoder.spec.name:20s} {encoder.input_px:4d} {encoder.precision:>6s} {encoder.runtime:>13s} {rate:8.1f} "
        f"{rate / plain_rate:8.2f} {gflop:6.2f} {limit_rate:13.0f} {rate * gflop / limit_rate:8.2f}"
    )
    if encoder.device != "cpu":
        return text
    cpu_rate = n_images / ours.cpu_seconds
    return f"{text} {cpu_rate:12.1f} {cpu_rate * gflop / (work / limit.cpu_seconds):8.2f}"


def _plain_loop(spec: Any, tiles: np.ndarray, device: str) -> tuple[Callable[[], None], float]:
    """Return the plain loop over all tiles, and the GFLOP of one image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from wsi_dino.encoders.registry import family_of

    network = family_of(spec).build(spec).eval().requires_grad_(False)
    if tiles.shape[1] != spec.input_px:
        network.fit_to(tiles.shape[1])
    network = network.to(device)
    pixels = torch.from_numpy(tiles[: 4 * _PLAIN_BATCH]).permute(0, 3, 1, 2).float().contiguous()
    pixels = pixels.div_(255).sub_(0.5).to(device)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network.vectors(pixels[:1], spec.pooling)
    repeats = -(-len(tiles) // len(pixels))

    def run() -> None:
        with torch.inference_mode():
            for _ in range(repeats):
                for batch in pixels.split(_PLAIN_BATCH):
                    network.vectors(batch, spec.pooling).cpu()

    return run, counter.get_total_flops() / 1e9


def _matrix_product(device: str, precision: str) -> Callable[[], float]:
    """Return a function that multiplies large matrices on all cores and says how many GFLOP that was.

    int8 is held against the product in bf16 where there is one: torch has no int8 product to compare with.
    """
    import torch

    from wsi_dino.encoders.devices import cpu_multiplies_bf16, dtype_of

    side, repeats = (2048, 4) if device == "cpu" else (8192, 20)
    dtype = dtype_of(precision)  # type: ignore[arg-type]
    if precision == "int8" and cpu_multiplies_bf16():
        dtype = torch.bfloat16
    matrix = torch.randn(side, side, device=device).to(dtype)

    def run() -> float:
        for _ in range(repeats):
            product = matrix @ matrix
        product[0, 0].item()  # waits for the GPU
        return repeats * 2 * side**3 / 1e9

    return run


def _compete(contestants: list[Best], rounds: int) -> None:
    for contestant in contestants:
        contestant.run()
    for _ in range(rounds):
        for contestant in contestants:
            start, cpu_start = time.perf_counter(), time.process_time()
            contestant.run()
            contestant.seconds = min(contestant.seconds, time.perf_counter() - start)
            contestant.cpu_seconds = min(contestant.cpu_seconds, time.process_time() - cpu_start)


if __name__ == "__main__":
    main()
