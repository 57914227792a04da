"""Pictures that stand in a page and can be saved: drawn once more for each, in the colours that fit."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.evaluation.plots import STYLE
from wsi_dino.provenance import write_atomically

PNG_DPI = 200
_JPEG_QUALITY = 85
INK, RULE = "#1b1f24", "#d5dae0"
# Okabe and Ito 2008: told apart with every common colour vision; the darkest first
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "//", "..", "xx", "\\\\", "--", "++", "oo")


@dataclass(frozen=True)
class Picture:
    """A figure that can be drawn again.

    Attributes:
        name: file name without ending, unique in a page.
        label: what it shows, in words.
        size_in: width and height.
        draw: fills a matplotlib figure.
    """

    name: str
    label: str
    size_in: tuple[float, float]
    draw: Callable[[Any], None]

    @cached_property
    def svg(self) -> str:
        """The SVG as text, on white; the same bytes for the same content."""
        return self._saved("svg").decode("utf-8")

    def png(self) -> bytes:
        """Return the picture as PNG, 200 dpi."""
        return self._saved("png")

    def page_svg(self) -> str:
        """Return the SVG to stand in an HTML page: scaled to its place, ids unique to the picture."""
        text = self.svg
        text = text[text.index("<svg") :]
        text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
        text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
        text = re.sub(r' id="', f' id="{self.name}-', text)
        text = text.replace("url(#", f"url(#{self.name}-").replace('href="#', f'href="#{self.name}-')
        return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(self.label)}" ', 1)

    def save(self, folder: Path) -> list[Path]:
        """Write NAME.svg and NAME.png (200 dpi) and return their paths."""
        paths = [folder / f"{self.name}.{kind}" for kind in ("svg", "png")]
        for path in paths:
            with write_atomically(path) as temporary:
                temporary.write_bytes(self.svg.encode() if path.suffix == ".svg" else self.png())
        return paths

    def _saved(self, kind: str) -> bytes:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        colours = {"text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}
        colours |= {"axes.edgecolor": RULE, "grid.color": RULE, "figure.facecolor": "white"}
        style: Any = {**STYLE, **colours, "savefig.facecolor": "white", "hatch.linewidth": 0.6}
        with matplotlib.rc_context(style):
            figure = Figure(figsize=self.size_in, layout="constrained")
            FigureCanvasAgg(figure)
            self.draw(figure)
            buffer = io.BytesIO()
            metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
            figure.savefig(buffer, format=kind, metadata=metadata, dpi=PNG_DPI)
        return _without_metadata(buffer.getvalue()) if kind == "svg" else buffer.getvalue()


def _without_metadata(svg: bytes) -> bytes:
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", svg.decode("utf-8"), flags=re.DOTALL)
    return re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL).encode()


def plain_text(text: str) -> str:
    """Return `text` so that a legend shows it: one that starts with ``_`` it would hide."""
    return f" {text}" if text.startswith("_") else text


def picture_uri(pixels: np.ndarray) -> str:
    """Return uint8 ``(height, width, 3)`` pixels as a JPEG data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
