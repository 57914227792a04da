"""DINOv2 (Oquab et al. 2023), with and without registers (Darcet et al. 2023), patch 14."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.encoders.tensor_names import (
    Rules,
    from_transformers,
    is_of_transformers,
    renamed_key,
    with_class_position_folded,
)

if TYPE_CHECKING:
    from torch import Tensor

    from wsi_dino.encoders.backbone import Backbone

_SHARED: dict[str, Any] = {
    "family": "dinov2",
    # The position table of the checkpoints is that of 518 px; other sizes resample it.
    "architecture_options": {"dynamic_img_size": True},
    "input_multiple_px": 14,
    "patch_size": 14,
    "pooling": "cls",
    "poolings": ("cls", "mean", "cls+mean"),
    "licence": "Apache-2.0",
    "licence_url": "https://github.com/facebookresearch/dinov2/blob/main/LICENSE",
    "training_data": "LVD-142M: 142M curated web images, self-supervised",
}
_NOTES = (
    "The last training steps were at 518 px. --weights takes timm's, Meta's and transformers' files. "
    "Position tables are resampled as the transformers library does, {how} smoothing."
)
# size letter: timm's word, embed_dim, millions of parameters, layers for multi-scale maps
_SIZES: dict[str, tuple[str, int, float, tuple[int, ...]]] = {
    "s": ("small", 384, 22.1, (2, 5, 8, 11)),
    "b": ("base", 768, 86.6, (2, 5, 8, 11)),
    "l": ("large", 1024, 304.4, (4, 11, 17, 23)),
    "g": ("giant", 1536, 1136.5, (9, 19, 29, 39)),
}
_REVISIONS = {
    "dinov2-b": "1dc7cda4727a9f4baa37f3ef407928dd642d0149",
    "dinov2-l": "7eb792a1b3aabe5d55f3da6ff9e2e084744e25f9",
    "dinov2-g": "871560b601972c6d7c2a08a2c6e4f2c83c840432",
    "dinov2-s-reg": "788f50961a4cf5d639e54a0f3c30e17476d346fc",
    "dinov2-b-reg": "32195f3ad637569d156f54ce12e0629f651f669a",
    "dinov2-l-reg": "7626c8e2d0172194c8ed40aebf683adbb46a5f93",
}


def _record(letter: str, n_registers: int) -> EncoderSpec:
    word, embed_dim, parameters_m, layers = _SIZES[letter]
    name = f"dinov2-{letter}" + ("-reg" if n_registers else "")
    architecture = f"vit_{word}_patch14_{'reg4_' if n_registers else ''}dinov2.lvd142m"
    return EncoderSpec(
        name=name,
        architecture=architecture,
        embed_dim=embed_dim,
        n_prefix_tokens=1 + n_registers,
        feature_layers=layers,
        source=f"timm/{architecture}",
        revision=_REVISIONS.get(name),
        parameters_m=parameters_m,
        notes=_NOTES.format(how="with" if n_registers else "without"),
        **_SHARED,
    )


RECORDS = tuple(_record(letter, n_registers) for n_registers in (0, 4) for letter in _SIZES)


def build(record: EncoderSpec) -> Backbone:
    """Return the network without weights."""
    from wsi_dino.encoders.backbone import TimmVit
    from wsi_dino.encoders.position_table import PlainTableVit

    return TimmVit.create(record) if record.n_prefix_tokens > 1 else PlainTableVit.create(record)


# The giants' gated layers, packed into one product for gate and value.
_META: Rules = (
    (r"^register_tokens$", "reg_token"),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)


def convert(state: dict[str, Tensor], record: EncoderSpec) -> dict[str, Tensor]:
    """Rename Meta's or transformers' tensors to timm's; timm's own pass unchanged."""
    if is_of_transformers(state):
        renamed, has_class_position = from_transformers(state), True
    else:
        renamed = {renamed_key(key, _META): tensor for key, tensor in state.items() if key != "mask_token"}
        has_class_position = "register_tokens" in state
    # timm's networks with registers keep no position for CLS.
    return with_class_position_folded(renamed) if has_class_position and record.n_prefix_tokens > 1 else renamed
