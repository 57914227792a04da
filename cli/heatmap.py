"""`wsi-dino heatmap`: attention or tile probability over slides of a finished task, for eyes and for viewers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsi_dino.cli import console
from wsi_dino.cli.options import Device, DeviceOption, JsonOption
from wsi_dino.cli.run_pictures import RunPictures, attention_values, footprint_of
from wsi_dino.errors import ConfigError, WsiDinoError

if TYPE_CHECKING:
    import numpy as np

    from wsi_dino.item_queue import Item
    from wsi_dino.mil.attention_file import SlideAttention
    from wsi_dino.mil.finished_task import FinishedTask
    from wsi_dino.pathology.tile_values import TileValues

_DRAWN_AS = "heatmap 1"  # raise when a picture of the same values would look different
_SHOWN = 40

FolderArgument = Annotated[
    Path, typer.Argument(help="RUN/mil/TASK/ENCODER of a finished `mil`.", metavar="RESULTS", show_default=False)
]
TestRunOption = Annotated[
    Path | None,
    typer.Option("--test-run", help="Run of the other cohort of a task that tests on one.", show_default=False),
]
FoldOption = Annotated[
    int | None,
    typer.Option("--fold", min=0, help="Whose model, where several tested a slide.  [default: the first]",
                 show_default=False),
]  # fmt: skip


class HeatmapKind(StrEnum):
    """What is painted."""

    attention = "attention"
    probability = "probability"


class HeatmapFormat(StrEnum):
    """How it is written."""

    png = "png"
    tiff = "tiff"
    geojson = "geojson"


def heatmap(
    results: FolderArgument,
    slide: Annotated[
        list[str] | None,
        typer.Option("--slide", help="Held-out slide by id; may be repeated.  [default: see --number]",
                     show_default=False),
    ] = None,
    number: Annotated[
        int, typer.Option("--number", min=0, help="Without --slide: so many, highest score first; 0 = all.")
    ] = 10,
    kind: Annotated[
        HeatmapKind, typer.Option("--kind", help="Where the model looked, or what it says of each tile alone.")
    ] = HeatmapKind.attention,
    of_class: Annotated[
        str | None,
        typer.Option("--class", help="Whose probability.  [default: the last class, of two the positive one]",
                     show_default=False),
    ] = None,
    format: Annotated[
        list[HeatmapFormat] | None,
        typer.Option("--format", help="png: a picture with a legend; tiff: a pyramid aligned with the slide; geojson: "
                     "tiles for QuPath. May be repeated.  [default: png]", show_default=False),
    ] = None,
    fold: FoldOption = None,
    test_run: TestRunOption = None,
    slides: Annotated[
        Path | None,
        typer.Option("--slides", help="Where the slides are now, if not where they were tiled.", show_default=False),
    ] = None,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Paint attention or tile probability over held-out slides of a finished task.

    Nothing is trained: attention was kept, probabilities come from the model of the fold that had not seen the
    slide. Writes RESULTS/heatmaps/SLIDE.png, .tiff or .geojson; probabilities go to heatmaps/probability/CLASS/.
    Run again, it draws only what is missing. Exit code 1 when a slide could not be drawn.
    """
    from wsi_dino.cli.mil import resolve_mil_device
    from wsi_dino.mil.finished_task import FinishedTask

    if of_class is not None and kind is HeatmapKind.attention:
        raise ConfigError("--class: attention is the same for all classes; it goes with --kind probability.")
    task = FinishedTask(results, test_run=test_run, fold=fold, device=resolve_mil_device(str(device)))
    drawing = _Drawing(task, str(kind), task.class_index(of_class), RunPictures(*task.runs, folder=slides))
    formats = list(dict.fromkeys(format or [HeatmapFormat.png]))
    rows = _draw_all(drawing, task.choose(slide or [], number), [str(one) for one in formats])
    n_failed = sum(row["status"] == "failed" for row in rows)
    if as_json:
        console.print_json({
            "command": "heatmap", "results": str(results), "kind": str(kind), "class": drawing.class_name,
            "n_failed": n_failed, "slides": rows,
        })  # fmt: skip
    else:
        _print(rows, drawing.folder)
    console.leave(n_failed)


@dataclass(frozen=True)
class _Drawing:
    """What is drawn of which task."""

    task: FinishedTask
    kind: str
    class_index: int
    pictures: RunPictures

    @property
    def class_name(self) -> str | None:
        """Whose probability; None for attention."""
        return None if self.kind == "attention" else self.task.classes[self.class_index]

    @property
    def folder(self) -> Path:
        """Where the files go."""
        from wsi_dino.run_folder import safe_name

        top = self.task.folder / "heatmaps"
        return top if self.class_name is None else top / "probability" / safe_name(self.class_name)

    def item(self, slide_id: str, file_format: str) -> Item:
        """Return one file as an item of work: anything that changes the picture changes its fingerprint."""
        from wsi_dino.item_queue import Item
        from wsi_dino.provenance import file_sha256, fingerprint

        attention = self.task.attention_path(slide_id)
        content = file_sha256(attention) if attention.is_file() else None
        made_of = [_DRAWN_AS, self.kind, self.class_name, self.task.metrics["provenance"]["fingerprint"], content]
        return Item(f"{slide_id}.{file_format}", fingerprint(*made_of, self.task.fold_of(slide_id)))

    def write(self, slide_id: str, file_format: str) -> Path:
        """Draw one file.

        Raises:
            WsiDinoError: the slide, its features or the model cannot be read.
        """
        path = self.folder / f"{slide_id}.{file_format}"
        attention = self.task.attention(slide_id)
        probabilities = None if self.class_name is None else self.task.tile_probabilities(slide_id)
        tiles = self._values(attention, probabilities)
        _WRITERS[file_format](self, path, tiles, attention, probabilities)
        return path

    def _values(self, attention: SlideAttention, probabilities: np.ndarray | None) -> TileValues:
        from wsi_dino.pathology.tile_values import TileValues

        if probabilities is None or self.class_name is None:
            return attention_values(attention)
        values, footprint = probabilities[:, self.class_index], footprint_of(attention)
        return TileValues(attention.slide_id, "probability", values, attention.coords, footprint, self.class_name)

    def title(self, slide_id: str) -> str:
        """Say which slide, what it is, and what was said of it."""
        row = self.task.rows[slide_id]
        return f"{slide_id}: {row['target']}, score {float(row['score']):.3f} (held out in fold {row['fold']})"


def _write_png(drawing: _Drawing, path: Path, tiles: TileValues, *_: Any) -> None:
    from wsi_dino.pathology.heatmap import write_heatmap

    write_heatmap(path, drawing.pictures.path(tiles.slide_id), tiles, title=drawing.title(tiles.slide_id))


def _write_tiff(drawing: _Drawing, path: Path, tiles: TileValues, *_: Any) -> None:
    from wsi_dino.pathology.overlay_tiff import write_overlay_tiff
    from wsi_dino.pathology.slide import open_slide

    with open_slide(drawing.pictures.path(tiles.slide_id), slide_id=tiles.slide_id) as slide:
        write_overlay_tiff(path, slide, tiles, drawing.pictures.mpp_xy(tiles.slide_id) or slide.file_mpp)


def _write_geojson(
    drawing: _Drawing, path: Path, tiles: TileValues, attention: SlideAttention, probabilities: np.ndarray | None
) -> None:
    from wsi_dino.pathology.overlay_geojson import write_overlay_geojson
    from wsi_dino.pathology.tile_values import percentile_ranks

    measurements = {"attention times even share": attention.lift}
    measurements["attention rank"] = percentile_ranks(attention.attention_weights)
    if probabilities is not None:
        measurements |= {f"probability {name}": probabilities[:, i] for i, name in enumerate(drawing.task.classes)}
    write_overlay_geojson(path, tiles, measurements)


_WRITERS: dict[str, Callable[..., None]] = {"png": _write_png, "tiff": _write_tiff, "geojson": _write_geojson}


def _draw_all(drawing: _Drawing, slide_ids: Sequence[str], formats: Sequence[str]) -> list[dict[str, Any]]:
    from wsi_dino.item_queue import ItemQueue
    from wsi_dino.provenance import file_sha256

    places = [(slide_id, one) for slide_id in slide_ids for one in formats]
    items = {drawing.item(*place): place for place in places}
    stage = "-".join(["heatmap", *drawing.task.folder.resolve().parts[-2:], drawing.class_name or "attention"])

    def is_intact(item: Item, row: dict[str, Any]) -> bool:
        path = drawing.folder / f"{items[item][0]}.{items[item][1]}"
        return path.is_file() and file_sha256(path) == row.get("sha256")

    queue = ItemQueue(drawing.task.run, stage, list(items), is_intact)
    with console.progress("heatmap", total=len(items), unit="files") as progress:
        while (claimed := queue.take()) is not None:
            try:
                row = _draw_one(drawing, *items[claimed.item])
            except BaseException:
                queue.give_back(claimed)
                raise
            queue.finish(claimed, row)
            progress(1, text=claimed.item.key)
        progress(queue.n_reused)
    return [
        {"slide_id": slide_id, "format": one, "fold": drawing.task.fold_of(slide_id), **_public(drawing, row)}
        for (slide_id, one), row in zip(places, queue.rows(), strict=True)
    ]


def _draw_one(drawing: _Drawing, slide_id: str, file_format: str) -> dict[str, Any]:
    from wsi_dino.errors import StorageError
    from wsi_dino.provenance import file_sha256

    try:
        path = drawing.write(slide_id, file_format)
    except StorageError:
        raise
    except WsiDinoError as error:
        return {"status": "failed", "reason": str(error), "file": None}
    return {"status": "done", "reason": "", "file": path.name, "sha256": file_sha256(path)}


def _public(drawing: _Drawing, row: dict[str, Any]) -> dict[str, Any]:
    file = None if row["file"] is None else str(drawing.folder / row["file"])
    return {"status": row["status"], "reason": row["reason"], "file": file}


def _print(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    failed = [row for row in rows if row["status"] == "failed"]
    for row in rows[:_SHOWN] if len(rows) <= _SHOWN else failed[:_SHOWN]:
        print(f"{row['slide_id']}: {row['file'] or 'failed: ' + row['reason']}")
    print(f"{len(rows) - len(failed)} of {len(rows)} files in {folder}")
