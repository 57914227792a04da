"""Each identity notices an error that is planted in a copy, and misses one that is mended."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi_dino.errors import ResultError
from wsi_dino.evaluation.published.anomalies import read_anomalies
from wsi_dino.evaluation.published.claim_checks import check_claims
from wsi_dino.evaluation.published.claims import Claim, Rule
from wsi_dino.evaluation.published.outcome import Published
from wsi_dino.evaluation.published.printed_table import FOLDER
from wsi_dino.evaluation.published.sum_checks import check_msd_averages, check_voi_sums
from wsi_dino.evaluation.published.verification import CHECKS, Verification, read_published, verify_paper


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Files of the published tables, to be changed."""
    folder = tmp_path / "published"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return folder


def _edit(folder: Path, name: str, old: str, new: str) -> None:
    content = (folder / name).read_text(encoding="utf-8")
    assert content.count(old) == 1, f"{name}: {old} stands there {content.count(old)} times"
    (folder / name).write_text(content.replace(old, new), encoding="utf-8")


def _new(answer: Verification) -> set[tuple[str, str, str]]:
    return {(finding.check, finding.row, finding.column) for finding in answer.new}


@pytest.fixture(scope="module")
def shipped() -> Verification:
    return verify_paper()


def test_exactly_the_known_list_is_found(shipped: Verification) -> None:
    assert shipped.as_known
    assert not shipped.new
    assert not shipped.gone
    found = [outcome for result in shipped.results for outcome in result.outcomes if outcome.verdict != "holds"]
    assert len(found) == len(shipped.known) == 90


def test_the_list_has_all_32_and_what_was_found_since(shipped: Verification) -> None:
    assert [anomaly.id for anomaly in shipped.anomalies] == list(range(1, 35))
    kinds = {anomaly.id: anomaly.kind for anomaly in shipped.anomalies}
    assert [number for number, kind in kinds.items() if kind == "reading"] == [
        6, 7, 12, 14, 18, 19, 26, 28, 29, 30, 31, 32,
    ]  # fmt: skip
    # Dice below F1 holds: the only one by program with nothing to find
    by_program = {number for number, kind in kinds.items() if kind == "program"}
    assert by_program - set(shipped.known.values()) == {24}


# an edit of the shipped files that each check must notice, and where it says so
PLANTED = {
    "cells": ("table_02.csv", "0.7771,", "7.7710,", ("BiomedCLIP", "nih14_auc")),
    "counts": ("counts.yaml", "parts: [831, 227]", "parts: [813, 227]", ("bcnb-er", "")),
    "datasets": ("datasets.csv", "3D classification,2.2", "3D classification,", ("CT-RATE", "")),
    "claims": ("table_02.csv", "0.8831", "0.8631", ("rsna-best", "rsna_auc")),
    "auc-accuracy": ("table_03.csv", "UNI,38,0.965,0.951", "UNI,38,0.965,0.651", ("UNI", "camelyon16_acc")),
    "one-test-set": ("table_02.csv", "0.8831,0.8374", "0.8831,0.8774", ("all rows", "rsna: share of positives")),
    "test-set": ("table_03.csv", "0.842,0.713", "0.842,0.753",
                 ("ResNet50 (ImageNet)", "camelyon16: share of positives")),
    "operating-point": ("table_05.csv", "0.778,0.722,0.370,0.690", "0.778,0.722,0.370,0.190",
                        ("Linear Probing", "ct_rate: share called positive")),
    "msd-average": ("table_07.csv", "81.4", "84.1", ("nnU-Net", "average_dice")),
    "voi-sum": ("table_08.csv", "0.640", "0.604", ("Superhuman", "cremi_a_voi_sum")),
    "split-merge": ("table_09.csv", "0.633,0.280", "0.280,0.633", ("LSD", "ac34_voi_merge")),
    "dice-precision": ("table_10.csv", "59.41", "62.32", ("UNet, CT+PET", "autopet_dice")),
    "dice-f1": ("table_10.csv", "62.24", "68.24", ("Swin UNETR, CT+PET", "autopet_dice")),
    "no-overlap": ("table_10.csv", "9.50,49.06", "9.50,0.00", ("DINOv3-B/16, CT+PET", "autopet_precision")),
    "distances": ("table_10.csv", "241.31", "24131.00", ("UNet, CT+PET", "autopet_hd95")),
}  # fmt: skip


def test_an_error_is_planted_for_every_check() -> None:
    # two have a test of their own below
    assert {*PLANTED, "sizes", "size-gain"} == {check.name for check in CHECKS}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_error_is_found(name: str, copy: Path) -> None:
    file, old, new, where = PLANTED[name]
    _edit(copy, file, old, new)
    answer = verify_paper(copy)
    assert not answer.as_known
    assert (name, *where) in _new(answer)


def test_a_missing_size_is_found(copy: Path) -> None:
    """Its claims are taken away with it, since they name its row."""
    for name in ("table_03.csv", "table_04.csv"):
        content = (copy / name).read_text(encoding="utf-8")
        lines = [line for line in content.splitlines() if not line.startswith("DINOv3-B")]
        (copy / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (copy / "claims.yaml").write_text("[]", encoding="utf-8")
    answer = verify_paper(copy)
    told = {finding.recomputed for finding in answer.new if finding.check == "sizes"}
    assert told == {"no row of DINOv3-B, DINOv3-L"}


def test_a_gain_that_is_alike_is_noticed(copy: Path) -> None:
    """Where Table 7 gains as little as Table 6, the known finding is gone."""
    _edit(copy, "table_07.csv", "73.1", "66.8")
    gone = {finding.check for _, finding in verify_paper(copy).gone}
    assert "size-gain" in gone


def test_a_mended_error_is_missed(copy: Path) -> None:
    """The averages as they should be: what was known is gone, and nothing else has changed."""
    _edit(copy, "table_07.csv", "71.3", "73.7")
    _edit(copy, "table_07.csv", "71.0", "73.5")
    answer = verify_paper(copy)
    assert not answer.as_known
    assert not answer.new
    assert [(number, finding.row) for number, finding in answer.gone] == [(1, "DINOv3-B"), (1, "DINOv3-L")]


def test_a_known_finding_taken_off_the_list_is_new(copy: Path) -> None:
    content = (copy / "anomalies.yaml").read_text(encoding="utf-8")
    lines = [line for line in content.splitlines() if not ("voi-sum" in line and "DINOv3-S" in line)]
    (copy / "anomalies.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    answer = verify_paper(copy)
    assert _new(answer) == {("voi-sum", "DINOv3-S", "ac34_voi_sum")}
    assert not answer.gone


def test_another_error_in_a_known_cell_is_found(copy: Path) -> None:
    """A cell that is on the list is not excused: its figures are compared too."""
    _edit(copy, "table_07.csv", "71.3", "17.3")
    answer = verify_paper(copy)
    assert ("msd-average", "DINOv3-B", "average_dice") in _new(answer)
    assert [(number, finding.row) for number, finding in answer.gone] == [(1, "DINOv3-B")]


# sums against another way of computing them ------------------------------------------------------
def test_means_of_msd_are_those_of_numpy() -> None:
    """Also the means that were worked out by hand from the paper, two decimals."""
    rows: dict[str, list[float]] = {}
    for number in (6, 7):
        with (FOLDER / f"table_{number:02d}.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                rows.setdefault(row["method"], []).extend(float(v) for k, v in row.items() if k.startswith("task"))
    found = {outcome.row: float(outcome.recomputed) for outcome in check_msd_averages(read_published())}
    assert found == pytest.approx({row: np.mean(values) for row, values in rows.items()}, abs=1e-9)
    by_hand = {
        "3D U-Net": 72.82, "V-Net": 73.65, "nnU-Net": 81.37, "TransUNet": 76.24, "SwinUNETR": 78.23, "UNETR": 77.11,
        "MAE-ViT-B/16": 65.55, "MAE-ViT-L/16": 68.31, "SimCLR": 62.14, "SwAV": 63.48, "DINOv3-S": 69.00,
        "DINOv3-B": 73.65, "DINOv3-L": 73.46, "MoCo-v3": 64.97, "BYOL": 64.30,
    }  # fmt: skip
    assert found == by_hand


def _with_cell(published: Published, number: int, row: str, column: str, text: str) -> Published:
    table = published.tables[number]
    cells = {name: {**values, column: text} if name == row else values for name, values in table.cells.items()}
    return replace(published, tables={**published.tables, number: replace(table, cells=cells)})


def _voi_cells(published: Published) -> Iterator[tuple[int, str, str]]:
    for number in (8, 9):
        table = published.tables[number]
        for row in table.rows():
            for column in table.columns:
                if "_voi_" in column:
                    yield number, row, column


def test_every_cell_of_a_voi_sum_is_watched() -> None:
    """Any of the 135 figures, changed by 0.01, changes what is found in its sum and nowhere else."""
    published = read_published()
    before = {(outcome.row, outcome.column): outcome for outcome in check_voi_sums(published)}
    cells = list(_voi_cells(published))
    assert len(cells) == 135
    for number, row, column in cells:
        changed = str(published.tables[number].value(row, column) + Decimal("0.01"))
        after = check_voi_sums(_with_cell(published, number, row, column, changed))
        differing = {(o.row, o.column): o.verdict for o in after if o != before[o.row, o.column]}
        assert set(differing) == {(row, f"{column[: column.index('_voi_')]}_voi_sum")}
        assert set(differing.values()) == {"differs"}


# each rule of a claim, on figures read from the tables by eye -------------------------------------
DINO = ("DINOv3-S", "DINOv3-B", "DINOv3-L")


@pytest.mark.parametrize(
    ("table", "column", "rule", "rows", "more", "holds"),
    [
        (2, "nih14_auc", "best", DINO[2:], {}, True),
        (2, "nih14_auc", "best", DINO[:2], {}, False),
        (2, "nih14_auc", "best", DINO[1:2], {"among": DINO[:2]}, True),
        (8, "cremi_a_arand", "best", ("LSD",), {}, True),  # lower is better
        (8, "cremi_a_arand", "best", ("DINOv3-S",), {}, False),
        (3, "camelyon16_auc", "above", ("UNI", "CONCH"), {"than": DINO[:2]}, True),
        (3, "camelyon16_auc", "above", ("UNI", "DINOv3-S"), {"than": ("CONCH",)}, False),
        (3, "camelyon16_auc", "above", ("UNI", "DINOv3-S"), {"than": ("CONCH",), "some": True}, True),
        (4, "camelyon17_unseen_auc", "above", ("UNI",), {"than": ("CONCH",)}, False),  # 0.932 both
        (8, "cremi_a_voi_sum", "above", ("CAD",), {"than": DINO}, True),
        (9, "wafer4_voi_sum", "factor", ("DINOv3-S",), {"than": ("CAD", "LSD"), "factor": 10}, True),
        (9, "wafer4_voi_sum", "factor", DINO[:2], {"than": ("CAD", "LSD"), "factor": 10}, False),
        (2, "nih14_auc", "rising", DINO, {}, True),
        (2, "rsna_auc", "rising", DINO, {}, False),
        (2, "rsna_auc", "not rising", DINO, {}, True),
        (8, "cremi_b_voi_sum", "rising", DINO, {}, True),  # the error falls
        (8, "cremi_b_voi_sum", "rising", DINO[::-1], {}, False),
        (10, "autopet_dice", "rising", ("DINOv3-S/16, CT", "DINOv3-B/16, CT"), {}, False),  # 0.00 both
        (5, "ct_rate_auc", "equal", ("CT-CLIP, baseline",), {"value": "0.731"}, True),
        (5, "ct_rate_auc", "equal", ("CT-CLIP, baseline",), {"value": "0.73"}, False),
    ],
)
def test_rules_of_claims(
    table: int, column: str, rule: Rule, rows: tuple[str, ...], more: dict[str, Any], holds: bool
) -> None:
    claim = Claim(id="it", section="1", quote="", rule=rule, table=table, rows=rows, columns=(column,), **more)
    [outcome] = check_claims(replace(read_published(), claims=(claim,)))
    assert (outcome.row, outcome.column, outcome.verdict) == ("it", column, "holds" if holds else "differs")


# files that cannot be used -----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("claims.yaml", "id: nih-auc", "idea: nih-auc", "entry 0.id: Field required"),
        ("claims.yaml", "id: nih-auc", "id: [", r"claims.yaml, line \d+ is no YAML"),
        ("claims.yaml", "rows: [BiomedCLIP]", "rows: [KLIP]", "'KLIP', column 'rsna_auc': there is no such cell"),
        ("anomalies.yaml", "- id: 2\n", "- id: 1\n", "there more than once: id 1"),
        ("anomalies.yaml", "- id: 2\n", "- id: two\n", "entry 1.id"),
        ("table_10.csv", "59.41", "NaN", "'autopet_dice': a number is needed here, got 'NaN'"),
    ],
)  # fmt: skip
def test_broken_lists_are_told(copy: Path, name: str, old: str, new: str, said: str) -> None:
    _edit(copy, name, old, new)
    with pytest.raises(ResultError, match=said):
        verify_paper(copy)


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="not a folder of its tables"):
        verify_paper(tmp_path / "absent")
    with pytest.raises(ResultError, match=r"columns\.csv cannot be read"):
        verify_paper(tmp_path)


def test_a_reading_has_no_findings(copy: Path) -> None:
    _edit(copy, "anomalies.yaml", 'title: "Averages over the ten MSD tasks are not their means"\n  kind: program',
          'title: "Averages over the ten MSD tasks are not their means"\n  kind: reading')  # fmt: skip
    with pytest.raises(ResultError, match="a reading has no findings"):
        read_anomalies(copy / "anomalies.yaml")


def test_nothing_from_memory_is_told(shipped: Verification) -> None:
    """Figures of other papers that nobody checked are not in the list: no weighted F1, no leaderboard."""
    told = " ".join(f"{a.title} {a.note} {a.printed} {a.recomputed}" for a in shipped.anomalies)
    for figure in ("0.617", "0.668", ".756", "93.3", "95.75", "75.97", "10k", "weighted F1"):
        assert figure not in told


def test_the_page_lists_what_is_known(shipped: Verification) -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "paper.md").read_text(encoding="utf-8")
    for anomaly in shipped.anomalies:
        assert f"| {anomaly.id} | {anomaly.title} |" in page
    for result in shipped.results:
        counts = (len(result.outcomes), result.count("rounding"), result.count("differs"))
        assert f"| `{result.check.name}` | {result.check.title} | {' | '.join(map(str, counts))} |" in page
