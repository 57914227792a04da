"""Networks that take a volume: listed because the paper compares with them, run by nothing here."""

from __future__ import annotations

from typing import Any, NoReturn

from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.errors import EncoderError

_SHARED: dict[str, Any] = {
    "family": "volumes", "dimensions": 3, "pooling": "output", "poolings": ("output",),
    # They normalise Hounsfield units in ways of their own. `embed_dim` is 0 where no vector is known of.
    "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0),
}  # fmt: skip
RECORDS = (
    EncoderSpec(
        name="ct-clip",
        architecture="CT-ViT, trained with a text encoder",
        embed_dim=512,
        input_px=480,
        takes="a chest CT resampled to 480 x 480 x 240 voxels, one grey channel",
        source="https://huggingface.co/datasets/ibrahimhamamci/CT-RATE",
        weights_file="models/CT_CLIP_zeroshot.pt",
        parameters_m=86.0,
        licence="CC-BY-NC-SA-4.0",
        licence_url="https://github.com/ibrahimethemhamamci/CT-CLIP",
        obligations=("Non-commercial use only.", "Give credit to the authors.", "Share alike."),
        gated=True,
        paper="CT-CLIP",
        training_data="CT-RATE: 50,188 chest CT volumes with reports (contrastive, text)",
        notes="Its published numbers stand in the paper's Table 5 (CT-RATE: AUC 0.731) beside DINOv3's; they are "
        "quoted in comparisons, not measured here. Parameters as in the paper's Table 1.",
        **_SHARED,
    ),
    EncoderSpec(
        name="ct-net",
        architecture="ResNet-18 over slices, then 3D convolutions",
        embed_dim=0,
        input_px=420,
        takes="a whole chest CT: 402 slices of 420 x 420 px, three to an image of three channels",
        source="https://github.com/rachellea/ct-net-models",
        is_public=False,
        licence="MIT (the code)",
        licence_url="https://github.com/rachellea/ct-net-models",
        paper="CT-Net",
        training_data="36,316 chest CT volumes (RAD-ChestCT), supervised; for CT-RATE trained anew by others",
        notes="Code is public, trained weights are not. Its published numbers stand in the paper's Table 5 (CT-RATE: "
        "AUC 0.629); they are quoted in comparisons, not measured here.",
        **_SHARED,
    ),
    EncoderSpec(
        name="voco",
        architecture="SwinUNETR",
        embed_dim=0,
        input_px=96,
        takes="CT volumes in blocks of 96 x 96 x 96 voxels, one grey channel",
        source="Luffy503/VoCo",
        weights_file="VoComni_B.pt",
        parameters_m=72.0,
        licence="Apache-2.0",
        licence_url="https://huggingface.co/Luffy503/VoCo",
        paper="VoCo",
        training_data="PreCT-160K: 160,000 CT volumes of head, abdomen and chest, self-supervised",
        notes="In the paper's Table 1 only: none of its result tables has numbers of it.",
        **_SHARED,
    ),
)


def build(record: EncoderSpec) -> NoReturn:
    """Refuse: there is no network here.

    Raises:
        EncoderError: always.
    """
    raise EncoderError(f"Encoder {record.name}: there is no network of it here, it is listed for comparison only.")
