"""Vision networks of the transformers library behind the face of a backbone. Imports torch and transformers."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsi_dino.encoders.backbone import Backbone
from wsi_dino.encoders.record import Pooling
from wsi_dino.errors import EncoderError, WeightsError

_N_NAMED = 3
# Masks of pre-training, unused afterwards, and poolers, which are checked when one is asked for.
_MAY_BE_MISSING = ("mask_token",)
_NOT_OF_THE_NETWORK = ("transformers_version", "auto_map", "_name_or_path", "architectures", "dtype", "torch_dtype")
_LABELS = ("id2label", "label2id", "num_labels")


def tower_settings(content: Mapping[str, Any], encoder: str) -> dict[str, Any]:
    """Return what of a ``config.json`` makes the network of images; of image and text models only their tower.

    Raises:
        EncoderError: transformers does not know this kind of network by itself.
    """
    config = _config(content, encoder)
    tower = getattr(config, "vision_config", None)
    # As the file has it: what the library adds to it changes from version to version.
    stated = content if tower is None else content.get("vision_config") or {}
    own = {key: value for key, value in stated.items() if key not in (*_NOT_OF_THE_NETWORK, *_LABELS)}
    return {**own, "model_type": (tower or config).model_type}


def _config(content: Mapping[str, Any], encoder: str) -> Any:
    transformers = _library()
    kind = content.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        remote = " It brings code of its own, which is never run." if "auto_map" in content else ""
        raise EncoderError(
            f"Encoder {encoder}: transformers {transformers.__version__} has no network of model_type {kind!r}.{remote}"
        )
    try:
        return transformers.CONFIG_MAPPING[kind].from_dict(dict(content))
    except Exception as error:  # the library validates with errors of several kinds
        raise EncoderError(
            f"Encoder {encoder}: its config.json is not one of a {kind} ({_first_line(error)})."
        ) from error


def make_network(settings: Mapping[str, Any], encoder: str) -> Any:
    """Return the network of `tower_settings`, untrained.

    Raises:
        EncoderError: transformers has no network for images of this kind.
    """
    config = _config(settings, encoder)
    if config.model_type == "vit_mae":
        config.mask_ratio = 0.0  # an encoder sees every patch
    try:
        with _silence():
            return _library().AutoModel.from_config(config)
    except (ValueError, ImportError, KeyError) as error:
        raise EncoderError(
            f"Encoder {encoder}: transformers makes no network of a {config.model_type} ({_first_line(error)})."
        ) from error


class TransformersNetwork(Backbone):
    """A network of transformers: its tokens or maps, and what it calls `pooler_output`.

    Attributes:
        model: the network.
        n_prefix_tokens: tokens before the patches.
    """

    def __init__(self, model: Any, encoder: str, n_prefix_tokens: int) -> None:
        super().__init__()
        self.model, self.encoder, self.n_prefix_tokens = model, encoder, n_prefix_tokens
        self._missing_pooler: list[str] = []
        self._can_interpolate = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters

    def outputs(self, pixels: Tensor, with_layers: bool = False) -> Any:
        """Return what the network gives for `pixels` (batch, 3, height, width)."""
        arguments: dict[str, Any] = {"output_hidden_states": True} if with_layers else {}
        if self._can_interpolate and pixels.shape[-1] != native_px(self.model.config):
            arguments["interpolate_pos_encoding"] = True
        if self.model.config.model_type == "vit_mae":
            # It shuffles patches by this noise even where it hides none: sorted noise keeps their order.
            n_patches = (pixels.shape[-1] // self.model.config.patch_size) ** 2
            arguments["noise"] = torch.arange(n_patches, device=pixels.device).float().repeat(len(pixels), 1)
        return self.model(pixel_values=pixels, **arguments)

    def vectors(self, pixels: Tensor, pooling: Pooling) -> Tensor:
        """Pool the tokens or the last map; averages are taken in fp32 whatever the network runs in."""
        output = self.outputs(pixels)
        return torch.cat([self._pooled(output, part) for part in pooling.split("+")], dim=1)

    def _pooled(self, output: Any, part: str) -> Tensor:
        if part == "pooler":
            pooled: Tensor = output.pooler_output
            return pooled.flatten(1).float()
        last: Tensor = output.last_hidden_state
        if part == "avg":
            return last.float().mean((2, 3))
        return last[:, 0].float() if part == "cls" else last[:, self.n_prefix_tokens :].float().mean(1)

    def maps(self, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return what transformers calls `hidden_states` after each of `layers` (from 0), prefix tokens removed."""
        output = self.outputs(pixels, with_layers=True)
        hidden = getattr(output, "reshaped_hidden_states", None) or output.hidden_states
        return [_as_map(hidden[layer + 1], self.n_prefix_tokens) for layer in layers]

    def take_weights(self, state: Mapping[str, Tensor], path: Path) -> None:
        """Put the tensors of a checkpoint in; names of older versions and of whole models are understood.

        Raises:
            WeightsError: the checkpoint is of another network; the first names that are missing are given.
        """
        kind = type(self.model)
        try:
            with _silence():
                self.model, told = kind.from_pretrained(
                    None, config=self.model.config, state_dict=dict(state), output_loading_info=True,
                    dtype=torch.float32,
                )  # fmt: skip
        except (RuntimeError, ValueError, KeyError) as error:
            raise WeightsError(self._unfitting(path, _first_line(error))) from error
        missing = sorted(key for key in told["missing_keys"] if not key.endswith(_MAY_BE_MISSING))
        self._missing_pooler = [key for key in missing if "pooler." in key]
        needed = [key for key in missing if key not in self._missing_pooler]
        if needed:
            unknown = ", ".join(sorted(told["unexpected_keys"])[:_N_NAMED])
            extra = f"\nUnknown to the encoder ({len(told['unexpected_keys'])}): {unknown}" if unknown else ""
            names = ", ".join(needed[:_N_NAMED])
            raise WeightsError(self._unfitting(path, f"missing in the file ({len(needed)}): {names}{extra}"))

    def _unfitting(self, path: Path, reason: str) -> str:
        kind = type(self.model).__name__
        return f"Loading weights {path} for {self.encoder}: the file is not of this {kind}: {reason}"

    def require_pooling(self, pooling: str) -> None:
        """Check that the weights hold the pooler, if it is asked for.

        Raises:
            WeightsError: they do not: transformers would draw it at random.
        """
        if pooling == "pooler" and self._missing_pooler:
            raise WeightsError(
                f"Encoder {self.encoder}: its weights hold no pooler ({self._missing_pooler[0]} is missing). "
                "Choose another with --pooling."
            )


def native_px(config: Any) -> int | None:
    """Return the side of the images that the position table is for, or None where there is none."""
    size = getattr(config, "image_size", None)
    return int(size[0]) if isinstance(size, list | tuple) else None if size is None else int(size)


def _as_map(hidden: Tensor, n_prefix_tokens: int) -> Tensor:
    """Return (batch, channels, height, width) for tokens, or for maps with channels first or last."""
    if hidden.ndim == 4:
        return hidden if hidden.shape[2] == hidden.shape[3] else hidden.permute(0, 3, 1, 2)
    patches = hidden[:, n_prefix_tokens:]
    side = round(patches.shape[1] ** 0.5)
    return patches.transpose(1, 2).reshape(len(hidden), -1, side, side)


def _library() -> Any:
    """Return transformers, of which only some functions are typed."""
    return importlib.import_module("transformers")


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the library's reports of loading to itself: what matters in them is raised."""
    logging = _library().utils.logging
    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
