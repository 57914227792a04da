"""From an encoder's name to an encoder that runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_dino.encoders.adapter import Adapter, read_adapter
from wsi_dino.encoders.bundle_manifest import read_manifest
from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.encoders.registry import family_of, get_record
from wsi_dino.encoders.weights import WeightsFile, bundle_folder, locate_weights, verified_sha256
from wsi_dino.errors import EncoderError

if TYPE_CHECKING:
    import torch

    from wsi_dino.encoders.backbone import Backbone
    from wsi_dino.encoders.encoder import Encoder


def load_encoder(
    name: str,
    *,
    pooling: str | None = None,
    input_px: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    runtime: str = "torch",
    weights: Path | None = None,
    weights_dir: Path | None = None,
    random_weights: int | None = None,
    workers: int = 0,
    processes: int = 1,
    adapter: Path | None = None,
    called: str | None = None,
) -> Encoder:
    """Return an encoder with its weights, ready to embed.

    Args:
        name: as in the registry, or ``timm/NAME``.
        pooling: one of the record's; None for its default.
        input_px: side of the square the network sees; None for the record's.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``auto`` (bf16 where the device does it well), ``fp32``, ``bf16``, ``fp16`` or ``int8``.
        runtime: ``torch``, ``torch-compile``, or on a CPU ``openvino`` or ``onnxruntime``. All but the first
            are taken only if their vectors have a cosine of 0.999 to fp32 on generated tiles.
        weights: a checkpoint to use; nothing else is tried.
        weights_dir: folder of checkpoints, tried before cache and hub.
        random_weights: seed of an untrained network, for measuring speed only.
        workers: threads on a CPU; 0 for one a core.
        processes: that share these threads, each taking its part.
        adapter: folder of a LoRA adapter for this encoder and these weights; pooling and size then default
            to those it was trained with.
        called: name of the encoder with its adapter; None for ``NAME+ADAPTER``.

    Raises:
        UnknownEncoderError: no encoder has that name.
        WeightsError: weights are missing, gated, corrupt or of another architecture, or the adapter is of
            another encoder or other weights.
        EncoderError: pooling, size, device, precision or runtime are not to be had, or the runtime's vectors
            are not those of fp32.
    """
    record = get_record(name, near=[path for path in (weights, weights_dir) if path is not None])
    _refuse_volumes(record)
    adapted = None if adapter is None else read_adapter(adapter)
    if adapted is not None:
        pooling, input_px = pooling or adapted.record.pooling, input_px or adapted.record.input_px
    check_choices(record, pooling, input_px)
    from wsi_dino.encoders.choice import RunningChoice
    from wsi_dino.encoders.executors import sharing_processes

    choice = RunningChoice.of(record, device, precision, runtime)
    loaded = load_backbone(record, weights=weights, weights_dir=weights_dir, random_weights=random_weights)
    loaded.backbone.require_pooling(pooling or record.pooling)
    return choice.encoder(
        record if adapted is None else _merge(loaded, adapted, called),
        loaded.backbone,
        pooling=pooling or record.pooling,
        input_px=input_px or record.input_px,
        weights_sha256=loaded.sha256,
        weights_source=loaded.source,
        weights_revision=loaded.revision,
        workers=workers,
        processes=max(processes, sharing_processes()),
        adapter=adapted,
    )


@dataclass(frozen=True)
class LoadedBackbone:
    """A network with its weights, not prepared for inference: adapters are trained on such a one.

    Attributes:
        record: of the encoder.
        backbone: on the CPU, in float32.
        sha256: of the weights' file, or ``"random:SEED"``.
        source: ``"file"``, ``"package"``, ``"hub"`` (also by way of its cache) or ``"random:SEED"``.
        revision: commit of the hub's repository, where it is known.
    """

    record: EncoderSpec
    backbone: Backbone
    sha256: str
    source: str
    revision: str | None = None


def load_backbone(
    record: EncoderSpec,
    *,
    weights: Path | None = None,
    weights_dir: Path | None = None,
    random_weights: int | None = None,
) -> LoadedBackbone:
    """Return the network of `record` with its weights; arguments and errors as for `load_encoder`."""
    if random_weights is None:
        return _trained(record, weights, weights_dir)
    return LoadedBackbone(record, *_untrained(record, random_weights))


def _merge(loaded: LoadedBackbone, adapter: Adapter, called: str | None) -> EncoderSpec:
    """Put `adapter` into the weights; return the record of the encoder that this makes."""
    adapter.require_base(loaded.record, loaded.sha256)
    from wsi_dino.encoders.lora import merge_adapter

    merge_adapter(loaded.backbone, adapter)
    return adapter.adapted(loaded.record, called)


def _refuse_volumes(record: EncoderSpec) -> None:
    if record.dimensions == 3:
        raise EncoderError(
            f"Encoder {record.name}: it takes {record.takes}, not images; it is listed for comparison only. "
            f"{record.notes} Encoders of images see a CT slice by slice, e.g. dinov3-b."
        )


def check_choices(record: EncoderSpec, pooling: str | None, input_px: int | None = None) -> None:
    """Refuse what the record does not allow; None is its default and always allowed.

    Raises:
        EncoderError: the pooling or the input side is not one of the record's.
    """
    if pooling is not None and pooling not in record.poolings:
        raise EncoderError(
            f"Encoder {record.name}: expected a pooling of {', '.join(record.poolings)}, got {pooling!r}."
        )
    if input_px is not None and not record.allows_px(input_px):
        multiple, largest = record.input_multiple_px, record.max_input_px
        others = f" or a multiple of {multiple} px" if multiple else " only"
        others += f" up to {largest} px" if multiple and largest else ""
        raise EncoderError(
            f"Encoder {record.name}: its input side may be {record.input_px} px{others}, got {input_px}."
        )


def _trained(record: EncoderSpec, weights: Path | None, weights_dir: Path | None) -> LoadedBackbone:
    family = family_of(record)
    if hasattr(family, "load"):
        bundled = None if weights is not None else _bundled_revision(record, weights_dir)
        network, sha256, source = family.load(record, weights, weights_dir)
        return LoadedBackbone(record, network, sha256, source, record.revision or bundled)
    if hasattr(family, "locate"):
        found: WeightsFile = family.locate(record, weights, weights_dir)
    else:
        found = locate_weights(record, packaged=packaged_weights(record), weights=weights, weights_dir=weights_dir)
    sha256 = verified_sha256(record, found)
    from wsi_dino.encoders.checkpoint import load_strictly

    backbone, state = network_and_state(record, found.path)
    load_strictly(backbone, state, record.name, found.path)
    # A second run finds in the cache what the first fetched: both must write the same.
    source = "hub" if found.source == "cache" else found.source
    return LoadedBackbone(record, backbone, sha256, source, found.revision)


def _bundled_revision(record: EncoderSpec, weights_dir: Path | None) -> str | None:
    """Return the revision of a bundle of `record` after checking its files, or None where there is no bundle."""
    place = bundle_folder(record, weights_dir)
    manifest = None if place is None else read_manifest(place)
    if place is None or manifest is None:
        return None
    for path, sha256 in manifest.digests(place).items():
        verified_sha256(record, WeightsFile(path, "file", sha256=sha256))
    return manifest.revision


def packaged_weights(record: EncoderSpec) -> Path | None:
    """Return the weights of `record` inside an installed package or beside its plug-in, or None."""
    family = family_of(record)
    found: Path | None = family.packaged_weights(record) if hasattr(family, "packaged_weights") else None
    return found


def network_and_state(
    record: EncoderSpec, path: Path, *, device: str = "cpu"
) -> tuple[Backbone, dict[str, torch.Tensor]]:
    """Return the network that a checkpoint needs, without weights, and the checkpoint under its names.

    Args:
        record: of the encoder.
        path: the checkpoint.
        device: where the network is made; ``"meta"`` makes it without memory.

    Raises:
        WeightsError: the file is truncated or corrupt, holds code or no tensors.
    """
    import torch

    from wsi_dino.encoders.checkpoint import read_checkpoint

    family = family_of(record)
    state = read_checkpoint(path)
    record = family.fitted(record, state) if hasattr(family, "fitted") else record
    with torch.device(device):
        backbone: Backbone = family.build(record)
    own_keys = set(backbone.state_dict())
    if not own_keys.issuperset(state):  # a checkpoint saved from our own network needs no renaming
        state = family.convert(state, record) if hasattr(family, "convert") else state
        state = _under_model(state, own_keys)
    return backbone, state


def _under_model(state: dict, own_keys: set[str]) -> dict:
    """Prefix the tensors of a bare timm network as the backbone that holds it names them."""
    return {key if key in own_keys else f"model.{key}": tensor for key, tensor in state.items()}


def _untrained(record: EncoderSpec, seed: int) -> tuple[Backbone, str, str]:
    import torch

    from wsi_dino.encoders.seeded_weights import fill

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone: Backbone = family_of(record).build(record)
    # torch starts the scales of layers near zero, so that a class token would hardly depend on the image.
    fill(backbone, seed)
    return backbone, f"random:{seed}", f"random:{seed}"
