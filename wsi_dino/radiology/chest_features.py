"""Radiographs through one encoder: decoded in threads while it works, cached by content, resumed shard by shard."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.errors import FeatureFileError, ImageError
from wsi_dino.feature_file import FeatureFile, write_feature_file
from wsi_dino.item_queue import ClaimedItem, ItemQueue
from wsi_dino.provenance import fingerprint, remove_stale_temporaries
from wsi_dino.radiology.chest_dicom import require_pydicom
from wsi_dino.radiology.chest_image import DICOM_ENDINGS, ChestView, read_chest_image, square_grey
from wsi_dino.radiology.datasets.image_set import ImageSet
from wsi_dino.radiology.feature_shards import FeatureShards, shard_number
from wsi_dino.radiology.versions import versions
from wsi_dino.run_folder import RunFolder, safe_name
from wsi_dino.share import end_part

# What of an encoder's identity was asked for; the rest (precision, batch size) may be chosen by the machine.
_ASKED_KEYS = (
    "encoder", "embed_dim", "pooling", "input_px", "weights_sha256", "adapter", "plugin_sha256", "random_weights",
)  # fmt: skip
_FORMAT = "radiograph/1"
_SHARD_PIXELS = 8_000_000
_SHARD_IMAGES = (16, 128)  # fewest and most; HDF5 keeps the names of a shard in 64 KB

Report = Callable[..., None]


class ImageEncoder(Protocol):
    """An encoder as this room needs it."""

    @property
    def spec(self) -> EncoderSpec: ...

    @property
    def embed_dim(self) -> int: ...

    def embed(self, pixels: np.ndarray) -> np.ndarray: ...

    def identity(self) -> dict[str, Any]: ...


@dataclass
class ChestFeatures:
    """Features of the images that could be read.

    Attributes:
        features: float32 ``(n, embed_dim)``.
        rows: int64 ``(n,)``, which row of the image set each is.
        contents: ``(n,)`` hashes of the files.
        failures: reason by image id, in the order of the set.
        n_encoded: images that went through the encoder in this call.
        seconds: of the whole call.
        folder: of the shards.
    """

    features: np.ndarray
    rows: np.ndarray
    contents: tuple[str, ...] = ()
    failures: dict[str, str] = field(default_factory=dict)
    n_encoded: int = 0
    seconds: float = 0.0
    folder: Path = Path()

    @property
    def images_per_s(self) -> float:
        """Of those encoded in this call."""
        return self.n_encoded / self.seconds if self.seconds else 0.0


def request_of(encoder: ImageEncoder, view: ChestView) -> str:
    """Return what changes with the encoder, its weights or the view; size and aspect are part of the view."""
    identity = encoder.identity()
    return fingerprint(_FORMAT, encoder.spec.deciding(), {key: identity.get(key) for key in _ASKED_KEYS}, view)


def features_folder(run: RunFolder, dataset: str, encoder: ImageEncoder, view: ChestView) -> Path:
    """Return the folder of the shards of one data set, encoder and view."""
    name = f"{safe_name(encoder.spec.name)}@{view.size_px}-{request_of(encoder, view)[:8]}"
    return run.path / "radiology" / safe_name(dataset) / "features" / name


def embed_images(
    run: RunFolder,
    images: ImageSet,
    encoder: ImageEncoder,
    view: ChestView,
    *,
    workers: int = 0,
    report: Report = lambda *_, **__: None,
) -> ChestFeatures:
    """Return the features of all images, encoding those that are not there yet.

    Killed and repeated, it goes on with the next shard and ends the same. An image that cannot be read is a failure
    with its reason and no trouble for the others; the next call tries it again.

    Args:
        run: the run folder.
        images: which.
        encoder: loaded, for ``view.size_px``.
        view: what it is shown.
        workers: decoding threads; 0 = one for each core.
        report: told ``report(n_images, total=, text=)``.

    Raises:
        ConfigError: there are DICOM files and no pydicom.
        StorageError: the disk is full or the run cannot be written; finished shards are kept.
    """
    begun = time.perf_counter()
    pairs = [(row, file) for row, file in enumerate(images.files) if file is not None]
    files = [file for _, file in pairs]
    if any(file.lower().endswith(DICOM_ENDINGS) for file in files):
        require_pydicom()
    shards = FeatureShards(run, features_folder(run, images.name, encoder, view), request_of(encoder, view))
    remove_stale_temporaries(shards.folder)
    report(total=len(files))
    maker = _ShardMaker(shards, images.root, encoder, view, workers or os.cpu_count() or 1, report)
    features, known = maker.complete(files)
    rows = np.array([pairs[position][0] for position in known], np.int64)
    failures = _failures(images, maker.failures, set(rows.tolist()))
    seconds = time.perf_counter() - begun
    places = [shards.find(images.root, files[position]) for position in known.tolist()]
    contents = tuple(place.sha256 for place in places if place is not None)
    return ChestFeatures(features, rows, contents, failures, maker.n_encoded, seconds, shards.folder)


def _failures(images: ImageSet, reasons: dict[str, str], done: set[int]) -> dict[str, str]:
    """Return why each image that is not `done` is not."""
    failures = {}
    for row, (name, file) in enumerate(zip(images.image_ids, images.files, strict=True)):
        if file is None:
            failures[name] = f"no file of that name below {images.root}"
        elif row not in done:
            failures[name] = reasons.get(file, "it changed while it was read; run the same command again")
    return failures


_Decoded = tuple[np.ndarray, list[Any]] | str


@dataclass
class _Shard:
    """A shard whose images are being decoded."""

    claimed: ClaimedItem
    files: list[str]
    decoded: list[Future[_Decoded]]
    is_held: bool = True


class _ShardMaker:
    """Encodes one shard while the images of the next are decoded."""

    def __init__(
        self, shards: FeatureShards, root: Path, encoder: ImageEncoder, view: ChestView, workers: int, report: Report
    ) -> None:
        self._shards, self._root, self._encoder, self._view = shards, root, encoder, view
        self._workers, self._report = workers, report
        self.failures: dict[str, str] = {}
        self.n_encoded = 0

    def complete(self, files: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encode what is lacking and return the features of all; a shard found broken is made once more."""
        for last_try in (False, True):
            self._encode(files)
            self._shards.scan()
            try:
                return self._shards.load(self._root, files, self._encoder.embed_dim)
            except FeatureFileError:
                if last_try:
                    raise
        raise AssertionError("unreachable")

    def _encode(self, files: Sequence[str]) -> None:
        self._shards.scan()
        fewest, most = _SHARD_IMAGES
        size = max(fewest, min(most, _SHARD_PIXELS // self._view.size_px**2))
        items, members = self._shards.plan(self._root, files, size)
        self._report(len(files) - sum(map(len, members.values())))
        is_intact = lambda item, row: self._shards.path(item.key).is_file()  # noqa: E731
        place_of = {item.key: shard_number(item.key) for item in items}
        queue = ItemQueue(self._shards.run, self._shards.stage, items, is_intact, place_of=place_of, is_divided=True)
        with ThreadPoolExecutor(self._workers, "decode") as pool:
            for shard in self._decoded_ahead(queue, members, pool):
                row = self._make(shard)
                shard.is_held = False  # `finish` gives the claim up, whatever happens in it
                queue.finish(shard.claimed, row)
        for row in queue.rows():
            self.failures |= row.get("failures", {})
        end_part(self._shards.stage, queue.rows())

    def _decoded_ahead(
        self, queue: ItemQueue, members: dict[str, list[str]], pool: ThreadPoolExecutor
    ) -> Iterator[_Shard]:
        """Yield shards in order; the next one is being decoded meanwhile. Gives back what was not finished."""
        held: list[_Shard] = []
        try:
            while True:
                # waiting for another process is only right with nothing in hand, or two would wait for each other
                claimed = self._next(queue) if held else queue.take()
                if claimed is not None:
                    files = members[claimed.item.key]
                    held.append(_Shard(claimed, files, [pool.submit(self._decode, file) for file in files]))
                    if len(held) < 2:
                        continue
                if not held:
                    return
                yield held[0]
                held.pop(0)
        finally:
            for shard in held:
                for future in shard.decoded:
                    future.cancel()
                if shard.is_held:
                    queue.give_back(shard.claimed)

    def _next(self, queue: ItemQueue) -> ClaimedItem | None:
        return next((claimed for key in queue.in_turn if (claimed := queue.take_if_free(key)) is not None), None)

    def _decode(self, file: str) -> _Decoded:
        path = self._root / file
        try:
            stat = path.stat()
            image = read_chest_image(path)
            return square_grey(image.grey, self._view), [file, stat.st_size, stat.st_mtime_ns, image.sha256]
        except (ImageError, OSError) as error:
            return str(error)

    def _make(self, shard: _Shard) -> dict[str, Any]:
        pictures, entries, failures = [], [], {}
        for file, future in zip(shard.files, shard.decoded, strict=True):
            decoded = future.result()
            if isinstance(decoded, str):
                failures[file] = decoded
            else:
                pictures.append(decoded[0])
                entries.append(decoded[1])
        key = shard.claimed.item.key
        kept = self._write(shard.claimed, pictures, entries, failures) if pictures else []
        self.n_encoded += len(pictures)
        self._report(len(shard.files), text=key)
        status = "done" if kept else "failed"
        return {"shard": key, "request": self._shards.request, "status": status, "images": kept, "failures": failures}

    def _write(
        self, claimed: ClaimedItem, pictures: list[np.ndarray], entries: list[Any], failures: dict[str, str]
    ) -> list[Any]:
        grey = np.stack(pictures)
        features = self._encoder.embed(np.repeat(grey[..., None], 3, axis=3))
        good = np.isfinite(features).all(1)
        for entry in (entry for entry, is_good in zip(entries, good, strict=True) if not is_good):
            failures[entry[0]] = f"{self._encoder.spec.name} gives NaN or infinity for it; use --precision fp32"
        kept = [entry for entry, is_good in zip(entries, good, strict=True) if is_good]
        if kept:
            coords = np.column_stack([np.arange(len(kept)), np.zeros(len(kept), np.int64)])
            file = FeatureFile(features[good], coords, self._provenance(claimed, kept))
            write_feature_file(self._shards.path(claimed.item.key), file)
        return kept

    def _provenance(self, claimed: ClaimedItem, kept: list[Any]) -> dict[str, Any]:
        """Return all that could change the features; no time, no host, no path of the machine."""
        return {
            **self._encoder.identity(),
            "tiles": self._view.text,
            "view": self._view.model_dump(mode="json"),
            "stain_norm": None,
            "images": [entry[0] for entry in kept],
            "image_sha256": [entry[3] for entry in kept],
            "licence": self._encoder.spec.licence,
            "versions": versions(),
            "fingerprint": fingerprint(self._shards.request, [(entry[0], entry[3]) for entry in kept]),
        }
