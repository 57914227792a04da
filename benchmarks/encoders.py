"""Images per second of each encoder, beside a plain fp32 loop of the same network and the processor's own limit.

    python benchmarks/encoders.py --encoder dinov3-s --encoder efficientnet-lite0 [--precision auto] [--px 224]

Untrained weights (speed does not depend on them) and preloaded uint8 tiles. ``plain`` is what one
writes first: the network of timm in fp32, batches of 32, all cores on one batch, pixels normalised
beforehand. ``of limit`` is the arithmetic done each second over that of a large matrix product in the
same number format and the same run. Rounds of all contestants alternate and the best of each counts,
so that other work on the machine disturbs all alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

_PLAIN_BATCH = 32


def main() -> None:
    """Print one line an encoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", action="append", help="by name; may be repeated")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--px", type=int, default=None, help="input side; the record's by default")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{'encoder':20s} {'px':>4s} {'format':>6s} {'plain/s':>8s} {'ours/s':>8s} {'gain':>5s} "
          f"{'GFLOP':>6s} {'limit GFLOP/s':>13s} {'of limit':>8s}")  # fmt: skip
    for name in options.encoder or ["efficientnet-lite0", "dinov3-s", "resnet50", "resnet50-clam"]:
        print(_line(name, options), flush=True)


def _line(name: str, options: argparse.Namespace) -> str:
    from wsi_dino.encoders.loading import load_encoder

    encoder = load_encoder(
        name, random_weights=0, device=options.device, precision=options.precision, input_px=options.px
    )
    side = encoder.input_px
    tiles = np.random.default_rng(0).integers(0, 256, (options.images, side, side, 3), dtype=np.uint8)
    plain, gflop = _plain_loop(encoder.spec, tiles, encoder.device)
    limit = _matrix_product(encoder.device, encoder.precision)
    contestants: dict[str, Callable[[], Any]] = {
        "plain": plain,
        "ours": lambda: encoder.embed(tiles),
        "limit": limit,
    }
    seconds = _best_seconds(contestants, options.rounds)
    plain_rate, our_rate = (len(tiles) / seconds[key] for key in ("plain", "ours"))
    limit_rate = limit() / seconds["limit"]
    return (
        f"{name:20s} {side:4d} {encoder.precision:>6s} {plain_rate:8.1f} {our_rate:8.1f} {our_rate / plain_rate:5.1f} "
        f"{gflop:6.2f} {limit_rate:13.0f} {our_rate * gflop / limit_rate:8.2f}"
    )


def _plain_loop(spec: Any, tiles: np.ndarray, device: str) -> tuple[Callable[[], None], float]:
    """Return the plain loop over all tiles, and the GFLOP of one image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from wsi_dino.encoders.registry import family_of

    network = family_of(spec).build(spec).eval().to(device)
    pixels = torch.from_numpy(tiles).permute(0, 3, 1, 2).float().contiguous().div_(255).sub_(0.5).to(device)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network.vectors(pixels[:1], spec.pooling)

    def run() -> None:
        with torch.inference_mode():
            for batch in pixels.split(_PLAIN_BATCH):
                network.vectors(batch, spec.pooling).cpu()

    return run, counter.get_total_flops() / 1e9


def _matrix_product(device: str, precision: str) -> Callable[[], float]:
    """Return a function that multiplies large matrices on all cores and says how many GFLOP that was."""
    import torch

    from wsi_dino.encoders.devices import dtype_of

    side, repeats = (2048, 4) if device == "cpu" else (8192, 20)
    matrix = torch.randn(side, side, device=device).to(dtype_of(precision))  # type: ignore[arg-type]

    def run() -> float:
        for _ in range(repeats):
            product = matrix @ matrix
        product[0, 0].item()
        return repeats * 2 * side**3 / 1e9

    return run


def _best_seconds(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    best = dict.fromkeys(contestants, float("inf"))
    for run in contestants.values():
        run()
    for _ in range(rounds):
        for key, run in contestants.items():
            start = time.perf_counter()
            run()
            best[key] = min(best[key], time.perf_counter() - start)
    return best


if __name__ == "__main__":
    main()
