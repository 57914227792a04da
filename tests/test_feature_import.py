"""Features of CLAM and TRIDENT come in checked; ours are readable the way those tools read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from wsi_dino.errors import ConfigError, FeatureFileError
from wsi_dino.feature_file import FeatureFile, read_feature_file, write_feature_file
from wsi_dino.pathology.feature_import import find_sources, import_features, read_pt
from wsi_dino.run_folder import RunFolder

DIM = 12


def _features(slide_id: str, n: int = 9, dim: int = DIM) -> np.ndarray:
    return np.random.default_rng(sum(slide_id.encode())).normal(size=(n, dim)).astype(np.float32)


def _coords(n: int = 9) -> np.ndarray:
    return np.stack([np.arange(n) * 512, np.arange(n) % 3 * 512], axis=1)


def write_clam(folder: Path, slide_id: str, features: np.ndarray, *, kind: str = "h5") -> None:
    """What CLAM leaves: patches/ID.h5 (chunks of one row) and h5_files/ID.h5 or pt_files/ID.pt."""
    coords = _coords(len(features))
    (folder / "patches").mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "patches" / f"{slide_id}.h5", "w") as h5:
        dataset = h5.create_dataset("coords", data=coords, chunks=(1, 2), maxshape=(None, 2))
        dataset.attrs.update(
            patch_size=256, patch_level=1, downsample=(2.0, 2.0), level_dim=(5000, 4000), name=slide_id, save_path="x"
        )
    (folder / f"{kind}_files").mkdir(exist_ok=True)
    if kind == "pt":
        torch.save(torch.from_numpy(features), folder / "pt_files" / f"{slide_id}.pt")
        return
    with h5py.File(folder / "h5_files" / f"{slide_id}.h5", "w") as h5:
        dim = features.shape[1]
        h5.create_dataset("features", data=features, chunks=(32, dim), maxshape=(None, dim))
        h5.create_dataset("coords", data=coords.astype(np.int32), chunks=(32, 2), maxshape=(None, 2))


def write_trident(folder: Path, slide_id: str, features: np.ndarray) -> None:
    """What TRIDENT leaves: features_ENCODER/ID.h5 with the tile attributes on its coordinates."""
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / f"{slide_id}.h5", "w") as h5:
        dataset = h5.create_dataset("features", data=features, chunks=(1, features.shape[1]) if len(features) else None)
        dataset.attrs.update(name=slide_id, savetodir="x", encoder="uni_v1")
        coords = h5.create_dataset("coords", data=_coords(len(features)))
        coords.attrs.update(
            patch_size=256, patch_size_level0=512, level0_magnification=40, target_magnification=20, overlap=0,
            name=slide_id, savetodir="x", level0_width=10000, level0_height=8000,
        )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.mark.parametrize("layout", ["clam-h5", "clam-h5 with coords", "clam-pt", "trident"])
def test_features_and_coordinates_come_over_unchanged(run: RunFolder, tmp_path: Path, layout: str) -> None:
    source = tmp_path / "features"
    for slide_id in ("A.1", "B"):
        if layout == "trident":
            write_trident(source, slide_id, _features(slide_id))
        else:
            write_clam(source, slide_id, _features(slide_id), kind="pt" if layout == "clam-pt" else "h5")
    with_coords = source / "patches" if layout in ("clam-pt", "clam-h5 with coords") else None
    rows = import_features(run, find_sources(source, with_coords), "their-uni")
    assert [(row["slide_id"], row["status"], row["tiles"]) for row in rows] == [("A.1", "done", 9), ("B", "done", 9)]
    assert {row["layout"] for row in rows} == {layout.split(" ", maxsplit=1)[0]}
    for slide_id in ("A.1", "B"):
        file = read_feature_file(run.features("their-uni") / f"{slide_id}.h5", verify=True)
        assert (file.features == _features(slide_id)).all()
        assert (file.coords == _coords()).all()
        assert file.provenance["imported"] is True
        assert len(file.provenance["source"]["sha256"]) == 64
        if layout != "clam-h5":
            assert file.provenance["coords_attrs"]["patch_size_level0"] == 512
    assert (run.path / "embed.csv").read_text().count("their-uni") == 2


def test_importing_twice_keeps_the_files_and_a_changed_source_is_taken_anew(run: RunFolder, tmp_path: Path) -> None:
    write_trident(tmp_path / "f", "A", _features("A"))
    import_features(run, find_sources(tmp_path / "f"), "x")
    path = run.features("x") / "A.h5"
    before = path.stat().st_mtime_ns
    import_features(run, find_sources(tmp_path / "f"), "x")
    assert path.stat().st_mtime_ns == before
    write_trident(tmp_path / "f", "A", _features("other"))
    import_features(run, find_sources(tmp_path / "f"), "x")
    assert (read_feature_file(path).features == _features("other")).all()


def _break(path: Path, how: str) -> None:
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:1500])
        return
    path.unlink()
    features = _features("B", dim=DIM + 1 if how == "other length" else DIM)
    if how == "nan":
        features[4, 2] = np.nan
    write_trident(path.parent, path.stem, features[:0] if how == "empty" else features)
    if how == "rows":
        with h5py.File(path, "r+") as h5:
            del h5["coords"]
            h5["coords"] = _coords(5)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("truncated", "broken"), ("other length", "13 numbers"), ("nan", "row 4 has NaN"), ("empty", "no features"),
        ("rows", "9 features but 5 coordinates"),
    ],
)  # fmt: skip
def test_a_bad_file_is_a_row_and_the_others_come_in(run: RunFolder, tmp_path: Path, how: str, words: str) -> None:
    for slide_id in ("A", "B", "C"):
        write_trident(tmp_path / "f", slide_id, _features(slide_id))
    _break(tmp_path / "f" / "B.h5", how)
    rows = import_features(run, find_sources(tmp_path / "f"), "x")
    assert [row["status"] for row in rows] == ["done", "failed", "done"]
    assert words in rows[1]["reason"]
    assert not (run.features("x") / "B.h5").exists()


@pytest.mark.parametrize("how", ["no coordinates", "other count", "truncated", "pickle", "dict of words"])
def test_a_bad_pt_file_is_a_row(run: RunFolder, tmp_path: Path, how: str) -> None:
    for slide_id in ("A", "B"):
        write_clam(tmp_path, slide_id, _features(slide_id), kind="pt")
    path = tmp_path / "pt_files" / "B.pt"
    if how == "no coordinates":
        (tmp_path / "patches" / "B.h5").unlink()
    elif how == "other count":
        torch.save(torch.zeros(3, DIM), path)
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:300])
    elif how == "pickle":
        torch.save(Path("code that would run"), path)
    else:
        torch.save({"words": "none"}, path)
    rows = import_features(run, find_sources(tmp_path, tmp_path / "patches"), "x")
    assert [row["status"] for row in rows] == ["done", "failed"]
    assert "B" in rows[1]["reason"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_every_float_type_are_read(tmp_path: Path, dtype: Any) -> None:
    values = torch.randn(3, 4).to(dtype)
    torch.save({"features": values[None]}, tmp_path / "a.pt")
    read = read_pt(tmp_path / "a.pt")
    assert read.dtype == (np.float16 if dtype == torch.float16 else np.float32)
    assert torch.equal(torch.from_numpy(read).float(), values.float())
    with pytest.raises(FeatureFileError, match="not a readable tensor"):
        read_pt(tmp_path / "none.pt")


def test_wrong_use_is_refused_before_any_work(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no \.h5 or \.pt file"):
        find_sources(tmp_path / "empty")
    write_clam(tmp_path / "pt", "A", _features("A"), kind="pt")
    with pytest.raises(ConfigError, match="--coords"):
        find_sources(tmp_path / "pt")
    with pytest.raises(ConfigError, match="not a folder"):
        find_sources(tmp_path / "pt", tmp_path / "nowhere")
    write_trident(tmp_path / "f", "A", _features("A", dim=1024))
    with pytest.raises(ConfigError, match=r"2048 numbers, the files' 1024.*resnet50-clam"):
        import_features(run, find_sources(tmp_path / "f"), "resnet50")


def test_features_of_embed_are_not_mixed_with_imported_ones(run: RunFolder, tmp_path: Path) -> None:
    write_feature_file(run.features("x") / "Z.h5", FeatureFile(_features("Z"), _coords(), {"encoder": "x"}))
    write_trident(tmp_path / "f", "A", _features("A"))
    with pytest.raises(ConfigError, match="made by `wsi-dino embed`"):
        import_features(run, find_sources(tmp_path / "f"), "x")
