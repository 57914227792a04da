"""The file that carries features from pixels to learning; the only place that knows its HDF5 layout."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wsi_dino.errors import FeatureFileError
from wsi_dino.provenance import write_hdf5_atomically

_FORMAT = "wsi_dino.features/1"
_CHUNK_ROWS = 1024
# Keys of the provenance that must agree between the files of one bag collection.
# "tiles" is what a tile shows, e.g. "224 px at 0.5 um/px": a network sees other things at another resolution.
IDENTITY_KEYS = (
    "encoder", "embed_dim", "pooling", "input_px", "weights_sha256", "adapter", "plugin_sha256", "stain_norm", "tiles",
)  # fmt: skip


@dataclass(frozen=True)
class FeatureFile:
    """Features of one slide, image or volume, with the place of each and where they came from.

    Attributes:
        features: float16 or float32 ``(n, embed_dim)``.
        coords: int64 ``(n, 2)``, top-left x, y of each tile in level-0 px; for volumes slice indices.
        provenance: JSON-able; `IDENTITY_KEYS` at its top level, then anything that describes the
            slide (``slide``), the tiling (``tiling``), the encoder record and the versions.
    """

    features: np.ndarray
    coords: np.ndarray
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.coords.shape != (len(self.features), 2):
            shapes = f"features {self.features.shape}, coords {self.coords.shape}"
            raise FeatureFileError(f"Making a feature file: expected (n, embed_dim) and (n, 2), got {shapes}.")
        if self.features.dtype not in (np.float16, np.float32):
            raise FeatureFileError(f"Making a feature file: expected float16 or float32, got {self.features.dtype}.")

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal in two files before they may stand in one training set."""
        return {key: self.provenance.get(key) for key in IDENTITY_KEYS}


def write_feature_file(path: Path, file: FeatureFile) -> None:
    """Write `file` atomically; equal content gives equal bytes, whoever writes it and when.

    Root attributes: ``format``, ``complete``, ``provenance`` (JSON), ``features_sha256`` and, flat,
    every scalar of the provenance. `coords` carries the tile attributes (``provenance["coords_attrs"]``)
    under the names that CLAM's and TRIDENT's readers look for; `features` carries ``encoder`` and ``name``.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    provenance = {key: value for key, value in file.provenance.items() if key != "coords_attrs"}
    with write_hdf5_atomically(path) as h5:
        features = _create(h5, "features", file.features.shape, file.features.dtype)
        features.attrs.update({"encoder": str(provenance.get("encoder", "")), "name": path.stem, "savetodir": "."})
        features_sha256 = _fill(features, file.features)
        coords = _create(h5, "coords", file.coords.shape, np.dtype(np.int64))
        coords.attrs.update(file.provenance.get("coords_attrs", {}))
        _fill(coords, file.coords)
        h5.attrs["format"] = _FORMAT
        h5.attrs["features_sha256"] = features_sha256
        h5.attrs["provenance"] = json.dumps(provenance, sort_keys=True)
        for key, value in provenance.items():
            if isinstance(value, str | int | float | bool):
                h5.attrs[key] = value
        h5.attrs["complete"] = True


def _create(h5: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype) -> h5py.Dataset:
    if shape[0] == 0:  # HDF5 has no chunks of nothing
        return h5.create_dataset(name, shape, dtype)
    chunks = (min(_CHUNK_ROWS, shape[0]), shape[1])
    # fletcher32 turns a flipped byte into an error; features do not compress (7 % at 1/40 of the speed)
    return h5.create_dataset(name, shape, dtype, chunks=chunks, fletcher32=True)


def _fill(dataset: h5py.Dataset, values: np.ndarray) -> str:
    """Copy `values` chunk by chunk, so that they may lie on disk; return their SHA-256."""
    digest = hashlib.sha256()
    for start in range(0, len(values), _CHUNK_ROWS):
        rows = np.ascontiguousarray(values[start : start + _CHUNK_ROWS], dtype=dataset.dtype)
        dataset[start : start + len(rows)] = rows
        digest.update(rows.data)
    return digest.hexdigest()


def read_feature_file(path: Path, *, verify: bool = False) -> FeatureFile:
    """Read a feature file of ours, or one in CLAM's or TRIDENT's layout (their provenance is what they say).

    Args:
        path: an ``.h5`` file with ``features`` (n, embed_dim) or (1, n, embed_dim) and ``coords`` (n, 2).
        verify: compare the features with their stored SHA-256 as well.

    Raises:
        FeatureFileError: the file is missing, truncated, corrupt or of another layout.
    """
    advice = "Delete it and run `wsi-dino embed` again; `wsi-dino doctor RUN` lists all such files."
    try:
        with h5py.File(path, "r") as h5:
            features, coords = h5["features"][()], h5["coords"][()]
            provenance = _provenance(h5)
            stored_sha256 = h5.attrs.get("features_sha256")
    except FileNotFoundError as error:
        raise FeatureFileError(f"Reading features {path}: there is no such file.") from error
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise FeatureFileError(f"Reading features {path}: broken or not a feature file ({error}). {advice}") from error
    features = _as_matrix(features)
    if len(features) != len(coords):
        counts = f"{len(features)} features but {len(coords)} coordinates"
        raise FeatureFileError(f"Reading features {path}: it has {counts}. {advice}")
    if verify and stored_sha256 and hashlib.sha256(features.tobytes()).hexdigest() != stored_sha256:
        raise FeatureFileError(f"Reading features {path}: the content does not match its checksum. {advice}")
    return FeatureFile(features, np.asarray(coords, np.int64), provenance)


def read_features(path: Path) -> np.ndarray:
    """Read only the features of a file that `read_feature_file` has found whole before: a third of its time.

    Returns:
        float16 or float32 ``(n, embed_dim)``.

    Raises:
        FeatureFileError: the file is gone or broken by now.
    """
    try:
        with h5py.File(path, "r") as h5:
            return _as_matrix(h5["features"][()])
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise FeatureFileError(f"Reading features {path} again: it can no longer be read ({error}).") from error


def _as_matrix(features: np.ndarray) -> np.ndarray:
    """Take off TRIDENT's leading axis of one, and narrow what is neither float16 nor float32."""
    if features.ndim == 3 and features.shape[0] == 1:
        features = features[0]
    return features if features.dtype in (np.float16, np.float32) else features.astype(np.float32)


def read_provenance(path: Path) -> dict[str, Any]:
    """Read only the provenance (fast: no features are loaded), with ``n`` and ``embed_dim`` from the data.

    Raises:
        FeatureFileError: the file is missing, truncated or of another layout.
    """
    try:
        with h5py.File(path, "r") as h5:
            shape = h5["features"].shape
            return {**_provenance(h5), "n": int(shape[-2]), "embed_dim": int(shape[-1])}
    except (OSError, KeyError, ValueError, RuntimeError, IndexError) as error:
        raise FeatureFileError(f"Reading features {path}: broken or not a feature file ({error}).") from error


def _provenance(h5: h5py.File) -> dict[str, Any]:
    if "provenance" in h5.attrs:
        provenance = json.loads(h5.attrs["provenance"])
    else:  # CLAM writes none, TRIDENT the encoder's name on `features`
        encoder = h5["features"].attrs.get("encoder", "unknown")
        provenance = {"encoder": str(encoder), "imported": True}
    provenance["coords_attrs"] = {key: _plain(value) for key, value in h5["coords"].attrs.items()}
    provenance.setdefault("embed_dim", int(h5["features"].shape[-1]))
    return provenance


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value


def require_one_identity(identities: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the identity that all files share.

    Args:
        identities: `FeatureFile.identity` by file name.

    Raises:
        FeatureFileError: two files differ in encoder, weights, pooling, input size or stain norm; both are named.
    """
    names = sorted(identities)
    first = identities[names[0]]
    for name in names[1:]:
        for key in IDENTITY_KEYS:
            if identities[name].get(key) != first.get(key):
                raise FeatureFileError(
                    f"Collecting features: {names[0]} has {key} = {first.get(key)!r} but {name} has "
                    f"{identities[name].get(key)!r}. Features of different {key} cannot be mixed: "
                    "embed all slides again with one setting."
                )
    return first
