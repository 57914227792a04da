"""The document as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Sequence

from wsi_dino.evaluation.published.printed_table import SOURCE, Column
from wsi_dino.paper.cells import Cell
from wsi_dino.paper.document import (
    METRICS,
    Beyond,
    Group,
    Numbered,
    conventions,
    difference_text,
    is_comparable,
    ours_text,
    row_name,
)
from wsi_dino.paper.figures import PaperFigure

CSV_COLUMNS = (
    "table", "dataset", "row", "encoder", "column", "metric", "published_unit", "published", "status", "reason",
    "value", "low", "high", "unit", "difference", "is_convention_known", "convention", "metrics_json",
    "fingerprint", "inconsistencies",
)  # fmt: skip
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "−": "$-$", "–": "--", "→": r"$\rightarrow$", "×": r"$\times$", "±": r"$\pm$",
    "≤": r"$\leq$", "≥": r"$\geq$", "·": r"$\cdot$", "µ": r"$\mu$", "…": r"\ldots{}", "\0": "{}",
}  # fmt: skip
# what else LaTeX has without a package; it stops at any other letter, which then loses its marks
_LATIN = frozenset("ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝßàáâãäåæçèéêëìíîïñòóôõöøùúûüýÿ§©")
_CODE, _DASHES = re.compile(r"`([^`]*)`"), re.compile("-(?=-)")  # two would become a longer one


def csv_text(tables: Sequence[Numbered], beyond: Sequence[Beyond]) -> str:
    """Return one row a cell, in full digits; results beyond the paper have no table."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for numbered in tables:
        for row in numbered.table.rows:
            for column in numbered.table.columns:
                cell = row.cells[column.name]
                writer.writerow({
                    "table": numbered.number, "dataset": column.dataset, "row": row.label, "encoder": row.encoder,
                    "column": column.name, "metric": column.metric, "published_unit": column.unit,
                    "published": cell.published, "is_convention_known": is_comparable(column), **_ours(cell),
                    "inconsistencies": " ".join(map(str, cell.anomalies)),
                })  # fmt: skip
    for own in beyond:
        for found in own.rows:
            for metric, figure in found.figures.items():
                cell = Cell("", figure, figure.why, None, (found.trace,))
                label = f"{found.key.encoder} {found.key.variant}".strip()
                writer.writerow({"dataset": own.dataset, "row": label, "encoder": found.key.encoder, "column": metric,
                                 "metric": metric, **_ours(cell)})  # fmt: skip
    return buffer.getvalue()


def _ours(cell: Cell) -> dict[str, object]:
    if cell.ours is None:
        return {"status": "not run", "reason": cell.reason}
    figure = cell.ours
    values = {"value": figure.value, "low": figure.low, "high": figure.high, "difference": cell.difference}
    return {
        "status": "run" if figure.value is not None else "not defined", "reason": figure.why, "unit": figure.unit,
        "convention": figure.convention, "metrics_json": " ".join(trace.path for trace in cell.traces),
        "fingerprint": " ".join(trace.fingerprint for trace in cell.traces),
        **{key: "" if value is None else repr(float(value)) for key, value in values.items()},
    }  # fmt: skip


def cell_text(cell: Cell, letter: str) -> str:
    """Return ``published | ours | difference`` in one line."""
    published = cell.published or "–"
    if cell.ours is None:
        return f"{published} | not run ({letter})"
    difference = difference_text(cell)
    return f"{published} | {ours_text(cell.ours)}" + (f" | {difference}" if difference else "")


def markdown_text(
    tables: Sequence[Numbered], beyond: Sequence[Beyond], figures: Sequence[PaperFigure]
) -> str:  # fmt: skip
    """Return the whole document; each cell holds published | ours [95 % interval] | difference."""
    parts = [f"# The tables of {SOURCE} and what came out here\n",
             "Each cell: published / ours [95 % interval] / ours less published.\n"]  # fmt: skip
    parts += [_markdown_table(numbered) for numbered in tables]
    parts += [_markdown_beyond(own) for own in beyond]
    for figure in figures:
        parts.append(f"## Figure {figure.number}: {figure.title}\n")
        parts += [f"![{picture.label}](figures/{picture.name}.svg)\n" for picture in figure.pictures]
        parts += [] if figure.pictures else [f"Not made: {figure.reason}.\n"]
    return "\n".join(parts)


def _markdown_table(numbered: Numbered) -> str:
    lines = [f"## Table {numbered.number}: {numbered.title}\n"]
    for group in numbered.groups:
        lines += [f"### {group.name}\n"] if len(numbered.groups) > 1 else []
        lines.append(f"| | {' | '.join(_heading(numbered, group, column) for column in group.columns)} |")
        lines.append("|---" * (len(group.columns) + 1) + "|")
        for row in numbered.table.rows:
            cells = [row.cells[column.name] for column in group.columns]
            texts = [
                cell_text(c, numbered.reasons.get(c.reason, "")).replace(" | ", " / ") + "".join(
                    f" [{n}]" for n in c.anomalies) for c in cells
            ]  # fmt: skip
            lines.append(f"| {_md(row_name(row))} | {' | '.join(texts)} |")
        lines.append("")
    lines += [f"- ({letter}) {_md(reason)}" for reason, letter in numbered.reasons.items()]
    lines += [f"- {_md(name)}: published: {_md(theirs)}; ours: {_md(ours)}"
              for name, theirs, ours in conventions(numbered)]  # fmt: skip
    lines += [f"- [{anomaly.id}] {_md(anomaly.title)}" for anomaly in numbered.table.anomalies]
    lines += [f"- {_md(key.encoder)}, {key.dataset} {key.variant}: {_md(text)}"
              for key, text in numbered.table.protocols.items() if text]  # fmt: skip
    return "\n".join(lines) + "\n"


def _heading(numbered: Numbered, group: Group, column: Column) -> str:
    marks = "".join(f" [{number}]" for number in numbered.table.of_columns[column.name])
    return _md(group.heading(column)) + marks


def _markdown_beyond(own: Beyond) -> str:
    lines = [f"## Beyond the paper: {own.dataset}\n",
             f"| | {' | '.join(METRICS.get(metric, metric) for metric in own.metrics)} | from |",
             "|---" * (len(own.metrics) + 2) + "|"]  # fmt: skip
    for row in own.rows:
        texts = [ours_text(row.figures[metric]) if metric in row.figures else "" for metric in own.metrics]
        lines.append(f"| {row.key.encoder} {row.key.variant} | {' | '.join(texts)} | `{row.trace.path}` |")
    return (
        "\n".join([*lines, "", *(f"- {row.key.encoder} {row.key.variant}: {_md(row.protocol)}" for row in own.rows)])
        + "\n"
    )


def _md(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def latex_text(tables: Sequence[Numbered]) -> str:
    """Return one ``table`` a group of columns, for ``\\input``; needs booktabs."""
    parts = [f"% Tables of {SOURCE} and what came out here: published / ours [95 % interval] / ours less published.",
             "% \\usepackage{booktabs}"]  # fmt: skip
    for numbered in tables:
        for group in numbered.groups:
            named = f", {group.name}" if len(numbered.groups) > 1 else ""
            parts += [
                r"\begin{table}", r"\centering\small",
                rf"\caption{{Table {numbered.number} of the paper{_tex(named)}: published / ours / difference.}}",
                rf"\begin{{tabular}}{{l{'l' * len(group.columns)}}}", r"\toprule",
                " & ".join(["", *(_tex(group.heading(column)) for column in group.columns)]) + r" \\", r"\midrule",
            ]  # fmt: skip
            for row in numbered.table.rows:
                cells = [row.cells[column.name] for column in group.columns]
                shown = [cell_text(cell, numbered.reasons.get(cell.reason, "")) for cell in cells]
                texts = [_tex(text.replace(" | ", " / ")) for text in shown]
                # the braces: LaTeX takes [ and * after the end of a row for its own
                parts.append(" & ".join([f"{{}}{_tex(row_name(row))}", *texts]) + r" \\")
            notes = "; ".join(f"({letter}) {reason}" for reason, letter in numbered.reasons.items())
            parts += [r"\bottomrule", r"\end{tabular}"]
            parts += [rf"\par\footnotesize {_tex(notes)}"] if notes else []
            parts.append(r"\end{table}" + "\n")
    return "\n".join(parts)


def _tex(text: str) -> str:
    """Return plain text as LaTeX: as it reads, what stands between backticks as code.

    Examples:
        >>> print(_tex("50 % of `a_b --fold 0`"))
        50 \\% of \\texttt{a\\_b -{}-fold 0}
    """
    parts = _CODE.split(text)
    plain, code = [_letters(part) for part in parts[::2]], [rf"\texttt{{{_letters(part)}}}" for part in parts[1::2]]
    return "".join(both for pair in zip(plain, [*code, ""], strict=True) for both in pair)


def _letters(text: str) -> str:
    return "".join(_TEX.get(letter) or _letter(letter) for letter in _DASHES.sub("-\0", re.sub(r"\s|\0", " ", text)))


def _letter(letter: str) -> str:
    if letter in _LATIN or (letter.isascii() and letter.isprintable()):
        return letter
    bare = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return bare if bare.isalnum() else "?"
