"""Slides through encoders: order, resumption, several encoders, two processes, bad slides, bounded memory."""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.errors import ConfigError, EncoderError, SlideError, StorageError
from wsi_dino.feature_file import read_feature_file
from wsi_dino.pathology import journal as journal_module
from wsi_dino.pathology.embed_spec import EmbedSpec
from wsi_dino.pathology.embedding import EmbedOutcome, embed_slides, make_tasks
from wsi_dino.pathology.slide import open_slide
from wsi_dino.pathology.tile_grid import TileGrid, write_tile_grid
from wsi_dino.pathology.tile_reader import TileReader
from wsi_dino.pathology.tile_stream import TileStream
from wsi_dino.provenance import slide_fingerprint
from wsi_dino.run_folder import RunFolder

TILE_PX = 16


class FakeEncoder:
    """Gives what each tile looks like, and counts; stops everything at batch `stop_at`."""

    def __init__(
        self, name: str = "fake", *, batch_size: int = 4, pooling: str = "mean", stop_at: int | None = None,
        error: BaseException | None = None, weights_sha256: str = "w1", fill: float = 0.0,
    ) -> None:  # fmt: skip
        self.spec = EncoderSpec(
            name=name, family="fake", architecture="fake", embed_dim=7, input_px=TILE_PX, pooling="mean",
            poolings=("mean", "cls"), source="none", licence="none",
        )  # fmt: skip
        self.embed_dim, self.batch_size, self.pooling = 7, batch_size, pooling
        self.weights_sha256, self.fill = weights_sha256, fill
        self.sizes: list[int] = []
        self._stop_at, self._error = stop_at, error or KeyboardInterrupt()
        self._lock = threading.Lock()

    def embed(self, tiles: np.ndarray) -> np.ndarray:
        assert tiles.dtype == np.uint8
        assert tiles.shape[1:] == (TILE_PX, TILE_PX, 3)
        with self._lock:
            if self._stop_at is not None and len(self.sizes) >= self._stop_at:
                raise self._error
            self.sizes.append(len(tiles))
        return describe(tiles) + np.float32(self.fill)

    def identity(self) -> dict[str, Any]:
        return {
            "encoder": self.spec.name, "embed_dim": 7, "pooling": self.pooling, "input_px": TILE_PX,
            "weights_sha256": self.weights_sha256, "random_weights": None, "precision": "fp32",
        }  # fmt: skip

    @property
    def n_tiles(self) -> int:
        return sum(self.sizes)


def describe(tiles: np.ndarray) -> np.ndarray:
    """Mean colour, corner colour and spread of each tile, float32 ``(n, 7)``."""
    flat = tiles.reshape(len(tiles), -1, 3).astype(np.float32)
    spread = flat.std(axis=(1, 2))[:, None]
    return np.concatenate([flat.mean(axis=1), tiles[:, 0, 0].astype(np.float32), spread], axis=1)


def add_slide(run: RunFolder, folder: Path, slide_id: str, n_tiles: int = 21, *, order: str = "yx") -> TileGrid:
    """Draw a PNG slide of noise and give it a grid of tiles."""
    columns = 5
    rows = -(-n_tiles // columns)
    seed = sum(slide_id.encode())
    pixels = np.random.default_rng(seed).integers(0, 256, (rows * TILE_PX + 3, columns * TILE_PX + 3, 3), np.uint8)
    path = folder / f"{slide_id}.png"
    Image.fromarray(pixels).save(path)
    xy = np.array([(x, y) for y in range(rows) for x in range(columns)][:n_tiles], np.int64).reshape(-1, 2) * TILE_PX
    if order == "xy":
        xy = xy[np.lexsort((xy[:, 1], xy[:, 0]))]
    grid = TileGrid(
        slide_id=slide_id, slide_fingerprint=slide_fingerprint(path), xy=xy,
        tissue_fraction=np.ones(n_tiles, np.float32), tile_px=TILE_PX, tile_wh_level0=(TILE_PX, TILE_PX),
        stride_xy_level0=(TILE_PX, TILE_PX), level=0, read_wh=(TILE_PX, TILE_PX), level_downsample_xy=(1.0, 1.0),
        slide_wh_level0=(pixels.shape[1], pixels.shape[0]), mpp_xy=(0.5, 0.5), mpp_source="assumed", mpp_asked=0.5,
        mpp_found_xy=(0.5, 0.5), spec={"order": order}, fingerprint="g",
    )  # fmt: skip
    write_tile_grid(run.tiles / f"{slide_id}.h5", grid)
    row = {"slide_id": slide_id, "status": "done" if n_tiles else "empty", "path": str(path), "tiles": n_tiles}
    run.write_row("tile", slide_id, row)
    return grid


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "slides"
    path.mkdir()
    return path


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def embed(run: RunFolder, *encoders: FakeEncoder, spec: EmbedSpec | None = None, **settings: Any) -> EmbedOutcome:
    return embed_slides(run, encoders, spec or EmbedSpec(store_dtype="float32"), workers=3, **settings)


def expected(grid: TileGrid, path: Path) -> np.ndarray:
    with open_slide(path) as slide:
        return describe(np.stack(list(TileReader(slide, grid))))


def contents(run: RunFolder) -> dict[str, bytes]:
    return {str(p.relative_to(run.path)): p.read_bytes() for p in sorted((run.path / "features").rglob("*.h5"))}


@pytest.mark.parametrize("order", ["yx", "xy"])
@pytest.mark.parametrize("n_tiles", [1, 4, 21])
def test_features_stand_in_the_order_of_the_grid_and_equal_the_encoder_on_single_tiles(
    run: RunFolder, folder: Path, order: str, n_tiles: int
) -> None:
    grid = add_slide(run, folder, "S1", n_tiles, order=order)
    encoder = FakeEncoder()
    outcome = embed(run, encoder)
    file = read_feature_file(run.features("fake") / "S1.h5", verify=True)
    assert (file.coords == grid.xy).all()
    assert (file.features == expected(grid, folder / "S1.png")).all()
    assert sorted(encoder.sizes, reverse=True) == [4] * (n_tiles // 4) + ([n_tiles % 4] if n_tiles % 4 else [])
    assert [row["status"] for row in outcome.encoders[0].rows] == ["done"]
    assert not list((run.state / "journals").rglob("*.journal"))


def test_provenance_says_where_features_come_from_and_holds_no_path_or_time(run: RunFolder, folder: Path) -> None:
    grid = add_slide(run, folder, "S1")
    embed(run, FakeEncoder())
    file = read_feature_file(run.features("fake") / "S1.h5")
    assert file.provenance["slide"]["fingerprint"] == grid.slide_fingerprint
    assert file.provenance["slide"]["backend"] == "image"
    assert file.provenance["tiling"] == grid.description()
    assert file.identity == {
        "encoder": "fake", "embed_dim": 7, "pooling": "mean", "input_px": TILE_PX, "weights_sha256": "w1",
        "adapter": None, "plugin_sha256": None, "stain_norm": None, "tiles": f"{TILE_PX} px at 0.5 um/px",
    }  # fmt: skip
    assert {"batch_size", "precision", "store_dtype", "versions", "licence"} <= file.provenance.keys()
    assert file.provenance["coords_attrs"]["patch_size"] == TILE_PX
    raw = (run.features("fake") / "S1.h5").read_bytes()
    assert str(folder).encode() not in raw
    assert str(run.path).encode() not in raw


def test_a_second_call_does_nothing_and_a_changed_choice_redoes_all(run: RunFolder, folder: Path) -> None:
    for slide_id in ("S1", "S2"):
        add_slide(run, folder, slide_id)
    embed(run, FakeEncoder())
    before = contents(run)
    again = FakeEncoder()
    outcome = embed(run, again)
    assert (again.n_tiles, outcome.encoders[0].slides_kept, contents(run)) == (0, 2, before)
    for changed, spec in (
        (FakeEncoder(pooling="cls"), EmbedSpec(store_dtype="float32")),
        (FakeEncoder(weights_sha256="w2"), EmbedSpec(store_dtype="float32")),
        (FakeEncoder(), EmbedSpec(store_dtype="float16")),
        (FakeEncoder(), EmbedSpec(store_dtype="float32", precision="bf16")),
    ):
        embed(run, changed, spec=spec)
        assert changed.n_tiles == 42


def test_other_choices_are_announced_before_they_are_redone(run: RunFolder, folder: Path) -> None:
    add_slide(run, folder, "S1")
    embed(run, FakeEncoder())
    said: list[str] = []
    embed(run, FakeEncoder(pooling="cls"), notice=said.append)
    assert len(said) == 1
    assert "1 slides have features of another choice" in said[0]


def test_features_of_an_unknown_slide_with_another_choice_stop_the_work(run: RunFolder, folder: Path) -> None:
    add_slide(run, folder, "S1")
    embed(run, FakeEncoder())
    (run.features("fake") / "S1.h5").rename(run.features("fake") / "S9.h5")
    with pytest.raises(ConfigError, match=r"S9\.h5 holds features of another pooling"):
        embed(run, FakeEncoder(pooling="cls"))
    embed(run, FakeEncoder())


@pytest.mark.parametrize("damage", ["deleted", "truncated", "other tiles", "row lost"])
def test_a_missing_or_stale_feature_file_is_made_anew(run: RunFolder, folder: Path, damage: str) -> None:
    add_slide(run, folder, "S1")
    embed(run, FakeEncoder())
    path = run.features("fake") / "S1.h5"
    whole = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "other tiles":
        add_slide(run, folder, "S1", 20)
    else:
        run.row_path("embed-fake", "S1").unlink()
    encoder = FakeEncoder()
    embed(run, encoder)
    assert encoder.n_tiles == {"other tiles": 20, "row lost": 0}.get(damage, 21)
    assert (path.read_bytes() == whole) is (damage != "other tiles")


@pytest.mark.parametrize("stop_at", [0, 1, 3, 5, 7, 11])
@pytest.mark.parametrize("order", ["yx", "xy"])
def test_an_interrupted_run_goes_on_inside_the_slide_and_gives_the_same_bytes(
    run: RunFolder, folder: Path, tmp_path: Path, stop_at: int, order: str
) -> None:
    undisturbed = RunFolder(tmp_path / "undisturbed")
    for target in (run, undisturbed):
        for slide_id in ("S1", "S2"):
            add_slide(target, folder, slide_id, order=order)
    embed(undisturbed, FakeEncoder())
    stopped = FakeEncoder(stop_at=stop_at)
    with pytest.raises(KeyboardInterrupt):
        embed(run, stopped)
    resumed = FakeEncoder()
    outcome = embed(run, resumed)
    assert contents(run) == contents(undisturbed)
    # what had been encoded but not yet stored is encoded again: at most the batches in hand
    repeated = stopped.n_tiles + resumed.n_tiles - 42
    assert 0 <= repeated <= 8
    assert outcome.encoders[0].tiles_encoded == resumed.n_tiles
    assert all(row["status"] == "done" for row in outcome.encoders[0].rows)


def test_a_journal_of_other_weights_is_not_reused(run: RunFolder, folder: Path) -> None:
    add_slide(run, folder, "S1")
    with pytest.raises(KeyboardInterrupt):
        embed(run, FakeEncoder(stop_at=4))
    other = FakeEncoder(weights_sha256="w2")
    embed(run, other)
    assert other.n_tiles == 21


def test_several_encoders_share_one_reading(run: RunFolder, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = add_slide(run, folder, "S1")
    reads: list[int] = []
    original = TileReader.read
    monkeypatch.setattr(TileReader, "read", lambda self, index: reads.append(index) or original(self, index))
    small, large = FakeEncoder("small", batch_size=2), FakeEncoder("large", batch_size=8)
    embed(run, small, large)
    assert sorted(reads) == list(range(21))
    assert (set(small.sizes), set(large.sizes)) == ({1, 2}, {5, 8})
    for name in ("small", "large"):
        file = read_feature_file(run.features(name) / "S1.h5")
        assert (file.features == expected(grid, folder / "S1.png")).all()


def test_an_encoder_that_has_the_slide_is_not_asked_again_beside_a_new_one(run: RunFolder, folder: Path) -> None:
    add_slide(run, folder, "S1")
    embed(run, FakeEncoder("a"))
    a, b = FakeEncoder("a"), FakeEncoder("b")
    outcome = embed(run, a, b)
    assert (a.n_tiles, b.n_tiles) == (0, 21)
    assert [one.slides_kept for one in outcome.encoders] == [1, 0]


def test_only_missing_batches_are_read_again(run: RunFolder, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_slide(run, folder, "S1")
    with pytest.raises(KeyboardInterrupt):
        embed(run, FakeEncoder(stop_at=4))
    reads: list[int] = []
    original = TileReader.read
    monkeypatch.setattr(TileReader, "read", lambda self, index: reads.append(index) or original(self, index))
    outcome = embed(run, FakeEncoder())
    assert len(reads) == outcome.encoders[0].tiles_encoded < 21
    assert outcome.encoders[0].tiles_resumed == 21 - len(reads) >= 8


def test_batch_sizes_that_do_not_nest_all_become_the_smallest() -> None:
    spec = EmbedSpec()
    tasks = make_tasks([FakeEncoder("a", batch_size=6), FakeEncoder("b", batch_size=4)], spec)
    assert [task.batch_size for task in tasks] == [4, 4]
    tasks = make_tasks([FakeEncoder("a", batch_size=8), FakeEncoder("b", batch_size=4)], spec)
    assert [task.batch_size for task in tasks] == [8, 4]
    tasks = make_tasks([FakeEncoder("a")], EmbedSpec(batch_size=3))
    assert [task.batch_size for task in tasks] == [3]


def _statuses(outcome: EmbedOutcome) -> dict[str, tuple[str, str]]:
    return {row["slide_id"]: (row["status"], row["reason"]) for row in outcome.encoders[0].rows}


def test_bad_slides_are_rows_and_the_others_go_on(run: RunFolder, folder: Path, tmp_path: Path) -> None:
    for slide_id in ("changed", "empty0", "good1", "good2", "gone", "noh5", "truncated"):
        add_slide(run, folder, slide_id, 0 if slide_id == "empty0" else 21)
    run.write_row("tile", "untiled", {"slide_id": "untiled", "status": "failed", "reason": "no mpp", "path": "x"})
    Image.new("RGB", (83, 83)).save(folder / "changed.png")
    (folder / "gone.png").unlink()
    (run.tiles / "noh5.h5").unlink()
    add_slide(run, folder, "truncated", 21)
    grid = read_grid_with_fingerprint_of_cut_file(run, folder / "truncated.png")
    assert len(grid) == 21
    outcome = embed(run, FakeEncoder())
    statuses = _statuses(outcome)
    assert {key: status for key, (status, _) in statuses.items()} == {
        "changed": "failed", "empty0": "empty", "good1": "done", "good2": "done", "gone": "failed",
        "noh5": "failed", "truncated": "failed", "untiled": "failed",
    }  # fmt: skip
    for slide_id, words in {
        "changed": "has changed since it was tiled", "gone": "no longer at", "noh5": "wsi-dino tile",
        "untiled": "no mpp", "truncated": "truncated",
    }.items():  # fmt: skip
        assert words in statuses[slide_id][1], statuses[slide_id]
    table = (run.path / "embed.csv").read_text().splitlines()
    assert table[0] == "encoder,slide_id,status,reason,tiles,seconds,tiles_per_s,backend"
    assert len([line for line in table if line.startswith("fake,")]) == 8


def read_grid_with_fingerprint_of_cut_file(run: RunFolder, path: Path) -> TileGrid:
    """Cut a slide so that it opens but its end cannot be read, and pretend it was tiled like that."""
    from dataclasses import replace

    from wsi_dino.pathology.tile_grid import read_tile_grid

    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    grid = replace(read_tile_grid(run.tiles / f"{path.stem}.h5"), slide_fingerprint=slide_fingerprint(path))
    write_tile_grid(run.tiles / f"{path.stem}.h5", grid)
    return grid


def test_an_unreadable_region_fails_its_slide_alone_and_keeps_the_rest_for_a_retry(
    run: RunFolder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for slide_id in ("S1", "S2", "S3"):
        add_slide(run, folder, slide_id)
    original = TileReader.read

    def read(self: TileReader, index: int) -> np.ndarray:
        if self._slide.slide_id == "S2" and index == 17:
            raise SlideError("Reading S2: 16x16 px at (32, 48) of level 0 cannot be decoded.")
        return original(self, index)

    monkeypatch.setattr(TileReader, "read", read)
    outcome = embed(run, FakeEncoder())
    assert [status for status, _ in _statuses(outcome).values()] == ["done", "failed", "done"]
    assert "cannot be decoded" in _statuses(outcome)["S2"][1]
    assert not (run.features("fake") / "S2.h5").exists()
    monkeypatch.undo()
    retry = FakeEncoder()
    outcome = embed(run, retry)
    assert outcome.encoders[0].tiles_resumed == 16
    assert retry.n_tiles == 5


def test_a_slide_that_fails_under_a_new_choice_loses_its_old_features(run: RunFolder, folder: Path) -> None:
    add_slide(run, folder, "S1")
    embed(run, FakeEncoder())
    (folder / "S1.png").unlink()
    embed(run, FakeEncoder())  # an archived slide leaves its features valid
    assert (run.features("fake") / "S1.h5").exists()
    embed(run, FakeEncoder(pooling="cls"))
    assert not (run.features("fake") / "S1.h5").exists()


def test_a_slide_replaced_after_embedding_is_noticed(run: RunFolder, folder: Path) -> None:
    add_slide(run, folder, "S1")
    embed(run, FakeEncoder())
    os.utime(folder / "S1.png", (1, 1))  # touched only: still the same slide
    assert embed(run, FakeEncoder()).encoders[0].slides_kept == 1
    Image.new("RGB", (83, 83)).save(folder / "S1.png")
    assert _statuses(embed(run, FakeEncoder()))["S1"][0] == "failed"


def test_moved_slides_are_found_by_their_id(run: RunFolder, folder: Path, tmp_path: Path) -> None:
    add_slide(run, folder, "S1")
    elsewhere = tmp_path / "archive" / "deep"
    elsewhere.mkdir(parents=True)
    (folder / "S1.png").rename(elsewhere / "S1.png")
    assert _statuses(embed(run, FakeEncoder()))["S1"][0] == "failed"
    assert _statuses(embed(run, FakeEncoder(), slides_folder=tmp_path / "archive"))["S1"][0] == "done"


@pytest.mark.parametrize(
    ("fill", "dtype", "words"),
    [(float("nan"), "float32", "NaN or infinity"), (1e6, "float16", "--store-dtype float32")],
)
def test_features_that_are_no_numbers_fail_the_slide(
    run: RunFolder, folder: Path, fill: float, dtype: Any, words: str
) -> None:
    add_slide(run, folder, "S1")
    outcome = embed(run, FakeEncoder(fill=fill), spec=EmbedSpec(store_dtype=dtype))
    status, reason = _statuses(outcome)["S1"]
    assert status == "failed"
    assert words in reason


def test_a_run_without_tiles_is_refused(run: RunFolder) -> None:
    with pytest.raises(ConfigError, match="wsi-dino tile"):
        embed(run, FakeEncoder())


def test_imported_features_are_never_overwritten(run: RunFolder, folder: Path) -> None:
    from dataclasses import replace

    from wsi_dino.feature_file import write_feature_file

    add_slide(run, folder, "S1")
    embed(run, FakeEncoder())
    path = run.features("fake") / "S1.h5"
    file = read_feature_file(path)
    write_feature_file(path, replace(file, provenance={**file.provenance, "imported": True}))
    with pytest.raises(ConfigError, match="imported features"):
        embed(run, FakeEncoder())


def test_a_full_disk_stops_the_run_and_keeps_the_journal(
    run: RunFolder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for slide_id in ("S1", "S2"):
        add_slide(run, folder, slide_id)
    original = journal_module.EncodingJournal.append
    calls: list[int] = []

    def append(self: journal_module.EncodingJournal, batch: int, rows: np.ndarray) -> None:
        calls.append(batch)
        if len(calls) == 4:
            monkeypatch.setattr(os, "pwrite", _full)
        original(self, batch, rows)

    monkeypatch.setattr(journal_module.EncodingJournal, "append", append)
    with pytest.raises(StorageError, match="disk is full"):
        embed(run, FakeEncoder())
    monkeypatch.undo()
    encoder = FakeEncoder()
    outcome = embed(run, encoder)
    assert outcome.encoders[0].tiles_resumed == 12
    assert encoder.n_tiles == 30


def _full(*_: Any) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_encoder_out_of_memory_says_what_to_do(run: RunFolder, folder: Path) -> None:
    add_slide(run, folder, "S1")
    with pytest.raises(EncoderError, match="--batch-size"):
        embed(run, FakeEncoder(stop_at=1, error=RuntimeError("CUDA out of memory. Tried to allocate")))


def _work(run: Path, queue: Any) -> None:
    encoder = FakeEncoder()
    outcome = embed_slides(RunFolder(run), [encoder], EmbedSpec(store_dtype="float32"), workers=2)
    queue.put((encoder.n_tiles, [row["status"] for row in outcome.encoders[0].rows]))


def test_two_processes_share_a_run_without_doubling(run: RunFolder, folder: Path) -> None:
    for number in range(12):
        add_slide(run, folder, f"S{number:02d}")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_work, args=(run.path, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert sum(n_tiles for n_tiles, _ in results) == 12 * 21
    assert all(statuses == ["done"] * 12 for _, statuses in results)


class _Source:
    """A slide of any number of blank tiles; notes how far it was read."""

    tile_px = 64

    def __init__(self, n_tiles: int, block: int) -> None:
        self.n_tiles, self.block, self.n_read = n_tiles, block, 0

    def blocks(self) -> Any:
        for start in range(0, self.n_tiles, self.block):
            stop = min(start + self.block, self.n_tiles)
            yield start, stop, np.arange(start, stop)

    def read_place(self, place: int) -> np.ndarray:
        self.n_read += 1
        return np.full((64, 64, 3), place % 256, np.uint8)


def test_the_stream_reads_ahead_no_more_than_its_memory_and_two_slides() -> None:
    sources = [_Source(400, 10) for _ in range(4)]
    block_bytes = 10 * 64 * 64 * 3
    with TileStream(iter(sources), 2, memory_bytes=6 * block_bytes) as stream:
        n_blocks = 0
        for event in stream:
            if hasattr(event, "pixels"):
                n_blocks += 1
                assert sum(source.n_read for source in sources) <= (n_blocks + 6) * 10
                assert event.pixels[0, 0, 0, 0] == event.start % 256
                stream.release(event)
    assert n_blocks == 160


def test_leaving_the_stream_early_stops_its_threads() -> None:
    before = threading.active_count()
    with TileStream(iter([_Source(4000, 10)]), 2) as stream:
        next(iter(stream))
    assert threading.active_count() == before
