"""Feature files: whole or refused, equal bytes for equal content, readable the way CLAM and TRIDENT read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_dino.errors import FeatureFileError
from wsi_dino.feature_file import (
    IDENTITY_KEYS,
    FeatureFile,
    read_feature_file,
    read_provenance,
    require_one_identity,
    write_feature_file,
)
from wsi_dino.pathology.tile_grid import TileGrid

IDENTITY: dict[str, Any] = {
    "encoder": "e", "embed_dim": 6, "pooling": "mean", "input_px": 224, "weights_sha256": "w", "plugin_sha256": None,
    "adapter": None, "stain_norm": None, "tiles": "224 px at 1.0 um/px",
}  # fmt: skip


def _grid(n: int) -> TileGrid:
    return TileGrid(
        slide_id="S", slide_fingerprint="f", xy=np.arange(2 * n).reshape(n, 2) * 448, tissue_fraction=np.ones(n),
        tile_px=224, tile_wh_level0=(897, 897), stride_xy_level0=(897, 897), level=1, read_wh=(448, 448),
        level_downsample_xy=(2.0022, 2.0022), slide_wh_level0=(40000, 30000), mpp_xy=(0.25, 0.25), mpp_source="m",
        mpp_asked=1.0, mpp_found_xy=(1.0, 1.0),
    )  # fmt: skip


def _file(n: int = 5, dtype: str = "float32") -> FeatureFile:
    features = np.random.default_rng(n).normal(size=(n, 6)).astype(dtype)
    grid = _grid(n)
    return FeatureFile(features, grid.xy, IDENTITY | {"coords_attrs": grid.coords_attrs, "slide": {"id": "S"}})


@given(n=st.sampled_from([0, 1, 2, 1023, 1024, 1025, 2500]), dtype=st.sampled_from(["float16", "float32"]))
@settings(max_examples=20, deadline=None)
def test_what_is_written_is_read_and_equal_content_gives_equal_bytes(
    tmp_path_factory: pytest.TempPathFactory, n: int, dtype: str
) -> None:
    folder = tmp_path_factory.mktemp("f")
    file = _file(n, dtype)
    for place in ("a", "b"):
        write_feature_file(folder / place / "S.h5", file)
    assert (folder / "a" / "S.h5").read_bytes() == (folder / "b" / "S.h5").read_bytes()
    read = read_feature_file(folder / "a" / "S.h5", verify=True)
    assert (read.features == file.features).all()
    assert read.features.dtype == dtype
    assert (read.coords == file.coords).all()
    assert read.identity == IDENTITY
    assert read.provenance["slide"] == {"id": "S"}
    assert read_provenance(folder / "a" / "S.h5") | {"n": n} == read.provenance | {"n": n, "embed_dim": 6}


class _OnDisk:
    """Gives its rows piece by piece and never as a whole."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows, self.shape, self.dtype, self.ndim = rows, rows.shape, rows.dtype, 2

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice) -> np.ndarray:
        assert rows.stop - rows.start <= 1024
        return self._rows[rows]


def test_rows_that_lie_elsewhere_are_copied_in_pieces_to_the_same_bytes(tmp_path: Path) -> None:
    file = _file(2500)
    pieces: Any = _OnDisk(file.features)
    for place, features in (("a", file.features), ("b", pieces)):
        write_feature_file(tmp_path / place / "S.h5", FeatureFile(features, file.coords, file.provenance))
    assert (tmp_path / "a" / "S.h5").read_bytes() == (tmp_path / "b" / "S.h5").read_bytes()


@given(share=st.floats(0.05, 0.95))
@settings(max_examples=25, deadline=None)
def test_a_truncated_file_is_refused(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    path = tmp_path_factory.mktemp("f") / "S.h5"
    write_feature_file(path, _file(300))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(FeatureFileError, match=r"S\.h5"):
        read_feature_file(path)


def test_a_flipped_byte_of_the_features_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "S.h5"
    file = _file(300)
    write_feature_file(path, file)
    content = bytearray(path.read_bytes())
    content[content.index(file.features[100].tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(FeatureFileError, match=r"S\.h5"):
        read_feature_file(path)


def test_changed_features_do_not_match_their_checksum(tmp_path: Path) -> None:
    path = tmp_path / "S.h5"
    write_feature_file(path, _file())
    with h5py.File(path, "r+") as h5:
        h5["features"][2, 2] = 7
    read_feature_file(path)
    with pytest.raises(FeatureFileError, match="checksum"):
        read_feature_file(path, verify=True)


@pytest.mark.parametrize("content", [b"", b"not hdf5", None])
def test_what_is_no_feature_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "S.h5"
    if content is not None:
        path.write_bytes(content)
    for read in (read_feature_file, read_provenance):
        with pytest.raises(FeatureFileError, match=r"S\.h5"):
            read(path)


def test_shapes_and_types_that_do_not_fit_cannot_be_constructed() -> None:
    for features, coords in (
        (np.zeros((3, 4), np.float64), np.zeros((3, 2))),
        (np.zeros((3, 4), np.float32), np.zeros((2, 2))),
        (np.zeros(3, np.float32), np.zeros((3, 2))),
    ):
        with pytest.raises(FeatureFileError):
            FeatureFile(features, coords)


@pytest.mark.parametrize("key", IDENTITY_KEYS)
def test_files_of_different_choices_cannot_be_mixed(key: str) -> None:
    other = IDENTITY | {key: "another"}
    assert require_one_identity({"a": IDENTITY, "b": dict(IDENTITY)}) == IDENTITY
    with pytest.raises(FeatureFileError, match=f"{key}.*cannot be mixed"):
        require_one_identity({"a.h5": IDENTITY, "b.h5": other})


def test_clams_reader_finds_what_it_looks_for(tmp_path: Path) -> None:
    """Its dataset takes whole `features` and `coords`; its heatmaps take the tile's size and level from `coords`."""
    file = _file(40)
    write_feature_file(tmp_path / "S.h5", file)
    with h5py.File(tmp_path / "S.h5", "r") as h5:
        features, coords = h5["features"][:], h5["coords"][:]
        attrs = h5["coords"].attrs
        assert (int(attrs["patch_level"]), int(attrs["patch_size"])) == (1, 448)
        assert tuple(attrs["downsample"]) == (2.0022, 2.0022)
        assert list(attrs["level_dim"]) == list(attrs["downsampled_level_dim"]) == [19978, 14984]
        assert attrs["name"] == "S"
        assert "save_path" in attrs
    assert features.dtype == np.float32  # what its float32 model takes as it is
    assert features.shape == (40, 6)
    assert (coords == file.coords).all()


def test_tridents_reader_finds_what_it_looks_for(tmp_path: Path) -> None:
    """It takes the whole datasets, the encoder's name from `features`, and the tile's footprint from `coords`."""
    write_feature_file(tmp_path / "S.h5", _file(40))
    with h5py.File(tmp_path / "S.h5", "r") as h5:
        assert h5["features"].attrs["encoder"] == "e"
        assert h5["features"].attrs["name"] == "S"
        attrs = dict(h5["coords"].attrs)
    expected = {
        "patch_size": 448, "patch_size_level0": 897, "level0_magnification": 40.0, "overlap": 0,
        "level0_width": 40000, "level0_height": 30000, "name": "S",
    }  # fmt: skip
    assert {key: attrs[key] for key in expected} == expected
    assert attrs["target_magnification"] == pytest.approx(40 / 2.0022)
    assert "savetodir" in attrs
