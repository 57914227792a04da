"""A LoRA adapter on disk: a folder of safetensors with the record of what it fits and what it has seen."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.errors import ConfigError, WeightsError
from wsi_dino.provenance import environment, file_sha256, write_atomically, write_json_atomically

if TYPE_CHECKING:
    from torch import Tensor

Target = Literal["attention", "mlp"]
WEIGHTS_FILE, RECORD_FILE, PEFT_FILE = "adapter_model.safetensors", "adapter.json", "adapter_config.json"

_KEY = "wsi_dino"
_NAME = re.compile(r"[\w.+@-]+")
_OF_FOLD = re.compile(r"\+lora-.+-fold-\d+")
# Libraries that decide what is learnt, besides those of every result.
_VERSIONED = ("peft", "transformers")


def fold_adapter_name(task: str, fold: int) -> str:
    """Return the name of the adapter of one fold of a cross-validated task.

    Examples:
        >>> fold_adapter_name("bcnb-er", 0)
        'lora-bcnb-er-fold-0'
    """
    return f"lora-{task}-fold-{fold}"


def is_adapted_to_a_fold(encoder: str) -> bool:
    """Tell whether an encoder's name (or its folder's) says that it was adapted in a cross-validation.

    Examples:
        >>> is_adapted_to_a_fold("dinov3-s+lora-bcnb-er-fold-0"), is_adapted_to_a_fold("dinov3-s+mine")
        (True, False)
    """
    return _OF_FOLD.search(encoder) is not None


def without_fold(encoder: str) -> str:
    """Return the name of an encoder adapted to a fold without the fold: that of all folds together.

    Examples:
        >>> without_fold("dinov3-s+lora-bcnb-er-fold-0"), without_fold("dinov3-s")
        ('dinov3-s+lora', 'dinov3-s')
    """
    return encoder.partition("+lora-")[0] + "+lora" if is_adapted_to_a_fold(encoder) else encoder


class AdapterSpec(BaseModel):
    """How an adapter is built: ``W x`` becomes ``W x + (alpha / rank) B A x`` (Hu et al. 2021).

    Attributes:
        rank: rows of ``A``.
        alpha: numerator of the factor.
        dropout: share of ``x`` set to zero before ``A``, in training only.
        targets: which linear layers of every block: of the attention (its projections), of the MLP.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    targets: tuple[Target, ...] = Field(default=("attention",), min_length=1)

    @property
    def scale(self) -> float:
        """The factor before ``B A``."""
        return self.alpha / self.rank


class TrainedOn(BaseModel):
    """What an adapter has learnt from.

    Attributes:
        task, target: of the slide task or probe; ``""`` where it has no name.
        class_names: in the order of the labels.
        fold: of the cross-validation; None outside of one.
        learnt_from: fingerprints of the slides, images or volumes that weights and stopping have seen, sorted.
            Names of patients and slides are not kept.
        recipe: how it was trained.
        best_epoch: whose weights these are.
        history: one row an epoch: ``epoch, learning_rate, train_loss, val_loss``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = ""
    target: str = ""
    class_names: tuple[str, ...] = ()
    fold: int | None = None
    learnt_from: tuple[str, ...] = ()
    recipe: dict[str, Any] = {}
    best_epoch: int = 0
    history: tuple[dict[str, float], ...] = ()


class AdapterRecord(BaseModel):
    """What must be known to use an adapter, and to judge what was made with it.

    Attributes:
        name: features made with it are those of ``ENCODER+NAME``.
        encoder, architecture, base_weights_sha256: the encoder and the very weights it was trained on.
        pooling, input_px: as in training; the defaults when it is used.
        spec: how it is built; `modules` are the names of the linear layers it changes.
        trained_on: what it has learnt from.
        licence, licence_url, obligations: of the encoder. An adapter is derived from its weights.
        versions: of the libraries at work.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["wsi_dino.adapter/1"] = "wsi_dino.adapter/1"
    name: str
    encoder: str
    architecture: str
    base_weights_sha256: str
    pooling: str
    input_px: int
    spec: AdapterSpec
    modules: tuple[str, ...]
    trained_on: TrainedOn = TrainedOn()
    licence: str
    licence_url: str = ""
    obligations: tuple[str, ...] = ()
    versions: dict[str, str] = {}

    @field_validator("name")
    @classmethod
    def _is_plain(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("a name is made of letters, digits and . _ + @ -")
        return name

    @classmethod
    def of(cls, encoder: EncoderSpec, *, name: str, **fields: Any) -> Self:
        """Return the record of an adapter for `encoder`, with its licence and today's versions."""
        licence = (f"An adapter is derived from the weights of {encoder.name}: their licence goes with it.",)
        return cls(
            name=name, encoder=encoder.name, architecture=encoder.architecture, licence=encoder.licence,
            licence_url=encoder.licence_url, obligations=(*encoder.obligations, *licence),
            versions=environment() | _versions(), **fields,
        )  # fmt: skip


def _versions() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for package in _VERSIONED:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Adapter:
    """An adapter that lies whole in a folder.

    Attributes:
        folder: where.
        record: its record.
        sha256: of its weights' file, which holds the record too: equal for equal adapters alone.
    """

    folder: Path
    record: AdapterRecord
    sha256: str

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by the names that PEFT gives them (``base_model.model.LAYER.lora_A.weight``)."""
        from safetensors.torch import load_file

        return load_file(self.folder / WEIGHTS_FILE)

    def has_learnt_from(self, item_fingerprint: str) -> bool:
        """Tell whether the adapter was trained or stopped on this slide, image or volume."""
        return item_fingerprint in self.record.trained_on.learnt_from

    def require_encoder(self, name: str) -> None:
        """Check the name of the encoder alone, before any weight is read.

        Raises:
            WeightsError: it is another one; both are named.
        """
        if self.record.encoder != name:
            raise WeightsError(
                f"Loading the adapter {self.folder}: it was trained on the encoder {self.record.encoder}, not on "
                f"{name}. Use --encoder {self.record.encoder}."
            )

    def require_base(self, encoder: EncoderSpec, weights_sha256: str) -> None:
        """Check that an encoder and its weights are those the adapter was trained on.

        Raises:
            WeightsError: they are not; both are named.
        """
        record = self.record
        self.require_encoder(encoder.name)
        if record.base_weights_sha256 != weights_sha256:
            raise WeightsError(
                f"Loading the adapter {self.folder}: it was trained on weights of {record.encoder} with SHA-256 "
                f"{record.base_weights_sha256[:16]}, those found have {weights_sha256[:16]}. Give --weights the "
                "file that was used in training."
            )

    def adapted(self, encoder: EncoderSpec, name: str | None = None) -> EncoderSpec:
        """Return the record of `encoder` with this adapter in it, which is another encoder.

        Args:
            encoder: the record of the encoder without it.
            name: what to call it; None for ``ENCODER+ADAPTER``.
        """
        told = self.record.trained_on
        what = f" for {told.target}" if told.target else ""
        where = "" if told.fold is None else f", fold {told.fold}"
        return encoder.model_copy(
            update={
                "name": name or f"{encoder.name}+{self.record.name}",
                "training_data": f"{encoder.training_data}; then adapted (LoRA, rank {self.record.spec.rank}){what} on "
                f"{len(told.learnt_from)} labelled items{where}".lstrip("; "),
                "obligations": self.record.obligations,
            }
        )


def save_adapter(folder: Path, record: AdapterRecord, tensors: Mapping[str, Tensor]) -> Adapter:
    """Write an adapter: the weights with the record in their header, PEFT's own config, the record to read.

    Each file is written atomically, the record last: a folder without it is not an adapter.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    from safetensors.torch import save

    state = {name: tensor.detach().cpu().float().contiguous() for name, tensor in sorted(tensors.items())}
    with write_atomically(folder / WEIGHTS_FILE) as temporary:
        # one key only: safetensors writes several in an order of its own, and equal adapters must be equal bytes
        temporary.write_bytes(save(state, metadata={_KEY: record.model_dump_json()}))
    write_json_atomically(folder / PEFT_FILE, _peft_config(record))
    sha256 = file_sha256(folder / WEIGHTS_FILE)
    write_json_atomically(folder / RECORD_FILE, {**record.model_dump(mode="json"), "sha256": sha256})
    return Adapter(folder, record, sha256)


def _peft_config(record: AdapterRecord) -> dict[str, Any]:
    """Return what PEFT's ``from_pretrained`` needs to put the adapter on our backbone."""
    spec = record.spec
    return {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": None, "inference_mode": True,
        "r": spec.rank, "lora_alpha": spec.alpha, "lora_dropout": spec.dropout, "bias": "none",
        "target_modules": list(record.modules),
    }  # fmt: skip


def read_adapter(folder: Path) -> Adapter:
    """Read and check the record of an adapter; imports no torch.

    Raises:
        WeightsError: the folder is no adapter, or a file of it is missing, corrupt or of another one.
    """
    stated = _read_json(folder)
    sha256 = stated.pop("sha256", None)
    try:
        record = AdapterRecord.model_validate(stated)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise WeightsError(
            f"Loading the adapter {folder}: {RECORD_FILE} is of another version or was changed ({place}: "
            f"{first['msg']})."
        ) from error
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise WeightsError(f"Loading the adapter {folder}: {WEIGHTS_FILE} is missing. Copy the whole folder.")
    found = file_sha256(path)
    if found != sha256:
        raise WeightsError(
            f"Loading the adapter {folder}: {WEIGHTS_FILE} is truncated, corrupt or of another adapter: expected "
            f"SHA-256 {str(sha256)[:16]}, got {found[:16]} ({path.stat().st_size} bytes). Copy the folder again."
        )
    if _header(path) != record.model_dump(mode="json"):
        raise WeightsError(
            f"Loading the adapter {folder}: {RECORD_FILE} does not say what stands in {WEIGHTS_FILE}; one of them was "
            "changed. Copy the folder again."
        )
    return Adapter(folder, record, found)


def _read_json(folder: Path) -> dict[str, Any]:
    advice = "Name a folder that `--adapt lora` wrote, such as RUN/mil/TASK/ENCODER+lora/adapter/fold-0."
    if not folder.is_dir():
        raise ConfigError(f"Loading the adapter {folder}: there is no such folder. {advice}")
    path = folder / RECORD_FILE
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"Loading the adapter {folder}: it holds no {RECORD_FILE}. {advice}") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"Loading the adapter {folder}: {RECORD_FILE} is unreadable ({error}).") from error
    if not isinstance(stated, dict):
        raise WeightsError(f"Loading the adapter {folder}: {RECORD_FILE} holds no table. {advice}")
    return stated


def _header(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
        return json.loads(metadata.get(_KEY, "null"))
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"Loading the adapter {path.parent}: {path.name} is no safetensors file ({error})."
        ) from error
