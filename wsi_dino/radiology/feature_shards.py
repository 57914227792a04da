"""Features of many images in few files: which image lies in which shard, kept by content, never by "file exists"."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.errors import FeatureFileError
from wsi_dino.feature_file import read_feature_file
from wsi_dino.item_queue import FINISHED, Item
from wsi_dino.provenance import fingerprint
from wsi_dino.run_folder import RunFolder, safe_name


@dataclass(frozen=True)
class Place:
    """Where the features of one image lie, and of which content they are."""

    shard: str
    index: int
    n_bytes: int
    mtime_ns: int
    sha256: str


class FeatureShards:
    """The shards of one data set, encoder and view.

    A shard is a feature file of up to some hundred images and a row in the run's state that names them with size,
    time and content hash. An image whose size and time are the same is taken as unchanged; where only the time
    differs its content is hashed.

    Args:
        run: the run folder.
        folder: of the shards.
        request: fingerprint of what every shard was made with.
    """

    def __init__(self, run: RunFolder, folder: Path, request: str) -> None:
        self.run, self.folder, self.request = run, folder, request
        self.stage = safe_name(f"images-{hashlib.sha256(str(folder.relative_to(run.path)).encode()).hexdigest()[:16]}")
        self._places: dict[str, list[Place]] = {}
        self._contents: dict[str, str] = {}

    def path(self, shard: str) -> Path:
        """Return the feature file of a shard."""
        return self.folder / f"{shard}.h5"

    def scan(self) -> None:
        """Read which images the finished shards hold; of a file that was changed, several shards may know a content."""
        self._places, self._contents = {}, {}
        for row in self.run.rows(self.stage):
            if row.get("request") == self.request and row.get("status") in FINISHED and self._is_there(row):
                for index, entry in enumerate(row.get("images", [])):
                    name, *rest = entry
                    self._places.setdefault(name, []).append(Place(row["shard"], index, *rest))

    def _is_there(self, row: Mapping[str, Any]) -> bool:
        return bool(row.get("images")) and self.path(str(row.get("shard"))).is_file()

    def find(self, root: Path, file: str) -> Place | None:
        """Return where the features of `file` as it is now are, or None."""
        places = self._places.get(file)
        if not places:
            return None
        try:
            stat = (root / file).stat()
        except OSError:
            return None
        alike = [place for place in places if place.n_bytes == stat.st_size]
        for place in alike:
            if place.mtime_ns == stat.st_mtime_ns:
                return place
        if alike and file not in self._contents:
            self._contents[file] = _content(root / file)
        return next((place for place in alike if place.sha256 == self._contents[file]), None)

    def plan(self, root: Path, files: Sequence[str], shard_size: int) -> tuple[list[Item], dict[str, list[str]]]:
        """Return what is to be encoded: an item a shard, and the files of each by its key.

        The cut into shards follows the position in `files`, so that processes started one after the other agree.
        """
        items, members = [], {}
        for number, start in enumerate(range(0, len(files), shard_size)):
            lacking = [file for file in files[start : start + shard_size] if self.find(root, file) is None]
            if lacking:
                mark = fingerprint(self.request, lacking, [_stat(root / file) for file in lacking])
                key = f"{number:05d}-{mark[:12]}"
                items.append(Item(key, mark))
                members[key] = lacking
        return items, members

    def load(self, root: Path, files: Sequence[str], embed_dim: int) -> tuple[np.ndarray, np.ndarray]:
        """Return features float32 ``(n, embed_dim)`` of those of `files` that are there, and their positions.

        Features of what a file held before it was changed are not there.

        Raises:
            FeatureFileError: a shard is broken; it is removed, so that the next plan holds its images.
        """
        places = [(i, place) for i, file in enumerate(files) if (place := self.find(root, file)) is not None]
        features = np.empty((len(places), embed_dim), np.float32)
        by_shard: dict[str, list[tuple[int, int]]] = {}
        for row, (_, place) in enumerate(places):
            by_shard.setdefault(place.shard, []).append((row, place.index))
        for shard, pairs in by_shard.items():
            rows, indices = (list(part) for part in zip(*pairs, strict=True))
            features[rows] = self._read(shard)[indices]
        return features, np.array([position for position, _ in places], np.int64)

    def _read(self, shard: str) -> np.ndarray:
        try:
            return read_feature_file(self.path(shard), verify=True).features
        except FeatureFileError:
            self.path(shard).unlink(missing_ok=True)
            self.run.row_path(self.stage, shard).unlink(missing_ok=True)
            raise

    def shards(self) -> Iterator[Path]:
        """Yield the feature files there are."""
        yield from sorted(self.folder.glob("*.h5"))


def shard_number(shard: str) -> int:
    """Return the place of a shard of `FeatureShards.plan` among all, those that are finished counted too.

    Examples:
        >>> shard_number("00012-0a1b2c3d4e5f")
        12
    """
    return int(shard.partition("-")[0])


def _content(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:32]


def _stat(path: Path) -> list[int]:
    try:
        stat = path.stat()
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns]
