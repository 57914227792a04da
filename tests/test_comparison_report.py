"""The page of a comparison needs nothing from outside, and the pictures beside it can be opened."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from toy_results import write_result

from wsi_dino.evaluation.comparison import Resampling, compare_tasks
from wsi_dino.evaluation.comparison_report import Comparison, make_comparison, render_comparison, write_comparison
from wsi_dino.evaluation.task_result import read_result

QUICK = Resampling(100, 199, 0)
HOSTILE = "<script>alert(1)</script>"


def _comparison(folder: Path, tasks: tuple[str, ...] = ("er",), encoders: tuple[str, ...] = ("a", "b")) -> Comparison:
    results = [[read_result(write_result(folder, task, name)) for name in encoders] for task in tasks]
    return make_comparison(compare_tasks(results, QUICK), QUICK)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A comparison of three encoders on three tasks, where a picture of an earlier one lay."""
    folder = tmp_path_factory.mktemp("comparison")
    (folder / "out").mkdir()
    (folder / "out/bars-9.png").touch()
    return write_comparison(folder / "out", _comparison(folder, ("bcnb-er", "bcnb-pr", "bcnb-her2"), ("a", "_b", "c")))


def test_files_fit_each_other(written: list[Path]) -> None:
    folder = written[0].parent
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in written)
    content = json.loads((folder / "comparison.json").read_text())
    rows = list(csv.DictReader((folder / "comparison.csv").open()))
    first = content["tasks"][0]["encoders"][0]
    assert float(rows[0]["value"]) == first["figures"]["auc"]["value"]
    page = (folder / "report.html").read_text()
    assert f"{first['figures']['auc']['value']:.3f}" in page
    for pair in content["tasks"][0]["pairs"]:
        assert 0 < pair["permutation"]["p_holm"] <= 1


def test_pictures_can_be_opened_and_hold_the_names(written: list[Path]) -> None:
    assert {path.stem for path in written if path.suffix == ".svg"} == {"radar", "tasks", "bars-1", "bars-2", "bars-3"}
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.width > 1500
                assert image.convert("RGB").getpixel((2, 2)) == (255, 255, 255)
        if path.suffix == ".svg":
            text = "".join(ElementTree.parse(path).getroot().itertext())
            assert re.search(r"\ba\b", text)
            assert "0." in text
    radar = (written[0].parent / "radar.svg").read_text()
    for task in ("er", "pr", "her2"):
        assert f">{task}<" in radar
    assert "centre 0." in radar


def test_radar_takes_three_tasks(tmp_path: Path) -> None:
    assert _comparison(tmp_path / "two", ("er", "pr")).radar is None
    assert _comparison(tmp_path / "three", ("er", "pr", "her2")).radar is not None


def test_page_needs_nothing_from_outside(written: list[Path]) -> None:
    page = written[-1].read_text()
    assert not re.findall(r"<(script|link|iframe|object|embed|img)\b", page)
    assert not re.findall(r"url\((?!#)", page)
    assert not re.findall(r'(?:src|href)="(?!#)', page)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_hostile_names_are_shown_not_run(tmp_path: Path) -> None:
    paths = [write_result(tmp_path, "er", name) for name in ("a", "b")]
    metrics = json.loads((paths[0] / "metrics.json").read_text())
    (paths[0] / "metrics.json").write_text(json.dumps({**metrics, "encoder": HOSTILE, "task": HOSTILE}))
    results = [read_result(path) for path in paths]
    page = render_comparison(make_comparison(compare_tasks([results], QUICK), QUICK))
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    comparison = _comparison(tmp_path)
    once, again = (
        {path.name: path.read_bytes() for path in write_comparison(tmp_path / name, comparison)} for name in ("1", "2")
    )
    assert once == again


@pytest.mark.parametrize("n_encoders", [2, 9])
def test_many_encoders_with_long_names(tmp_path: Path, n_encoders: int) -> None:
    names = tuple(f"timm__vit_small_patch16_dinov3.lvd1689m_{index}" for index in range(n_encoders))
    comparison = _comparison(tmp_path, encoders=names)
    text = comparison.bars[0].svg
    for name in names:
        assert name in text


def test_published_rows_are_marked_so(tmp_path: Path) -> None:
    page = render_comparison(_comparison(tmp_path, ("camelyon17-unseen",)))
    assert "As published: Table 4" in page
    assert "not reproduced here" in page
    assert "neither on these classes" in page
    assert "102 slides with and 222 without tumour" in page
