"""Workbooks as text."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from cohort_folders import write_xlsx

from wsi_dino.errors import CohortError
from wsi_dino.pathology.cohorts.spreadsheet import read_first_sheet

_MAIN = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'


def test_texts_numbers_and_holes(tmp_path: Path) -> None:
    rows: list[list[object]] = [["a", "b & <c>", "d"], [1, "", 2.5], ["", "", ""], ["", "x", 0.07]]
    write_xlsx(tmp_path / "t.xlsx", [*rows, [*range(30)]], percent_columns=(2,))
    read = read_first_sheet(tmp_path / "t.xlsx")
    assert read[0][:3] == ["a", "b & <c>", "d"]
    assert read[1][:3] == ["1", "", "250%"]
    assert read[2][:3] == ["", "x", "7%"]
    assert read[3] == [str(n) if n != 2 else "200%" for n in range(30)]  # columns beyond Z


def _with_sheet(path: Path, sheet: str, shared: str = "") -> None:
    write_xlsx(path, [["x"]])
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name).decode() for name in archive.namelist()}
    parts["xl/worksheets/sheet1.xml"] = f"<worksheet {_MAIN}><sheetData>{sheet}</sheetData></worksheet>"
    parts["xl/sharedStrings.xml"] = f"<sst {_MAIN}>{shared}</sst>"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def test_rich_inline_and_computed_texts(tmp_path: Path) -> None:
    shared = "<si><r><t>N</t></r><r><t>0</t></r><rPh><t>no</t></rPh></si><si><t> padded </t></si>"
    cells = '<c t="s"><v>0</v></c><c t="s"><v>1</v></c><c t="inlineStr"><is><t>in</t></is></c>'
    cells += '<c t="str"><f>A1</f><v>made</v></c><c t="b"><v>1</v></c><c/>'
    _with_sheet(tmp_path / "t.xlsx", f"<row>{cells}</row>", shared)
    assert read_first_sheet(tmp_path / "t.xlsx") == [["N0", "padded", "in", "made", "1", ""]]


@pytest.mark.parametrize("content", [b"", b"patient,ER\n", b"\xd0\xcf\x11\xe0 old format"])
def test_what_is_no_workbook_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.xlsx").write_bytes(content)
    with pytest.raises(CohortError, match=r"not an \.xlsx workbook"):
        read_first_sheet(tmp_path / "t.xlsx")
    with zipfile.ZipFile(tmp_path / "z.xlsx", "w") as archive:
        archive.writestr("a.txt", "")
    with pytest.raises(CohortError, match=r"not an \.xlsx workbook"):
        read_first_sheet(tmp_path / "z.xlsx")
