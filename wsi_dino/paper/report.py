"""Writing the document: one page, and the same tables as Markdown, CSV and LaTeX, pictures beside."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from wsi_dino import __version__
from wsi_dino.evaluation.pictures import Picture
from wsi_dino.evaluation.published.printed_table import SOURCE
from wsi_dino.paper.cells import Results, make_tables, number_text
from wsi_dino.paper.contestants import require_known
from wsi_dino.paper.document import (
    METRICS,
    Beyond,
    Numbered,
    conventions,
    count_cells,
    difference_text,
    is_comparable,
    number_tables,
    ours_text,
    results_beyond,
    row_name,
)
from wsi_dino.paper.figures import PaperFigure, make_figures
from wsi_dino.paper.state import read_state
from wsi_dino.paper.text_tables import csv_text, latex_text, markdown_text
from wsi_dino.provenance import write_text_atomically

PAGE = "report.html"
_FIGURES = "figures"
_JPEG_QUALITY = 80
_PHOTO_PX = 1100
_CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Written:
    """What a report left.

    Attributes:
        paths: all files, the page first.
        counts: cells with and without a number of ours.
        changed: results that are no longer what the run left, and are not shown.
    """

    paths: list[Path]
    counts: dict[str, int]
    changed: list[str]


def write_report(run: Path, add_encoders: Sequence[str], say: Callable[[str], None]) -> Written:
    """Write the document of a run; the same results give the same bytes.

    Args:
        run: folder of `paper run`.
        add_encoders: that get a row everywhere.
        say: told what takes time.

    Raises:
        ResultError: the run has no ``paper.json``, or a broken one.
        UnknownEncoderError: no encoder has that name.
        StorageError: the disk is full or the folder cannot be written.
    """
    for name in add_encoders:
        require_known(name)
    results = Results(run.resolve(), read_state(run))
    tables = make_tables(results, add_encoders)
    numbered, beyond = number_tables(tables), results_beyond(results, tables)
    figures = make_figures(results)
    say(f"drawing {sum(len(figure.pictures) for figure in figures)} pictures")
    folder = run / _FIGURES
    pictures = [path for figure in figures for picture in figure.pictures for path in picture.save(folder)]
    _remove_old_pictures(folder, pictures)
    counts = count_cells(tables)
    texts = {
        PAGE: render_page(results, numbered, beyond, figures, counts),
        "report.md": markdown_text(numbered, beyond, figures),
        "report.csv": csv_text(numbered, beyond),
        "report.tex": latex_text(numbered),
    }
    for name, text in texts.items():
        write_text_atomically(run / name, text)
    return Written([*(run / name for name in texts), *pictures], counts, list(dict.fromkeys(results.changed)))


def _remove_old_pictures(folder: Path, kept: Sequence[Path]) -> None:
    """A picture of an earlier report must not lie beside this one."""
    for path in folder.glob("figure-*"):
        if path.suffix in (".svg", ".png") and path not in kept:
            path.unlink(missing_ok=True)


def render_page(
    results: Results, tables: Sequence[Numbered], beyond: Sequence[Beyond], figures: Sequence[PaperFigure],
    counts: dict[str, int],
) -> str:  # fmt: skip
    """Return the page: one self-contained HTML file, no script, no network, every text escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"ours": ours_text, "difference": difference_text, "row_name": row_name, "code": _with_code}
    package = resources.files("wsi_dino.paper")
    source = package.joinpath("page.html.jinja").read_text(encoding="utf-8")
    style = package.joinpath("page.css").read_text(encoding="utf-8")
    shown = [
        {"figure": figure, "pictures": [{"label": picture.label, "name": picture.name, "body": Markup(_body(
            picture, figure.is_photo))} for picture in figure.pictures]} for figure in figures
    ]  # fmt: skip
    anomalies = {anomaly.id: anomaly for numbered in tables for anomaly in numbered.table.anomalies}
    return environment.from_string(source).render(
        source=SOURCE, version=__version__, style=Markup(style), tables=tables, beyond=beyond, figures=shown,
        counts=counts, metrics=METRICS, state=results.state, changed=list(dict.fromkeys(results.changed)),
        anomalies=[anomalies[number] for number in sorted(anomalies)], comparable=is_comparable,
        conventions=conventions, number=number_text, failed=_failed(results), steps=_steps(results),
    )  # fmt: skip


def _body(picture: Picture, is_photo: bool) -> str:
    return _jpeg(picture) if is_photo else picture.page_svg()


def _jpeg(picture: Picture) -> str:
    """Return a picture of pixels as an image that takes little room."""
    from PIL import Image

    with Image.open(io.BytesIO(picture.png())) as opened:
        image = opened.convert("RGB")
    if image.width > _PHOTO_PX:
        image = image.resize((_PHOTO_PX, round(image.height * _PHOTO_PX / image.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="data:image/jpeg;base64,{data}" {size} alt="{html.escape(picture.label)}">'


def _with_code(text: str) -> str:
    """Return plain text as HTML: what stands between backticks is code."""
    from markupsafe import Markup

    return Markup(_CODE.sub(r"<code>\1</code>", html.escape(text)))


def _steps(results: Results) -> list[dict[str, Any]]:
    return [dict(step) for step in results.state.steps]


def _failed(results: Results) -> list[dict[str, Any]]:
    return [dict(step) for step in results.state.steps if step["status"] not in ("done", "planned")]
