"""Names cannot leave the run, rows survive, tables have the columns that were asked for."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wsi_dino.errors import ConfigError
from wsi_dino.run_folder import RunFolder, safe_name


@given(st.text())
@example("..")
@example("\0")
def test_safe_name_is_one_part_of_a_path(name: str) -> None:
    safe = safe_name(name)
    assert safe not in ("", ".", "..")
    assert Path("folder", safe).parent == Path("folder")
    assert Path(safe).name == safe
    assert safe_name(safe) == safe


@given(st.text(max_size=4), st.text(max_size=4))
@example("slide (1)", "slide [1]")
@example("病理", "组织")
def test_two_names_never_share_a_file(a: str, b: str) -> None:
    clash = a.replace("/", "__") == b.replace("/", "__")
    assert (safe_name(a) == safe_name(b)) is clash


@pytest.mark.parametrize("name", ["..", ".", "", "../../etc/passwd", "/etc/passwd", "a\\..\\b", "a\0b", "../.."])
def test_hostile_names_stay_below_the_run(tmp_path: Path, name: str) -> None:
    run = RunFolder(tmp_path / "run")
    inside = (tmp_path / "run").resolve()
    for path in (run.features(name), run.mil(name, name), run.row_path("tile", name), run.claim_path("tile", name)):
        assert inside in path.resolve().parents


def test_ordinary_names_are_kept() -> None:
    for name in ("TCGA-CR-7395-01A-01-TS1", "dinov3-s", "slide.1_b+c@2", "Präparat-病理1"):
        assert safe_name(name) == name


def test_rows_come_back_and_unreadable_ones_count_as_absent(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_row("tile", "b", {"slide_id": "b", "tiles": 3})
    run.write_row("tile", "a", {"slide_id": "a"})
    run.row_path("tile", "c").write_text('{"slide_id": ')
    run.row_path("tile", "d").write_text("[1, 2]")
    assert run.read_row("tile", "b") == {"slide_id": "b", "tiles": 3}
    assert run.read_row("tile", "c") is None
    assert run.read_row("tile", "absent") is None
    assert [row["slide_id"] for row in run.rows("tile")] == ["a", "b"]


def test_table_has_the_columns_asked_for(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    rows = [{"slide_id": "0012", "reason": 'no "tissue", none', "more": 1}, {"slide_id": "b", "reason": None}]
    run.write_table(tmp_path / "tiles.csv", rows, ["slide_id", "reason", "tiles"])
    with (tmp_path / "tiles.csv").open(newline="") as stream:
        assert list(csv.reader(stream)) == [
            ["slide_id", "reason", "tiles"],
            ["0012", 'no "tissue", none', ""],
            ["b", "", ""],
        ]


def test_encoders_are_folders_with_feature_files(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.features("empty").mkdir(parents=True)
    run.features("dinov3-s").mkdir(parents=True)
    (run.features("dinov3-s") / "a.h5").touch()
    assert run.encoders() == ["dinov3-s"]


def test_absent_run_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such folder.*wsi-dino tile"):
        RunFolder(tmp_path / "nowhere").require()
    assert RunFolder(tmp_path).require().path == tmp_path
