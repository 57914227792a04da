"""Each cell of each table: what was published, what came out here, and if nothing did, why."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from wsi_dino.errors import ResultError
from wsi_dino.evaluation.published.anomalies import Anomaly, KnownFinding, read_anomalies
from wsi_dino.evaluation.published.printed_table import FOLDER, TABLE_NUMBERS, Column, PrintedTable, read_tables
from wsi_dino.paper.contestants import encoder_of_row, fits, no_code
from wsi_dino.paper.kind import Figure
from wsi_dino.paper.kinds import KINDS
from wsi_dino.paper.kinds.ct import PROBES
from wsi_dino.paper.kinds.segment import MODALITIES
from wsi_dino.paper.result_file import read_result, result_fingerprint
from wsi_dino.paper.roots import PAPER_DATASETS, PUBLISHED_NAMES
from wsi_dino.paper.state import PaperState, StoredResult
from wsi_dino.paper.step import ResultKey

_CAMELYON16_TASKS = ("camelyon16-cv", "camelyon16-official")
_MSD = tuple(f"msd-task{number:02d}" for number in range(1, 11))
_UNITS_ALIKE = {"share", "percent", "bits", "count"}
_WHOLE_COLUMN = "claims"
_MODEL_FIELDS = {"parameters": "parameters_m"}


@dataclass(frozen=True)
class Trace:
    """Where a number of ours came from.

    Attributes:
        path: of the ``metrics.json``, below the run.
        fingerprint: of its content without times.
    """

    path: str
    fingerprint: str


@dataclass(frozen=True)
class Cell:
    """One number, published and ours.

    Attributes:
        published: as printed; empty where the paper has no such row.
        ours: None where there is none.
        reason: why there is none.
        difference: ours less published, in the published unit; None where one is missing or the units differ.
        traces: what `ours` was made from, one file but for averages.
        anomalies: numbers of the known inconsistencies that touch the cell.
        result: key of the result it is read from.
    """

    published: str
    ours: Figure | None
    reason: str
    difference: float | None
    traces: tuple[Trace, ...] = ()
    anomalies: tuple[int, ...] = ()
    result: ResultKey | None = None


@dataclass(frozen=True)
class Row:
    """One row: a method, or an encoder the paper does not have.

    Attributes:
        label: as printed, or the encoder's name, with block or modality.
        encoder: our name; empty where there is no code.
        is_new: not in the paper.
        cells: by column.
    """

    label: str
    encoder: str
    is_new: bool
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Table:
    """One table of the paper.

    Attributes:
        printed: as published.
        columns: those that hold numbers.
        rows: from top to bottom, new ones last.
        anomalies: that concern it.
        of_columns: numbers of those that concern a whole column.
        protocols: of each result in it, in words.
    """

    printed: PrintedTable
    columns: Sequence[Column]
    rows: Sequence[Row]
    anomalies: Sequence[Anomaly]
    of_columns: Mapping[str, tuple[int, ...]]
    protocols: Mapping[ResultKey, str]


@dataclass
class Results:
    """The results of a run, read once, those that were changed after it left out.

    Attributes:
        run: its folder.
        state: of ``paper.json``.
        changed: of results that are no longer what the run left.
    """

    run: Path
    state: PaperState
    changed: list[str] = field(default_factory=list)
    _read: dict[str, dict[str, Any] | None] = field(default_factory=dict)

    def metrics(self, key: ResultKey) -> dict[str, Any] | None:
        """Return the content of a result's file, or None where there is none to be trusted."""
        stored = self.state.results.get(key)
        if stored is None or not stored.fingerprint:
            return None
        if stored.path not in self._read:
            self._read[stored.path] = self._checked(stored)
        return self._read[stored.path]

    def _checked(self, stored: StoredResult) -> dict[str, Any] | None:
        try:
            content = read_result(self.run / stored.path)
        except ResultError as error:
            self.changed.append(str(error).replace(str(self.run), "RUN"))
            return None
        if result_fingerprint(content) != stored.fingerprint:
            self.changed.append(f"{stored.path}: not what `{stored.step}` left; run `wsi-dino paper run` again")
            return None
        return content

    def figures(self, key: ResultKey) -> dict[str, Figure]:
        """Return the figures of a result, none where it is not there."""
        metrics = self.metrics(key)
        if metrics is None:
            return {}
        stored = self.state.results[key]
        try:
            return KINDS[stored.kind].figures(metrics, (self.run / stored.path).parent)
        except (KeyError, TypeError, ResultError) as error:
            self.changed.append(f"{stored.path}: not of the form expected ({error!r})")
            return {}

    def protocol(self, key: ResultKey) -> str:
        """Return in words how a result came about, or nothing."""
        metrics = self.metrics(key)
        try:
            return "" if metrics is None else KINDS[self.state.results[key].kind].protocol(metrics)
        except (KeyError, TypeError):
            return ""

    def trace(self, key: ResultKey) -> Trace:
        """Return where its figures come from."""
        stored = self.state.results[key]
        return Trace(stored.path, stored.fingerprint)

    def why_not(self, key: ResultKey) -> str:
        """Return why there is no figure."""
        state, stored = self.state, self.state.results.get(key)
        kind = PAPER_DATASETS[key.dataset][0] if key.dataset in PAPER_DATASETS else state.datasets.get(key.dataset, "")
        if stored is not None:
            changed = "the result was changed after the run" if self.metrics(key) is None else "not in this result"
            return changed if stored.fingerprint else f"{stored.step}: {stored.status}: {stored.reason}"
        if not fits(key.encoder, kind):
            return f"{key.encoder} is not for this track"
        missing = state.missing_datasets.get(key.dataset) or state.missing_encoders.get(key.encoder)
        if missing or key.encoder in state.encoders:
            return missing or f"not in the plan: add {key.dataset} to ROOTS.yaml and --table"
        return f"not asked for: `wsi-dino paper run ... --add-encoder {key.encoder}`"

    @cached_property
    def encoders(self) -> list[str]:
        """Return encoders that were asked for or have results."""
        return list(dict.fromkeys([*self.state.encoders, *(key.encoder for key in self.state.results)]))


def make_tables(results: Results, add_encoders: Iterable[str] = ()) -> list[Table]:
    """Return the ten tables.

    Args:
        results: of a run.
        add_encoders: that get a row everywhere, whether they were run or not.
    """
    printed, anomalies = read_tables(), read_anomalies(FOLDER / "anomalies.yaml")
    encoders = list(dict.fromkeys([*results.encoders, *add_encoders]))
    return [_table(printed[number], results, encoders, anomalies) for number in TABLE_NUMBERS]


def _table(
    printed: PrintedTable, results: Results, encoders: Sequence[str], anomalies: Sequence[Anomaly]
) -> Table:  # fmt: skip
    here = [each for each in anomalies if str(printed.number) in each.table.replace(" ", "").split(",")]
    columns = printed.number_columns
    rows = [_printed_row(printed, name, results, here) for name in printed.cells]
    named = {row.encoder for row in rows}
    rows += [row for encoder in encoders if encoder not in named for row in _new_rows(printed, encoder, results)]
    keys = dict.fromkeys(cell.result for row in rows for cell in row.cells.values() if cell.ours and cell.result)
    of_columns = {column.name: _of_column(column, here) for column in columns}
    return Table(printed, columns, rows, here, of_columns, {key: results.protocol(key) for key in keys})


def _printed_row(printed: PrintedTable, name: str, results: Results, anomalies: Sequence[Anomaly]) -> Row:
    cells = printed.cells[name]
    encoder = encoder_of_row(cells["method"])
    part = cells.get("block", "") or cells.get("modality", "")
    return Row(name, encoder or "", False, {
        column.name: _with_anomalies(
            _cell(column, cells[column.name], encoder, cells["method"], part, results), name, column, anomalies
        )
        for column in printed.number_columns
    })  # fmt: skip


def _new_rows(printed: PrintedTable, encoder: str, results: Results) -> list[Row]:
    parts = {5: [*PROBES.values()][::-1], 10: [*MODALITIES.values()]}.get(printed.number, [""])
    kinds = {PAPER_DATASETS[PUBLISHED_NAMES[c.dataset]][0] for c in printed.number_columns
             if c.dataset in PUBLISHED_NAMES}  # fmt: skip
    if kinds and not any(fits(encoder, kind) for kind in kinds):
        return []
    return [
        Row(f"{encoder}, {part}" if part else encoder, encoder, True, {
            column.name: _cell(column, "", encoder, encoder, part, results) for column in printed.number_columns
        })
        for part in parts
    ]  # fmt: skip


def _cell(
    column: Column, published: str, encoder: str | None, method: str, part: str, results: Results
) -> Cell:  # fmt: skip
    if encoder is None:
        return Cell(published, None, no_code(method), None)
    if column.table == 1:
        return _model_cell(column, published, encoder, results)
    if column.dataset == "MSD":
        return _average(column, published, encoder, results)
    dataset = PUBLISHED_NAMES[column.dataset]
    if part == "baseline":
        return Cell(published, None, f"no code to run {method} here", None)
    key = _key(dataset, part, encoder, results)
    figure = results.figures(key).get(column.metric)
    if figure is None or figure.value is None:
        reason = results.why_not(key) if figure is None else f"not defined: {figure.why or 'no value'}"
        return Cell(published, None, reason, None, result=key)
    return Cell(published, figure, "", _difference(published, figure, column), (results.trace(key),), result=key)


def _key(dataset: str, part: str, encoder: str, results: Results) -> ResultKey:
    """Return which result stands in a row."""
    if dataset == "camelyon16":
        keys = [ResultKey(dataset, task, encoder) for task in _CAMELYON16_TASKS]
        return next((key for key in keys if results.metrics(key) is not None), keys[0])
    if dataset == "camelyon17":
        return ResultKey(dataset, "camelyon17-unseen", encoder)
    if dataset == "ct-rate":
        return ResultKey(dataset, next((probe for probe, name in PROBES.items() if name == part), part), encoder)
    return ResultKey(dataset, next((v for v, name in MODALITIES.items() if name == part), ""), encoder)


def _model_cell(column: Column, published: str, encoder: str, results: Results) -> Cell:
    """Return what the record in a result says of the model itself."""
    name = _MODEL_FIELDS.get(column.name)
    if name is None:
        return Cell(published, None, "not something that a run finds out", None)
    for key in results.state.results:
        record = _record(results.metrics(key) or {}) if key.encoder == encoder else None
        if record and record.get(name) is not None:
            figure = Figure(record[name] * 1e6, None, None, "count", "of the encoder's record, without heads", "")
            return Cell(
                published, figure, "", _difference(published, figure, column), (results.trace(key),), result=key
            )
    return Cell(published, None, f"no result of {encoder} in this run", None)


def _record(metrics: Mapping[str, Any]) -> Mapping[str, Any] | None:
    provenance = metrics.get("provenance") or {}
    record = provenance.get("record") or (provenance.get("identity") or {}).get("record")
    return record if isinstance(record, Mapping) else None


def _average(column: Column, published: str, encoder: str, results: Results) -> Cell:
    keys = [ResultKey(name, "", encoder) for name in _MSD]
    found = [results.figures(key).get(column.metric) for key in keys]
    values = [figure.value for figure in found if figure is not None and figure.value is not None]
    if len(values) < len(keys):
        return Cell(published, None, f"needs all ten tasks, {len(values)} are there", None)
    figure = Figure(sum(values) / len(values), None, None, "percent", "mean of the ten tasks", "mean of ten results")
    traces = tuple(results.trace(key) for key in keys)
    return Cell(published, figure, "", _difference(published, figure, column), traces, result=keys[0])


def _difference(published: str, figure: Figure, column: Column) -> float | None:
    from wsi_dino.evaluation.published.printed_table import parse_printed

    if not published or figure.value is None or figure.unit != column.unit or column.unit not in _UNITS_ALIKE:
        return None
    printed = parse_printed(published).value
    return None if printed is None else figure.value - float(printed)


def _with_anomalies(cell: Cell, row: str, column: Column, anomalies: Sequence[Anomaly]) -> Cell:
    touched = [
        anomaly.id for anomaly in anomalies
        if any(_concerns(finding, column) and finding.check != _WHOLE_COLUMN and finding.row == row
               for finding in anomaly.findings)
    ]  # fmt: skip
    return replace(cell, anomalies=tuple(touched)) if touched else cell


def _of_column(column: Column, anomalies: Sequence[Anomaly]) -> tuple[int, ...]:
    """Return the inconsistencies that are sentences of the text on a whole column."""
    return tuple(
        anomaly.id for anomaly in anomalies
        if any(_concerns(finding, column) and finding.check == _WHOLE_COLUMN for finding in anomaly.findings)
    )  # fmt: skip


def _concerns(finding: KnownFinding, column: Column) -> bool:
    return finding.table == str(column.table) and finding.column == column.name


def number_text(value: float | None, unit: str) -> str:
    """Return a number with as many digits as the tables print.

    Examples:
        >>> number_text(0.77712, "share"), number_text(65.21, "percent"), number_text(22e6, "count")
        ('0.777', '65.2', '22M')
    """
    if value is None or math.isnan(value):
        return ""
    if unit == "count":
        return f"{value / 1e6:.3g}M"
    digits: Callable[[str], int] = {"share": 3, "bits": 3, "percent": 1, "mm": 1}.__getitem__
    return f"{value:.{digits(unit)}f}"
