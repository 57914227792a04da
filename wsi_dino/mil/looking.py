"""What held-out slides show of a task's models: tiles of each class, and whether attention is faithful."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.errors import WsiDinoError
from wsi_dino.evaluation.deletion_insertion import SlideCurves, summarise_curves
from wsi_dino.evaluation.looking_pictures import MosaicRow, MosaicTile
from wsi_dino.evaluation.report_looking import LookingSection
from wsi_dino.mil.attention_file import SlideAttention
from wsi_dino.mil.checkpoint import load_model
from wsi_dino.mil.examples import SlidePictures
from wsi_dino.mil.faithfulness import SubsetScores, follow_attention
from wsi_dino.mil.fold_work import FoldFiles
from wsi_dino.mil.material import Material
from wsi_dino.mil.tile_probability import softmax, tile_logits
from wsi_dino.mil.top_tiles import COLUMNS, ENDS, TopTile, TopTiles
from wsi_dino.run_folder import RunFolder

TOP_TILES_TABLE, PICTURES_FOLDER = "top_tiles.csv", "pictures"
_N_STEPS, _N_RANDOM = 50, 10
_OVERLAYS = ("heatmaps/*.tiff", "heatmaps/*.geojson", "heatmaps/probability/*/*", "localisation/*/*", "pictures/*")


@dataclass(frozen=True)
class LookingRequest:
    """What is looked at.

    Attributes:
        top_tiles: how many of each class and end; 0 = none.
        faithfulness: of how many held-out slides, drawn at random; 0 = none.
        n_resamples: of the bootstrap.
        seed: of the slides drawn, the random orders and the bootstrap.
        device: where models run.
    """

    top_tiles: int = 8
    faithfulness: int = 0
    n_resamples: int = 2000
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class Looked:
    """What was seen.

    Attributes:
        metrics: what metrics.json gets: ``faithfulness`` when it was asked for, else nothing.
        tiles: best and worst of each class.
    """

    metrics: dict[str, Any]
    tiles: list[TopTile]


def look(
    files: FoldFiles, of_fold: Callable[[int], Material], test_rows: Sequence[Mapping[str, Any]],
    read: Callable[[Mapping[str, Any]], SlideAttention], request: LookingRequest, report: Callable[..., None],
) -> Looked:  # fmt: skip
    """Go once through the held-out slides, fold by fold, each with the model that had not seen it.

    A slide that several folds tested is looked at with the first.

    Args:
        files: models of the folds.
        of_fold: slides and features of a fold by its number.
        test_rows: predictions of held-out slides.
        read: gives the attention of a row's slide.
        request: what is wanted.
        report: progress, in slides.
    """
    rows = first_of_each_slide(test_rows)
    drawn = _drawn(rows, request)
    wanted = rows if request.top_tiles else [row for row in rows if row["slide_id"] in drawn]
    report(0, total=len(wanted))
    look_on = _Look(request, drawn, read)
    for number in sorted({int(row["fold"]) for row in wanted}):
        model, config = load_model(files.model(number))
        material = of_fold(number)
        for row in (row for row in wanted if int(row["fold"]) == number):
            look_on.add(model, config.class_names, material.store.features(str(row["slide_id"])), row)
            report(1, text=str(row["slide_id"]))
    return look_on.looked()


class _Look:
    """Collects what is seen, slide by slide."""

    def __init__(
        self, request: LookingRequest, drawn: Mapping[str, int], read: Callable[[Mapping[str, Any]], SlideAttention]
    ) -> None:
        self._request, self._drawn, self._read = request, drawn, read
        self._top: TopTiles | None = None
        self._curves: list[SlideCurves] = []

    def add(self, model: Any, classes: Sequence[str], features: np.ndarray, row: Mapping[str, Any]) -> None:
        """Look at one slide."""
        if self._request.top_tiles:
            self._top = self._top or TopTiles(classes, self._request.top_tiles)
            probabilities = softmax(tile_logits(model, features, device=self._request.device))
            self._top.add(self._read(row), str(row["target"]), probabilities)
        if row["slide_id"] in self._drawn:
            self._curves.append(self._follow(model, classes, features, row))

    def _follow(self, model: Any, classes: Sequence[str], features: np.ndarray, row: Mapping[str, Any]) -> SlideCurves:
        slide_id = str(row["slide_id"])
        rng = np.random.default_rng([self._request.seed, 2, self._drawn[slide_id]])
        scores = SubsetScores(model, features, self._request.device)
        said, curves = follow_attention(scores, n_steps=_N_STEPS, n_random=_N_RANDOM, rng=rng)
        return SlideCurves(slide_id, str(row["patient_id"]), int(row["fold"]), classes[said], len(features), curves)

    def looked(self) -> Looked:
        """Return what was seen."""
        metrics: dict[str, Any] = {}
        if self._curves:
            metrics["faithfulness"] = summarise_curves(
                self._curves, n_random=_N_RANDOM, n_resamples=self._request.n_resamples, seed=self._request.seed
            )
        return Looked(metrics, self._top.tiles() if self._top else [])


def first_of_each_slide(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the row of the lowest fold of each slide: seeds of one split all test the same slides."""
    first: dict[str, Mapping[str, Any]] = {}
    for row in sorted(rows, key=lambda row: int(row["fold"])):
        first.setdefault(str(row["slide_id"]), row)
    return list(first.values())


def _drawn(rows: Sequence[Mapping[str, Any]], request: LookingRequest) -> dict[str, int]:
    """Draw the slides whose faithfulness is measured, each with a number for its random orders."""
    slides = sorted(str(row["slide_id"]) for row in rows)
    order = np.random.default_rng([request.seed, 1]).permutation(len(slides))[: request.faithfulness]
    return {slides[place]: int(place) for place in order}


def write_top_tiles(run: RunFolder, folder: Path, tiles: Sequence[TopTile]) -> None:
    """Write top_tiles.csv."""
    run.write_table(folder / TOP_TILES_TABLE, (tile.row() for tile in tiles), COLUMNS)


def make_section(looked: Looked, classes: Sequence[str], pictures: SlidePictures | None) -> LookingSection:
    """Read the tiles' pictures and bring all of it into the form that the report takes.

    Of two classes the tiles least like one are those most like the other, so that the last class alone is shown.
    """
    shown = classes[-1:] if len(classes) == 2 else classes
    tiles = [tile for tile in looked.tiles if tile.of_class in shown]
    pixels, note = _read(tiles, pictures)
    rows = []
    for name in shown:
        for end in ENDS:
            members = [tile for tile in tiles if (tile.of_class, tile.end) == (name, end)]
            title = f"{'most' if end == 'top' else 'least'} {name}"
            rows.append(MosaicRow(title, [MosaicTile(_caption(tile), pixels.get(_key(tile))) for tile in members]))
    rows = [row for row in rows if row.tiles]
    return LookingSection(rows, " or ".join(shown), note, looked.metrics.get("faithfulness"))


def _caption(tile: TopTile) -> str:
    return f"{tile.probability:.3f}, ×{tile.lift:.1f}\n{tile.slide_id}"


def _key(tile: TopTile) -> tuple[str, int, int]:
    return tile.slide_id, tile.x, tile.y


def _read(
    tiles: Sequence[TopTile], pictures: SlidePictures | None
) -> tuple[dict[tuple[str, int, int], np.ndarray], str]:
    """Read the pixels, slide by slide; say why for the first slide that cannot be read."""
    pixels: dict[tuple[str, int, int], np.ndarray] = {}
    note = ""
    for slide_id in dict.fromkeys(tile.slide_id for tile in tiles):
        members = [tile for tile in tiles if tile.slide_id == slide_id]
        footprint = members[0].tile_wh_level0
        if pictures is None or footprint is None:
            note = note or "No picture: the features do not say where their tiles lie on which slide."
            continue
        try:
            read = pictures.tiles(slide_id, np.array([[tile.x, tile.y] for tile in members]), footprint)
        except WsiDinoError as error:
            note = note or f"No picture of some: {error}"
            continue
        pixels |= {_key(tile): one for tile, one in zip(members, read, strict=True)}
    return pixels, note


def remove_earlier(folder: Path) -> None:
    """Take away what was looked at in another result: it must never lie beside models it does not belong to."""
    (folder / TOP_TILES_TABLE).unlink(missing_ok=True)
    for pattern in _OVERLAYS:
        for path in folder.glob(pattern):
            if path.is_file():
                path.unlink(missing_ok=True)
