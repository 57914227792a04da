"""Peak memory of tile, embed and mil for N and for 4 N slides: it should not grow with their number.

Draws the slides itself. Each command is a process of its own; its peak resident set is what the system reports.
Run: python benchmarks/memory.py [--slides 20]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_ENCODER = "efficientnet-lite0"


def main() -> None:
    """Print one line a command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slides", type=int, default=20, help="N; at least 15")
    n_slides = parser.parse_args().slides
    with tempfile.TemporaryDirectory() as folder:
        few = _measure(Path(folder) / "few", n_slides)
        many = _measure(Path(folder) / "many", 4 * n_slides)
    print(f"{'command':<8}{n_slides:>6} slides{4 * n_slides:>8} slides   peak MiB")
    for command, peak in few.items():
        print(f"{command:<8}{peak:>13.0f}{many[command]:>15.0f}   x {many[command] / peak:.2f}")


def _measure(folder: Path, n_slides: int) -> dict[str, float]:
    from wsi_dino.pathology.demo_cohort import draw_demo_cohort, plan_demo_cohort
    from wsi_dino.run_folder import RunFolder

    cohort = plan_demo_cohort(folder, n_slides)
    draw_demo_cohort(cohort, RunFolder(folder / "drawing"))
    run = ["--run", str(folder / "run")]
    task = ["--labels", str(cohort.labels), "--target", "tumour", "--folds", "5", "--epochs", "3"]
    commands = {
        "tile": ["tile", str(cohort.slides), *run],
        "embed": ["embed", "--encoder", _ENCODER, *run],
        "mil": ["mil", "--encoder", _ENCODER, *run, *task],
    }
    return {name: _peak_mib(arguments, folder) for name, arguments in commands.items()}


def _peak_mib(arguments: list[str], folder: Path) -> float:
    command = [sys.executable, "-m", "wsi_dino.cli", *arguments]
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit((folder / "log.txt").read_text())
    return usage.ru_maxrss / 1024  # KiB on Linux


if __name__ == "__main__":
    main()
