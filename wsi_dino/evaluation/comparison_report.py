"""What a comparison of encoders leaves on disk: JSON, one long table, pictures, and a page that shows them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from wsi_dino import __version__
from wsi_dino.evaluation.comparison import FIGURES, MACRO, TABLE_COLUMNS, Resampling, table_rows, verdict
from wsi_dino.evaluation.comparison_plots import bar_picture, radar_picture, task_bar_picture
from wsi_dino.evaluation.pictures import Picture
from wsi_dino.provenance import without_nan, write_json_atomically, write_text_atomically

_TITLES = {
    "auc": "AUC", "accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1",
    "macro_precision": "macro<br>precision", "macro_recall": "macro<br>recall", "macro_f1": "macro<br>F1",
}  # fmt: skip
_LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """A comparison with its pictures.

    Attributes:
        sections: of `compare_tasks`, one a task.
        resampling: how much chance was tried.
        bars: a picture for each section.
        radar: None below three tasks.
        task_bars: None for one task.
    """

    sections: Sequence[Mapping[str, Any]]
    resampling: Resampling
    bars: Sequence[Picture]
    radar: Picture | None
    task_bars: Picture | None

    @property
    def pictures(self) -> list[Picture]:
        """All of them."""
        return [picture for picture in (self.radar, self.task_bars, *self.bars) if picture is not None]


def make_comparison(sections: Sequence[Mapping[str, Any]], resampling: Resampling) -> Comparison:
    """Plan the pictures of a comparison."""
    alone = len(sections) == 1
    bars = [bar_picture(section, "bars" if alone else f"bars-{i + 1}") for i, section in enumerate(sections)]
    radar, tasks = radar_picture(sections, "radar"), None if alone else task_bar_picture(sections, "tasks")
    return Comparison([without_nan(section) for section in sections], resampling, bars, radar, tasks)


def write_comparison(folder: Path, comparison: Comparison) -> list[Path]:
    """Write comparison.json, comparison.csv, report.html and each picture as SVG and PNG.

    Returns:
        All files, the page last.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    paths = [folder / "comparison.json", folder / "comparison.csv"]
    content = {"tasks": comparison.sections, "resampling": asdict(comparison.resampling), "version": __version__}
    write_json_atomically(paths[0], content)
    write_text_atomically(paths[1], _csv(table_rows(comparison.sections)))
    _remove_old_pictures(folder, comparison)
    for picture in comparison.pictures:
        paths += picture.save(folder)
    paths.append(folder / "report.html")
    write_text_atomically(paths[-1], render_comparison(comparison))
    return paths


def _remove_old_pictures(folder: Path, comparison: Comparison) -> None:
    """A picture of an earlier comparison must not lie beside this one."""
    kept = {picture.name for picture in comparison.pictures}
    for path in [*folder.glob("bars*.*"), *folder.glob("radar.*"), *folder.glob("tasks.*")]:
        if path.suffix in (".svg", ".png") and path.stem not in kept:
            path.unlink(missing_ok=True)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, TABLE_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return buffer.getvalue()


def render_comparison(comparison: Comparison) -> str:
    """Return the page: one self-contained HTML file, no script, no network, every text escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _number, "number4": _number4, "signed": _signed, "p": _p}
    source = resources.files("wsi_dino.evaluation").joinpath("comparison.html.jinja").read_text(encoding="utf-8")
    bars = [Markup(picture.page_svg()) for picture in comparison.bars]
    sections = [_section(section) | {"bars": bar} for section, bar in zip(comparison.sections, bars, strict=True)]
    return environment.from_string(source).render(
        title=", ".join(section["task"] for section in sections),
        sections=sections, titles=_TITLES, caveats=_caveats(sections),
        n_pairs=sum(len(section["pairs"]) for section in sections),
        radar=Markup(comparison.radar.page_svg()) if comparison.radar else "",
        task_bars=Markup(comparison.task_bars.page_svg()) if comparison.task_bars else "",
        resampling=asdict(comparison.resampling), version=__version__,
        pictures=[picture.name for picture in comparison.pictures],
    )  # fmt: skip


def _section(section: Mapping[str, Any]) -> dict[str, Any]:
    policies = {encoder["threshold_policy"] for encoder in section["encoders"]}
    names = [name for name in (*FIGURES, *MACRO) if name in section["encoders"][0]["figures"]]
    return {
        **section,
        "names": names,
        "verdict": verdict(section),
        "thresholds": ", ".join(sorted(policies)),
        "pairs": [{**pair, "is_shown": _is_shown(pair)} for pair in section["pairs"]],
        "is_any_shown": any(map(_is_shown, section["pairs"])),
        "notes": [
            f"{pair['first']} less {pair['second']}: {pair['delong']['note']}."
            for pair in section["pairs"]
            if pair["delong"]["note"]
        ],
    }


def _is_shown(pair: Mapping[str, Any]) -> bool:
    p_values = [pair[kind]["p_holm"] for kind in ("delong", "permutation")]
    return all(p is not None and p < _LEVEL for p in p_values)


def _caveats(sections: Sequence[Mapping[str, Any]]) -> list[str]:
    random = sorted({e["encoder"] for section in sections for e in section["encoders"] if e["random_weights"]})
    texts = [f"{', '.join(random)} had random weights: what chance and colour give, nothing more."] if random else []
    perfect = sorted({
        e["encoder"] for section in sections for e in section["encoders"]
        if e["delong"]["note"] and e["figures"]["auc"]["value"] == 1
    })  # fmt: skip
    if perfect:
        texts.append(
            f"{', '.join(perfect)}: no error was made (AUC 1), so DeLong's variance is 0 and the bootstrap has no "
            "width. That is not certainty."
        )
    policies = {e["threshold_policy"] for section in sections for e in section["encoders"]}
    if len(policies) > 1:
        texts.append("The thresholds were not chosen alike: accuracy, precision, recall and F1 cannot be compared.")
    return texts


def _number(value: Any, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) and math.isfinite(value) else "–"


def _number4(value: Any) -> str:
    return _number(value, 4)


def _signed(value: Any) -> str:
    return f"{value:+.3f}".replace("-", "−") if isinstance(value, int | float) and math.isfinite(value) else "–"


def _p(value: Any) -> str:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"
