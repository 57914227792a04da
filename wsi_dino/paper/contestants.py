"""Who stands in the paper's rows: our name for each, whether it can be run here, and if not why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from wsi_dino.errors import HubError, UnknownEncoderError, WeightsError
from wsi_dino.paper.kinds.em import NETWORK
from wsi_dino.paper.kinds.segment import NETWORKS

_ROWS = {
    "BiomedCLIP": "biomedclip", "CT-CLIP": "ct-clip", "CT-Net": "ct-net", "VoCo": "voco", "UNI": "uni",
    "CONCH": "conch", "ResNet50 (ImageNet)": "resnet50", "DINOv3-S": "dinov3-s", "DINOv3-B": "dinov3-b",
    "DINOv3-L": "dinov3-l", "DINOv3-S/16": "dinov3-s", "DINOv3-B/16": "dinov3-b", "DINOv3-L/16": "dinov3-l",
    "MAE-ViT-B/16": "mae-b", "MAE-ViT-L/16": "mae-l", "SimCLR": "simclr", "MoCo-v3": "moco-v3", "SwAV": "swav",
    "BYOL": "byol", "3D U-Net": "monai-unet", "UNet": "monai-unet", "V-Net": "monai-vnet", "VNet": "monai-vnet",
    "UNETR": "monai-unetr", "SwinUNETR": "monai-swinunetr", "Swin UNETR": "monai-swinunetr",
}  # fmt: skip
_KINDS_OF_NETWORK = {**dict.fromkeys(NETWORKS, "segment"), NETWORK: "em"}
_NO_CODE = {
    "nnU-Net": "no code for nnU-Net here: `wsi-dino radiology segment-export` writes its form and our folds",
}


def encoder_of_row(method: str) -> str | None:
    """Return our name of a printed row, or None where no code of ours is like it.

    Examples:
        >>> encoder_of_row("DINOv3-S/16"), encoder_of_row("nnU-Net")
        ('dinov3-s', None)
    """
    return _ROWS.get(method)


def no_code(method: str) -> str:
    """Return why a printed row cannot be run here at all."""
    return _NO_CODE.get(method, f"no code for {method} here")


def is_network(name: str) -> bool:
    """Whether it learns from voxels and has no weights to begin with."""
    return name in _KINDS_OF_NETWORK


def fits(name: str, kind: str) -> bool:
    """Whether an encoder or network belongs to a track."""
    return _KINDS_OF_NETWORK.get(name, kind) == kind


def why_not(name: str, weights: Mapping[str, Path], weights_dir: Path | None) -> str:
    """Return why an encoder cannot be run with what is at hand, or nothing. The network is not asked.

    Raises:
        UnknownEncoderError: there is no such encoder.
        WeightsError: files named by the user are not there.
    """
    if is_network(name):
        return ""
    from wsi_dino.encoders.registry import get_record
    from wsi_dino.encoders.weights_state import weights_state

    try:
        record = get_record(name, near=[path for path in (weights.get(name), weights_dir) if path is not None])
    except HubError as error:
        return f"no weights: {str(error).splitlines()[0]}"
    if record.dimensions == 3:
        return f"{name} takes whole volumes: it is listed, and there is no code to run it"
    if name in weights:
        if not weights[name].is_file():
            raise WeightsError(f"--weights {name}={weights[name]}: there is no such file.")
        return ""
    state = weights_state(record, weights_dir)
    if state.where in ("file", "package", "cache"):
        return ""
    gated = f", gated: accept the terms at {state.terms_page}" if state.is_gated else ""
    first = state.to_do.splitlines()[0] if state.to_do else f"`wsi-dino weights fetch {name}` brings them"
    return f"no weights at hand{gated}; {first}"


def require_known(name: str) -> None:
    """Check a name.

    Raises:
        UnknownEncoderError: there is no such encoder; says which are near.
    """
    if is_network(name):
        return
    from wsi_dino.encoders.registry import get_record

    try:
        get_record(name)
    except UnknownEncoderError as error:
        networks = ", ".join(_KINDS_OF_NETWORK)
        raise UnknownEncoderError(f"{error} Networks that learn from voxels: {networks}.") from error
    except HubError:
        return
