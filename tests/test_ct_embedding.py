"""Volumes through an encoder: what it sees, one at a time, resumed, shared, and in flat memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ct_fixtures import chest_hu, write_nifti

from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.errors import EncoderError, StorageError
from wsi_dino.feature_file import read_feature_file, read_provenance
from wsi_dino.radiology.ct_embedding import CtEmbedOutcome, embed_volumes
from wsi_dino.radiology.ct_features import CtFeatures, pooled_rows
from wsi_dino.radiology.ct_slices import SliceSpec, slice_images
from wsi_dino.radiology.datasets.volume_row import VolumeRow
from wsi_dino.run_folder import RunFolder
from wsi_dino.volumes.reading import open_volume
from wsi_dino.volumes.windows import WINDOWS, grey_values

_RECORD = EncoderSpec(
    name="toy", family="a", architecture="a", embed_dim=12, input_px=32, pooling="avg", poolings=("avg",), source="a",
    licence="MIT", interpolation="bilinear",
)  # fmt: skip


class ToyEncoder:
    """The mean of each quadrant and channel; counts what it was given."""

    spec, input_px, batch_size = _RECORD, 32, 4

    def __init__(self, pause_s: float = 0.0, salt: str = "") -> None:
        self.n_images, self.pause_s, self._salt = 0, pause_s, salt

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        assert pixels.dtype == np.uint8
        assert pixels.shape[1:] == (32, 32, 3)
        self.n_images += len(pixels)
        time.sleep(self.pause_s)
        quarters = pixels.reshape(len(pixels), 2, 16, 2, 16, 3).mean((2, 4), dtype=np.float64)
        return quarters.reshape(len(pixels), 12).astype(np.float32)

    def identity(self) -> dict[str, Any]:
        return {"encoder": "toy", "embed_dim": 12, "pooling": "avg", "input_px": 32, "weights_sha256": "0" + self._salt}


def _rows(folder: Path, n: int, n_slices: int = 5) -> list[VolumeRow]:
    random = np.random.default_rng(1)
    paths = [write_nifti(folder / f"v{i}.nii.gz", chest_hu(random, n_slices=n_slices)) for i in range(n)]
    return [VolumeRow(f"v{i}", path, f"p{i}", f"v{i}", (float(i % 2),)) for i, path in enumerate(paths)]


def _features(run: Path, encoder: ToyEncoder, **spec: Any) -> CtFeatures:
    return CtFeatures(RunFolder(run), "toy-set", encoder.spec, encoder.identity(), SliceSpec(**spec))


def _embed(run: Path, rows: list[VolumeRow], encoder: ToyEncoder | None = None, **options: Any) -> CtEmbedOutcome:
    encoder = encoder or ToyEncoder()
    return embed_volumes(_features(run, encoder), encoder, rows, **options)


# slices ------------------------------------------------------------------------------------------
def test_every_slice_is_seen_once_through_the_window(tmp_path: Path) -> None:
    hu = chest_hu(np.random.default_rng(0), n_slices=7)
    volume = open_volume(write_nifti(tmp_path / "v.nii.gz", hu, axes="RAS"))
    blocks = list(slice_images(volume, SliceSpec(window="lung"), 32, "bilinear", 3))
    assert [len(block) for block in blocks] == [3, 3, 1]
    images = np.concatenate(blocks)
    assert (images == grey_values(hu, WINDOWS["lung"])[..., None]).all()


def test_three_windows_are_three_channels(tmp_path: Path) -> None:
    hu = chest_hu(np.random.default_rng(0))
    volume = open_volume(write_nifti(tmp_path / "v.nii.gz", hu))
    images = next(iter(slice_images(volume, SliceSpec(window="three"), 32, "bilinear", 6)))
    for channel, name in enumerate(("lung", "mediastinum", "wide")):
        assert (images[..., channel] == grey_values(hu, WINDOWS[name])).all()


@pytest.mark.parametrize(("aspect", "black_rows"), [("pad", 16), ("squash", 0), ("crop", 0)])
def test_a_slice_that_is_not_square(aspect: str, black_rows: int, tmp_path: Path) -> None:
    hu = np.full((2, 16, 32), 1000, np.int16)
    hu[:, :, :2] = -1000
    volume = open_volume(write_nifti(tmp_path / "v.nii.gz", hu))
    image = next(iter(slice_images(volume, SliceSpec(aspect=aspect), 32, "bilinear", 2)))[0]
    assert image.shape == (32, 32, 3)
    assert int((image.max((1, 2)) == 0).sum()) == black_rows


def test_resized_slices_are_those_of_the_encoders_own_resize(tmp_path: Path) -> None:
    import torch

    from wsi_dino.encoders.encoder import resized

    hu = chest_hu(np.random.default_rng(0), side=80)
    volume = open_volume(write_nifti(tmp_path / "v.nii.gz", hu))
    images = np.concatenate(list(slice_images(volume, SliceSpec(), 32, "bicubic", 4)))
    rgb = torch.from_numpy(np.repeat(grey_values(hu, WINDOWS["wide"])[:, None], 3, axis=1))
    assert (images == resized(rgb, 32, "bicubic").byte().permute(0, 2, 3, 1).numpy()).all()


# features ----------------------------------------------------------------------------------------
def test_pooled_features_are_mean_maximum_and_deviation_of_all_slices(tmp_path: Path) -> None:
    rows, encoder = _rows(tmp_path, 3), ToyEncoder()
    outcome = _embed(tmp_path / "run", rows, encoder, with_slices=True)
    assert (len(outcome.rows), outcome.n_slices, encoder.n_images) == (3, 15, 15)
    features = _features(tmp_path / "run", encoder)
    for row in rows:
        images = np.concatenate(list(slice_images(open_volume(row.path), SliceSpec(), 32, "bilinear", 9)))
        vectors = ToyEncoder().embed(images)
        np.testing.assert_array_equal(features.read_pooled([row.volume_id], "mean+std")[0],
                                      pooled_rows(vectors)[[0, 2]].ravel())  # fmt: skip
        np.testing.assert_array_equal(features.read_pooled([row.volume_id], "max")[0], vectors.max(0))
        np.testing.assert_allclose(features.read_slices(row.volume_id), vectors, atol=0.1)
    provenance = read_provenance(features.pooled_path("v0"))
    assert provenance["volume"]["spacing_mm"] == [2.5, 0.8, 0.8]
    assert provenance["tiles"] == "axial CT slices, window wide, pad"


def test_finished_volumes_are_kept_and_everything_else_is_made_anew(tmp_path: Path) -> None:
    rows, run = _rows(tmp_path, 4), tmp_path / "run"
    _embed(run, rows)
    again = ToyEncoder()
    assert _embed(run, rows, again).n_kept == 4
    assert again.n_images == 0
    files = sorted(_features(run, again).folder.glob("*.h5"))
    files[0].unlink()  # gone
    files[1].write_bytes(b"broken")
    write_nifti(rows[2].path, chest_hu(np.random.default_rng(9)))  # another volume under the same name
    assert _embed(run, rows, again).n_kept == 1
    assert _embed(run, rows, again).n_kept == 4
    assert _embed(run, rows, ToyEncoder(salt="x")).n_kept == 0  # other weights
    lung = embed_volumes(_features(run, again, window="lung"), again, rows)
    assert lung.n_kept == 0


def test_slices_are_added_to_pooled_features_when_attention_asks_for_them(tmp_path: Path) -> None:
    rows, run = _rows(tmp_path, 2), tmp_path / "run"
    _embed(run, rows)
    encoder = ToyEncoder()
    before = _features(run, encoder).pooled_path("v0").read_bytes()
    assert _embed(run, rows, encoder, with_slices=True).n_kept == 0
    assert _embed(run, rows, encoder, with_slices=True).n_kept == 2
    assert _features(run, encoder).pooled_path("v0").read_bytes() == before
    assert read_feature_file(_features(run, encoder).slices_path("v1")).coords[:, 1].tolist() == [0, 1, 2, 3, 4]


def test_a_bad_volume_is_a_row_and_no_trouble_for_the_others(tmp_path: Path) -> None:
    rows, run = _rows(tmp_path, 6), tmp_path / "run"
    rows[1].path.write_bytes(rows[1].path.read_bytes()[:900])
    rows[3].path.unlink()
    rows[4] = VolumeRow("v4", rows[4].path, "p4", "v4", (0.0,), trouble="its row in the metadata table makes no sense")
    outcome = _embed(run, rows, readers=2)
    reasons = {row["volume_id"]: row["reason"] for row in outcome.failed}
    assert set(reasons) == {"v1", "v3", "v4"}
    assert "truncated" in reasons["v1"]
    assert "no such file" in reasons["v3"]
    assert "metadata table" in reasons["v4"]
    assert [row["status"] for row in outcome.rows].count("done") == 3
    assert _embed(run, rows).n_kept == 3  # the others are tried again


def test_an_encoder_that_gives_nan_is_caught(tmp_path: Path) -> None:
    class Broken(ToyEncoder):
        def embed(self, pixels: np.ndarray) -> np.ndarray:
            return np.full((len(pixels), 12), np.nan, np.float32)

    assert "NaN" in _embed(tmp_path / "run", _rows(tmp_path, 1), Broken()).failed[0]["reason"]


def test_a_full_disk_ends_the_work_and_gives_the_volume_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, run = _rows(tmp_path, 3), tmp_path / "run"

    def full(*_: Any, **__: Any) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(CtFeatures, "write", full)
    with pytest.raises(StorageError):
        _embed(run, rows)
    monkeypatch.undo()
    assert _embed(run, rows).n_slices == 15


def test_two_workers_on_one_run_encode_each_volume_once(tmp_path: Path) -> None:
    rows, run = _rows(tmp_path, 10), tmp_path / "run"
    encoders = [ToyEncoder(0.01), ToyEncoder(0.01)]
    threads = [threading.Thread(target=_embed, args=(run, rows, encoder)) for encoder in encoders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert sum(encoder.n_images for encoder in encoders) == 50
    assert all(encoder.n_images for encoder in encoders)


_CHILD = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_ct_embedding import ToyEncoder, _embed, _rows
folder = Path({folder!r})
rows = _rows(folder, 12)
print("ready", flush=True)
_embed(folder / "run", rows, ToyEncoder(0.1))
"""


def test_killed_in_the_middle_it_ends_the_same(tmp_path: Path) -> None:
    code = _CHILD.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    folder = _features(tmp_path / "run", ToyEncoder()).folder
    for _ in range(400):
        if len(list(folder.glob("*.h5"))) >= 3:
            break
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    rows, encoder = _rows(tmp_path / "again", 12), ToyEncoder()
    rows = [
        VolumeRow(r.volume_id, tmp_path / f"{r.volume_id}.nii.gz", r.patient_id, r.scan_id, r.targets) for r in rows
    ]
    outcome = _embed(tmp_path / "run", rows, encoder)
    assert 2 <= outcome.n_kept < 12  # the third may have been killed between its file and its row
    _embed(tmp_path / "whole", rows)
    whole = _features(tmp_path / "whole", encoder).folder
    assert {path.name: path.read_bytes() for path in folder.glob("*.h5")} == {
        path.name: path.read_bytes() for path in whole.glob("*.h5")
    }


def test_at_most_as_many_volumes_as_readers_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    from wsi_dino.radiology import ct_embedding

    alive: list[weakref.ref[Any]] = []
    most = 0

    def opened(*arguments: Any, **options: Any) -> Any:
        nonlocal most
        volume = open_volume(*arguments, **options)
        alive.append(weakref.ref(volume))
        most = max(most, sum(ref() is not None for ref in alive))
        return volume

    monkeypatch.setattr(ct_embedding, "open_volume", opened)
    _embed(tmp_path / "run", _rows(tmp_path, 20, n_slices=30), readers=2)
    assert len(alive) == 20
    assert most <= 3  # one a reader, and one that a reader has just let go of


def test_a_device_without_memory_ends_the_work_and_says_what_to_do(tmp_path: Path) -> None:
    class Full(ToyEncoder):
        def embed(self, pixels: np.ndarray) -> np.ndarray:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(EncoderError, match="smaller --size"):
        _embed(tmp_path / "run", _rows(tmp_path, 2), Full())
    assert _embed(tmp_path / "run", _rows(tmp_path, 2)).n_slices == 10


def test_ctrl_c_gives_everything_back(tmp_path: Path) -> None:
    class Interrupted(ToyEncoder):
        def embed(self, pixels: np.ndarray) -> np.ndarray:
            raise KeyboardInterrupt

    rows = _rows(tmp_path, 5)
    with pytest.raises(KeyboardInterrupt):
        _embed(tmp_path / "run", rows, Interrupted())
    assert _embed(tmp_path / "run", rows).n_slices == 25
