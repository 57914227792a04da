"""Where the features of volumes lie, when they count as done, and reading them for a probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.errors import FeatureFileError
from wsi_dino.feature_file import FeatureFile, read_features, read_provenance, write_feature_file
from wsi_dino.provenance import fingerprint, slide_fingerprint
from wsi_dino.radiology.chest_run import task_folder
from wsi_dino.radiology.ct_slices import SliceSpec
from wsi_dino.radiology.datasets.volume_row import VolumeRow
from wsi_dino.radiology.versions import versions
from wsi_dino.run_folder import RunFolder, safe_name

Pool = Literal["mean", "max", "mean+std", "attention"]
POOLS: tuple[Pool, ...] = get_args(Pool)
# The rows of a file of pooled features.
_POOLED_ROWS = ("mean", "max", "std")
_ROWS_OF_POOL: dict[str, tuple[int, ...]] = {"mean": (0,), "max": (1,), "mean+std": (0, 2)}
_ASKED_KEYS = (
    "encoder", "embed_dim", "pooling", "input_px", "weights_sha256", "adapter", "plugin_sha256", "random_weights",
)  # fmt: skip
_FORMAT = "ct/1"


@dataclass(frozen=True)
class CtFeatures:
    """The features of one data set by one encoder, size and window.

    Attributes:
        run: the run folder.
        dataset: name of the data set.
        record: of the encoder.
        identity: of the encoder, see `Encoder.identity`.
        spec: what an image shows.
    """

    run: RunFolder
    dataset: str
    record: EncoderSpec
    identity: dict[str, Any]
    spec: SliceSpec

    @property
    def request(self) -> str:
        """Fingerprint of encoder, weights and what an image shows."""
        asked = {key: self.identity.get(key) for key in _ASKED_KEYS}
        return fingerprint(_FORMAT, self.record.deciding(), asked, self.spec)

    @property
    def folder(self) -> Path:
        """Folder of the features."""
        name = f"{safe_name(self.record.name)}@{self.identity['input_px']}-{self.request[:8]}"
        return self.run.path / "radiology" / safe_name(self.dataset) / "features" / name

    @property
    def stage(self) -> str:
        """Stage of the run's rows and claims."""
        return f"ct-{self.dataset}-{self.folder.name}"

    def result_folder(self, task: str, *choices: str) -> Path:
        """Return the folder of predictions, metrics and report of a probe; `choices` name it."""
        seed = self.identity.get("random_weights")
        name = f"{self.record.name}@{self.identity['input_px']}" + ("" if seed is None else f"-random-{seed}")
        words = (name, self.spec.window.replace(":", "to"), *choices)
        return task_folder(self.run, self.dataset, task) / safe_name("-".join(words))

    def pooled_path(self, volume_id: str) -> Path:
        """Path of mean, maximum and deviation over the slices of one volume."""
        return self.folder / f"{safe_name(volume_id)}.h5"

    def slices_path(self, volume_id: str) -> Path:
        """Path of the vectors of all slices, which only attention pooling needs."""
        return self.folder / "slices" / f"{safe_name(volume_id)}.h5"

    def item_fingerprint(self, row: VolumeRow) -> str:
        """Return what changes with the request, the weights or what a table says of the volume; not with its path."""
        rescale = None if row.rescale is None else [row.rescale.slope, row.rescale.intercept]
        return fingerprint(self.request, row.volume_id, rescale, row.spacing_mm)

    def is_intact(self, row: dict[str, Any], volume: VolumeRow, item_fingerprint: str, *, with_slices: bool) -> bool:
        """Return whether the files that a finished row promises are there, whole, and still of this volume."""
        wanted = [(self.pooled_path(volume.volume_id), len(_POOLED_ROWS))]
        wanted += [(self.slices_path(volume.volume_id), int(row.get("n_slices") or 0))] if with_slices else []
        for path, n in wanted:
            try:
                provenance = read_provenance(path)
            except FeatureFileError:
                return False
            if provenance.get("fingerprint") != item_fingerprint or provenance["n"] != n:
                return False
        return _is_same_volume(volume.path, row)

    def write(self, row: VolumeRow, vectors: np.ndarray, facts: dict[str, Any], item_fingerprint: str,
              *, with_slices: bool) -> None:  # fmt: skip
        """Write the files of one volume: float32 ``(3, embed_dim)``, and float16 ``(n_slices, embed_dim)``.

        Args:
            row: the volume.
            vectors: float32 ``(n_slices, embed_dim)``, from inferior to superior.
            facts: what was found in the file.
            item_fingerprint: of the request.
            with_slices: store `vectors` too.
        """
        provenance = self._provenance(row, facts, item_fingerprint)
        numbers = np.arange(len(vectors), dtype=np.int64)
        if with_slices:
            coords = np.stack([np.zeros_like(numbers), numbers], axis=1)
            file = FeatureFile(
                vectors.astype(np.float16), coords, {**provenance, "rows": "slices", "store_dtype": "float16"}
            )
            write_feature_file(self.slices_path(row.volume_id), file)
        span = np.tile(np.array([[0, len(vectors)]], np.int64), (len(_POOLED_ROWS), 1))
        file = FeatureFile(
            pooled_rows(vectors), span, {**provenance, "rows": list(_POOLED_ROWS), "store_dtype": "float32"}
        )
        write_feature_file(self.pooled_path(row.volume_id), file)

    def _provenance(self, row: VolumeRow, facts: dict[str, Any], item_fingerprint: str) -> dict[str, Any]:
        return {
            **self.identity,
            "tiles": self.spec.shown,
            "stain_norm": None,
            "licence": self.record.licence,
            "volume": {"volume_id": row.volume_id, **facts},
            "request": self.spec.model_dump(mode="json"),
            "versions": versions(),
            "fingerprint": item_fingerprint,
        }

    def read_pooled(self, volume_ids: Sequence[str], pool: Pool) -> np.ndarray:
        """Return float32 ``(n_volumes, embed_dim)``, twice as wide for ``mean+std``."""
        rows = _ROWS_OF_POOL[pool]
        width = int(self.identity["embed_dim"])
        features = np.empty((len(volume_ids), len(rows) * width), np.float32)
        for number, volume_id in enumerate(volume_ids):
            features[number] = read_features(self.pooled_path(volume_id))[list(rows)].reshape(-1)
        return features

    def read_slices(self, volume_id: str) -> np.ndarray:
        """Return float32 ``(n_slices, embed_dim)``."""
        return read_features(self.slices_path(volume_id)).astype(np.float32)


def pooled_rows(vectors: np.ndarray) -> np.ndarray:
    """Return mean, maximum and standard deviation over the slices, float32 ``(3, embed_dim)``.

    Examples:
        >>> pooled_rows(np.array([[1.0, 4.0], [3.0, 4.0]], np.float32)).tolist()
        [[2.0, 4.0], [3.0, 4.0], [1.0, 0.0]]
    """
    wide = np.asarray(vectors, np.float64)
    return np.stack([wide.mean(0), wide.max(0), wide.std(0)]).astype(np.float32)


def volume_stat(path: Path) -> list[int] | None:
    """Return what tells an unchanged volume without reading it: size, newest change, number of files."""
    files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
    if not files:
        return None
    stats = [file.stat() for file in files]
    return [sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats), len(stats)]


def _is_same_volume(path: Path, row: dict[str, Any]) -> bool:
    try:
        stat = volume_stat(path)
        # a volume that was archived leaves its features valid; one that was replaced does not
        return (
            stat is None or stat == row.get("volume_stat") or slide_fingerprint(path) == row.get("volume_fingerprint")
        )
    except OSError:
        return True
