"""Checks of an encoder that need no weights: its record, and shapes of its network without memory. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsi_dino.encoders.backbone import Backbone
from wsi_dino.encoders.check import NotChecked, require
from wsi_dino.encoders.loading import load_encoder
from wsi_dino.encoders.record import EncoderSpec, Pooling
from wsi_dino.encoders.registry import family_of
from wsi_dino.encoders.weights_files import is_its_own_file
from wsi_dino.errors import EncoderError, WeightsError

_LARGEST_PX = 1024
_PARAMETERS_TOLERANCE = 0.02
_PLAIN_BLOCKS = ("timm.models.vision_transformer", "timm.models.eva")
# Larger networks are not built where memory would be taken.
BUILT_BELOW_M = 700.0


def check_record(record: EncoderSpec) -> str:
    """Check that the record is complete and does not contradict itself; a plug-in may leave out what it is not asked.

    Returns:
        The dimension and what is left out.
    """
    require(record.pooling in record.poolings, f"pooling {record.pooling} is not one of {record.poolings}")
    require(record.embed_dim > 0 or record.dimensions != 2, f"embed_dim is {record.embed_dim}")
    require(all(0 <= value < 1 for value in record.mean), f"mean {record.mean} is not on a scale of 0..1")
    require(all(0 < value <= 1 for value in record.std), f"std {record.std} is not on a scale of 0..1")
    require(list(record.feature_layers) == sorted(set(record.feature_layers)), "feature_layers do not rise")
    require(
        record.patch_size is None or record.input_px % record.patch_size == 0,
        f"input_px {record.input_px} is no multiple of the patch size {record.patch_size}",
    )
    require(EncoderSpec.model_validate_json(record.model_dump_json()) == record, "it is another one after JSON")
    unstated = [name for name in ("parameters_m", "licence_url", "training_data") if not getattr(record, name)]
    require(not unstated or _may_be_unstated(record), f"unstated: {', '.join(unstated)}")
    left_out = f"; unstated: {', '.join(unstated)}" if unstated else ""
    return f"{record.embed_dim} dimensions, pooling {record.pooling}, licence {record.licence}{left_out}"


def _may_be_unstated(record: EncoderSpec) -> bool:
    """Plug-ins, records made from other libraries' (``timm/NAME``), and encoders without public weights."""
    return record.plugin_sha256 is not None or "/" in record.name or not record.is_public


def check_shapes(record: EncoderSpec) -> str:
    """Check the vectors of every pooling, the maps and the number of parameters, on a network without memory."""
    network = _unweighted(record)
    for pooling in record.poolings:
        network.check_vectors(record.input_px, pooling)
    network.check_maps(record.input_px)
    stated = record.parameters_m or network.n_millions
    require(
        abs(network.n_millions - stated) <= _PARAMETERS_TOLERANCE * stated + 0.05,
        f"{network.n_millions:.1f} million parameters, the record says {stated:g}",
    )
    return f"{network.n_millions:.1f} million parameters, poolings {', '.join(record.poolings)}"


def check_sizes(record: EncoderSpec) -> str:
    """Check that other sizes work where the record allows them, and are refused before any weight is read elsewhere."""
    network = _unweighted(record) if record.input_multiple_px else None
    allowed = _allowed_sizes(record, largest_px=network.largest_px if network else 0)
    if network is not None:
        for side in allowed:
            network.check_vectors(side, record.pooling)
        network.check_maps(allowed[-1])
    refused = list(_refused_sizes(record))
    for side in refused:
        _check_refusal(record, side)
    return f"{_list(allowed)} px give the right shapes; {_list(refused)} px are refused"


def _list(sides: list[int]) -> str:
    return ", ".join(map(str, sides))


def _check_refusal(record: EncoderSpec, side_px: int) -> None:
    try:
        load_encoder(record.name, input_px=side_px, weights=Path("no such file"))
    except WeightsError:
        require(False, f"{side_px} px is refused after looking for weights only")
    except EncoderError:
        return
    require(False, f"{side_px} px is not refused")


def _allowed_sizes(record: EncoderSpec, largest_px: int) -> list[int]:
    """Return the record's size, the next one, that of two patches, and the largest up to `largest_px`."""
    multiple = record.input_multiple_px
    sides = {record.input_px}
    if multiple is not None:
        following = (record.input_px // multiple + 1) * multiple
        largest = min(largest_px, record.max_input_px or largest_px) // multiple * multiple
        sides |= {side for side in (2 * multiple, following, largest) if record.allows_px(side)}
    return sorted(sides)


def _refused_sizes(record: EncoderSpec) -> Iterator[int]:
    multiple = record.input_multiple_px
    yield 0
    if multiple is None:
        yield record.input_px * 2
    elif multiple > 1:
        yield record.input_px + 1
    if multiple is not None and record.max_input_px is not None:
        yield record.max_input_px // multiple * multiple + multiple


class _Unweighted:
    """The network of a record without memory, or, where it cannot do without, with random weights.

    Attributes:
        n_millions: of parameters.
        largest_px: side up to which trying it out is cheap.
    """

    def __init__(self, record: EncoderSpec) -> None:
        self._record = record
        self._shapes: dict[tuple[int, str], tuple[int, ...]] = {}
        try:
            self._build("meta")
        except Exception as error:  # whatever a network does that tensors without values cannot
            if (record.parameters_m or 0) > BUILT_BELOW_M:
                raise NotChecked(f"the network is large and cannot be built without memory ({error})") from error
            self._build("cpu")

    def _build(self, device: str) -> None:
        self._device, self.largest_px = device, _LARGEST_PX if device == "meta" else self._record.input_px
        with torch.device(device), torch.random.fork_rng(devices=[]):
            self._backbone: Backbone = family_of(self._record).build(self._record).eval()
        self.n_millions = sum(parameter.numel() for parameter in self._backbone.parameters()) / 1e6
        if device == "meta":
            _shorten(self._backbone)
        self._vector_shape(self._record.input_px, self._record.pooling)

    def check_vectors(self, side_px: int, pooling: Pooling) -> None:
        """Raise `Broken` unless the vectors of images of `side_px` have the length that the record says."""
        found, expected = self._vector_shape(side_px, pooling), (2, self._record.dim_of(pooling))
        require(found == expected, f"at {side_px} px, pooling {pooling}: expected vectors {expected}, got {found}")

    def check_maps(self, side_px: int) -> None:
        """Raise `Broken` unless the maps of images of `side_px` are what `check_map_shapes` asks for."""
        layers = self._record.feature_layers
        if layers:
            with torch.inference_mode():
                maps = self._backbone.maps(self._images(side_px), layers)
            check_map_shapes(self._record, side_px, [tuple(one.shape) for one in maps], n_images=2)

    def _vector_shape(self, side_px: int, pooling: Pooling) -> tuple[int, ...]:
        if (side_px, pooling) not in self._shapes:
            with torch.inference_mode():
                vectors = self._backbone.vectors(self._images(side_px), pooling)
            self._shapes[side_px, pooling] = tuple(vectors.shape)
        return self._shapes[side_px, pooling]

    def _images(self, side_px: int) -> Tensor:
        self._backbone.fit_to(side_px)
        return torch.zeros(2, 3, side_px, side_px, device=self._device)


@lru_cache(maxsize=1)
def _unweighted_of(record_json: str) -> _Unweighted:
    return _Unweighted(EncoderSpec.model_validate_json(record_json))


def _unweighted(record: EncoderSpec) -> _Unweighted:
    """Return the network of `record`, built once for the checks of one record that follow each other."""
    if is_its_own_file(record):
        raise NotChecked("the network and its weights are one file, which is run below")
    return _unweighted_of(record.model_dump_json())


class _Same(nn.Module):
    """Stands for a layer that changes no shape."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return `x`."""
        return x


def _shorten(network: nn.Module) -> None:
    """Replace what changes no shape: batch norms, and timm's transformer blocks after the first.

    Without memory, each costs as much as twenty convolutions.
    """
    for module in list(network.modules()):
        for name, child in module.named_children():
            is_later_block = name.isdecimal() and int(name) > 0 and hasattr(child, "attn")
            is_plain_block = is_later_block and type(child).__module__ in _PLAIN_BLOCKS
            if isinstance(child, nn.BatchNorm2d) or is_plain_block:
                setattr(module, name, _Same())


def check_map_shapes(record: EncoderSpec, side_px: int, shapes: list[tuple[int, ...]], n_images: int) -> None:
    """Raise `Broken` unless there is one map a layer, square, with a cell for each patch and no prefix tokens."""
    require(len(shapes) == len(record.feature_layers), f"{len(shapes)} maps for {len(record.feature_layers)} layers")
    for layer, shape in zip(record.feature_layers, shapes, strict=True):
        side = side_px // record.patch_size if record.patch_size else shape[-1]
        require(
            len(shape) == 4 and shape[0] == n_images and shape[2:] == (side, side) and min(shape) > 0,
            f"the map of layer {layer} at {side_px} px has shape {shape}",
        )
    sides = [shape[-1] for shape in shapes]
    require(sides == sorted(sides, reverse=True), f"the sides of the maps, {sides}, do not fall")


RECORD_CHECKS: dict[str, Callable[[EncoderSpec], str]] = {
    "record": check_record,
    "shapes": check_shapes,
    "sizes": check_sizes,
}
