"""A trained model on disk: safetensors with its config inside, and the same config beside it to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from wsi_dino.errors import FeatureFileError, WeightsError
from wsi_dino.feature_file import IDENTITY_KEYS
from wsi_dino.mil.class_target import ClassTarget
from wsi_dino.mil.mil_model import MilModel
from wsi_dino.mil.objective import AnyObjective, CrossEntropy
from wsi_dino.mil.targets import AnyTarget
from wsi_dino.mil.training import TrainingSpec, build_model
from wsi_dino.model_file import fill_network, read_model_facts, write_model_file
from wsi_dino.provenance import fingerprint

_FORMAT = "wsi_dino.abmil/1"


class ModelConfig(BaseModel):
    """What must be known to use a trained model.

    Attributes:
        class_names: in the order of the logits; of two the last is the positive one. Empty for other targets.
        target: column of the label table.
        embed_dim: length of a feature vector.
        encoder: identity of the features it was trained on (`FeatureFile.identity`).
        spec: architecture and recipe, with the fold's own seed.
        threshold, threshold_policy: the cut on the score; None where there is none, as with more than two classes.
        fold: number of the fold; None for a model outside cross-validation.
        best_epoch: whose weights these are.
        precision: of the large products in training.
        provenance: anything else worth keeping: split, cohort, versions.
        target_kind: what is predicted; None = classes, in files of earlier versions.
        objective: what the outputs mean; None = logits of classes, likewise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = _FORMAT
    class_names: tuple[str, ...]
    target: str
    embed_dim: int
    encoder: dict[str, Any]
    spec: TrainingSpec
    threshold: float | None
    threshold_policy: str
    fold: int | None = None
    best_epoch: int = 0
    precision: str = "fp32"
    provenance: dict[str, Any] = {}
    target_kind: AnyTarget | None = None
    objective: AnyObjective | None = None

    @property
    def kind(self) -> AnyTarget:
        """What is predicted."""
        return self.target_kind or ClassTarget(names=self.class_names)

    @property
    def meaning(self) -> AnyObjective:
        """What the outputs mean."""
        return self.objective or CrossEntropy(class_weights=(1.0,) * len(self.class_names))

    @property
    def fingerprint(self) -> str:
        """32 hex digits of everything above."""
        return fingerprint(self)


def save_model(path: Path, model: MilModel, config: ModelConfig) -> None:
    """Write ``NAME.safetensors`` (weights, with the config in its header) and ``NAME.json`` beside it.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    write_model_file(path, model, config)


def read_config(path: Path) -> ModelConfig:
    """Read the config of a model without its weights.

    Raises:
        WeightsError: the file is missing, broken, or no model of this package.
    """
    return read_model_facts(path, ModelConfig, written_by="wsi-dino mil")


def load_model(path: Path) -> tuple[MilModel, ModelConfig]:
    """Read a model, on the CPU and in eval mode, and its config.

    Raises:
        WeightsError: the file is missing, broken, or its weights do not fit its config.
    """
    config = read_config(path)
    model = build_model(config.spec, config.embed_dim, config.meaning.n_outputs)
    fill_network(path, model)
    return model, config


def find_models(folder: Path) -> list[Path]:
    """Return the ``*.safetensors`` files of a folder, by fold number where they have one.

    Raises:
        WeightsError: there is none.
    """
    paths = sorted(folder.glob("*.safetensors"), key=lambda path: (len(path.stem), path.stem))
    if not paths:
        raise WeightsError(f"Opening models in {folder}: no *.safetensors file there. `wsi-dino mil` writes them.")
    return paths


def require_same_encoder(config: ModelConfig, identity: dict[str, Any]) -> None:
    """Check that features come from the encoder a model was trained on.

    Raises:
        FeatureFileError: they do not; both are named.
    """
    for key in IDENTITY_KEYS:
        if config.encoder.get(key) != identity.get(key):
            raise FeatureFileError(
                f"Applying the model for {config.target!r}: it was trained on features with {key} = "
                f"{config.encoder.get(key)!r}, these have {identity.get(key)!r}. Embed the slides as then."
            )
