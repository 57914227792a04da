"""The part of a task's report on tiles of each class and on faithfulness of attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from wsi_dino.evaluation.looking_pictures import MosaicRow, faithfulness_picture, mosaic_picture
from wsi_dino.evaluation.pictures import Picture, picture_uri

_TEMPLATE = """
{% if rows %}
<h3>Tiles that look most and least like {{ what }}</h3>
<p class="muted">Of all held-out slides, judged by the model that had not seen the slide: the probability that it would
give a slide of this tile alone, then the tile's attention as a multiple of an even share. Only tiles with at least that
share, at most two of a slide. Coordinates are in top_tiles.csv{% if has_picture %}, the picture is
pictures/top-tiles.svg and .png{% endif %}.
{% if note %}{{ note }}{% endif %}</p>
{% for row in rows %}
<h4>{{ row.title }}</h4>
<div class="tiles">
{% for tile in row.tiles %}<figure>{% if tile.uri %}<img alt="{{ tile.caption }}" src="{{ tile.uri }}">{% endif %}
<figcaption>{{ tile.caption }}</figcaption></figure>
{% endfor %}</div>
{% endfor %}
{% endif %}
{% if faithfulness %}
<h3>Does the score hang on what was attended to?</h3>
<figure class="wide">{{ curves }}<figcaption>Mean over {{ faithfulness.n_slides }} held-out slides drawn at random, of
{{ faithfulness.n_patients }} patients. A faithful map lies low on the left and high on the right.</figcaption></figure>
<div class="scroll"><table>
<thead><tr><th class="text">area under the curve</th><th>by attention</th><th>random order</th>
<th>gain</th></tr></thead>
<tbody>{% for way in ("deletion", "insertion") %}<tr><td class="text">{{ way }}
({{ "low" if way == "deletion" else "high" }} is faithful)</td>
{% for name in ("attention", "random", "gain") %}<td>{{ faithfulness[way][name].value | number }}<span class="interval">
{{ faithfulness[way][name].low | number }} to {{ faithfulness[way][name].high | number }}</span></td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<p class="muted">{{ faithfulness.method }}.</p>
{% endif %}
"""
_TILE_PX = 112


@dataclass(frozen=True)
class LookingSection:
    """What the report shows of it.

    Attributes:
        rows: of the mosaic.
        what: the classes, in words.
        note: why tiles have no picture, or an empty text.
        faithfulness: of metrics.json, or None.
    """

    rows: Sequence[MosaicRow] = ()
    what: str = ""
    note: str = ""
    faithfulness: Mapping[str, Any] | None = None

    @cached_property
    def mosaic(self) -> Picture | None:
        """The tiles as one picture; None where none of them could be read."""
        is_any_read = any(tile.pixels is not None for row in self.rows for tile in row.tiles)
        return mosaic_picture(self.rows, "top-tiles") if is_any_read else None

    @cached_property
    def curves(self) -> Picture | None:
        """The curves of deletion and insertion."""
        return faithfulness_picture(self.faithfulness, "faithfulness") if self.faithfulness else None

    @property
    def pictures(self) -> list[Picture]:
        """Those that can be saved beside the report."""
        return [picture for picture in (self.mosaic, self.curves) if picture is not None]


def looking_html(section: LookingSection | None) -> Any:
    """Return the section as safe HTML; what was not looked at is left out."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    if section is None:
        return Markup("")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = _number
    rows = [
        {"title": row.title, "tiles": [{"caption": t.caption, "uri": _uri(t.pixels)} for t in row.tiles]}
        for row in section.rows
    ]
    curves = Markup(section.curves.page_svg()) if section.curves else ""
    text = environment.from_string(_TEMPLATE).render(
        rows=rows,
        what=section.what,
        note=section.note,
        faithfulness=section.faithfulness,
        curves=curves,
        has_picture=section.mosaic is not None,
    )
    return Markup(text)


def _uri(pixels: np.ndarray | None) -> str:
    from PIL import Image

    if pixels is None:
        return ""
    small = Image.fromarray(pixels).resize((_TILE_PX, _TILE_PX), Image.Resampling.BOX)
    return picture_uri(np.asarray(small))


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) and np.isfinite(value) else "–"
