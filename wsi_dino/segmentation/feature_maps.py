"""Slices of a volume through an encoder of images: maps of several layers, stacked along the slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from wsi_dino.errors import ConfigError, EncoderError
from wsi_dino.segmentation.slice_geometry import SliceGeometry

if TYPE_CHECKING:
    import torch

    from wsi_dino.encoders.encoder import Encoder

Meeting = Literal["early", "late"]
_PX_WITHOUT_PATCHES = 16
_MULTIPLE_WITHOUT_PATCHES = 32


@dataclass(frozen=True)
class Layer:
    """Maps of one layer: how many channels, and how many pixels of the encoder's input a cell of it covers."""

    channels: int
    stride_px: int


class SliceEncoder:
    """An encoder that is given slices of any side; loads its network anew for each side.

    Args:
        name: of the encoder.
        layers: block or stage numbers; None for the record's.
        settings: further arguments of `load_encoder`.

    Attributes:
        patch_px: side of a token; 16 for networks without tokens.
        cell_px: sides shown to the encoder are multiples of this; also the coarsest stride of its maps.
        layer_numbers: as chosen.
    """

    def __init__(self, name: str, layers: Sequence[int] | None = None, **settings: Any) -> None:
        from wsi_dino.encoders.registry import get_record

        near = [Path(settings[key]) for key in ("weights", "weights_dir") if settings.get(key) is not None]
        record = get_record(name, near=near)
        if layers is None and not record.feature_layers:
            raise EncoderError(f"Feature maps of {name}: its record names no layers. Give --layers.")
        self.name, self._settings = name, settings
        self.layer_numbers = tuple(record.feature_layers if layers is None else layers)
        self.patch_px = record.patch_size or _PX_WITHOUT_PATCHES
        self.cell_px = record.patch_size or record.input_multiple_px or _MULTIPLE_WITHOUT_PATCHES
        self._side_px = record.input_px
        self._encoder: Encoder | None = None

    def at(self, side_px: int) -> Encoder:
        """Return the encoder for slices of a side; only the last one is kept in memory."""
        from wsi_dino.encoders.loading import load_encoder

        if self._encoder is None or self._side_px != side_px:
            self._encoder = None  # its memory first
            self._encoder = load_encoder(self.name, input_px=side_px, **self._settings)
            self._side_px = side_px
        return self._encoder

    def identity(self) -> dict[str, Any]:
        """Return what decides the maps but for the side."""
        identity = (self._encoder or self.at(self._side_px)).identity()
        identity.pop("record")
        return {**identity, "input_px": None, "pooling": None, "embed_dim": None, "layers": list(self.layer_numbers)}

    def layers(self) -> tuple[Layer, ...]:
        """Return channels and strides, by showing the encoder one black square.

        Raises:
            EncoderError: a layer is coarser than `cell_px`, or its stride divides nothing.
        """
        side_px = self.cell_px * 4
        maps = self.at(side_px).feature_maps(np.zeros((1, side_px, side_px, 3), np.uint8), self.layer_numbers)
        found = tuple(Layer(int(item.shape[1]), side_px // int(item.shape[3])) for item in maps)
        for layer, item in zip(found, maps, strict=True):
            if self.cell_px % layer.stride_px or item.shape[2] != item.shape[3]:
                raise EncoderError(
                    f"Feature maps of {self.name}: a layer has maps of {tuple(item.shape[2:])} for {side_px} px, which "
                    f"do not divide into cells of {self.cell_px} px."
                )
        return found

    def encode(self, pictures: npt.NDArray[np.uint8], geometry: SliceGeometry) -> list[npt.NDArray[np.float16]]:
        """Return the maps of all slices, cut to the cells that the slice covers.

        Args:
            pictures: uint8 ``(n_slices, height, width, 3)``.
            geometry: of the slices.

        Returns:
            For each layer float16 ``(n_slices, channels, rows, cols)``.

        Raises:
            EncoderError: a map holds values that float16 cannot.
        """
        encoder = self.at(geometry.side_px)
        stacks: list[npt.NDArray[np.float16]] = []
        for start in range(0, len(pictures), encoder.batch_size):
            shown = enlarged(pictures[start : start + encoder.batch_size], geometry)
            maps = encoder.feature_maps(shown, self.layer_numbers)
            cut = [_cut(item, geometry) for item in maps]
            if not stacks:
                stacks = [np.empty((len(pictures), *item.shape[1:]), np.float16) for item in cut]
            for stack, item in zip(stacks, cut, strict=True):
                stack[start : start + len(item)] = item
        if not all(np.isfinite(stack).all() for stack in stacks):
            raise EncoderError(f"Feature maps of {self.name}: values beyond what float16 holds, or NaN.")
        return stacks


def _cut(maps: torch.Tensor, geometry: SliceGeometry) -> npt.NDArray[np.float32]:
    cells = geometry.cell_px * maps.shape[3] // geometry.side_px
    cut: npt.NDArray[np.float32] = maps[:, :, : geometry.rows * cells, : geometry.cols * cells].numpy()
    return cut


def enlarged(pictures: npt.NDArray[np.uint8], geometry: SliceGeometry) -> torch.Tensor:
    """Return slices at the size the encoder is to see, at the top left of black squares.

    Returns:
        uint8 ``(n, side_px, side_px, 3)``.
    """
    import torch
    from torch.nn.functional import interpolate

    moved = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float()
    size = (geometry.height_px, geometry.width_px)
    grown = interpolate(moved, size=size, mode="bicubic", antialias=True).round_().clamp_(0, 255)
    squares = torch.zeros(len(pictures), geometry.side_px, geometry.side_px, 3, dtype=torch.uint8)
    squares[:, : geometry.height_px, : geometry.width_px] = grown.permute(0, 2, 3, 1).to(torch.uint8)
    return squares


def pictures_of(grey: npt.NDArray[np.uint8], meeting: Meeting) -> list[npt.NDArray[np.uint8]]:
    """Return what the encoder is shown: one stack of RGB slices, or one for each channel.

    ``early`` puts two or three channels into red, green and blue of one picture (of two, blue is their mean);
    ``late`` shows each channel alone as grey, and features are joined afterwards. One channel is grey either way.

    Args:
        grey: uint8 ``(channels, z, y, x)``.
        meeting: how channels meet.

    Returns:
        uint8 ``(z, y, x, 3)`` each.

    Raises:
        ConfigError: more than three channels cannot meet early.
    """
    n_channels = len(grey)
    if meeting == "late" or n_channels == 1:
        return [np.repeat(channel[..., None], 3, -1) for channel in grey]
    if n_channels > 3:
        raise ConfigError(
            f"--channels-meet early: {n_channels} channels do not fit into one picture. Use late, or --channels."
        )
    third = grey[2] if n_channels == 3 else ((grey[0].astype(np.uint16) + grey[1] + 1) // 2).astype(np.uint8)
    return [np.stack([grey[0], grey[1], third], -1)]
