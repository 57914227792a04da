"""Look at every file of a run, and say what is wrong and which command puts it right."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wsi_dino.claims import try_claim
from wsi_dino.errors import FeatureFileError, TileGridError
from wsi_dino.feature_file import FeatureFile, read_feature_file, read_provenance, require_one_identity
from wsi_dino.pathology.embed_spec import embed_stage, feature_path
from wsi_dino.pathology.tile_grid import TileGrid, read_tile_grid
from wsi_dino.provenance import owner_is_alive
from wsi_dino.run_folder import RunFolder

Kind = Literal["problem", "note"]
_UNREAD = -1
OnFile = Callable[[Path], None]


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: a problem is to be put right; a note is not.
        path: what it is about, relative to the run.
        text: what is wrong with it.
        redo: the commands that put it right, in order; a broken file is removed first, since a file that
            cannot be told from a good one by its head would otherwise be kept.
    """

    kind: Kind
    path: str
    text: str
    redo: tuple[str, ...] = ()


@dataclass
class RunReport:
    """All findings, and how many files of each sort were looked at."""

    findings: list[Finding] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def problems(self) -> list[Finding]:
        """What must be put right."""
        return [finding for finding in self.findings if finding.kind == "problem"]

    @property
    def notes(self) -> list[Finding]:
        """What is worth knowing."""
        return [finding for finding in self.findings if finding.kind == "note"]

    @property
    def commands(self) -> list[str]:
        """The commands that put everything right, each once, in the order they are to be run."""
        commands = dict.fromkeys(command for finding in self.problems for command in finding.redo)
        return sorted(commands, key=_place_in_order)


def _place_in_order(command: str) -> int:
    starts = ("rm ", "wsi-dino tile", "wsi-dino embed", "wsi-dino mil")
    return next((place for place, start in enumerate(starts) if command.startswith(start)), len(starts))


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
        check.mil(folder)
    check.leftovers()
    return check.report


class _RunCheck:
    def __init__(self, run: RunFolder, quick: bool, on_file: OnFile) -> None:
        self._run, self._quick, self._on_file = run, quick, on_file
        self._tile_again = f"wsi-dino tile {_slides_folder(run)} --run {_quoted(run.path)}"
        self._grids: dict[str, _GridHead] = {}
        self.report = RunReport()

    def _count(self, what: str, path: Path) -> None:
        self.report.counts[what] = self.report.counts.get(what, 0) + 1
        self._on_file(path)

    def _add(self, kind: Kind, path: Path, text: str, *redo: str) -> None:
        inside = path.relative_to(self._run.path).as_posix()
        self.report.findings.append(Finding(kind, inside, text, redo))

    def _broken(self, path: Path, text: str, redo: str) -> None:
        self._add("problem", path, text, f"rm {_quoted(path)}", redo)

    def _unreadable(self, path: Path, error: Exception, redo: str) -> None:
        if path.exists():
            self._broken(path, _short(error), redo)
        else:
            self._add("problem", path, "missing", redo)

    # tiles ------------------------------------------------------------------------------------
    def tiles(self) -> None:
        """Check tile files, contours and thumbnails against the rows of `tile`, and the table."""
        rows = {str(row.get("slide_id", "")): row for row in self._run.rows("tile")}
        for slide_id, row in rows.items():
            self._tile_row(slide_id, row)
        for path in sorted(self._run.tiles.glob("*.h5")):
            if path.stem not in rows:
                self._add("problem", path, "no row of `wsi-dino tile` speaks of it", self._tile_again)
                self._grid(path)
        if not rows and not self._grids:
            self._add("note", self._run.tiles, "nothing was tiled in this run")
        else:
            self._table(self._run.path / "tiles.csv", rows, self._tile_again)

    def _tile_row(self, slide_id: str, row: dict[str, Any]) -> None:
        path = self._run.tiles / f"{slide_id}.h5"
        if row.get("status") == "failed":
            self._add("problem", path, f"failed: {row.get('reason', '')}", self._tile_again)
            return
        grid = self._grid(path)
        if grid is None:
            return
        if grid.fingerprint != row.get("grid_fingerprint"):
            self._add("problem", path, "made by another request than the last one", self._tile_again)
        self._contours(self._run.contours / f"{slide_id}.geojson")
        self._picture(self._run.thumbnails / f"{slide_id}.jpg", self._tile_again)

    def _grid(self, path: Path) -> _GridHead | None:
        try:
            grid = read_tile_grid(path)
            problem = _grid_problem(grid)
        except TileGridError as error:
            self._unreadable(path, error, self._tile_again)
            return None
        self._count("tile files", path)
        if problem:
            self._broken(path, problem, self._tile_again)
        self._grids[path.stem] = _GridHead(len(grid), grid.fingerprint, _sha256(grid.xy))
        return self._grids[path.stem]

    def _contours(self, path: Path) -> None:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            kind = found.get("type") if isinstance(found, dict) else "list" if isinstance(found, list) else None
        except FileNotFoundError:
            self._add("problem", path, "missing", self._tile_again)
            return
        except (OSError, ValueError) as error:
            self._broken(path, f"no GeoJSON ({error})", self._tile_again)
            return
        self._count("contour files", path)
        if kind not in ("FeatureCollection", "list"):
            self._broken(path, "no GeoJSON FeatureCollection", self._tile_again)

    def _picture(self, path: Path, redo: str) -> None:
        from PIL import Image

        try:
            with Image.open(path) as picture:
                picture.load()
        except FileNotFoundError:
            self._add("problem", path, "missing", redo)
        except (OSError, SyntaxError, ValueError) as error:
            self._broken(path, f"no whole picture ({error})", redo)
        else:
            self._count("pictures", path)

    def _table(self, path: Path, rows: dict[str, dict[str, Any]], redo: str) -> None:
        table = self._read_csv(path, redo)
        if table is None:
            return
        in_table = {line.get("slide_id", ""): line.get("status", "") for line in table}
        if len(in_table) != len(table):
            self._add("problem", path, "a slide stands in it twice", redo)
        for slide_id, row in rows.items():
            if in_table.get(slide_id) != row.get("status"):
                said = in_table.get(slide_id, "nothing")
                self._add("problem", path, f"says {said} of {slide_id}, which is {row.get('status')}", redo)

    def _read_csv(self, path: Path, redo: str) -> list[dict[str, str]] | None:
        try:
            with path.open(newline="", encoding="utf-8") as stream:
                table = list(csv.DictReader(stream))
        except FileNotFoundError:
            self._add("problem", path, "missing", redo)
            return None
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            self._broken(path, f"no table ({error})", redo)
            return None
        self._count("tables", path)
        return table

    # features ---------------------------------------------------------------------------------
    def features(self, folder: Path) -> None:
        """Check the feature files of one encoder, against the tile files and against one another."""
        encoder, identities = folder.name, {}
        for path in sorted(folder.glob("*.h5")):
            head = self._feature_file(path)
            if head is not None:
                identities[path.name] = head.identity
                encoder = str(head.provenance.get("encoder", encoder))
        redo = self._embed_again(encoder)
        for slide_id, grid in self._grids.items():
            path = feature_path(self._run, encoder, slide_id)
            if grid.n_tiles and not path.exists():
                self._add("problem", path, "missing: this slide has tiles but no features", redo)
        for row in self._run.rows(embed_stage(encoder)):
            if row.get("status") == "failed":
                path = feature_path(self._run, encoder, str(row.get("slide_id", "")))
                self._add("problem", path, f"failed: {row.get('reason', '')}", redo)
        if identities:
            try:
                require_one_identity(identities)
            except FeatureFileError as error:
                self._add("problem", folder, _short(error), redo)

    def _embed_again(self, encoder: str) -> str:
        return f"wsi-dino embed --run {_quoted(self._run.path)} --encoder {encoder}"

    def _feature_file(self, path: Path) -> FeatureFile | None:
        redo = self._embed_again(path.parent.name.replace("timm__", "timm/", 1))
        try:
            file = _head_only(path) if self._quick else read_feature_file(path, verify=True)
        except FeatureFileError as error:
            self._unreadable(path, error, redo)
            return None
        redo = self._embed_again(str(file.provenance.get("encoder", path.parent.name)))
        self._count("feature files", path)
        for text in _feature_problems(file, self._grids.get(path.stem)):
            self._broken(path, text, redo)
        if not file.provenance.get("imported") and path.stem not in self._grids:
            self._add("problem", path, "there is no readable tile file of this slide", self._tile_again)
        if file.provenance.get("random_weights") not in (None, False):
            self._add("note", path, "features of random weights: they say nothing about the slides")
        return file

    # mil --------------------------------------------------------------------------------------
    def mil(self, folder: Path) -> None:
        """Check what `mil` wrote for one task and encoder."""
        redo = f"wsi-dino mil --run {_quoted(self._run.path)} --task {folder.parent.name} --encoder {folder.name}"
        metrics = self._read_json(folder / "metrics.json", redo)
        models = sorted((folder / "model").glob("*.safetensors"))
        for path in models:
            self._model(path, redo)
        folds = metrics.get("folds", []) if metrics else []
        if metrics is not None and len(models) != len(folds):
            self._add("problem", folder / "model", f"{len(models)} models for {len(folds)} folds", redo)
        self._predictions(folder / "predictions.csv", redo)
        self._report_page(folder / "report.html", redo)
        for path in sorted((folder / "heatmaps").glob("*.*")):
            if path.suffix in (".jpg", ".jpeg", ".png"):
                self._picture(path, redo)

    def _read_json(self, path: Path, redo: str) -> dict[str, Any] | None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            self._add("problem", path, "missing", redo)
            return None
        except (OSError, ValueError) as error:
            self._broken(path, f"no JSON ({error})", redo)
            return None
        self._count("metric files", path)
        return content if isinstance(content, dict) else {}

    def _model(self, path: Path, redo: str) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            weights = load_file(path)
        except (OSError, ValueError, SafetensorError) as error:
            self._broken(path, f"no whole model ({error})", redo)
            return
        self._count("models", path)
        if not all(np.isfinite(array).all() for array in weights.values()):
            self._broken(path, "a weight is not finite", redo)

    def _predictions(self, path: Path, redo: str) -> None:
        table = self._read_csv(path, redo)
        if table is None:
            return
        if not table:
            self._broken(path, "holds no prediction", redo)
        for number, line in enumerate(table, start=2):
            scores = [value for name, value in line.items() if name and name.startswith("score")]
            if not scores or not all(_is_finite(value) for value in scores):
                self._broken(path, f"line {number}: the score is no number", redo)
                return

    def _report_page(self, path: Path, redo: str) -> None:
        try:
            whole = path.read_text(encoding="utf-8").rstrip().endswith("</html>")
        except FileNotFoundError:
            self._add("problem", path, "missing", redo)
            return
        except (OSError, UnicodeDecodeError) as error:
            self._broken(path, f"unreadable ({error})", redo)
            return
        self._count("reports", path)
        if not whole:
            self._broken(path, "the page is cut off", redo)

    # leftovers --------------------------------------------------------------------------------
    def leftovers(self) -> None:
        """Look for what a killed command left behind, and for work that is still going on."""
        for path in sorted(self._run.path.rglob(".*.tmp")):
            if owner_is_alive(path):
                self._add("note", path, "is being written now")
            else:
                self._add("problem", path, "left by a killed command; it holds nothing of use", f"rm {_quoted(path)}")
        for path in sorted(self._run.state.rglob("*.journal")):
            self._add("note", path, "a slide whose embedding was not finished; `wsi-dino embed` goes on from it")
        for path in sorted((self._run.state / "claims").rglob("*.lock")):
            self._claim(path)

    def _claim(self, path: Path) -> None:
        claim = try_claim(path)
        if claim is None:
            self._add("note", path, "is being worked on now")
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
    return _quoted(Path(os.path.commonpath(folders))) if folders else "SLIDES"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


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


def _short(error: Exception) -> str:
    """Return an error's message without the path, which stands before it anyway, and without advice."""
    text = str(error)
    head, _, rest = text.partition(": ")
    message = rest if head.startswith("Reading") else text
    for advice in (" Run `wsi-dino", " Delete it and run", " Features of different"):
        message = message.split(advice)[0]
    return message
