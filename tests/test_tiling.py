"""All slides of a run: files, rows, resuming, bad slides, edited contours."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from wsi_dino.errors import StorageError
from wsi_dino.pathology import tiling
from wsi_dino.pathology.contours import read_contours
from wsi_dino.pathology.discovery import SlideSource, discover_slides
from wsi_dino.pathology.slide_tiler import TileRequest
from wsi_dino.pathology.synthetic import draw_tissue, write_pyramid
from wsi_dino.pathology.tile_grid import read_tile_grid
from wsi_dino.pathology.tiling import COLUMNS, tile_slides
from wsi_dino.pathology.tiling_spec import TilingSpec
from wsi_dino.pathology.tissue_spec import TissueSpec
from wsi_dino.run_folder import RunFolder


def _request(**changes: Any) -> TileRequest:
    return TileRequest(**{"tissue": TissueSpec(), "tiling": TilingSpec(mpp=1.0), **changes})


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for index in range(3):
        rgb, _ = draw_tissue(np.random.default_rng(index), (2048, 1536), tumour=False)
        write_pyramid(folder / f"S{index}.tif", rgb, mpp=0.5, downsamples=(1, 4))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def _files(run: RunFolder) -> dict[str, bytes]:
    paths = [path for name in ("tiles", "contours", "thumbnails") for path in (run.path / name).iterdir()]
    return {path.relative_to(run.path).as_posix(): path.read_bytes() for path in sorted(paths)}


def _stamps(run: RunFolder) -> dict[str, int]:
    return {name: (run.path / name).stat().st_mtime_ns for name in _files(run)}


def test_a_run_has_every_file_and_a_row_a_slide(slides: Path, run: RunFolder) -> None:
    rows = tile_slides(discover_slides(slides), run, _request())
    assert [row["slide_id"] for row in rows] == ["S0", "S1", "S2"]
    assert set(_files(run)) == {
        f"{d}/S{i}.{e}" for d, e in (("tiles", "h5"), ("contours", "geojson"), ("thumbnails", "jpg")) for i in range(3)
    }
    with (run.path / "tiles.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert tuple(table[0]) == COLUMNS
    for row in table:
        grid = read_tile_grid(run.tiles / f"{row['slide_id']}.h5")
        assert (row["status"], int(row["tiles"]), row["mpp_source"]) == ("done", len(grid), "openslide.mpp-x")
        assert float(row["mpp_asked"]) == 1.0
        assert float(row["mpp_found"]) == pytest.approx(1.0)
        assert float(row["tissue_mm2"]) > 0
        assert grid.tile_wh_level0 == (448, 448)
        assert (grid.tissue_fraction >= 0.25).all()


def test_other_readers_find_their_attributes(slides: Path, run: RunFolder) -> None:
    tile_slides(discover_slides(slides), run, _request())
    with h5py.File(run.tiles / "S0.h5") as file:
        assert file["coords"].dtype == np.int64
        attributes = dict(file["coords"].attrs)
    assert {"patch_size", "patch_level", "downsample", "name", "patch_size_level0", "level0_magnification"} <= set(
        attributes
    )


def test_a_second_command_redoes_nothing_and_a_broken_file_only(slides: Path, run: RunFolder) -> None:
    sources = discover_slides(slides)
    first = tile_slides(sources, run, _request())
    before, content = _stamps(run), _files(run)
    assert tile_slides(sources, run, _request()) == first
    assert _stamps(run) == before
    (run.tiles / "S1.h5").write_bytes((run.tiles / "S1.h5").read_bytes()[:900])
    (run.thumbnails / "S2.jpg").unlink()
    tile_slides(sources, run, _request())
    after = _stamps(run)
    assert after["tiles/S0.h5"] == before["tiles/S0.h5"]
    assert after["tiles/S1.h5"] != before["tiles/S1.h5"]
    assert _files(run) == content


@pytest.mark.parametrize(
    "changed",
    [
        {"tissue": TissueSpec(sthresh=20)},
        {"tiling": TilingSpec(mpp=1.0, min_tissue=0.5)},
        {"assume_mpp": 0.3},
        {"mpp_table": {"S0": 0.4, "S1": 0.4, "S2": 0.4}, "trust_table": True},
        {"backend": "openslide"},
    ],
)
def test_a_changed_option_never_reuses_a_finished_slide(slides: Path, run: RunFolder, changed: dict) -> None:
    sources = discover_slides(slides)
    tile_slides(sources, run, _request())
    before = _stamps(run)
    tile_slides(sources, run, _request(**changed))
    assert all(_stamps(run)[name] != stamp for name, stamp in before.items())


def test_workers_do_not_change_the_files(slides: Path, tmp_path: Path) -> None:
    runs = [RunFolder(tmp_path / str(workers)) for workers in (1, 4)]
    for run, workers in zip(runs, (1, 4), strict=True):
        tile_slides(discover_slides(slides), run, _request(), workers=workers)
    assert _files(runs[0]) == _files(runs[1])


def _spoil(path: Path, how: str) -> None:
    rgb, _ = draw_tissue(np.random.default_rng(0), (1024, 1024), tumour=False)
    if how == "truncated":
        write_pyramid(path, rgb)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    elif how == "text":
        path.write_text("this is no slide")
    elif how == "nothing":
        path.write_bytes(b"")
    elif how == "blank":
        write_pyramid(path, np.full((1024, 1024, 3), 245, np.uint8))
    elif how == "no mpp":
        write_pyramid(path, rgb, mpp=None)
    elif how == "coarse":
        write_pyramid(path, rgb, mpp=2.0)
    elif how == "gone":
        path.symlink_to(path.with_name("nowhere.tif"))


@pytest.mark.parametrize(
    ("how", "status", "says"),
    [
        ("truncated", "failed", "trunc"),
        ("text", "failed", ""),
        ("nothing", "failed", "empty"),
        ("blank", "empty", "no tissue"),
        ("no mpp", "failed", "no resolution"),
        ("coarse", "failed", "not invented"),
        ("gone", "failed", "no such file"),
    ],
)
def test_a_bad_slide_is_a_row_and_the_others_are_done(
    slides: Path, tmp_path: Path, run: RunFolder, how: str, status: str, says: str
) -> None:
    bad = tmp_path / "bad.tif"
    _spoil(bad, how)
    rows = tile_slides([SlideSource("bad", bad), *discover_slides(slides)], run, _request())
    assert [row["status"] for row in rows] == [status, "done", "done", "done"]
    assert says in rows[0]["reason"].lower()
    assert "unexpected" not in rows[0]["reason"]
    assert (run.tiles / "bad.h5").is_file() == (status == "empty")
    if status == "empty":
        assert len(read_tile_grid(run.tiles / "bad.h5")) == 0


def test_a_mended_slide_is_done_by_the_next_command(tmp_path: Path, run: RunFolder) -> None:
    path = tmp_path / "s.tif"
    _spoil(path, "text")
    assert tile_slides([SlideSource("s", path)], run, _request())[0]["status"] == "failed"
    rgb, _ = draw_tissue(np.random.default_rng(0), (2048, 2048), tumour=False)
    write_pyramid(path, rgb)
    assert tile_slides([SlideSource("s", path)], run, _request())[0]["status"] == "done"


def test_tiles_of_an_earlier_request_do_not_outlive_a_failure(slides: Path, run: RunFolder) -> None:
    sources = discover_slides(slides)
    tile_slides(sources, run, _request())
    rows = tile_slides(sources, run, _request(tiling=TilingSpec(mpp=0.25)))
    assert {row["status"] for row in rows} == {"failed"}
    assert list(run.tiles.iterdir()) == []


def test_an_unexpected_error_is_a_row_with_its_trace_kept(
    slides: Path, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise ValueError("surprise")

    monkeypatch.setattr(tiling, "tile_slide", fail)
    rows = tile_slides(discover_slides(slides), run, _request())
    assert all(row["reason"].startswith("unexpected ValueError: surprise") for row in rows)
    trace = Path(rows[0]["reason"].split("details: ")[1].rstrip(")"))
    assert "raise ValueError" in trace.read_text()


@pytest.mark.parametrize("error", [StorageError("full"), KeyboardInterrupt()])
def test_a_full_disk_ends_the_run_and_gives_the_claims_back(
    slides: Path, run: RunFolder, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(tiling, "write_thumbnail", fail)
    with pytest.raises(type(error)):
        tile_slides(discover_slides(slides), run, _request(), workers=2)
    monkeypatch.undo()
    assert {row["status"] for row in tile_slides(discover_slides(slides), run, _request())} == {"done"}


def test_unedited_contours_given_back_give_the_same_tiles(slides: Path, run: RunFolder, tmp_path: Path) -> None:
    sources = discover_slides(slides)
    tile_slides(sources, run, _request())
    other = RunFolder(tmp_path / "other")
    tile_slides(sources, other, _request(contours=run.contours))
    for source in sources:
        first, second = (read_tile_grid(r.tiles / f"{source.slide_id}.h5") for r in (run, other))
        assert np.array_equal(first.xy, second.xy)
        assert np.array_equal(first.tissue_fraction, second.tissue_fraction)


def _edit(path: Path) -> None:
    """Replace all annotations by one, as QuPath would save it."""
    ring = [[512.5, 512], [1536, 512], [1536, 1024], [512.5, 1024], [512.5, 512]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}
    path.write_text(json.dumps([feature]))


def test_edited_contours_are_used_in_place_and_never_overwritten(slides: Path, run: RunFolder) -> None:
    sources = discover_slides(slides)
    tile_slides(sources, run, _request())
    n_before = len(read_tile_grid(run.tiles / "S0.h5"))
    edited = run.contours / "S0.geojson"
    _edit(edited)
    text = edited.read_text()
    rows = tile_slides(sources, run, _request(tissue=TissueSpec(sthresh=20)))
    assert [row["status"] for row in rows] == ["failed", "done", "done"]
    assert "edited by hand" in rows[0]["reason"]
    rows = tile_slides(sources, run, _request(contours=run.contours))
    assert [row["status"] for row in rows] == ["done", "done", "done"]
    assert edited.read_text() == text
    grid = read_tile_grid(run.tiles / "S0.h5")
    assert 0 < len(grid) < n_before
    assert (grid.xy >= 0).all()
    assert "contours_sha256" in grid.spec


def test_a_slide_without_edited_contours_fails_and_a_later_edit_is_seen(
    slides: Path, run: RunFolder, tmp_path: Path
) -> None:
    folder = tmp_path / "edited"
    folder.mkdir()
    for name in ("S0", "S1"):
        _edit(folder / f"{name}.geojson")
    sources = discover_slides(slides)
    rows = tile_slides(sources, run, _request(contours=folder))
    assert [row["status"] for row in rows] == ["done", "done", "failed"]
    assert "Export this slide from QuPath" in rows[2]["reason"]
    (folder / "S0.geojson").write_text("[]")
    rows = tile_slides(sources, run, _request(contours=folder))
    assert [row["status"] for row in rows] == ["empty", "done", "failed"]
    assert read_contours(run.contours / "S0.geojson").contours == []


def test_the_table_keeps_slides_of_earlier_commands(slides: Path, run: RunFolder) -> None:
    sources = discover_slides(slides)
    tile_slides(sources[:1], run, _request())
    tile_slides(sources[1:], run, _request())
    with (run.path / "tiles.csv").open(newline="") as stream:
        assert [row["slide_id"] for row in csv.DictReader(stream)] == ["S0", "S1", "S2"]


_PROGRAM = """
import sys
from pathlib import Path
from wsi_dino.pathology.discovery import discover_slides
from wsi_dino.pathology.slide_tiler import TileRequest
from wsi_dino.pathology.tiling import tile_slides
from wsi_dino.pathology.tiling_spec import TilingSpec
from wsi_dino.pathology.tissue_spec import TissueSpec
from wsi_dino.run_folder import RunFolder
request = TileRequest(tissue=TissueSpec(), tiling=TilingSpec(mpp=1.0))
print("ready", flush=True)
tile_slides(discover_slides(Path(sys.argv[1])), RunFolder(Path(sys.argv[2])), request, workers=2)
"""


def _start(slides: Path, run: RunFolder) -> subprocess.Popen:
    job = subprocess.Popen([sys.executable, "-c", _PROGRAM, str(slides), str(run.path)], stdout=subprocess.PIPE)
    assert job.stdout is not None
    job.stdout.readline()
    return job


@pytest.mark.parametrize("delay_s", [0.02, 0.08, 0.15])
def test_kill_9_and_again_gives_the_files_of_an_undisturbed_run(
    slides: Path, run: RunFolder, tmp_path: Path, delay_s: float
) -> None:
    undisturbed = RunFolder(tmp_path / "undisturbed")
    tile_slides(discover_slides(slides), undisturbed, _request())
    job = _start(slides, run)
    time.sleep(delay_s)
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    rows = tile_slides(discover_slides(slides), run, _request())
    assert {row["status"] for row in rows} == {"done"}
    assert _files(run) == _files(undisturbed)


def test_two_processes_share_a_run(slides: Path, run: RunFolder, tmp_path: Path) -> None:
    undisturbed = RunFolder(tmp_path / "undisturbed")
    expected = tile_slides(discover_slides(slides), undisturbed, _request())
    jobs = [_start(slides, run) for _ in range(2)]
    assert [job.wait(120) for job in jobs] == [0, 0]
    assert _files(run) == _files(undisturbed)
    with (run.path / "tiles.csv").open(newline="") as stream:
        assert [row["tiles"] for row in csv.DictReader(stream)] == [str(row["tiles"]) for row in expected]


def test_progress_counts_every_slide_once(slides: Path, run: RunFolder) -> None:
    def count() -> Callable[..., None]:
        return lambda advance=0, **_: told.append(advance)

    for _ in range(2):
        told: list[float] = []
        tile_slides(discover_slides(slides), run, _request(), progress=count())
        assert sum(told) == 3
