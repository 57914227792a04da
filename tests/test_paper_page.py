"""The page of `paper report` as a reader meets it: in a browser at two widths, light and dark, by keyboard, by ear."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browser import ask
from command_line import run_command
from paper_folders import make_all

_STYLE = Path(__file__).resolve().parent.parent / "wsi_dino/paper/page.css"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with tables, drawings, pictures, a partial step and cells that were not run."""
    folder = tmp_path_factory.mktemp("page")
    roots = make_all(folder / "data", ["rsna", "cremi-a"])
    ran = run_command(folder, "paper", "run", "--data", roots, "--run", "RUN", "--in-process", "--no-estimate",
                      "--workers", 1, "--encoder", "efficientnet-lite0")  # fmt: skip
    assert ran.code == 0, ran.stderr
    assert run_command(folder, "paper", "report", "--run", "RUN", "--add-encoder", "uni2-h").code == 0
    return folder / "RUN/report.html"


@pytest.fixture(scope="module", params=[(1400, False), (390, True)], ids=["1400-light", "390-dark"])
def answer(page: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the browser says at a desk in daylight, and on a phone at night."""
    width, dark = request.param
    answer = ask(page, tmp_path_factory.mktemp("browser"), width, dark=dark)
    assert (answer["width"], answer["dark"]) == (width, dark)
    return answer


@pytest.mark.slow
@pytest.mark.xdist_group("paper-page")
def test_the_page_asks_nothing_of_a_network_and_nothing_goes_wrong(page: Path, answer: dict[str, Any]) -> None:
    assert answer["requests"] == []
    assert answer["errors"] == []
    assert answer["console"] == []
    text = page.read_text(encoding="utf-8")
    assert len(text.encode()) < 5_000_000
    assert "<script" not in text
    assert not re.search(r"""(src|href)=["']?(https?:|//)|url\(\s*["']?(https?:|//)|@import""", text)


@pytest.mark.slow
@pytest.mark.xdist_group("paper-page")
def test_the_page_is_no_wider_than_the_window_and_tables_scroll_in_their_own_frame(answer: dict[str, Any]) -> None:
    assert answer["scroll_width"] <= answer["width"]
    assert len(answer["tables"]) >= 14
    assert all(table["region"] and table["fits"] for table in answer["tables"])


@pytest.mark.slow
@pytest.mark.xdist_group("paper-page")
def test_light_and_dark_follow_the_readers_wish(answer: dict[str, Any]) -> None:
    channels = [int(number) for number in re.findall(r"\d+", answer["background"])[:3]]
    assert max(channels) < 60 if answer["dark"] else min(channels) > 220


@pytest.mark.slow
@pytest.mark.xdist_group("paper-page")
def test_headings_captions_and_labels_are_there_for_who_listens(answer: dict[str, Any]) -> None:
    levels = [level for level, _ in answer["headings"]]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    titles = [title for _, title in answer["headings"]]
    assert all(any(title.startswith(f"Table {number}:") for title in titles) for number in range(1, 11))
    assert all(any(title.startswith(f"Figure {number}:") for title in titles) for number in range(1, 6))
    assert answer["lang"] == "en"
    assert answer["title"]
    assert answer["landmarks"] == ["header", "main", "footer", "nav"]
    assert all(table["caption"] and table["headers"] and table["rows"] for table in answer["tables"])
    assert answer["images"]
    assert all(alt and is_drawn for alt, is_drawn in answer["images"])
    assert all(answer["svgs"])


@pytest.mark.slow
@pytest.mark.xdist_group("paper-page")
def test_the_keyboard_reaches_everything(answer: dict[str, Any]) -> None:
    assert answer["first"] == ["Skip to the tables", True], "the first stop skips the contents, and is seen"
    assert len(set(answer["ids"])) == len(answer["ids"])
    assert set(answer["targets"]) <= set(answer["ids"])
    assert all(answer["links"])
    assert answer["details"] > 10
    style = _STYLE.read_text(encoding="utf-8")
    assert ":focus-visible" in style
    assert "outline: none" not in style


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_text_stands_out_from_its_ground(scheme: int) -> None:
    """4.5 to 1 for text, 3 to 1 for what shows the focus: WCAG 2.2, AA."""
    blocks = re.findall(r":root \{(.*?)\}", _STYLE.read_text(encoding="utf-8"), re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", blocks[scheme]))
    for ink in ("ink", "faint", "link", "focus"):
        for ground in ("paper", "soft", "mine"):
            light, dark = sorted((_luminance(colours[ink]), _luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= (3 if ink == "focus" else 4.5), (ink, ground)
