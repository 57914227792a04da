"""Features that CLAM or TRIDENT made, taken into a run with what is known of them."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wsi_dino.encoders.registry import records
from wsi_dino.errors import ConfigError, FeatureFileError
from wsi_dino.feature_file import FeatureFile, read_feature_file, read_provenance, write_feature_file
from wsi_dino.item_queue import Item, ItemQueue
from wsi_dino.pathology.embed_spec import feature_path
from wsi_dino.pathology.embed_table import embed_stage, write_embed_table
from wsi_dino.provenance import environment, file_sha256, fingerprint
from wsi_dino.run_folder import RunFolder

_FORMAT = "import/1"
_COORDS_SUFFIX = "_patches"  # TRIDENT's, beside CLAM's plain SLIDE.h5
Report = Callable[..., None]


@dataclass(frozen=True)
class ImportSource:
    """One file to import.

    Attributes:
        slide_id: from the file name.
        path: the ``.h5`` or ``.pt`` file.
        coords: the tool's tile file of the slide, or None.
    """

    slide_id: str
    path: Path
    coords: Path | None

    def sha256(self) -> str:
        """Return the SHA-256 of both files together."""
        return fingerprint(*(file_sha256(path) for path in (self.path, self.coords) if path is not None))


def find_sources(folder: Path, coords_folder: Path | None = None) -> list[ImportSource]:
    """Return the feature files below `folder`, sorted by slide_id.

    `folder` is CLAM's (with ``h5_files``, preferred, or ``pt_files`` in it), TRIDENT's
    ``features_ENCODER``, any folder of ``.h5`` or ``.pt`` files, or one such file.

    Raises:
        ConfigError: there are none, or they are ``.pt`` files and no `coords_folder` is given.
    """
    if coords_folder is not None and not coords_folder.is_dir():
        raise ConfigError(f"Importing features: --coords {coords_folder} is not a folder.")
    paths = _feature_files(folder)
    if not paths:
        raise ConfigError(
            f"Importing features: {folder} holds no .h5 or .pt file. Give CLAM's feature folder (with h5_files or "
            "pt_files in it) or TRIDENT's features_ENCODER folder."
        )
    if paths[0].suffix == ".pt" and coords_folder is None:
        raise ConfigError(
            f"Importing features: {paths[0]} holds no coordinates. Name the folder of CLAM's patches/SLIDE.h5 (or "
            "TRIDENT's patches/SLIDE_patches.h5) with --coords, or import the .h5 files."
        )
    return [ImportSource(path.stem, path, _coords_file(coords_folder, path.stem)) for path in paths]


def _feature_files(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder] if folder.suffix in (".h5", ".pt") else []
    for below, suffix in ((folder / "h5_files", "h5"), (folder, "h5"), (folder / "pt_files", "pt"), (folder, "pt")):
        found = sorted(below.glob(f"[!.]*.{suffix}"))
        if found:
            return found
    return []


def _coords_file(folder: Path | None, slide_id: str) -> Path | None:
    if folder is None:
        return None
    candidates = (folder / f"{slide_id}.h5", folder / f"{slide_id}{_COORDS_SUFFIX}.h5")
    return next((path for path in candidates if path.is_file()), candidates[0])


def import_features(
    run: RunFolder, sources: Sequence[ImportSource], encoder: str, *, progress: Report | None = None
) -> list[dict[str, Any]]:
    """Write ``features/ENCODER/SLIDE.h5`` for every source, and ``embed.csv``.

    Args:
        run: the run folder; it need not be tiled.
        sources: from `find_sources`.
        encoder: the name under which the features are filed. Where the registry knows it, the length of
            the vectors must be the one of its record.
        progress: told ``progress(1, text=slide_id)`` of each file.

    Returns:
        One row a file: ``slide_id, status, reason, tiles, embed_dim, layout``.

    Raises:
        ConfigError: the run holds features that `embed` made under that name, or no file has a length that
            fits the encoder.
        StorageError: the disk is full or the run folder cannot be written.
    """
    _refuse_mixture(run, encoder)
    report = progress or (lambda *_, **__: None)
    present = [source for source in sources if source.coords is None or source.coords.is_file()]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        hashes = dict(zip((s.slide_id for s in present), pool.map(ImportSource.sha256, present), strict=True))
    embed_dim = _embed_dim(encoder, present)
    items = [Item(s.slide_id, fingerprint(_FORMAT, encoder, embed_dim, hashes.get(s.slide_id))) for s in sources]
    by_id = {source.slide_id: source for source in sources}
    queue = ItemQueue(run, embed_stage(encoder), items, lambda item, row: _is_intact(run, encoder, item))
    while (claimed := queue.take()) is not None:
        try:
            source = by_id[claimed.item.key]
            row = _import_one(run, encoder, embed_dim, source, claimed.item.fingerprint)
        except BaseException:
            queue.give_back(claimed)
            raise
        queue.finish(claimed, row)
        report(1, text=source.slide_id)
    report(queue.n_reused)
    write_embed_table(run)
    return queue.rows()


def _refuse_mixture(run: RunFolder, encoder: str) -> None:
    for path in sorted(run.features(encoder).glob("*.h5")):
        try:
            imported = read_provenance(path).get("imported")
        except FeatureFileError:
            continue
        if not imported:
            raise ConfigError(
                f"Importing features of {encoder}: {path} was made by `wsi-dino embed`, and the two cannot be mixed. "
                "Choose another --encoder name or another --run."
            )


def _is_intact(run: RunFolder, encoder: str, item: Item) -> bool:
    try:
        return read_provenance(feature_path(run, encoder, item.key)).get("fingerprint") == item.fingerprint
    except FeatureFileError:
        return False


def _embed_dim(encoder: str, sources: Sequence[ImportSource]) -> int:
    """Return the length that all vectors must have: that of the first file that can be read."""
    for source in sources:
        try:
            found = int(_read(source).features.shape[1])
        except FeatureFileError:
            continue
        _check_record(encoder, found)
        return found
    return 0


def _check_record(encoder: str, embed_dim: int) -> None:
    known = {r.name: {r.dim_of(pooling) for pooling in r.poolings} for r in records() if r.dimensions == 2}
    if encoder not in known or embed_dim in known[encoder]:
        return
    fitting = [name for name, dims in known.items() if embed_dim in dims]
    hint = f" Encoders of {embed_dim}: {', '.join(fitting)}." if fitting else ""
    lengths = " or ".join(str(dim) for dim in sorted(known[encoder]))
    raise ConfigError(
        f"Importing features of {encoder}: its vectors have {lengths} numbers, the files' {embed_dim}.{hint}"
    )


def _import_one(
    run: RunFolder, encoder: str, embed_dim: int, source: ImportSource, item_fingerprint: str
) -> dict[str, Any]:
    row: dict[str, Any] = {"encoder": encoder, "slide_id": source.slide_id, "status": "failed", "tiles": 0}
    try:
        file = _read(source)
        _check(file, embed_dim, source)
    except FeatureFileError as error:
        feature_path(run, encoder, source.slide_id).unlink(missing_ok=True)
        return row | {"reason": str(error)}
    layout = layout_of(source, file.provenance)
    provenance = {
        "encoder": encoder,
        "embed_dim": embed_dim,
        "pooling": "imported",
        "input_px": None,
        "weights_sha256": None,
        "stain_norm": None,
        "tiles": None,
        "imported": True,
        "source": {
            "layout": layout,
            "file": source.path.name,
            "sha256": file_sha256(source.path),
            "encoder": file.provenance.get("encoder"),
        },
        "versions": environment(),
        "fingerprint": item_fingerprint,
        "coords_attrs": file.provenance["coords_attrs"],
    }
    write_feature_file(feature_path(run, encoder, source.slide_id), FeatureFile(file.features, file.coords, provenance))
    done = {"status": "done", "reason": "", "tiles": len(file.features), "embed_dim": embed_dim}
    return row | done | {"backend": f"imported {layout}", "layout": layout}


def layout_of(source: ImportSource, provenance: Mapping[str, Any]) -> str:
    """Return whose file it is: ``"clam-pt"``, ``"trident"``, ``"wsi_dino"`` or ``"clam-h5"``."""
    if source.path.suffix == ".pt":
        return "clam-pt"
    if "format" in provenance or "versions" in provenance:
        return "wsi_dino"
    return "trident" if provenance.get("encoder") not in (None, "unknown") else "clam-h5"


def _read(source: ImportSource) -> FeatureFile:
    """Read one source; attributes of the tool's tile file are added to those of the coordinates.

    Raises:
        FeatureFileError: a file is missing, broken or of another layout.
    """
    if source.path.suffix == ".h5":
        file = read_feature_file(source.path)
        if source.coords is None:
            return _with_footprint(file, file.provenance["coords_attrs"])
        coords, attrs = _read_coords(source.coords)
        if not np.array_equal(coords, file.coords):
            raise FeatureFileError(f"Importing {source.path}: its coordinates are not those of {source.coords}.")
        return _with_footprint(file, attrs | file.provenance["coords_attrs"])
    assert source.coords is not None  # find_sources refuses .pt files without
    coords, attrs = _read_coords(source.coords)
    features = read_pt(source.path)
    if len(features) != len(coords):
        raise FeatureFileError(
            f"Importing {source.path}: it has {len(features)} rows, but {source.coords} has {len(coords)} coordinates."
        )
    return _with_footprint(FeatureFile(features, coords, {}), attrs)


def _with_footprint(file: FeatureFile, attrs: dict[str, Any]) -> FeatureFile:
    """Add the tile's footprint at level 0, which CLAM leaves to be worked out."""
    attrs = dict(attrs)
    if "patch_size_level0" not in attrs and {"patch_size", "downsample"} <= attrs.keys():
        attrs["patch_size_level0"] = round(float(attrs["patch_size"]) * float(np.ravel(attrs["downsample"])[0]))
    return FeatureFile(file.features, file.coords, {**file.provenance, "coords_attrs": attrs})


def _read_coords(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    try:
        with h5py.File(path, "r") as h5:
            dataset = h5["coords"]
            attrs = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in dataset.attrs.items()}
            return np.asarray(dataset[()], np.int64).reshape(-1, 2), attrs
    except FileNotFoundError as error:
        raise FeatureFileError(f"Reading coordinates {path}: there is no such file.") from error
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise FeatureFileError(f"Reading coordinates {path}: broken or without `coords` ({error}).") from error


def read_pt(path: Path) -> np.ndarray:
    """Return the one tensor of a ``.pt`` file as float16 or float32 ``(n, embed_dim)``; nothing in it is executed.

    Raises:
        FeatureFileError: the file is missing, truncated, or holds something else.
    """
    import torch

    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FeatureFileError(f"Importing {path}: not a readable tensor ({reason}).") from error
    value = value.get("features") if isinstance(value, dict) else value
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        raise FeatureFileError(f"Importing {path}: expected a tensor of floating-point features.")
    if value.ndim == 3 and value.shape[0] == 1:
        value = value[0]
    if value.ndim != 2:
        raise FeatureFileError(f"Importing {path}: expected (n, embed_dim), got {tuple(value.shape)}.")
    return (value if value.dtype == torch.float16 else value.float()).numpy()


def _check(file: FeatureFile, embed_dim: int, source: ImportSource) -> None:
    if len(file.features) == 0:
        raise FeatureFileError(f"Importing {source.path}: it holds no features.")
    if file.features.shape[1] != embed_dim:
        raise FeatureFileError(
            f"Importing {source.path}: its vectors have {file.features.shape[1]} numbers, those of the other files "
            f"{embed_dim}. Import features of one encoder at a time."
        )
    bad = np.flatnonzero(~np.isfinite(file.features).all(axis=1))
    if len(bad):
        raise FeatureFileError(f"Importing {source.path}: row {bad[0]} has NaN or infinity ({len(bad)} such rows).")
