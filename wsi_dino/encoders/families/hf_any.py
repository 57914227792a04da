"""Any vision network of the transformers library: ``hf/REPO`` of the hub or ``hf/FOLDER`` (extra ``transformers``).

The record is made from ``config.json`` and ``preprocessor_config.json``, which lie in the folder, in the
hub's cache or on the hub, as weights do. Code that a repository brings is never run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_dino.encoders.extras import require_extra
from wsi_dino.encoders.pixel_settings import PixelSettings, read_pixel_settings
from wsi_dino.encoders.record import EncoderSpec, Pooling
from wsi_dino.encoders.transformers_files import CONFIG_FILE, NetworkFiles, joint_sha256, read_json, weights_files
from wsi_dino.errors import EncoderError, WeightsError

if TYPE_CHECKING:
    from wsi_dino.encoders.backbone import Backbone
    from wsi_dino.encoders.hub import Progress
    from wsi_dino.encoders.transformers_backbone import TransformersNetwork
    from wsi_dino.encoders.weights import WeightsFile

RECORDS: tuple[EncoderSpec, ...] = ()
NAME_PREFIX = "hf/"

_PREPARATION_FILES = ("preprocessor_config.json", "processor_config.json")
_INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_DEFAULT_INPUT_PX = 224


def make_record(name: str) -> EncoderSpec:
    """Return the record of ``hf/REPO`` or ``hf/FOLDER``; see `make_record_near`."""
    return make_record_near(name, ())


def make_record_near(name: str, near: Sequence[Path]) -> EncoderSpec:
    """Return the record of ``hf/REPO`` or ``hf/FOLDER``; builds the network without memory.

    Args:
        name: of the encoder.
        near: files and folders of weights that the user named; looked at first.

    Raises:
        WeightsError: a file of the network is missing or wrong.
        HubError: the hub does not give a file.
        EncoderError: transformers is not installed, or has no such network of images.
    """
    _require_library(name)
    from wsi_dino.encoders.transformers_backbone import tower_settings

    files = NetworkFiles.of(name, name.removeprefix(NAME_PREFIX), near)
    config = files.require(CONFIG_FILE)
    if not files.is_local:
        files = NetworkFiles(name, files.repository, weights=files.weights, revision=config.parent.name)
    settings = tower_settings(read_json(config, name), name)
    pixels = _pixel_settings(files)
    return _record(files, settings, pixels)


def _require_library(name: str) -> None:
    from wsi_dino.encoders.torchvision_guard import ensure_torchvision

    ensure_torchvision()
    require_extra("transformers", "transformers", name)


def _pixel_settings(files: NetworkFiles) -> PixelSettings:
    try:
        path = files.require(*_PREPARATION_FILES)
    except WeightsError as error:
        if not files.is_local and getattr(error, "kind", "") != "no-file":
            raise
        raise WeightsError(
            f"Encoder {files.encoder}: {files.repository} has no {_PREPARATION_FILES[0]}, so that mean and deviation "
            "of its pixels are not known. Copy the repository to a folder, put one there, and give hf/FOLDER."
        ) from error
    return read_pixel_settings(read_json(path, files.encoder), files.encoder, path.name)


def _record(files: NetworkFiles, settings: dict[str, Any], pixels: PixelSettings) -> EncoderSpec:
    from wsi_dino.encoders.transformers_probe import probe

    seen = probe(settings, pixels.input_px, files.encoder, _DEFAULT_INPUT_PX)
    pooling: Pooling = seen.default_pooling
    found = files.weights or files.find("model.safetensors", "pytorch_model.bin")
    return EncoderSpec(
        name=files.encoder,
        family="hf_any",
        architecture=settings["model_type"],
        architecture_options={"config": settings},
        embed_dim=seen.dims[pooling],
        input_px=seen.input_px,
        input_multiple_px=seen.input_multiple_px,
        crop_fraction=pixels.crop_fraction,
        patch_size=seen.patch_size,
        n_prefix_tokens=seen.n_prefix_tokens,
        mean=pixels.mean,
        std=pixels.std,
        interpolation=pixels.interpolation,
        pooling=pooling,
        poolings=tuple(seen.dims),
        pooling_dims={name: dim for name, dim in seen.dims.items() if name != pooling},
        feature_layers=seen.feature_layers,
        source=f"folder:{files.folders[0].as_posix()}" if files.is_local else files.repository,
        revision=files.revision,
        weights_file=found.name if found else "model.safetensors",
        precisions=("fp32", "bf16"),
        parameters_m=seen.parameters_m,
        licence="unknown: see the page of the weights",
        licence_url="" if files.is_local else f"https://huggingface.co/{files.repository}",
        notes="Record made from the network's own configuration.",
    )


def build(record: EncoderSpec) -> Backbone:
    """Return the network without weights."""
    return _network(record)


def _network(record: EncoderSpec) -> TransformersNetwork:
    _require_library(record.name)
    from wsi_dino.encoders.transformers_backbone import TransformersNetwork, make_network

    model = make_network(record.architecture_options["config"], record.name)
    return TransformersNetwork(model, record.name, record.n_prefix_tokens)


def load(record: EncoderSpec, weights: Path | None, weights_dir: Path | None) -> tuple[Backbone, str, str]:
    """Return the network with its weights, their SHA-256 and their source.

    Raises:
        WeightsError: there are none, or they are not of this network.
        HubError: the hub does not give them.
    """
    found = weights_files(_files(record, weights, weights_dir))
    sha256 = joint_sha256(record, found)
    from wsi_dino.encoders.checkpoint import read_checkpoint

    network = _network(record)
    state = {key: tensor for one in found for key, tensor in read_checkpoint(one.path).items()}
    network.take_weights(state, found[0].path)
    # A second run finds in the cache what the first fetched: both must write the same.
    return network, sha256, "hub" if found[0].source == "cache" else found[0].source


def _files(record: EncoderSpec, weights: Path | None, weights_dir: Path | None) -> NetworkFiles:
    for option, path in (("--weights", weights), ("--weights-dir", weights_dir)):
        if path is not None and not path.exists():
            raise WeightsError(f"Loading {record.name}: {option} {path} is not there. Check the path.")
    near = [path for path in (weights, weights_dir) if path is not None]
    return NetworkFiles.of(record.name, record.name.removeprefix(NAME_PREFIX), near, record.revision)


def find_files(record: EncoderSpec, weights: Path | None, weights_dir: Path | None) -> tuple[WeightsFile, ...]:
    """Return weights, configuration and preparation where all of them are on this machine, or nothing."""
    from wsi_dino.encoders.hub import without_network

    files = _files(record, weights, weights_dir)
    try:
        with without_network():
            return _with_settings(files)
    except WeightsError:
        return ()


def fetch_files(record: EncoderSpec, progress: Progress | None = None) -> tuple[WeightsFile, ...]:
    """Return weights, configuration and preparation, from the hub as far as they are not here."""
    return _with_settings(_files(record, None, None))


def _with_settings(files: NetworkFiles) -> tuple[WeightsFile, ...]:
    from wsi_dino.encoders.hub import published_sha256
    from wsi_dino.encoders.weights import WeightsFile

    found = weights_files(files)
    beside = [files.require(CONFIG_FILE), files.require(*_PREPARATION_FILES)]
    if len(found) > 1:
        beside.append(files.require(*_INDEX_FILES))
    source, revision = found[0].source, found[0].revision
    return *found, *(WeightsFile(path, source, revision, published_sha256(path)) for path in beside)


def convert(state: dict[str, Any], record: EncoderSpec) -> dict[str, Any]:
    """Refuse: tensors are renamed by transformers itself when they are loaded."""
    raise EncoderError(f"Encoder {record.name}: its weights are loaded by transformers alone.")
