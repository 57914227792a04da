"""The image tower of any architecture of open_clip: ``openclip/NAME`` or ``openclip/NAME:TAG`` (extra ``openclip``).

The record is made from open_clip's own configuration; TAG is one of its names for pretrained weights, which
its table maps to a repository of the hub. Nothing is downloaded to make a record or an untrained network.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_dino.encoders.extras import require_extra
from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.errors import EncoderError, HubError, UnknownEncoderError, WeightsError, nearest_name

if TYPE_CHECKING:
    from torch import Tensor

    from wsi_dino.encoders.backbone import Backbone
    from wsi_dino.encoders.hub import Progress
    from wsi_dino.encoders.open_clip_tower import OpenClipTower
    from wsi_dino.encoders.weights import WeightsFile

RECORDS: tuple[EncoderSpec, ...] = ()
NAME_PREFIX = "openclip/"

# open_clip's names for the file in a repository: the first is in all of them, the second is preferred.
_DEFAULT_FILE, _SAFE_FILE = "open_clip_pytorch_model.bin", "open_clip_model.safetensors"
_OPENAI_MEAN, _OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def make_record(name: str) -> EncoderSpec:
    """Return the record of ``openclip/NAME`` or ``openclip/NAME:TAG``; builds the tower without memory.

    Raises:
        UnknownEncoderError: open_clip has no such architecture, or no such weights for it.
        EncoderError: open_clip is not installed, or the tower does not take square images.
    """
    library = _library(name)
    architecture, _, tag = name.removeprefix(NAME_PREFIX).partition(":")
    settings = _architecture(library, architecture, name)
    pretrained = _pretrained(library, architecture, tag, name)
    # The activation that the weights were trained with decides; open_clip itself only warns.
    quick_gelu = bool(pretrained.get("quick_gelu", False) if tag else settings.get("quick_gelu", False))
    options = {"quick_gelu": quick_gelu, "tag": tag}
    tower = _weightless(architecture, settings, quick_gelu)
    repository, _, file = _hub_place(pretrained)
    return EncoderSpec(
        name=name,
        family="openclip",
        architecture=architecture,
        architecture_options=options,
        embed_dim=int(settings["embed_dim"]),
        input_px=_input_px(tower, name),
        input_multiple_px=tower.patch_size if tower.takes_other_sizes else None,
        patch_size=tower.patch_size,
        n_prefix_tokens=tower.n_prefix_tokens,
        mean=tuple(pretrained.get("mean") or _OPENAI_MEAN),
        std=tuple(pretrained.get("std") or _OPENAI_STD),
        interpolation="bilinear" if pretrained.get("interpolation") == "bilinear" else "bicubic",
        pooling="projected",
        poolings=tower.poolings,
        pooling_dims={p: tower.token_dim * len(p.split("+")) for p in tower.poolings if p != "projected"},
        feature_layers=_feature_layers(tower),
        source=repository or "open_clip",
        weights_file=file or _DEFAULT_FILE,
        parameters_m=round(sum(p.numel() for p in tower.parameters()) / 1e6, 1),
        licence="unknown: see the page of the weights",
        licence_url=f"https://huggingface.co/{repository}" if repository else "",
        notes=_notes(library, architecture, tag),
    )


def _library(name: str) -> Any:
    from wsi_dino.encoders.torchvision_guard import ensure_torchvision

    ensure_torchvision()
    return require_extra("open_clip", "openclip", name)


def _architecture(library: Any, architecture: str, name: str) -> dict[str, Any]:
    settings = library.get_model_config(architecture)
    if settings is None or "vision_cfg" not in settings:
        raise UnknownEncoderError(
            f"Encoder {name}: open_clip {library.__version__} has no architecture {architecture!r}."
            f"{nearest_name(architecture, library.list_models())} "
            "`python -c 'import open_clip; print(open_clip.list_models())'` lists them."
        )
    return dict(settings)


def _pretrained(library: Any, architecture: str, tag: str, name: str) -> dict[str, Any]:
    if not tag:
        return {}
    tags = library.list_pretrained_tags_by_model(architecture)
    if tag not in tags:
        known = f"Known are {', '.join(tags)}." if tags else "open_clip names none for it; give --weights FILE."
        raise UnknownEncoderError(
            f"Encoder {name}: open_clip has no weights {tag!r} for {architecture}.{nearest_name(tag, tags)} {known}"
        )
    return dict(library.pretrained.get_pretrained_cfg(architecture, tag))


def _hub_place(pretrained: dict[str, Any]) -> tuple[str, str, str]:
    """Split ``OWNER/NAME/FILE`` of open_clip's table; without FILE the repository has the default one."""
    owner, _, rest = str(pretrained.get("hf_hub") or "").partition("/")
    repository, slash, file = rest.partition("/")
    return (f"{owner}/{repository}" if repository else "", slash, file)


def _weightless(architecture: str, settings: dict[str, Any], quick_gelu: bool) -> OpenClipTower:
    import torch

    from wsi_dino.encoders.open_clip_tower import backbone_of, make_tower

    with torch.device("meta"):
        return backbone_of(make_tower(settings["embed_dim"], settings["vision_cfg"], quick_gelu))


def _input_px(tower: OpenClipTower, name: str) -> int:
    size = tower.model.image_size
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if sides[0] != sides[1]:
        raise EncoderError(f"Encoder {name}: expected a tower of square images, got one of {sides[0]} x {sides[1]} px.")
    return int(sides[0])


def _feature_layers(tower: OpenClipTower) -> tuple[int, ...]:
    if tower.patch_size is None:
        return tuple(range(max(tower.depth - 4, 0), tower.depth))
    return tuple(sorted({max(round(tower.depth * part / 4) - 1, 0) for part in (1, 2, 3, 4)}))


def _notes(library: Any, architecture: str, tag: str) -> str:
    made = "Record made from open_clip's own configuration; vectors are not normalised to length one."
    tags = library.list_pretrained_tags_by_model(architecture)
    if tag or not tags:
        return made
    return f"{made} No weights are named: write openclip/{architecture}:TAG, TAG one of {', '.join(tags)}."


def build(record: EncoderSpec) -> Backbone:
    """Return the tower without weights."""
    from wsi_dino.encoders.open_clip_tower import backbone_of, make_tower

    settings = _architecture(_library(record.name), record.architecture, record.name)
    quick_gelu = bool(record.architecture_options["quick_gelu"])
    return backbone_of(make_tower(settings["embed_dim"], settings["vision_cfg"], quick_gelu))


def convert(state: dict[str, Tensor], record: EncoderSpec) -> dict[str, Tensor]:
    """Keep the image tower of a checkpoint of both; one of the tower alone passes unchanged."""
    if not any(key.startswith("visual.") for key in state):
        return state
    return {f"model.{key.removeprefix('visual.')}": state[key] for key in state if key.startswith("visual.")}


def locate(record: EncoderSpec, weights: Path | None, weights_dir: Path | None) -> WeightsFile:
    """Return the weights, under either of the names that they have in repositories of open_clip.

    Raises:
        WeightsError: there are none, or the name of the encoder does not say which are meant.
        HubError: the hub does not give them.
    """
    return (find_files(record, weights, weights_dir) or fetch_files(record))[0]


def find_files(record: EncoderSpec, weights: Path | None, weights_dir: Path | None) -> tuple[WeightsFile, ...]:
    """Return the weights that are on this machine, under either of their names, or nothing."""
    from wsi_dino.encoders.weights import find_weights

    for one in _under_each_name(record):
        found = find_weights(one, weights=weights, weights_dir=weights_dir)
        if found is not None:
            return (found,)
    return ()


def fetch_files(record: EncoderSpec, progress: Progress | None = None) -> tuple[WeightsFile, ...]:
    """Return the weights from the hub, under whichever of their names it has them."""
    from wsi_dino.encoders.weights import fetch_weights

    if not record.architecture_options["tag"]:
        raise WeightsError(f"Loading {record.name}: no weights are given. {record.notes} Or give --weights FILE.")
    first, *others = _under_each_name(record)
    try:
        return (fetch_weights(first, progress),)
    except HubError as error:
        if error.kind != "no-file" or not others:
            raise
        return (fetch_weights(others[0], progress),)


def _under_each_name(record: EncoderSpec) -> list[EncoderSpec]:
    return [record.model_copy(update={"weights_file": file}) for file in _file_names(record)]


def _file_names(record: EncoderSpec) -> tuple[str, ...]:
    if record.weights_file == _DEFAULT_FILE:
        return _SAFE_FILE, _DEFAULT_FILE
    return (record.weights_file,)
