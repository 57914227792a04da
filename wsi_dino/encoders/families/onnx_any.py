"""Any ONNX file that turns an image into an embedding: ``onnx/FILE``, run by onnxruntime (extra ``onnx``).

The record is made from the shapes in the file. How pixels are prepared is taken from ``FILE.json`` beside
it (`OnnxSettings`), else from the file's metadata, else ImageNet's mean and deviation are assumed, and said.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_dino.encoders.onnx_file import (
    ASSUMED_INPUT_PX,
    IMAGENET_MEAN,
    IMAGENET_STD,
    OnnxDescription,
    describe,
    file_sha256_with_external,
)
from wsi_dino.encoders.record import EncoderSpec, Pooling
from wsi_dino.errors import EncoderError

if TYPE_CHECKING:
    from wsi_dino.encoders.backbone import Backbone

RECORDS: tuple[EncoderSpec, ...] = ()
NAME_PREFIX = "onnx/"


def make_record(name: str) -> EncoderSpec:
    """Return the record of ``onnx/FILE``; opens the file.

    Raises:
        WeightsError: the file is missing, cannot be run, or is no network from one image to an embedding.
        EncoderError: onnxruntime is not installed.
    """
    path = _path(name)
    described = describe(path, name)
    settings = described.settings
    poolings = _poolings(described)
    return EncoderSpec(
        name=name,
        family="onnx_any",
        architecture="onnx",
        embed_dim=described.embed_dim,
        input_px=described.input_px or settings.input_px or ASSUMED_INPUT_PX,
        input_multiple_px=None if described.input_px else settings.input_multiple_px,
        mean=settings.mean or IMAGENET_MEAN,
        std=settings.std or IMAGENET_STD,
        interpolation=settings.interpolation,
        pooling=settings.pooling if settings.pooling in poolings else poolings[0],
        poolings=poolings,
        source=f"file:{path.as_posix()}",
        weights_file=path.name,
        precisions=("fp32",),
        licence=settings.licence,
        licence_url=settings.licence_url,
        training_data=settings.training_data,
        notes=" ".join(part for part in (settings.notes, _assumed(described)) if part),
    )


def _path(name: str) -> Path:
    return Path(name.removeprefix(NAME_PREFIX))


def _poolings(described: OnnxDescription) -> tuple[Pooling, ...]:
    by_rank: dict[int, tuple[Pooling, ...]] = {2: ("output",), 3: ("cls", "mean"), 4: ("avg",)}
    return by_rank[described.output_rank]


def _assumed(described: OnnxDescription) -> str:
    """Say what neither the file nor the JSON file beside it states."""
    settings = described.settings
    parts = [f"{key} (ImageNet's)" for key in ("mean", "std") if getattr(settings, key) is None]
    if described.input_px is None and settings.input_px is None:
        parts.append(f"input_px ({ASSUMED_INPUT_PX})")
    return f"Not stated, assumed: {', '.join(parts)}." if parts else ""


def build(record: EncoderSpec) -> Backbone:
    """Refuse: an ONNX file holds its weights, so that there is no network without them."""
    raise EncoderError(f"Encoder {record.name}: an ONNX file holds its weights; leave --random-weights out.")


def load(record: EncoderSpec, weights: Path | None, weights_dir: Path | None) -> tuple[Backbone, str, str]:
    """Return the network, the SHA-256 of its file and ``"file"``; assumptions are said on stderr.

    Raises:
        WeightsError: the file is missing or cannot be run.
        EncoderError: other weights are given.
    """
    if weights is not None:
        raise EncoderError(
            f"Encoder {record.name}: an ONNX file holds its weights; leave --weights out, or give onnx/{weights}."
        )
    from wsi_dino.encoders.onnx_backbone import OnnxBackbone

    path = _path(record.name)
    described = describe(path, record.name)
    if _assumed(described):
        print(f"{record.name}: {_assumed(described)} State them in {path}.json.", file=sys.stderr, flush=True)
    return OnnxBackbone(path, described, record.name), file_sha256_with_external(path), "file"
