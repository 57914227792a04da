"""What a network of the transformers library gives, found by running it without memory. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wsi_dino.encoders.record import Pooling
from wsi_dino.encoders.transformers_backbone import TransformersNetwork, make_network, native_px
from wsi_dino.errors import EncoderError

_CONVOLUTIONS_MULTIPLE_PX = 32


@dataclass(frozen=True)
class Seen:
    """What was seen; attributes as in a record, `dims` the length of the vector of every pooling."""

    input_px: int
    input_multiple_px: int | None
    patch_size: int | None
    n_prefix_tokens: int
    dims: dict[Pooling, int]
    default_pooling: Pooling
    feature_layers: tuple[int, ...]
    parameters_m: float


def probe(settings: Mapping[str, Any], input_px: int | None, encoder: str, fallback_px: int) -> Seen:
    """Return what the network of `settings` gives for images of `input_px`, or of the side of its positions.

    Raises:
        EncoderError: it does not take one colour image alone.
    """
    with torch.device("meta"):
        network = TransformersNetwork(make_network(settings, encoder), encoder, 0).eval()
        config = network.model.config
        side_px = input_px or native_px(config) or fallback_px
        output = _run(network, side_px, encoder)
        patch_size, n_prefix_tokens = _patches(output, config, side_px)
        multiple = patch_size or _CONVOLUTIONS_MULTIPLE_PX
        others = multiple if side_px % multiple == 0 and _takes(network, side_px + multiple) else None
    dims = _dims(output, n_prefix_tokens)
    return Seen(
        input_px=side_px,
        input_multiple_px=others,
        patch_size=patch_size,
        n_prefix_tokens=n_prefix_tokens,
        dims=dims,
        default_pooling=_default_pooling(output, dims),
        feature_layers=_feature_layers(output, patch_size),
        parameters_m=round(sum(p.numel() for p in network.parameters()) / 1e6, 1),
    )


def _run(network: TransformersNetwork, side_px: int, encoder: str) -> Any:
    try:
        with torch.inference_mode():
            output = network.outputs(torch.zeros(1, 3, side_px, side_px), with_layers=True)
        if not isinstance(output.last_hidden_state, Tensor) or output.last_hidden_state.ndim not in (3, 4):
            raise TypeError("it gives no tokens and no maps")
    except Exception as error:  # networks of text, sound and video fail in ways of their own
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        kind = type(network.model).__name__
        raise EncoderError(
            f"Encoder {encoder}: expected a network of one image, but a {kind} does not run on one of {side_px} px "
            f"({first_line})."
        ) from error
    return output


def _takes(network: TransformersNetwork, side_px: int) -> bool:
    try:
        with torch.inference_mode():
            network.outputs(torch.zeros(1, 3, side_px, side_px))
    except Exception:
        return False
    return True


def _patches(output: Any, config: Any, side_px: int) -> tuple[int | None, int]:
    """Return the side of a token, for networks whose row of tokens is of one length throughout, and the prefix."""
    last = output.last_hidden_state
    if last.ndim == 4:
        return None, 0
    size = getattr(config, "patch_size", None)
    size = size[0] if isinstance(size, list | tuple) else size
    hidden = output.hidden_states
    is_even = bool(hidden) and hidden[0].shape == last.shape
    n_patches = (side_px // size) ** 2 if size and is_even else int(last.shape[1] ** 0.5) ** 2
    n_prefix_tokens = int(last.shape[1]) - n_patches
    return (int(size) if size and is_even and n_prefix_tokens >= 0 else None), max(n_prefix_tokens, 0)


def _dims(output: Any, n_prefix_tokens: int) -> dict[Pooling, int]:
    last, pooled = output.last_hidden_state, getattr(output, "pooler_output", None)
    dims: dict[Pooling, int] = {}
    if last.ndim == 4:
        dims["avg"] = int(last.shape[1])
    else:
        dim = int(last.shape[2])
        dims = {"cls": dim, "mean": dim, "cls+mean": 2 * dim} if n_prefix_tokens else {"mean": dim}
    if isinstance(pooled, Tensor):
        dims["pooler"] = int(pooled.flatten(1).shape[1])
    return dims


def _default_pooling(output: Any, dims: Mapping[Pooling, int]) -> Pooling:
    """Take CLS after the last norm; where the network has no CLS, or norms only what it pools, its own pooler."""
    hidden = output.hidden_states
    is_normed = not hidden or hidden[-1] is not output.last_hidden_state
    if "cls" in dims and (is_normed or "pooler" not in dims):
        return "cls"
    return "pooler" if "pooler" in dims else "avg" if "avg" in dims else "mean"


def _feature_layers(output: Any, patch_size: int | None) -> tuple[int, ...]:
    hidden = getattr(output, "reshaped_hidden_states", None) or output.hidden_states
    if not hidden:
        return ()
    depth = len(hidden) - 1
    if patch_size is None:
        return tuple(range(max(depth - 4, 0), depth))
    return tuple(sorted({max(round(depth * part / 4) - 1, 0) for part in (1, 2, 3, 4)}))
