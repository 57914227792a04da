"""H-optimus-0 and H-optimus-1 (Bioptimus): DINOv2's giant with registers, trained on histology."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wsi_dino.encoders.record import EncoderSpec

if TYPE_CHECKING:
    from wsi_dino.encoders.backbone import Backbone

_SHARED: dict[str, Any] = {
    "family": "hoptimus",
    "architecture": "vit_giant_patch14_reg4_dinov2",
    "architecture_options": {"img_size": 224, "dynamic_img_size": True},
    "embed_dim": 1536,
    "input_multiple_px": 14,
    "patch_size": 14,
    "n_prefix_tokens": 5,
    "mean": (0.707223, 0.578729, 0.703617),
    "std": (0.211883, 0.230117, 0.177517),
    "pooling": "cls",
    "poolings": ("cls", "mean", "cls+mean"),
    "feature_layers": (9, 19, 29, 39),
    "weights_file": "pytorch_model.bin",
    "parameters_m": 1134.8,
    "gated": True,
}
RECORDS = (
    EncoderSpec(
        name="h-optimus-0",
        source="bioptimus/H-optimus-0",
        revision="7bb31657b49434acc78732d9e2f393b846619393",
        licence="Apache-2.0",
        licence_url="https://huggingface.co/bioptimus/H-optimus-0",
        training_data="more than 500,000 H&E slides, self-supervised",
        notes="Made for tiles of 224 px at 0.5 um/px.",
        **_SHARED,
    ),
    EncoderSpec(
        name="h-optimus-1",
        source="bioptimus/H-optimus-1",
        revision="3592cb220dec7a150c5d7813fb56e68bd57473b9",
        licence="CC-BY-NC-ND-4.0",
        licence_url="https://huggingface.co/bioptimus/H-optimus-1",
        obligations=(
            "Non-commercial, academic research only; that includes models trained on its outputs.",
            "Give credit to the authors.",
            "Do not pass on the weights: each user registers.",
        ),
        training_data="histology slides, self-supervised",
        notes="The terms must be accepted on the page before the weights can be fetched.",
        **_SHARED,
    ),
)


def build(record: EncoderSpec) -> Backbone:
    """Return the network without weights."""
    from wsi_dino.encoders.backbone import TimmVit

    return TimmVit.create(record)
