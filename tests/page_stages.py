"""What pages of the documentation take for granted: slides, features, downloads; and what stands for large encoders."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cohort_folders import make_bcnb, make_camelyon16, make_camelyon17
from command_line import run_command
from toy_features import SMALL, make_run, write_features, write_labels

from wsi_dino.pathology.synthetic import write_pyramid

TINY = "timm/test_vit.r160_in1k"
_QUICK = (*SMALL, "--no-report")
_UNTRAINED = ("--random-weights", 0)


def _nothing(folder: Path) -> None:
    pass


@dataclass(frozen=True)
class Stage:
    """What a reader of a page has before its first block.

    Attributes:
        prepare: makes files.
        names, more: of `page_code.Session`.
        kinds: the kinds of blocks that are run; none = all.
        rest: the test that runs the others.
        is_slow: takes more than ten seconds.
    """

    prepare: Callable[[Path], None] = _nothing
    names: dict[str, str] = field(default_factory=dict)
    more: dict[str, Sequence[object]] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()
    rest: str = ""
    is_slow: bool = False


def striped_slides(folder: Path, target: str, n_slides: int = 12) -> None:
    """Draw slides of which every second one has stripes, and their labels."""
    for number in range(n_slides):
        image = np.random.default_rng(number).normal(0, 18, (600, 600, 3)) + np.array([190, 110, 170])
        if number % 2:
            image[:, ::8] -= 60
        write_pyramid(folder / f"slides/S{number}.tif", np.clip(image, 0, 255).astype(np.uint8), downsamples=(1, 4))
    rows = [(f"S{number}", f"P{number}", ["Negative", "Positive"][number % 2]) for number in range(n_slides)]
    write_labels(folder / "labels.csv", rows, ("slide_id", "patient_id", target))


def _own_slides(folder: Path) -> None:
    striped_slides(folder, "ER")


def _two_runs(folder: Path) -> None:
    striped_slides(folder, "ER")
    assert run_command(folder, "tile", "slides", "--run", "other").code == 0


def _toy_run(folder: Path) -> None:
    make_run(folder, 24)


def _cohorts(folder: Path) -> None:
    """Whole downloads of one-pixel slides, and features of some of their slides."""
    make_camelyon16(folder / "CAMELYON16")
    make_camelyon17(folder / "CAMELYON17")
    make_bcnb(folder / "BCNB")
    for name, run, wanted in (("camelyon16", "RUN16", 13), ("camelyon17", "RUN17", 20), ("bcnb", "RUN", 30)):
        made = ("cohort", name, name.upper(), "--labels", "made.csv")
        assert run_command(folder, *made).code == 0
        with (folder / "made.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))[::wanted]
        for number, row in enumerate(rows):
            for encoder in ("dinov3-s", "uni") if name == "bcnb" else ("dinov3-s",):
                path = folder / run / "features" / encoder / f"{row['slide_id']}.h5"
                positive = "tumor" in (row.get("tumor", ""), row.get("tumour", ""))
                write_features(path, positive, number, encoder=encoder)
        (folder / "made.csv").unlink()


STAGES = {
    "README.md": Stage(
        _own_slides, is_slow=True,
        names={"SLIDES": "slides", "LABELS.csv": "labels.csv", "RUN": "first", "COLUMN": "ER",
               "dinov3-s": TINY},
        more={"embed": _UNTRAINED, "mil": ("--epochs", 2, "--bootstrap", 100, "--allow-random-weights")},
    ),
    "docs/adapters.md": Stage(
        _two_runs, is_slow=True, kinds=("sh",), rest="test_adapter.py",
        names={"dinov3-s": TINY} | {
            f"run/mil/ER/dinov3-s+lora/{name}": f"run/mil/ER/timm__test_vit.r160_in1k+lora/{name}"
            for name in ("adapter/fold-0", "model/fold-0.safetensors")
        },
        more={"mil": (*_QUICK, *_UNTRAINED, "--allow-random-weights", "--folds", 3, "--adapt-tiles", 2,
                      "--adapt-epochs", 1), "embed": _UNTRAINED},
    ),
    "docs/cohorts.md": Stage(_cohorts, is_slow=True, names={"5": "2"}, more={"mil": _QUICK}),
    "docs/mil-models.md": Stage(
        _toy_run, is_slow=True, names={"dinov3-s": "toy", "30": "2"}, more={"mil": (*_QUICK, "--folds", 2)}
    ),
}  # fmt: skip
