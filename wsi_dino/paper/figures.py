"""The paper's five figures from the results of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_dino.evaluation.comparison_plots import TITLES, bar_picture, common_encoders, radar_picture
from wsi_dino.evaluation.pictures import Picture
from wsi_dino.evaluation.size_study import size_picture, study_rows
from wsi_dino.paper.cells import Results
from wsi_dino.paper.kinds.slides import BCNB_TASKS
from wsi_dino.paper.roots import PAPER_DATASETS
from wsi_dino.paper.snapshots import RAW, TRUTH, snapshot_folder
from wsi_dino.paper.step import ResultKey
from wsi_dino.run_folder import safe_name

_PANEL_IN = 1.9
_COLUMNS_MOST = 6
_FEATURE_VARIANTS = ("ct", "pet")


@dataclass(frozen=True)
class PaperFigure:
    """One figure of the paper, with as many pictures as there are results.

    Attributes:
        number: as the paper counts.
        title: what it shows.
        pictures: of this run; none when nothing was run.
        reason: why there is none.
        is_photo: pictures of pixels, not drawings.
    """

    number: int
    title: str
    pictures: Sequence[Picture]
    reason: str
    is_photo: bool = False


def make_figures(results: Results) -> list[PaperFigure]:
    """Return all five; what was not run says so."""
    return [_sizes(results), _bars(results), _radar(results), _sections(results), _features(results)]


def _keys(results: Results, kind: str) -> dict[str, list[ResultKey]]:
    """Return keys of trusted results of a track by dataset, those of the paper first."""
    found: dict[str, list[ResultKey]] = {}
    for key, stored in results.state.results.items():
        if stored.kind == kind and results.metrics(key) is not None:
            found.setdefault(key.dataset, []).append(key)
    order = [*PAPER_DATASETS]
    names = sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name))
    return {name: found[name] for name in names}


def _sizes(results: Results) -> PaperFigure:
    pictures = []
    for name, keys in _keys(results, "chest-xray").items():
        contents = [results.metrics(key) or {} for key in _by_encoder(results, keys)]
        picture = size_picture(study_rows(contents), f"figure-1-{safe_name(name)}")
        pictures.append(_called(picture, f"{name}: {_lower(picture.label)}"))
    title = "AUC against the size of the image and the model"
    return PaperFigure(1, title, pictures, "" if pictures else "no result of chest X-rays in this run")


def _by_encoder(results: Results, keys: Sequence[ResultKey]) -> list[ResultKey]:
    return sorted(keys, key=lambda key: results.encoders.index(key.encoder))


def _bars(results: Results) -> PaperFigure:
    pictures = []
    for section in _slide_sections(results, lambda key: key.dataset != "bcnb"):
        picture = bar_picture(section, f"figure-2-{safe_name(section['task'])}")
        pictures.append(_called(picture, f"{section['task']}: {_lower(picture.label)}"))
    title = "Whole slides: every figure of every encoder"
    return PaperFigure(2, title, pictures, "" if pictures else "no result of Camelyon16 or Camelyon17 in this run")


def _radar(results: Results) -> PaperFigure:
    sections = _slide_sections(results, lambda key: key.dataset == "bcnb")
    order = [section for task in BCNB_TASKS for section in sections if section["task"] == task]
    picture = radar_picture(order, "figure-3-bcnb") if common_encoders(order) else None
    n_tasks = len(order)
    reason = "no result of BCNB in this run" if not n_tasks else f"{n_tasks} BCNB tasks are there; a radar needs three"
    title = "BCNB: five tasks of every encoder"
    pictures = [] if picture is None else [_called(picture, f"BCNB: {_lower(picture.label)}")]
    return PaperFigure(3, title, pictures, "" if pictures else reason)


def _slide_sections(results: Results, wanted: Callable[[ResultKey], bool]) -> list[dict[str, Any]]:
    """Return each task with its encoders, as pictures of comparisons take them."""
    sections: dict[str, list[dict[str, Any]]] = {}
    for keys in _keys(results, "slides").values():
        for key in _by_encoder(results, keys):
            summary: Mapping[str, Any] = (results.metrics(key) or {}).get("summary", {})
            if wanted(key) and all(metric in summary for metric in TITLES):
                figures = {metric: summary[metric] for metric in TITLES}
                sections.setdefault(key.variant, []).append({"encoder": key.encoder, "figures": figures})
    return [{"task": task, "encoders": encoders} for task, encoders in sections.items()]


def _sections(results: Results) -> PaperFigure:
    pictures = []
    for name, keys in _keys(results, "em").items():
        panels = _panels(results, keys, truth="true neurons")
        if panels:
            label = f"{name}: a section of the test, its true neurons, and the segments of {_encoders(keys)}"
            pictures.append(_photo(f"figure-4-{safe_name(name)}", label, panels))
    title = "Electron microscopy: sections and segments"
    return PaperFigure(4, title, pictures, "" if pictures else "no result of electron microscopy in this run", True)


def _features(results: Results) -> PaperFigure:
    pictures = []
    for name, keys in _keys(results, "segment").items():
        for variant in dict.fromkeys(key.variant for key in keys):
            if variant in _FEATURE_VARIANTS or name not in PAPER_DATASETS:
                mine = [key for key in keys if key.variant == variant]
                panels = _panels(results, mine, truth="labels")
                called = f"{name} {variant.upper()}".strip()
                if len(panels) > 2:
                    label = f"{called}: a slice, its labels, and the first three principal components of patch features"
                    file = safe_name("-".join(filter(None, [name, variant])))
                    pictures.append(_photo(f"figure-5-{file}", f"{label} of {_encoders(mine)}", panels))
    title = "CT and PET: features as colours"
    return PaperFigure(5, title, pictures, "" if pictures else "no result of CT or PET volumes in this run", True)


def _encoders(keys: Sequence[ResultKey]) -> str:
    return ", ".join(dict.fromkeys(key.encoder for key in keys))


def _panels(results: Results, keys: Sequence[ResultKey], truth: str) -> dict[str, Path]:
    """Return files of pictures by what stands above them."""
    folder = snapshot_folder(results.run, keys[0])
    wanted = {"image": RAW, truth: TRUTH}
    wanted |= {key.encoder: safe_name(key.encoder) for key in _by_encoder(results, keys)}
    return {title: folder / f"{name}.png" for title, name in wanted.items() if (folder / f"{name}.png").is_file()}


def _photo(name: str, label: str, panels: Mapping[str, Path]) -> Picture:
    n_columns = min(len(panels), _COLUMNS_MOST)
    n_rows = -(-len(panels) // n_columns)

    def draw(figure: Any) -> None:
        import numpy as np
        from PIL import Image

        axes = np.atleast_1d(figure.subplots(n_rows, n_columns)).ravel()
        for axis in axes:
            axis.set_axis_off()
        for axis, (title, path) in zip(axes, panels.items(), strict=False):
            with Image.open(path) as image:
                axis.imshow(np.asarray(image.convert("RGB")), interpolation="nearest")
            axis.set_title(title, fontsize=9)

    return Picture(name, label, (_PANEL_IN * n_columns, (_PANEL_IN + 0.3) * n_rows), draw)


def _called(picture: Picture, label: str) -> Picture:
    return Picture(picture.name, label, picture.size_in, picture.draw)


def _lower(text: str) -> str:
    return text if text[:2].isupper() else text[:1].lower() + text[1:]
