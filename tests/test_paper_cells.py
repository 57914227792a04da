"""Cells of the paper's tables from hand-made results: differences, units, averages, what is not comparable."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from wsi_dino.paper.cells import Cell, Results, make_tables
from wsi_dino.paper.document import difference_text, number_tables, ours_text, results_beyond
from wsi_dino.paper.report import write_report
from wsi_dino.paper.result_file import result_fingerprint
from wsi_dino.paper.state import read_state


def _interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def _chest(value: float) -> dict[str, Any]:
    return {
        "encoder": "dinov3-s", "input_px": 224, "images": {"used": 9, "failed": 0},
        "summary": {"auc_macro": _interval(value), "auc_macro_frequent": _interval(value)},
        "check": {"summary": {"auc_macro_frequent": _interval(value)}},
        "labels": {"Pneumonia": {key: _interval(value) for key in ("auc", "accuracy", "precision", "recall")}},
        "protocol": {"evaluation": {"threshold": "youden-on-validation"}},
        "provenance": {"record": {"parameters_m": 21.6}},
    }  # fmt: skip


def _volumes(dice: float) -> dict[str, Any]:
    figure = {"mean": dice, "n_valid": 2, "n_total": 2, "convention": "as nnU-Net"}
    return {"dice": figure, "precision": figure, "recall": figure, "hd95_mm": {**figure, "mean": 12.34}}


def _write_run(run: Path, results: list[tuple[str, str, str, dict[str, Any]]]) -> Results:
    """Write results of dinov3-s (dataset, kind, variant, content) and the state that names them."""
    steps = []
    for number, (dataset, kind, variant, content) in enumerate(results):
        path = f"runs/{number}/metrics.json"
        (run / path).parent.mkdir(parents=True)
        (run / path).write_text(json.dumps(content))
        (run / path).with_name("cases.csv").write_text(
            "patient_id,case_id,dice,hd95_mm,precision,recall\na,1,0.5,1,0.5,\nb,2,0.7,nan,0.7,\n"
        )
        result = {"variant": variant, "path": path, "fingerprint": result_fingerprint(content)}
        steps.append({
            "key": f"s{number}", "kind": kind, "dataset": dataset, "encoder": "dinov3-s", "command": "wsi-dino",
            "status": "done", "exit_code": 0, "reason": "", "results": [result],
        })  # fmt: skip
    (run / "paper.json").write_text(json.dumps({
        "format": "wsi_dino.paper/1", "encoders": ["dinov3-s"], "missing_encoders": {}, "missing_datasets": {},
        "datasets": {dataset: kind for dataset, kind, _, _ in results}, "steps": steps,
    }))  # fmt: skip
    return Results(run, read_state(run))


def _cell(results: Results, table: int, row: str, column: str) -> Cell:
    (found,) = [each for each in make_tables(results)[table - 1].rows if each.label == row]
    return found.cells[column]


def test_the_difference_is_ours_less_published_in_the_published_unit(tmp_path: Path) -> None:
    results = _write_run(
        tmp_path, [("rsna", "chest-xray", "", _chest(0.9)), ("msd-task04", "segment", "", _volumes(0.6))]
    )
    auc = _cell(results, 2, "DINOv3-S", "rsna_auc")
    assert auc.published == "0.8667"
    assert auc.difference == pytest.approx(0.9 - 0.8667)
    assert difference_text(auc) == "+0.033"
    assert auc.ours is not None
    assert ours_text(auc.ours) == "0.900 [0.890, 0.910]"
    dice = _cell(results, 6, "DINOv3-S", "task04_hippocampus_dice")
    assert dice.difference == pytest.approx(60 - 72.6)
    assert difference_text(dice) == "−12.6"
    assert dice.ours is not None
    assert (dice.ours.low, dice.ours.high) == (pytest.approx(50), pytest.approx(70)), "two patients, drawn again"
    assert _cell(results, 1, "DINOv3-S", "parameters").difference == pytest.approx(-0.4e6)


def test_millimetres_have_no_difference_to_a_figure_without_a_unit(tmp_path: Path) -> None:
    cell = _cell(
        _write_run(tmp_path, [("autopet2", "segment", "pet", _volumes(0.1))]), 10, "DINOv3-S/16, PET", "autopet_hd95"
    )
    assert cell.ours is not None
    assert (cell.ours.unit, cell.ours.value, cell.difference) == ("mm", 12.34, None)
    assert cell.ours.low is None, "one value alone has no interval"
    ct = _cell(
        _write_run(tmp_path / "b", [("autopet2", "segment", "pet", _volumes(0.1))]),
        10,
        "DINOv3-S/16, CT",
        "autopet_dice",
    )
    assert ct.ours is None, "PET alone was run"


def test_the_average_needs_all_ten_tasks(tmp_path: Path) -> None:
    tasks = [(f"msd-task{n:02d}", "segment", "", _volumes(n / 20)) for n in range(1, 11)]
    nine = _cell(_write_run(tmp_path / "nine", tasks[:9]), 7, "DINOv3-S", "average_dice")
    assert nine.ours is None
    assert "9 are there" in nine.reason
    ten = _cell(_write_run(tmp_path / "ten", tasks), 7, "DINOv3-S", "average_dice")
    assert ten.ours is not None
    assert ten.ours.value == pytest.approx(100 * sum(range(1, 11)) / 20 / 10)
    assert len(ten.traces) == 10


def test_a_dataset_of_ones_own_stands_beyond_the_tables_and_in_none_of_them(tmp_path: Path) -> None:
    results = _write_run(tmp_path, [("my-clinic", "chest-xray", "", _chest(0.777))])
    tables = make_tables(results)
    assert all(cell.ours is None for table in tables[1:] for row in table.rows for cell in row.cells.values())
    (own,) = results_beyond(results, tables)
    assert (own.dataset, own.rows[0].figures["auc"].value) == ("my-clinic", 0.777)
    assert number_tables(tables)[1].n_run == 0


def test_the_page_marks_differences_of_unknown_convention_and_escapes_what_it_shows(tmp_path: Path) -> None:
    _write_run(tmp_path, [("rsna", "chest-xray", "", _chest(0.9)), ("<b>", "chest-xray", "", _chest(0.5))])
    write_report(tmp_path, [], lambda text: None)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '+0.078<span aria-label=", convention not known"> ~</span>' in page, "accuracy 0.8221, 0.9 here"
    assert "+0.033</td>" in page, "the AUC of one label is known"
    assert "<b></h3>" not in page
    assert "&lt;b&gt;" in page


_ODD = r"""50 % & more_of {`a --fold 0`} "x" <y> \z ~ ^ # $ --- → µ ≥ é Ś 日 [1]""" + "\x1b[0m"


def _write_odd_report(run: Path) -> None:
    _write_run(run, [("rsna", "chest-xray", "", _chest(0.9))])
    state = json.loads((run / "paper.json").read_text())
    (run / "paper.json").write_text(json.dumps(state | {"missing_encoders": {"dinov3-b": _ODD}}))
    write_report(run, [], lambda text: None)


def test_latex_has_whole_tables_and_escapes_what_it_shows(tmp_path: Path) -> None:
    _write_odd_report(tmp_path)
    text = (tmp_path / "report.tex").read_text(encoding="utf-8")
    shown = (
        r"50 \% \& more\_of \{\texttt{a -{}-fold 0}\} ''x'' \textless{}y\textgreater{} \textbackslash{}z "
        r"\textasciitilde{} \textasciicircum{} \# \$ -{}-{}- $\rightarrow$ $\mu$ $\geq$ é S ? [1]?[0m"
    )
    assert shown in text
    tables = re.findall(r"\\begin\{tabular\}\{(l+)\}\n(.*?)\\end\{tabular\}", text, re.DOTALL)
    assert len(tables) == text.count(r"\begin{table}") == text.count(r"\end{table}") == text.count("tabular}") / 2
    for columns, body in tables:
        rows = [line for line in body.splitlines() if line not in (r"\toprule", r"\midrule", r"\bottomrule")]
        assert all(row.endswith(r" \\") for row in rows)
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(columns) - 1}
    plain = re.sub(r"\\[&%#_${}]", "", text)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0


@pytest.mark.slow
def test_latex_goes_through_pdflatex(tmp_path: Path) -> None:
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("no pdflatex here")
    _write_odd_report(tmp_path)
    lines = r"\newcommand\toprule{\hline}\newcommand\midrule{\hline}\newcommand\bottomrule{\hline}"  # booktabs' own
    (tmp_path / "doc.tex").write_text(
        rf"\documentclass{{article}}{lines}\begin{{document}}\input{{report.tex}}\end{{document}}"
    )
    ran = subprocess.run(
        [program, "-interaction=nonstopmode", "-halt-on-error", "-draftmode", "doc.tex"],
        cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-2000:]
