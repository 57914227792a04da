"""The `tile` verb: options, combinations, output and exit codes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from wsi_dino.cli import main
from wsi_dino.pathology.synthetic import draw_tissue, write_pyramid
from wsi_dino.pathology.tile_grid import read_tile_grid


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    rgb, _ = draw_tissue(np.random.default_rng(0), (2048, 1536), tumour=False)
    write_pyramid(folder / "S1.tif", rgb, mpp=0.5, downsamples=(1, 4))
    return folder


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main(["tile", *map(str, arguments)])
    return int(left.value.code or 0)


def test_json_is_one_object_and_nothing_else(slides: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(slides, "--run", "run", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert {key: result[key] for key in ("command", "run", "n_slides", "done", "empty", "failed")} == {
        "command": "tile", "run": "run", "n_slides": 1, "done": 1, "empty": 0, "failed": 0,
    }  # fmt: skip
    assert result["tiles"] == result["rows"][0]["tiles"] == len(read_tile_grid(Path("run/tiles/S1.h5")))


def test_the_summary_names_what_failed_and_the_code_is_1(slides: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in").mkdir()
    os.symlink(slides / "S1.tif", "in/S1.tif")
    Path("in/text.svs").write_text("no slide")
    write_pyramid(Path("in/blank.tif"), np.full((512, 512, 3), 245, np.uint8))
    assert _run("in", "--run", "run") == 1
    out = capsys.readouterr().out
    assert "failed: text:" in out
    assert "empty: blank: no tissue" in out
    assert "1 of 3 slides done, 1 empty, 1 failed" in out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--mpp", "0.5", "--level", "1"], "exclude each other"),
        (["--mpp", "fine"], "--mpp takes um/px"),
        (["--contour-rule", "center"], "--compat clam"),
        (["--compat", "clam", "--mpp", "0.5"], "--level N"),
        (["--compat", "clam", "--min-tissue", "0.5"], "--contour-rule"),
        (["--compat", "clam", "--no-pen"], "CLAM takes pen for tissue"),
        (["--compat", "clam", "--segmenter", "tiatoolbox-otsu"], "--segmenter"),
        (["--trust-table"], "--mpp-table"),
        (["--mpp-table", "absent.csv"], "absent.csv"),
        (["--assume-mpp", "-1"], "--assume-mpp"),
        (["--contours", "absent"], "absent"),
        (["--mthresh", "8"], "odd"),
        (["--stride-px", "0"], "--stride-px"),
        (["--tile-px", "0"], "--tile-px"),
        (["--preset", "bone"], "--preset"),
    ],
)
def test_wrong_usage_is_code_2_and_says_what_to_do(
    slides: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(slides, "--run", "run", *options) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert "Traceback" not in captured.err
    assert not Path("run").exists()


def test_nothing_to_tile_and_two_of_one_name_are_code_2(slides: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert _run("empty", "--run", "run") == 2
    for folder in ("a", "b"):
        (Path("twice") / folder).mkdir(parents=True)
        os.symlink(slides / "S1.tif", f"twice/{folder}/S1.tif")
    assert _run("twice", "--run", "run") == 2
    err = capsys.readouterr().err
    assert "a/S1.tif" in err
    assert "b/S1.tif" in err


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc").is_dir(), reason="needs a place that root cannot write")
def test_a_run_that_cannot_be_written_is_code_2(slides: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(slides, "--run", "/proc/run") == 2
    assert "error:" in capsys.readouterr().err


def test_clam_options_reach_the_grid(slides: Path) -> None:
    options = ["--compat", "clam", "--preset", "biopsy", "--contour-rule", "center", "--tile-px", "100", "--no-padding"]
    assert _run(slides, "--run", "run", "--level", "1", "--stride-px", "50", *options) == 0
    grid = read_tile_grid(Path("run/tiles/S1.h5"))
    assert grid.spec["tiling"] == {
        "mpp": None, "level": 1, "tile_px": 100, "stride_px": 50, "min_tissue": 0.0, "compat": "clam",
        "contour_rule": "center", "padding": False,
    }  # fmt: skip
    assert grid.spec["tissue"]["no_pen"] is False
    assert (grid.spec["tissue"]["sthresh"], grid.spec["tissue"]["max_n_holes"]) == (15, 2)
    assert grid.stride_xy_level0 == (200, 200)


@pytest.mark.parametrize(
    ("slide", "golden", "options"),
    [
        ("CMU-1-Small-Region.svs", "cmu__biopsy__224px_l0_four_pt", "--preset biopsy --tile-px 224"),
        ("CMU-1-Small-Region.svs", "cmu__otsu__224px_l0_center", "--use-otsu --a-t 1 --a-h 1 --contour-rule center"),
        ("CMU-1-Small-Region.derived-pyramid.tif", "cmupyr__biopsy__112px_l1_four_pt",
         "--preset biopsy --tile-px 112 --stride-px 112 --level 1"),
        ("TCGA-CR-7395-01A-01-TS1.svs", "tcga7395__biopsy__224px_l1_four_pt_hard",
         "--preset biopsy --level 1 --contour-rule four_pt_hard"),
        ("TCGA-CR-7395-01A-01-TS1.svs", "tcga7395__tcga__256px_l0_four_pt", "--preset tcga --tile-px 256"),
    ],
)  # fmt: skip
def test_the_command_equals_the_golden_files(
    shared_data: Path, shared_golden: Path, slide: str, golden: str, options: str
) -> None:
    path = shared_data / "slides" / slide
    assert _run(path, "--run", "run", "--compat", "clam", *options.split()) == 0
    with np.load(shared_golden / "clam" / f"{golden}.npz", allow_pickle=False) as stored:
        assert np.array_equal(read_tile_grid(next(Path("run/tiles").glob("*.h5"))).xy, stored["coords"])


def test_clam_without_options_is_clams_script() -> None:
    from wsi_dino.cli.tile import make_request

    given = dict.fromkeys(
        ["mpp", "level", "mpp_table", "assume_mpp", "stride_px", "min_tissue", "padding", "contour_rule", "contours",
         "preset", "no_pen", "seg_level", "sthresh", "mthresh", "close", "use_otsu", "a_t", "a_h", "max_n_holes",
         "ref_patch_size"]
    ) | {"trust_table": False, "tile_px": 224, "compat": "clam", "segmenter": "clam", "backend": "auto"}  # fmt: skip
    request = make_request(given, {"compat"})
    assert (request.tissue.a_t, request.tissue.a_h, request.tissue.max_n_holes) == (100, 16, 8)
    assert (request.tiling.level, request.tiling.padding, request.tissue.no_pen) == (0, True, False)


def test_wsi_dino_yaml_gives_slides_run_and_options_and_flags_win(
    slides: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"slides: {slides}\nrun: here\ntile: {{mpp: 1.0, min_tissue: 0.4, preset: biopsy}}\n"
    Path("wsi-dino.yaml").write_text(text)
    assert _run() == 0
    tiling = read_tile_grid(Path("here/tiles/S1.h5")).spec["tiling"]
    assert (tiling["mpp"], tiling["min_tissue"]) == (1.0, 0.4)
    assert _run("--mpp", "2", "--min-tissue", "0.1") == 0
    assert read_tile_grid(Path("here/tiles/S1.h5")).spec["tiling"]["mpp"] == 2.0
    assert _run("--level", "0") == 0
    assert read_tile_grid(Path("here/tiles/S1.h5")).mpp_asked == "level 0"
    assert _run("--compat", "clam", "--run", "clam") == 0
    assert read_tile_grid(Path("clam/tiles/S1.h5")).spec["tiling"]["compat"] == "clam"
    Path("wsi-dino.yaml").write_text(text.replace("min_tissue", "min_tisue"))
    assert _run() == 2
    assert "min_tissue" in capsys.readouterr().err


def test_help_groups_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--help") == 0
    out = capsys.readouterr().out
    for heading in (
        "Arguments:",
        "Resolution:",
        "Tiles:",
        "Tissue (CLAM's parameters, under CLAM's names):",
        "Options:",
    ):
        assert f"\n{heading}" in out
    options = "mpp level mpp-table trust-table assume-mpp preset seg-level sthresh mthresh close use-otsu a-t a-h "
    options += "max-n-holes ref-patch-size no-pen segmenter compat contour-rule tile-px stride-px no-padding contours "
    options += "min-tissue json workers device backend run"
    assert all(f"--{name}" in out for name in options.split())
