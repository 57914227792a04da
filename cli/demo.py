"""`wsi-dino demo`: draw a cohort whose truth is known, and run the real commands on it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsi_dino.cli import console
from wsi_dino.cli.options import Device, DeviceOption, JsonOption, WorkersOption
from wsi_dino.errors import ConfigError
from wsi_dino.run_folder import RunFolder

if TYPE_CHECKING:
    from wsi_dino.pathology.demo_cohort import DemoCohort

_ENCODER = "efficientnet-lite0"
_TASK = "tumour"
_RUN = "run"
_MIN_SLIDES = 15
_OWN_SLIDES = (
    "wsi-dino tile SLIDES --run RUN",
    f"wsi-dino embed --run RUN --encoder {_ENCODER}",
    f"wsi-dino mil --run RUN --encoder {_ENCODER} --labels LABELS.csv --target COLUMN --folds 5 --heatmaps 4",
)


def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Where slides and results go.")] = Path("wsi-dino-demo"),
    slides: Annotated[int, typer.Option("--slides", min=_MIN_SLIDES, help="How many slides to draw.")] = 24,
    workers: WorkersOption = 0,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """Draw slides with known tumours and run it all on them.

    The commands tile, embed and mil run as a user would run them. Nothing is downloaded; it takes a minute
    or two on two cores. Run again, it carries on where it was.
    """
    begun_s = time.monotonic()
    cohort = _draw(folder, slides)
    outputs = [_run_verb(folder, command, as_json) for command in _commands(workers, device)]
    results = RunFolder(folder / _RUN).mil(_TASK, _ENCODER)
    localisation = attention_against_truth(results, cohort)
    if as_json:
        console.print_json(_summary(folder, outputs, results, localisation))
        return
    _print_end(results, localisation, time.monotonic() - begun_s)


def _draw(folder: Path, n_slides: int) -> DemoCohort:
    from wsi_dino.pathology.demo_cohort import draw_demo_cohort, plan_demo_cohort

    cohort = plan_demo_cohort(folder, n_slides)
    run = RunFolder(folder / _RUN)
    if folder.exists() and any(folder.iterdir()) and not (run.state / "draw").is_dir():
        raise ConfigError(f"Drawing the demo: {folder} holds other files. Choose an empty folder with --folder.")
    console.say(f"$ draw {n_slides} slides into {cohort.slides}, half of the patients with a tumour")
    with console.progress("draw", total=n_slides) as progress:
        n_reused = draw_demo_cohort(cohort, run, lambda slide_id: progress(1, text=slide_id))
        progress(n_reused)
    return cohort


def _commands(workers: int, device: Device) -> list[list[str]]:
    machine = ["--workers", str(workers), "--device", str(device)]
    return [
        ["init", "slides", "--labels", "labels.csv", "--run", _RUN, "--force"],
        ["tile", *machine],
        ["embed", "--encoder", _ENCODER, *machine],
        ["mil", "--task", _TASK, "--folds", "5", "--epochs", "20", "--heatmaps", "4", *machine],
    ]


def _run_verb(folder: Path, arguments: list[str], as_json: bool) -> dict[str, Any]:
    """Run one verb as a user would, in the demo's folder; end the program when it fails."""
    console.say(f"\n$ cd {folder} && {shlex.join(['wsi-dino', *arguments])}")
    command = [sys.executable, "-m", "wsi_dino.cli", *arguments, *(["--json"] if as_json else [])]
    result = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE if as_json else None, text=True, check=False)
    if result.returncode:
        raise ConfigError(
            f"Running the demo: `wsi-dino {arguments[0]}` ended with {result.returncode}; its message stands above. "
            "`wsi-dino doctor` checks the installation."
        )
    return dict(json.loads(result.stdout)) if as_json else {}


def attention_against_truth(results: Path, cohort: DemoCohort) -> dict[str, Any]:
    """Compare attention on held-out slides with where tumour was drawn.

    Returns:
        ``auc_by_slide``: for each slide with tumour the AUC of the attention of its tiles, for "at least
        half of the tile is tumour"; ``mean_auc``; ``top_tile_hits`` of ``n_slides`` whose tile of highest
        attention lies in tumour.
    """
    from wsi_dino.evaluation.metrics import auc
    from wsi_dino.mil.attention_file import read_attention
    from wsi_dino.pathology.demo_cohort import tumour_fraction_of_tiles

    with_tumour = {slide.slide_id for slide in cohort.drawn if slide.has_tumour}
    auc_by_slide: dict[str, float] = {}
    n_hits = 0
    for path in sorted(results.glob("attention/*/*.h5")):
        attention = read_attention(path)
        if attention.slide_id not in with_tumour or attention.tile_wh_level0 is None:
            continue
        truth = cohort.read_truth(attention.slide_id)
        is_tumour = tumour_fraction_of_tiles(truth, attention.coords, attention.tile_wh_level0) >= 0.5
        if is_tumour.any() and not is_tumour.all():
            auc_by_slide[attention.slide_id] = auc(is_tumour.astype(int), attention.attention_weights)
            n_hits += int(is_tumour[attention.attention_weights.argmax()])
    mean = sum(auc_by_slide.values()) / len(auc_by_slide) if auc_by_slide else float("nan")
    return {"mean_auc": mean, "auc_by_slide": auc_by_slide, "top_tile_hits": n_hits, "n_slides": len(auc_by_slide)}


def _print_end(results: Path, localisation: dict[str, Any], seconds: float) -> None:
    print(f"\nReport:    {results / 'report.html'}")
    for path in sorted((results / "heatmaps").glob("*.png")):
        print(f"Heatmap:   {path}")
    print(
        f"Attention against the drawn truth, on held-out slides: the tile of highest attention lies in tumour on "
        f"{localisation['top_tile_hits']} of {localisation['n_slides']} slides with tumour; mean AUC of attention "
        f"for tumour tiles {localisation['mean_auc']:.3f}."
    )
    print(f"All of it took {seconds:.0f} s. The slides are drawn: these figures say nothing about real tissue.")
    print("\nThe same on your own slides:")
    for command in _OWN_SLIDES:
        print(f"  {command}")
    print("or, with everything but the names in a file: wsi-dino init SLIDES --labels LABELS.csv")


def _summary(
    folder: Path, outputs: list[dict[str, Any]], results: Path, localisation: dict[str, Any]
) -> dict[str, Any]:
    verbs = ("init", "tile", "embed", "mil")
    return {
        "command": "demo",
        "folder": folder,
        "report": results / "report.html",
        "heatmaps": sorted((results / "heatmaps").glob("*.png")),
        "attention_against_truth": localisation,
        **dict(zip(verbs, outputs, strict=True)),
    }
