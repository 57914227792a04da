"""The table of encoders: readable on a terminal, and the documentation's page is the one that the records give."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from wsi_dino.cli.app import main
from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.encoders.record_table import markdown_page, short_rows
from wsi_dino.encoders.registry import builtin_records, get_record, name_patterns

_PAGE = Path(__file__).resolve().parent.parent / "docs" / "encoders.md"


def _printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code in (0, None)
    return capsys.readouterr().out


def test_page_of_the_documentation_is_what_the_records_give(capsys: pytest.CaptureFixture[str]) -> None:
    printed = _printed(["encoders", "--markdown"], capsys)
    assert printed == markdown_page(builtin_records(), name_patterns())
    assert _PAGE.read_text(encoding="utf-8") == printed, "run `wsi-dino encoders --markdown > docs/encoders.md`"


def test_every_row_has_as_many_cells_as_the_header() -> None:
    rows = [line for line in _PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len(rows) == len(builtin_records()) + 2
    assert {row.count(" | ") for row in rows} == {10}
    assert all(re.match(r"\| `[\w.-]+` \| ", row) for row in rows[2:])


def test_what_a_licence_asks_stands_behind_every_name_it_binds() -> None:
    page = _PAGE.read_text(encoding="utf-8")
    asked = page.split("## What the licences ask")[1].split("## Notes")[0]
    for record in builtin_records():
        line = next((line for line in asked.splitlines() if f"`{record.name}`" in line), "")
        assert all(sentence in line for sentence in record.obligations)
        assert bool(line) == bool(record.obligations)


def test_table_for_the_eye_fits_a_hundred_columns(capsys: pytest.CaptureFixture[str]) -> None:
    lines = _printed(["encoders"], capsys).splitlines()
    assert max(len(line) for line in lines) <= 100
    assert [line.split()[0] for line in lines[2:]] == [record.name for record in builtin_records()]


def test_a_bar_in_a_text_breaks_no_row_and_a_missing_number_is_blank() -> None:
    record = EncoderSpec(
        name="mine", family="mine", architecture="a|b", embed_dim=8, pooling="avg", poolings=("avg",), source="me/mine",
        licence="a licence with a very long name indeed",
    )  # fmt: skip
    row = next(line for line in markdown_page([record], []).splitlines() if line.startswith("| `mine`"))
    assert row.count(" | ") == 10
    assert "a/b" in row
    short = short_rows([record])[0]
    assert short["M"] == ""
    assert len(short["licence"]) <= 22


def test_listing_imports_no_torch() -> None:
    code = (
        "import sys; from wsi_dino.cli.app import main\n"
        "try: main(['encoders', '--markdown'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'timm', 'transformers', 'open_clip', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_only_tells_of_an_encoder_does_not_decide_its_vectors() -> None:
    record = get_record("dinov3-s")
    told = record.model_copy(update={"notes": "another", "licence": "another", "parameters_m": 1.0, "paper": "x"})
    assert told.deciding() == record.deciding()
    for change in ({"mean": (0.5, 0.5, 0.5)}, {"interpolation": "bilinear"}, {"n_prefix_tokens": 1}):
        assert record.model_copy(update=change).deciding() != record.deciding()
