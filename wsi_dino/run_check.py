"""Look at every file of a run, and say what is wrong and which command puts it right."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.claims import try_claim
from wsi_dino.encoders.adapter import is_adapted_to_a_fold, read_adapter
from wsi_dino.errors import FeatureFileError, TileGridError, WsiDinoError
from wsi_dino.evaluation.task_result import COMPARISON_FOLDER
from wsi_dino.feature_file import FeatureFile, read_feature_file, read_provenance, require_one_identity
from wsi_dino.file_check import FileCheck, OnFile, RunReport, quoted, short_message
from wsi_dino.mil.attention_file import read_attention
from wsi_dino.mil.models import DEFAULT_MODEL, split_result_name
from wsi_dino.pathology.embed_spec import feature_path
from wsi_dino.pathology.embed_table import embed_stage
from wsi_dino.pathology.tile_grid import TileGrid, read_tile_grid
from wsi_dino.provenance import owner_is_alive
from wsi_dino.run_folder import RunFolder

_UNREAD = -1
_ROUNDING = 1e-3


def check_run(run: RunFolder, *, quick: bool = False, on_file: OnFile = lambda path: None) -> RunReport:
    """Check tiles, contours, thumbnails, features, models, tables and leftovers of a run.

    Args:
        run: the run folder; only looked at, nothing is changed.
        quick: read the heads of feature files only, not every value of them.
        on_file: called for each file once it has been looked at.

    Raises:
        ConfigError: there is no such folder.
    """
    run.require()
    check = _RunCheck(run, quick, on_file)
    check.tiles()
    for folder in sorted((run.path / "features").glob("*/")):
        check.features(folder)
    for folder in sorted((run.path / "mil").glob("*/*/")):
        if folder.name != COMPARISON_FOLDER:
            check.mil(folder)
    for folder in sorted((run.path / "predictions").glob("*/*/")):
        check.predictions_on_new_slides(folder)
    check.leftovers()
    return check.report


class _RunCheck(FileCheck):
    def __init__(self, run: RunFolder, quick: bool, on_file: OnFile) -> None:
        super().__init__(run.path, on_file)
        self._run, self._quick = run, quick
        self._tile_again = f"wsi-dino tile {_slides_folder(run)} --run {quoted(run.path)}"
        self._grids: dict[str, _GridHead] = {}

    # tiles ------------------------------------------------------------------------------------
    def tiles(self) -> None:
        """Check tile files, contours and thumbnails against the rows of `tile`, and the table."""
        rows = {str(row.get("slide_id", "")): row for row in self._run.rows("tile")}
        for slide_id, row in rows.items():
            self._tile_row(slide_id, row)
        for path in sorted(self._run.tiles.glob("*.h5")):
            if path.stem not in rows:
                self.add("problem", path, "no row of `wsi-dino tile` speaks of it", self._tile_again)
                self._grid(path)
        if not rows and not self._grids:
            self.add("note", self._run.tiles, "nothing was tiled in this run")
        else:
            self._table(self._run.path / "tiles.csv", rows, self._tile_again)

    def _tile_row(self, slide_id: str, row: dict[str, Any]) -> None:
        path = self._run.tiles / f"{slide_id}.h5"
        if row.get("status") == "failed":
            self.add("problem", path, f"failed: {row.get('reason', '')}", self._tile_again)
            return
        grid = self._grid(path)
        if grid is None:
            return
        if grid.fingerprint != row.get("grid_fingerprint"):
            self.add("problem", path, "made by another request than the last one", self._tile_again)
        self._contours(self._run.contours / f"{slide_id}.geojson")
        self.check_picture(self._run.thumbnails / f"{slide_id}.jpg", self._tile_again)

    def _grid(self, path: Path) -> _GridHead | None:
        try:
            grid = read_tile_grid(path)
            problem = _grid_problem(grid)
        except TileGridError as error:
            self.unreadable(path, error, self._tile_again)
            return None
        self.count("tile files", path)
        if problem:
            self.broken(path, problem, self._tile_again)
        self._grids[path.stem] = _GridHead(len(grid), grid.fingerprint, _sha256(grid.xy))
        return self._grids[path.stem]

    def _contours(self, path: Path) -> None:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            kind = found.get("type") if isinstance(found, dict) else "list" if isinstance(found, list) else None
        except FileNotFoundError:
            self.add("problem", path, "missing", self._tile_again)
            return
        except (OSError, ValueError) as error:
            self.broken(path, f"no GeoJSON ({error})", self._tile_again)
            return
        self.count("contour files", path)
        if kind not in ("FeatureCollection", "list"):
            self.broken(path, "no GeoJSON FeatureCollection", self._tile_again)

    def _table(self, path: Path, rows: dict[str, dict[str, Any]], redo: str, encoder: str | None = None) -> None:
        table = self.read_csv(path, redo)
        if table is None:
            return
        table = [line for line in table if line.get("encoder") == encoder]
        in_table = {line.get("slide_id", ""): line.get("status", "") for line in table}
        if len(in_table) != len(table):
            self.add("problem", path, "a slide stands in it twice", redo)
        for slide_id, row in rows.items():
            if in_table.get(slide_id) != row.get("status"):
                said = in_table.get(slide_id, "nothing")
                self.add("problem", path, f"says {said} of {slide_id}, which is {row.get('status')}", redo)

    # features ---------------------------------------------------------------------------------
    def features(self, folder: Path) -> None:
        """Check the feature files of one encoder, against the tile files and against one another."""
        encoder, identities = _encoder_of(folder.name), {}
        for path in sorted(folder.glob("*.h5")):
            head = self._feature_file(path)
            if head is not None:
                identities[path.name] = head.identity
                encoder = str(head.provenance.get("encoder", encoder))
        redo = self._embed_again(encoder)
        for slide_id, grid in self._grids.items():
            path = feature_path(self._run, encoder, slide_id)
            # a cross-validation embeds the labelled slides only
            if grid.n_tiles and not path.exists() and not is_adapted_to_a_fold(encoder):
                self.add("problem", path, "missing: this slide has tiles but no features", redo)
        self._embed_rows(encoder, redo)
        if identities:
            try:
                require_one_identity(identities)
            except FeatureFileError as error:
                self.add("problem", folder, short_message(error), redo)

    def _embed_rows(self, encoder: str, redo: str) -> None:
        rows = {str(row.get("slide_id", "")): row for row in self._run.rows(embed_stage(encoder))}
        for slide_id, row in rows.items():
            if row.get("status") == "failed":
                path = feature_path(self._run, encoder, slide_id)
                self.add("problem", path, f"failed: {row.get('reason', '')}", redo)
        if rows:
            self._table(self._run.path / "embed.csv", rows, redo, encoder)

    def _embed_again(self, encoder: str) -> str:
        base, _, adapter = encoder.partition("+")
        if is_adapted_to_a_fold(encoder):
            return f"wsi-dino mil --run {quoted(self._run.path)} --encoder {base} --adapt lora ..."
        if adapter:
            return f"wsi-dino embed --run {quoted(self._run.path)} --encoder {base} --adapter {adapter}"
        return f"wsi-dino embed --run {quoted(self._run.path)} --encoder {encoder}"

    def _feature_file(self, path: Path) -> FeatureFile | None:
        redo = self._embed_again(_encoder_of(path.parent.name))
        try:
            file = _head_only(path) if self._quick else read_feature_file(path, verify=True)
        except FeatureFileError as error:
            self.unreadable(path, error, redo)
            return None
        redo = self._embed_again(str(file.provenance.get("encoder", path.parent.name)))
        self.count("feature files", path)
        for text in _feature_problems(file, self._grids.get(path.stem)):
            self.broken(path, text, redo)
        if not file.provenance.get("imported") and path.stem not in self._grids:
            self.add("problem", path, "there is no readable tile file of this slide", self._tile_again)
        if file.provenance.get("random_weights") not in (None, False):
            self.add("note", path, "features of random weights: they say nothing about the slides")
        return file

    # mil --------------------------------------------------------------------------------------
    def mil(self, folder: Path) -> None:
        """Check what `mil` wrote for one task and encoder."""
        name, model = split_result_name(folder.name)
        encoder = _encoder_of(name)
        if model != DEFAULT_MODEL:
            encoder = f"{encoder} --model {model}"
        if encoder.endswith("+lora"):
            encoder = f"{encoder.removesuffix('+lora')} --adapt lora"
        redo = f"wsi-dino mil --run {quoted(self._run.path)} --task {folder.parent.name} --encoder {encoder}"
        for path in sorted(folder.glob("adapter/*/")):
            self._adapter(path, redo)
        metrics = self.read_json(folder / "metrics.json", redo)
        models = sorted((folder / "model").glob("*.safetensors"))
        for path in models:
            self._model(path, redo)
        folds = metrics.get("folds", []) if metrics else []
        if metrics is not None and len(models) != len(folds):
            self.add("problem", folder / "model", f"{len(models)} models for {len(folds)} folds", redo)
        for path in sorted(folder.glob("attention/*/*.h5")):
            self._attention(path, redo)
        self._predictions(folder / "predictions.csv", redo)
        self._report_page(folder / "report.html", redo)
        for path in sorted((folder / "heatmaps").glob("*.*")):
            if path.suffix in (".jpg", ".jpeg", ".png"):
                self.check_picture(path, redo)

    def _adapter(self, folder: Path, redo: str) -> None:
        try:
            read_adapter(folder)
        except WsiDinoError as error:
            self.broken(folder, short_message(error), redo)
            return
        self.count("adapters", folder)

    def _model(self, path: Path, redo: str) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            weights = load_file(path)
        except (OSError, ValueError, SafetensorError) as error:
            self.broken(path, f"no whole model ({error})", redo)
            return
        self.count("models", path)
        if not all(np.isfinite(array).all() for array in weights.values()):
            self.broken(path, "a weight is not finite", redo)

    def _attention(self, path: Path, redo: str) -> None:
        try:
            weights = read_attention(path).attention_weights
        except FeatureFileError as error:
            self.broken(path, short_message(error), redo)
            return
        self.count("attention files", path)
        if len(weights) and abs(float(weights.sum()) - 1) > _ROUNDING:
            self.broken(path, f"the weights add up to {weights.sum():.4f}, not to 1", redo)

    def _predictions(self, path: Path, redo: str) -> None:
        table = self.read_csv(path, redo)
        if table is None:
            return
        if not table:
            self.broken(path, "holds no prediction", redo)
        for number, line in enumerate(table, start=2):
            scores = [value for name, value in line.items() if name and name.startswith("score")]
            if not scores or not all(_is_finite(value) for value in scores):
                self.broken(path, f"line {number}: the score is no number", redo)
                return

    def _report_page(self, path: Path, redo: str) -> None:
        try:
            whole = path.read_text(encoding="utf-8").rstrip().endswith("</html>")
        except FileNotFoundError:
            self.add("problem", path, "missing", redo)
            return
        except (OSError, UnicodeDecodeError) as error:
            self.broken(path, f"unreadable ({error})", redo)
            return
        self.count("reports", path)
        if not whole:
            self.broken(path, "the page is cut off", redo)

    def predictions_on_new_slides(self, folder: Path) -> None:
        """Check what `predict` wrote."""
        self._predictions(folder / "predictions.csv", f"wsi-dino predict --model MODEL --run {quoted(self._run.path)}")

    # leftovers --------------------------------------------------------------------------------
    def leftovers(self) -> None:
        """Look for what a killed command left behind, and for work that is still going on."""
        for path in sorted(self._run.path.rglob(".*.tmp")):
            if owner_is_alive(path):
                self.add("note", path, "is being written now")
            else:
                self.add("problem", path, "left by a killed command; it holds nothing of use", f"rm {quoted(path)}")
        for path in sorted(self._run.state.rglob("*.journal")):
            self.add("note", path, "a slide whose embedding was not finished; `wsi-dino embed` goes on from it")
        for path in sorted((self._run.state / "claims").rglob("*.lock")):
            self._claim(path)

    def _claim(self, path: Path) -> None:
        claim = try_claim(path)
        if claim is None:
            self.add("note", path, "is being worked on now")
        else:
            claim.release()  # its owner died; the file said nothing


@dataclass(frozen=True)
class _GridHead:
    """What of a tile file its feature files must agree with."""

    n_tiles: int
    fingerprint: str
    coords_sha256: str


def _slides_folder(run: RunFolder) -> str:
    """Return the folder that all slides of the run lie below, as `tile` noted them, or a stand-in for its name."""
    folders = [os.path.dirname(row["path"]) for row in run.rows("tile") if row.get("path")]
    return quoted(Path(os.path.commonpath(folders))) if folders else "SLIDES"


def _encoder_of(folder_name: str) -> str:
    """Return the encoder whose folder has this name (see `run_folder.safe_name`)."""
    return folder_name.replace("timm__", "timm/", 1)


def _grid_problem(grid: TileGrid) -> str:
    width, height = grid.slide_wh_level0
    xy = grid.xy
    if len(xy) and (xy.min() < 0 or xy[:, 0].max() >= width or xy[:, 1].max() >= height):
        return f"a tile starts outside of the slide ({width} x {height} px)"
    if len(grid.tissue_fraction) != len(xy):
        return f"{len(xy)} coordinates but {len(grid.tissue_fraction)} tissue fractions"
    if not np.isfinite(grid.tissue_fraction).all():
        return "a tissue fraction is not finite"
    return ""


def _head_only(path: Path) -> FeatureFile:
    provenance = read_provenance(path)
    shape = (int(provenance["n"]), int(provenance["embed_dim"]))
    # stands for the values, which are not read: no memory behind it
    unread = np.broadcast_to(np.int64(_UNREAD), (shape[0], 2))
    return FeatureFile(np.broadcast_to(np.float16(0), shape), unread, provenance)


def _feature_problems(file: FeatureFile, grid: _GridHead | None) -> Iterator[str]:
    if not np.isfinite(file.features).all():
        row = int(np.flatnonzero(~np.isfinite(file.features).all(1))[0])
        yield f"row {row} is not finite"
    if file.features.shape[1] != file.provenance.get("embed_dim"):
        yield f"{file.features.shape[1]} values a tile, but it says {file.provenance.get('embed_dim')}"
    if grid is None or file.provenance.get("imported"):
        return
    if len(file.features) != grid.n_tiles:
        yield f"{len(file.features)} tiles, but the tile file has {grid.n_tiles}"
    made_from = (file.provenance.get("tiling") or {}).get("fingerprint")
    if made_from != grid.fingerprint:
        yield "made from another tile file than the one that is there now"
    elif (file.coords != _UNREAD).any() and _sha256(file.coords) != grid.coords_sha256:
        yield "its coordinates are not those of the tile file"


def _sha256(coords: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(coords, np.int64).tobytes()).hexdigest()


def _is_finite(text: str | None) -> bool:
    try:
        return bool(np.isfinite(float(text or "")))
    except ValueError:
        return False
