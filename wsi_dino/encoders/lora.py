"""Low-rank adapters in a network: put in for training by PEFT, merged into the weights for inference. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsi_dino.encoders.adapter import Adapter, AdapterSpec, Target
from wsi_dino.encoders.backbone import Backbone
from wsi_dino.encoders.extras import require_extra
from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.encoders.split_attention import split_attentions
from wsi_dino.encoders.torchvision_guard import ensure_torchvision
from wsi_dino.errors import EncoderError, WeightsError

_PREFIX = "base_model.model."  # as PEFT names the tensors of an adapter on a plain torch module
_WITHIN: dict[Target, frozenset[str]] = {
    "attention": frozenset({"attn", "attention", "self_attn"}),
    "mlp": frozenset({"mlp", "ffn", "intermediate"}),
}


def lora_modules(backbone: Backbone, record: EncoderSpec, targets: Sequence[Target]) -> tuple[str, ...]:
    """Return the names of the linear layers that an adapter changes, in the order of the network.

    They are known by where they lie: below a module named like an attention or an MLP of timm's and
    transformers' networks (``blocks.0.attn.qkv``, ``layers.3.self_attn.q_proj``).

    Raises:
        EncoderError: the network has none, as convolutional ones.
    """
    wanted = frozenset().union(*(_WITHIN[target] for target in targets))
    opaque = [name for name, module in backbone.named_modules() if isinstance(module, nn.MultiheadAttention)]
    found = tuple(
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and wanted & set(name.split(".")[:-1]) and not _lies_below(name, opaque)
    )
    if not found:
        raise EncoderError(_why_none(backbone, record, targets))
    return found


def _lies_below(name: str, parents: Sequence[str]) -> bool:
    return any(name.startswith(f"{parent}.") for parent in parents)


def _why_none(backbone: Backbone, record: EncoderSpec, targets: Sequence[Target]) -> str:
    if backbone.is_convolutional or any(isinstance(module, nn.Conv2d) for module in backbone.modules()):
        why = (
            f"its network ({record.architecture}) has no {' or '.join(targets)} layer. LoRA is for vision "
            "transformers, a convolutional encoder has none: choose a ViT such as dinov3-s"
        )
    else:
        why = f"its network ({record.architecture}) shows no linear layer of torch: choose a ViT such as dinov3-s"
    return f"Adapting {record.name}: {why}."


def add_adapter(backbone: Backbone, record: EncoderSpec, spec: AdapterSpec, *, seed: int = 0) -> tuple[str, ...]:
    """Put an untrained adapter into `backbone`, in place; all other parameters are frozen.

    Before the first step the network computes what it did: ``B`` is zero.

    Args:
        backbone: with its weights, not prepared for inference.
        record: of the encoder.
        spec: how the adapter is built.
        seed: of ``A``.

    Returns:
        Names of the layers that it changes.

    Raises:
        EncoderError: the network has no such layer, or ``peft`` is not installed.
    """
    ensure_torchvision()  # peft imports transformers, which imports torchvision
    peft = require_extra("peft", "lora", f"{record.name}, to be adapted")
    split_attentions(backbone)
    modules = lora_modules(backbone, record, spec.targets)
    for module in backbone.modules():
        # BEiT's and EVA's attention passes over the layer itself to add its biases, and with it over the adapter.
        if hasattr(module, "qkv_bias_separate"):
            module.qkv_bias_separate = True  # type: ignore[assignment]
    config = peft.LoraConfig(
        r=spec.rank, lora_alpha=spec.alpha, lora_dropout=spec.dropout, target_modules=list(modules), bias="none"
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone.requires_grad_(False)
        peft.inject_adapter_in_model(config, backbone)
    return modules


def adapter_parameters(backbone: Backbone) -> dict[str, nn.Parameter]:
    """Return the adapter's parameters by their names in the network."""
    return {name: value for name, value in backbone.named_parameters() if ".lora_A." in name or ".lora_B." in name}


def adapter_tensors(backbone: Backbone) -> dict[str, Tensor]:
    """Return a copy of the adapter's parameters on the CPU, by the names under which they are saved."""
    return {
        _PREFIX + name.replace(".default.", "."): value.detach().cpu().clone()
        for name, value in adapter_parameters(backbone).items()
    }


def merge_adapter(backbone: Backbone, adapter: Adapter) -> None:
    """Add the adapter to the weights of `backbone`, in place: the same network with other values.

    Needs no PEFT; what the merged network computes equals the adapted one within rounding.

    Raises:
        WeightsError: a tensor is missing, unknown or of another shape.
    """
    split_attentions(backbone)
    tensors = adapter.tensors()
    for name in adapter.record.modules:
        down, up = (tensors.pop(f"{_PREFIX}{name}.{part}.weight", None) for part in ("lora_A", "lora_B"))
        layer = _linear(backbone, name)
        if down is None or up is None or layer is None or _shape(up, down) != tuple(layer.weight.shape):
            raise WeightsError(
                f"Merging the adapter {adapter.folder}: its tensors for {name} are missing or do not fit "
                f"{adapter.record.encoder}. Copy the folder again."
            )
        product = up.double() @ down.double() * adapter.record.spec.scale
        layer.weight.data.add_(product.to(layer.weight))
    if tensors:
        raise WeightsError(f"Merging the adapter {adapter.folder}: unknown tensor {min(tensors)}. Copy it again.")


def _linear(backbone: Backbone, name: str) -> nn.Linear | None:
    try:
        layer = backbone.get_submodule(name)
    except AttributeError:
        return None
    return layer if isinstance(layer, nn.Linear) else None


def _shape(up: Tensor, down: Tensor) -> tuple[int, ...]:
    return (up.shape[0], down.shape[1]) if up.ndim == down.ndim == 2 and up.shape[1] == down.shape[0] else ()
