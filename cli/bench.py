"""`wsi-dino bench`: what the methods here reach on public sets, beside what was published."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from wsi_dino.cli import console
from wsi_dino.cli.options import JsonOption, WorkersOption


class Benchmark(StrEnum):
    """Benchmarks by name."""

    mil_classic = "mil-classic"


def bench(
    benchmark: Annotated[Benchmark, typer.Argument(help="mil-classic: attention MIL on MUSK, FOX, TIGER, ELEPHANT.")],
    folder: Annotated[Path, typer.Argument(help="Folder of NAME.npz with X, bag and bag_label.", metavar="DIR")],
    sets: Annotated[list[str] | None, typer.Option("--set", help="Only this set; may be repeated.")] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Of the cross-validation.")] = 5,
    folds: Annotated[int, typer.Option("--folds", min=2, help="Of each.")] = 10,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the training bags.")] = 100,
    seed: Annotated[int, typer.Option("--seed", help="Of folds, weights, order and dropout.")] = 0,
    workers: WorkersOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Check the methods on public sets with published results.

    mil-classic trains attention MIL, plain and gated, by the protocol of the attention paper (Ilse et
    al. 2018): fully connected layers of 256, 128 and 64 units, five times ten-fold cross-validation.
    """
    from wsi_dino.mil.classic_bench import ClassicProtocol, find_classic_sets, run_classic_bench
    from wsi_dino.mil.classic_network import ClassicSpec

    paths = find_classic_sets(folder, sets or ())
    protocol = ClassicProtocol(repeats, folds, ClassicSpec(epochs=epochs), seed)
    with console.progress(str(benchmark), unit="folds") as progress:
        results = run_classic_bench(paths, protocol, workers=workers, report=progress)
    if as_json:
        network = protocol.spec.model_dump(mode="json", exclude={"gated"})
        console.print_json(
            {
                "command": "bench",
                "benchmark": str(benchmark),
                "protocol": {"repeats": repeats, "folds": folds, "seed": seed, **network},
                "sets": results,
            }
        )
        return
    rows = [_row(name, model, result) for name, models in results.items() for model, result in models.items()]
    console.print_table(rows, ["set", "model", "accuracy", "se", "published", "off"])
    print(
        f"Mean accuracy over {repeats} x {folds} folds and its standard error. Published: Ilse et al. 2018, Table 1. "
        "off: distance to it in combined standard errors; 2 or more would be a disagreement."
    )


def _row(name: str, model: str, result: dict[str, Any]) -> dict[str, str]:
    published = result["published"]
    return {
        "set": name,
        "model": model,
        "accuracy": f"{result['mean']:.3f}",
        "se": f"{result['se']:.3f}",
        "published": f"{published['mean']:.3f} +- {published['se']:.3f}" if published else "",
        "off": "" if result["combined_se_off"] is None else f"{result['combined_se_off']:.2f}",
    }
