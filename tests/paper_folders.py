"""Small copies of all datasets of the paper in their official layouts, and the ROOTS.yaml that names them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from chest_folders import make_fake_nih14, make_fake_rsna
from cohort_folders import C16_TUMOR, TIFF, bcnb_patients, make_bcnb, make_camelyon16, make_camelyon17, node, stage_of
from ct_fixtures import make_fake_ct_rate
from toy_neurons import drawn_neurons, write_pair
from toy_volumes import make_autopet, make_hecktor, make_msd

from wsi_dino.segmentation.datasets.msd import TASKS

_SIDE_PX, _RIM_PX = 448, 24
OPTIONS: dict[str, Any] = {
    "chest-xray": {"size": 64, "bootstrap": 100, "pictures": False, "epochs": 5},
    "ct": {"size": 64, "bootstrap": 100, "k": 3},
    "cohort": {"partial": True},
    "tile": {"mpp": "native", "a-t": 0.1},
    "embed": {"input-px": 64},
    "mil": {"epochs": 2, "min-epochs": 1, "hidden-dim": 16, "attention-dim": 8, "bootstrap": 100, "folds": 2,
            "seeds": 1, "top-tiles": 0, "report": False},
    "segment": {"views": 1, "folds": 2, "epochs": 1, "max-px": 64, "predictions": False},
    "em": {"upscale": 1, "size": 64, "views": 1, "steps": 2, "window-sections": 4, "window-voxels": 16,
           "floors": False, "thresholds": "0.3,0.6"},
}  # fmt: skip


def make_all(root: Path, names: Sequence[str] = ()) -> Path:
    """Write the datasets `names`, or all of the paper, and ROOTS.yaml; return its path."""
    makers = {
        "nih14": lambda folder: make_fake_nih14(folder, 40),
        "rsna": lambda folder: make_fake_rsna(folder, 36),
        "ct-rate": lambda folder: make_fake_ct_rate(folder, 12, 6),
        "camelyon16": _camelyon16, "camelyon17": _camelyon17, "bcnb": _bcnb,
        **{task: _msd(task) for task in TASKS},
        **{f"cremi-{letter}": _em([(f"cremi{letter.upper()}", 125)]) for letter in "abc"},
        "ac34": _em([("AC4", 100), ("AC3", 100)]), "wafer4": _em([("wafer4", 125)]),
        "autopet2": make_autopet, "hecktor2022": make_hecktor,
    }  # fmt: skip
    chosen = names or [*makers]
    for name in chosen:
        (root / name).mkdir(parents=True)
        makers[name](root / name)
    content: dict[str, Any] = {name: name for name in chosen} | {"options": OPTIONS}
    if "nih14" in chosen:
        content["nih14"] = {"root": "nih14", "options": {"chest-xray": {"size": [64, 96]}}}
    path = root / "ROOTS.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def _msd(task: str) -> Any:
    channels = {"msd-task01": 4, "msd-task05": 2}.get(task, 1)
    return lambda folder: make_msd(folder, TASKS[task].folder, task.replace("-", "_"), 4, channels=channels)


def _em(volumes: Sequence[tuple[str, int]]) -> Any:
    def make(folder: Path) -> None:
        for seed, (name, n_sections) in enumerate(volumes):
            write_pair(folder, name, *drawn_neurons((n_sections, 32, 32), n=8, seed=seed))

    return make


def _camelyon16(folder: Path) -> None:
    make_camelyon16(folder)
    test = [f"test_{number:03}" for number in range(1, 131) if number != 49]
    kept = [f"normal_{n:03}" for n in range(1, 11)] + [f"tumor_{n:03}" for n in range(1, 11)]
    kept += [name for name in test if name[5:] in C16_TUMOR][:8] + [name for name in test if name[5:] not in C16_TUMOR][
        :8
    ]
    _keep(folder.rglob("*.tif"), {name: "tumor" in name or name[5:] in C16_TUMOR for name in kept})
    (folder / "masks").mkdir()
    for name in kept[10:20]:  # as the publisher's copy on S3 has them
        (folder / "masks" / f"{name}_mask.tif").write_bytes(TIFF)


def _camelyon17(folder: Path) -> None:
    make_camelyon17(folder)
    unseen = {name: stage for name, stage in stage_of().items() if int(name[:3]) < 70 and stage != "itc"}
    chosen = [[node(name) for name, stage in unseen.items() if (stage == "negative") == negative][:6]
              for negative in (True, False)]  # fmt: skip
    _keep(folder.rglob("*.tif"), dict.fromkeys(chosen[0], False) | dict.fromkeys(chosen[1], True))


def _bcnb(folder: Path) -> None:
    make_bcnb(folder)
    kept = {patient: values[4] == "Positive" for patient, _, values in bcnb_patients()[:32]}
    _keep((folder / "WSIs").glob("*.jpg"), kept)


def _keep(paths: Iterable[Path], kept: dict[str, bool]) -> None:
    """Remove all slides but `kept`, and draw these: tissue, with dark nuclei in positive ones."""
    from PIL import Image

    for path in list(paths):
        if path.stem not in kept:
            path.unlink()
            continue
        random = np.random.default_rng([ord(letter) for letter in path.stem])
        pixels = np.full((_SIDE_PX, _SIDE_PX, 3), 250.0)
        inside = slice(_RIM_PX, _SIDE_PX - _RIM_PX)
        pixels[inside, inside] = (226, 150, 190)
        pixels += random.normal(0, 3, pixels.shape)
        if kept[path.stem]:
            for y, x in random.integers(_RIM_PX + 5, _SIDE_PX - _RIM_PX - 5, (150, 2)):
                pixels[y - 5 : y + 5, x - 5 : x + 5] = (80, 40, 120)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
