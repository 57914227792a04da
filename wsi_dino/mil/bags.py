"""The bags of a cohort: features of each slide, in memory or read when needed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.errors import FeatureFileError
from wsi_dino.feature_file import IDENTITY_KEYS, read_feature_file, read_features, read_provenance, require_one_identity
from wsi_dino.provenance import fingerprint

_MEMORY_SHARE = 0.4
_MEMORY_LIMIT_BYTES = 2**28  # memory must not grow with the cohort; files read again come from the system's cache
_SHOWN = 5
_CGROUP = Path("/sys/fs/cgroup")


class BagStore:
    """Features by slide, all of one encoder and setting.

    Features that fit into `memory_bytes` together are kept as they are stored (float16 or float32)
    from first use; beyond that, bags are read from disk each time (a twentieth slower with bags of a
    thousand tiles). The values are the same.

    Args:
        paths: feature file of each slide.
        allow_random_weights: accept features of an encoder without trained weights.
        memory_bytes: how much may be kept; None = 256 MiB, or 40 % of what is free now if that is less.

    Attributes:
        seen_by_adapter: slides that the encoder's adapter, if it has one, has learnt from.

    Raises:
        FeatureFileError: no file at all, a broken one, files of different encoders or settings, or
            features of random weights that were not allowed.
    """

    def __init__(
        self, paths: Mapping[str, Path], *, allow_random_weights: bool = False, memory_bytes: int | None = None
    ) -> None:
        if not paths:
            raise FeatureFileError("Collecting features: there is no feature file. Run `wsi-dino embed` first.")
        self._paths = dict(paths)
        heads = {slide_id: read_provenance(path) for slide_id, path in self._paths.items()}
        self.identity: dict[str, Any] = require_one_identity(
            {slide_id: {key: head.get(key) for key in IDENTITY_KEYS} for slide_id, head in heads.items()}
        )
        _refuse_random_weights(heads, allow_random_weights)
        self.embed_dim = _one_embed_dim(heads)
        self.n_tiles: dict[str, int] = {slide_id: int(head["n"]) for slide_id, head in heads.items()}
        self.provenance: dict[str, Any] = heads[min(heads)]
        self.seen_by_adapter = frozenset(slide_id for slide_id, head in heads.items() if head.get("adapter_has_seen"))
        budget = min(int(_free_bytes() * _MEMORY_SHARE), _MEMORY_LIMIT_BYTES) if memory_bytes is None else memory_bytes
        self.in_memory = sum(path.stat().st_size for path in self._paths.values()) <= budget
        self._kept: dict[str, np.ndarray] = {}
        self._checked: set[str] = set()

    @classmethod
    def of_arrays(cls, features: Mapping[str, np.ndarray], identity: Mapping[str, Any] | None = None) -> BagStore:
        """Return a store over arrays ``(n, embed_dim)`` of float16 or float32 that have no files."""
        store = cls.__new__(cls)
        store._paths, store._kept, store.in_memory, store._checked = {}, dict(features), True, set()
        store.identity = {key: (identity or {}).get(key) for key in IDENTITY_KEYS}
        store.n_tiles = {slide_id: len(array) for slide_id, array in features.items()}
        store.embed_dim = next(iter(features.values())).shape[1]
        store.provenance, store.seen_by_adapter = dict(store.identity), frozenset()
        return store

    @property
    def slide_ids(self) -> tuple[str, ...]:
        """Slides that have at least one tile."""
        return tuple(slide_id for slide_id, n in self.n_tiles.items() if n > 0)

    @property
    def empty(self) -> tuple[str, ...]:
        """Slides without a tile: they cannot take part."""
        return tuple(slide_id for slide_id, n in self.n_tiles.items() if n == 0)

    def features(self, slide_id: str) -> np.ndarray:
        """Return ``(n, embed_dim)`` float16 or float32 of one slide; not to be written to.

        Raises:
            FeatureFileError: the slide is unknown, its file is broken, or a value is not finite.
        """
        kept = self._kept.get(slide_id)
        if kept is not None:
            return kept
        if slide_id not in self._paths:
            raise FeatureFileError(f"Reading features of slide {slide_id!r}: there is no feature file of that slide.")
        if slide_id in self._checked:
            return read_features(self._paths[slide_id])
        features = read_feature_file(self._paths[slide_id]).features
        if not np.isfinite(features).all():
            row = int(np.flatnonzero(~np.isfinite(features).all(1))[0])
            raise FeatureFileError(
                f"Reading features {self._paths[slide_id]}: row {row} is not finite. Embed the slide again; "
                "values beyond 65,504 need `--store-dtype float32`."
            )
        self._checked.add(slide_id)
        if self.in_memory:
            self._kept[slide_id] = features
        return features


def features_fingerprint(features: np.ndarray) -> str:
    """Return what changes with any value, the order or the dtype of a slide's features."""
    digest = hashlib.sha256(np.ascontiguousarray(features).data).hexdigest()
    return fingerprint(digest, list(features.shape), str(features.dtype))


def _refuse_random_weights(heads: Mapping[str, Mapping[str, Any]], allowed: bool) -> None:
    random = [slide_id for slide_id, head in sorted(heads.items()) if has_random_weights(head)]
    if random and not allowed:
        raise FeatureFileError(
            f"Collecting features: {len(random)} of {len(heads)} files ({', '.join(random[:_SHOWN])} ...) come from "
            "random weights, which say nothing about the slides. Embed with trained weights, or allow it with "
            "--allow-random-weights to measure speed."
        )


def has_random_weights(provenance: Mapping[str, Any]) -> bool:
    """Tell whether features were made by an encoder whose weights were drawn at random."""
    marked = provenance.get("random_weights")
    return (marked is not None and marked is not False) or str(provenance.get("weights_sha256")).startswith("random")


def _one_embed_dim(heads: Mapping[str, Mapping[str, Any]]) -> int:
    first = min(heads)
    for slide_id, head in heads.items():
        if head["embed_dim"] != heads[first]["embed_dim"]:
            raise FeatureFileError(
                f"Collecting features: {first} has {heads[first]['embed_dim']} values a tile, {slide_id} has "
                f"{head['embed_dim']}. They come from different encoders: embed all slides with one."
            )
    return int(heads[first]["embed_dim"])


def _free_bytes() -> int:
    """Bytes free on the machine, or within the limit of the container."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        free = 4 * 2**30
    try:
        limit, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no such container, or no limit ("max")
        return free
    return max(0, min(free, limit - used))
