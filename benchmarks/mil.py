"""Bags a second of ABMIL training, beside a plain loop and beside the processor's matrix products.

Run ``python benchmarks/mil.py [--device cuda] [--bags 1000] [--tiles 1000] [--dim 384] [--models 25]``. These
things are measured in many short turns, each on other bags, so that a neighbour on the machine
disturbs all of them alike, and the median of each and of their ratio is printed:

- *ours*: `train_fold`, an epoch of training without its validation;
- *plain*: the same model, one bag at a time, fp32, autograd, ``torch.optim.AdamW``, a step a bag;
- *together* (with ``--models N``): `train_together` of N models over the same bags, bags counted once a model;
- *matmul*: a square-ish matrix product in the precision that ours uses, with the same threads.

The arithmetic counted is that of the matrix products: forward, backward, without the gradient of
the features (nobody needs it). Dropout, tanh, softmax and the optimiser count as nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from wsi_dino.mil.abmil import ABMIL
from wsi_dino.mil.bags import BagStore
from wsi_dino.mil.joint_training import train_together
from wsi_dino.mil.objective import CrossEntropy
from wsi_dino.mil.training import TrainingSpec, resolve_precision, train_fold
from wsi_dino.mil.training_job import TrainingJob

_PLAIN_BAGS = 20
_TURN_BAGS = {"cpu": 257, "cuda": 1000}
_TURNS = 9
_MATMUL = (1024, 512, 512)


def make_bags(n_bags: int, n_tiles: int, embed_dim: int) -> tuple[BagStore, dict[str, int]]:
    """Draw bags of ragged sizes (half to one and a half times `n_tiles`), float16."""
    random = np.random.default_rng(0)
    sizes = random.integers(n_tiles // 2, n_tiles * 3 // 2, n_bags)
    pool = random.standard_normal((int(sizes.max()) + n_bags, embed_dim), np.float32).astype(np.float16)
    features = {f"s{i}": pool[i : i + size].copy() for i, size in enumerate(sizes)}
    return BagStore.of_arrays(features), {f"s{i}": i % 2 for i in range(n_bags)}


def training_flops(n_tiles: float, spec: TrainingSpec, embed_dim: int) -> float:
    """Operations of one bag: three products of the attention, two of the projection."""
    attention = 2 * spec.attention_dim * spec.hidden_dim
    return 2.0 * n_tiles * (3 * attention + 2 * embed_dim * spec.hidden_dim)


def ours(store: BagStore, labels: dict[str, int], ids: Sequence[str], spec: TrainingSpec, device: str) -> float:
    """Bags a second over the second of two epochs (the first warms up)."""
    ends: list[float] = []
    train_fold(
        spec.model_copy(update={"epochs": 2}), store, {one: (label,) for one, label in labels.items()}, ids[:-1],
        ids[-1:], CrossEntropy.of([labels[one] for one in ids[:-1]], 2),
        device=device, on_epoch=lambda row: ends.append(time.perf_counter()),
    )  # fmt: skip
    return (len(ids) - 1) / (ends[-1] - ends[-2])


def together(store: BagStore, labels: dict[str, int], ids: Sequence[str], n_models: int, device: str) -> float:
    """Bags a second over all models, the second of two epochs."""
    truth = {slide: (float(labels[slide]),) for slide in ids}
    objective = CrossEntropy.of([labels[slide] for slide in ids[:-1]], 2)
    jobs = [
        TrainingJob(TrainingSpec(epochs=2, seed=seed), truth, tuple(ids[:-1]), tuple(ids[-1:]), objective)
        for seed in range(n_models)
    ]
    ends: list[float] = []
    train_together(jobs, store, device=device, on_epoch=lambda job, row: ends.append(time.perf_counter()))
    return n_models * (len(ids) - 1) / (ends[-1] - ends[n_models - 1])


def plain(store: BagStore, labels: dict[str, int], ids: Sequence[str], spec: TrainingSpec, device: str) -> float:
    """Bags a second of the textbook loop."""
    model = ABMIL(store.embed_dim, 2, spec.hidden_dim, spec.attention_dim, spec.dropout).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.learning_rate)
    bags = [torch.from_numpy(store.features(slide_id)).float()[None].to(device) for slide_id in ids]
    truth = [torch.tensor([labels[slide_id]], device=device) for slide_id in ids]

    def run() -> None:
        for bag, label in zip(bags, truth, strict=True):
            optimizer.zero_grad()
            logits = model(bag, torch.ones(bag.shape[:2], dtype=torch.bool, device=device)).outputs
            torch.nn.functional.cross_entropy(logits, label).backward()
            optimizer.step()

    return len(bags) / _seconds(run, device, repeats=1)


def matmul_flops_per_s(precision: str, device: str) -> float:
    """Rate of one matrix product with the threads that torch uses."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    n, k, m = _MATMUL if device == "cpu" else (8192, 8192, 8192)
    left, right = torch.randn(n, k, device=device).to(dtype), torch.randn(k, m, device=device).to(dtype)
    return 2.0 * n * k * m / _seconds(lambda: torch.mm(left, right), device, repeats=100)


def _seconds(function: Callable[[], object], device: str, repeats: int) -> float:
    for _ in range(max(1, repeats // 10)):
        function()
    _synchronise(device)
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    _synchronise(device)
    return (time.perf_counter() - start) / repeats


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bags", type=int, default=1000)
    parser.add_argument("--tiles", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--models", type=int, default=0, help="trained together as one computation")
    options = parser.parse_args()
    spec = TrainingSpec()
    precision = resolve_precision(spec.precision, torch.device(options.device))
    store, labels = make_bags(options.bags, options.tiles, options.dim)
    print(f"{options.bags} bags of about {options.tiles} x {options.dim} on {options.device}, {precision}")
    turns = []
    for turn in range(_TURNS):
        ids = [str(s) for s in np.random.default_rng(turn).permutation(store.slide_ids)[: _TURN_BAGS[options.device]]]
        rate = matmul_flops_per_s(precision, options.device)
        fast = ours(store, labels, ids, spec, options.device)
        rate = (rate + matmul_flops_per_s(precision, options.device)) / 2
        slow = plain(store, labels, ids[:_PLAIN_BAGS], spec, options.device)
        per_bag = training_flops(float(np.mean([store.n_tiles[s] for s in ids[:-1]])), spec, options.dim)
        joint = together(store, labels, ids, options.models, options.device) if options.models else float("nan")
        turns.append((fast, slow, rate, fast / slow, fast * per_bag / rate, joint, joint / slow))
    fast, slow, rate, gain, share, joint, gain_together = (
        statistics.median(column) for column in zip(*turns, strict=True)
    )
    print(f"plain fp32 loop  {slow:9.1f} bags/s")
    print(f"train_fold       {fast:9.1f} bags/s  {gain:6.1f} x the loop")
    if options.models:
        print(f"train_together   {joint:9.1f} bags/s  {gain_together:6.1f} x the loop, {options.models} models")
    print(f"matrix products  {rate / 1e9:9.0f} GFLOP/s; training reaches {share:.2f} of it")


if __name__ == "__main__":
    main()
