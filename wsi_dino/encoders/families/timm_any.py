"""Any model of timm by its own name: ``timm/NAME``; the record is made from timm's configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wsi_dino.encoders.record import EncoderSpec, Pooling
from wsi_dino.errors import UnknownEncoderError, nearest_name

if TYPE_CHECKING:
    from torch import Tensor

    from wsi_dino.encoders.backbone import Backbone

RECORDS: tuple[EncoderSpec, ...] = ()
NAME_PREFIX = "timm/"


def make_record(name: str) -> EncoderSpec:
    """Return the record of ``timm/NAME``; imports timm and builds the network without memory.

    Raises:
        UnknownEncoderError: timm knows no such model; the nearest name is given.
    """
    architecture = name.removeprefix(NAME_PREFIX)
    network = _weightless(architecture)
    settings = network.pretrained_cfg
    patch_size = _patch_size(network)
    pooling, poolings = _poolings(network, patch_size)
    return EncoderSpec(
        name=name,
        family="timm_any",
        architecture=architecture,
        architecture_options={"dynamic_img_size": True} if _takes_any_size(network) else {},
        embed_dim=network.num_features,
        input_px=settings["input_size"][1],
        input_multiple_px=_input_multiple(network, patch_size),
        patch_size=patch_size,
        n_prefix_tokens=getattr(network, "num_prefix_tokens", 0) if patch_size else 0,
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        interpolation="bilinear" if settings.get("interpolation") == "bilinear" else "bicubic",
        pooling=pooling,
        poolings=poolings,
        feature_layers=_feature_layers(network),
        source=settings.get("hf_hub_id") or f"timm/{architecture}",
        parameters_m=round(sum(p.numel() for p in network.parameters()) / 1e6, 1),
        licence=settings.get("license") or "unknown",
        licence_url=f"https://huggingface.co/{settings.get('hf_hub_id') or name}",
        notes="Record made from timm's own configuration.",
    )


def _weightless(architecture: str) -> Any:
    from wsi_dino.encoders.torchvision_guard import ensure_torchvision

    ensure_torchvision()
    import timm
    import torch

    if not timm.is_model(architecture):
        known = timm.list_models() + timm.list_pretrained()
        hint = nearest_name(architecture, known)
        raise UnknownEncoderError(
            f"Encoder timm/{architecture}: timm {timm.__version__} has no model {architecture!r}.{hint} "
            "`python -c 'import timm; print(timm.list_pretrained())'` lists them."
        )
    with torch.device("meta"):
        return timm.create_model(architecture, num_classes=0)


def _patch_size(network: Any) -> int | None:
    """Return the side of a token, or None when the network gives no row of tokens."""
    patch_embed = getattr(network, "patch_embed", None)
    is_flat = hasattr(network, "num_prefix_tokens") and hasattr(network, "blocks")
    return int(patch_embed.patch_size[0]) if is_flat and patch_embed is not None else None


def _poolings(network: Any, patch_size: int | None) -> tuple[Pooling, tuple[Pooling, ...]]:
    if patch_size is None:
        return "avg", ("avg",)
    if network.num_prefix_tokens == 0:
        return "mean", ("mean",)
    default: Pooling = "cls" if getattr(network, "global_pool", "token") == "token" else "mean"
    return default, ("cls", "mean", "cls+mean")


def _takes_any_size(network: Any) -> bool:
    return hasattr(network, "dynamic_img_size")


def _input_multiple(network: Any, patch_size: int | None) -> int | None:
    if patch_size is not None:
        return patch_size if _takes_any_size(network) else None
    return None if network.pretrained_cfg.get("fixed_input_size") else 32


def _feature_layers(network: Any) -> tuple[int, ...]:
    depth = len(network.blocks) if _patch_size(network) else len(network.feature_info)
    return tuple(sorted({max(round(depth * part / 4) - 1, 0) for part in (1, 2, 3, 4)}))


def build(record: EncoderSpec) -> Backbone:
    """Return the network without weights."""
    from wsi_dino.encoders.backbone import TimmCnn, TimmVit

    return TimmVit.create(record) if record.patch_size else TimmCnn.create(record)


def convert(state: dict[str, Tensor], record: EncoderSpec) -> dict[str, Tensor]:
    """Leave out the classifier, whose name timm's configuration tells."""
    import timm

    settings = timm.get_pretrained_cfg(record.architecture)
    classifier = getattr(settings, "classifier", None) or "head"
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return {key: tensor for key, tensor in state.items() if not key.startswith(tuple(f"{n}." for n in names))}
