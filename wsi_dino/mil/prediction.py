"""Models of one task applied to slides they have never seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsi_dino.encoders.adapter import is_adapted_to_a_fold, without_fold
from wsi_dino.errors import ConfigError, FeatureFileError, WeightsError, nearest_name
from wsi_dino.feature_file import FeatureFile, read_feature_file
from wsi_dino.mil.bags import BagStore, features_fingerprint
from wsi_dino.mil.checkpoint import ModelConfig, find_models, load_model, require_same_encoder
from wsi_dino.mil.class_target import ClassTarget
from wsi_dino.mil.inference import score_slides
from wsi_dino.mil.mil_model import MilModel
from wsi_dino.mil.models import result_name
from wsi_dino.mil.objective import BinaryPerLabel, Objective
from wsi_dino.run_folder import RunFolder, safe_name


@dataclass(frozen=True)
class Ensemble:
    """The models of the folds of one task; their mean score is the prediction.

    Attributes:
        models: in the order of the folds.
        configs: one a model; all of one target, classes and encoder, which may be adapted to each fold.
    """

    models: tuple[MilModel, ...]
    configs: tuple[ModelConfig, ...]

    def __post_init__(self) -> None:
        for config in self.configs[1:]:
            for name in ("target", "class_names", "embed_dim", "kind"):
                ours, theirs = getattr(self.configs[0], name), getattr(config, name)
                if ours != theirs:
                    raise WeightsError(f"Opening models: fold {config.fold} has {name} {theirs!r}, the first {ours!r}.")
            kinds = self.configs[0].spec.model, config.spec.model
            if len(set(kinds)) > 1:
                raise WeightsError(f"Opening models: fold {config.fold} is {kinds[1]}, the first {kinds[0]}.")
            ours, theirs = (_but_adapter(one.encoder) for one in (self.configs[0], config))
            if ours != theirs:
                raise WeightsError(f"Opening models: fold {config.fold} takes features {theirs}, the first {ours}.")

    @property
    def config(self) -> ModelConfig:
        """What all models share."""
        return self.configs[0]

    @property
    def task(self) -> str:
        """Name of the task the models were made for."""
        return str(self.config.provenance.get("task") or self.config.target)

    @property
    def encoders(self) -> tuple[str, ...]:
        """Name of the encoder whose features each model takes."""
        return tuple(str(one.provenance.get("encoder") or one.encoder.get("encoder")) for one in self.configs)

    @property
    def encoder(self) -> str:
        """Name of the encoder whose features the models take; ``ENCODER+lora`` where each takes its own."""
        first, *others = self.encoders
        return first if set(others) <= {first} else without_fold(first)

    @property
    def result_name(self) -> str:
        """Name of the encoder, and of the kind of model where it is not the usual one."""
        return result_name(self.encoder, self.config.spec.model)

    @property
    def threshold(self) -> float | None:
        """Mean of the folds' cuts on the score; None where there is none, as with more than two classes."""
        cuts = [config.threshold for config in self.configs if config.threshold is not None]
        return float(np.mean(cuts)) if cuts else None

    @property
    def fold_names(self) -> tuple[str, ...]:
        """``fold_0`` ... as columns of the table."""
        return tuple(f"fold_{place if c.fold is None else c.fold}" for place, c in enumerate(self.configs))

    @cached_property
    def objective(self) -> Objective:
        """What the outputs mean; of several labels with the mean of the folds' cuts."""
        first = self.config.meaning
        cuts = [config.meaning.thresholds for config in self.configs if isinstance(config.meaning, BinaryPerLabel)]
        return first.model_copy(update={"thresholds": tuple(np.mean(cuts, axis=0))}) if cuts else first

    @cached_property
    def learnt_from(self) -> frozenset[str]:
        """Fingerprints of the bags that any of the models has seen in training or validation."""
        return frozenset(item for config in self.configs for item in config.provenance.get("learnt_from", ()))

    def columns(self) -> list[str]:
        """Return the columns of the table of predictions."""
        kind = self.config.kind
        said = kind.say(np.zeros(len(self.objective.score_names)), self.objective, self.threshold)
        if isinstance(kind, ClassTarget):
            said = {"predicted": "", **said}  # what most look for stands first
        return ["slide_id", "status", "reason", *said, *self.fold_names, "seen_in_training"]

    def predict(
        self, slide_id: str, files: Mapping[str, FeatureFile], *, device: str, threads: int | None
    ) -> dict[str, Any]:
        """Return the row of one slide.

        Args:
            slide_id: the slide.
            files: its features by encoder.
            device: where models run.
            threads: on a CPU; None = all cores.

        Raises:
            FeatureFileError: the features are of another encoder, or a value is not finite.
        """
        for file in files.values():
            if not np.isfinite(file.features).all():
                raise FeatureFileError(f"Reading features of {slide_id}: a value is not finite. Embed the slide again.")
        scores = []
        for model, config, encoder in zip(self.models, self.configs, self.encoders, strict=True):
            require_same_encoder(config, files[encoder].identity)
            bags = BagStore.of_arrays({slide_id: files[encoder].features}, files[encoder].identity)
            seen = score_slides(model, bags, [slide_id], device=device, threads=threads)[0]
            scores.append(config.meaning.scores(torch.from_numpy(seen.outputs)[None])[0].numpy())
        row = self._row(scores)
        is_seen = any(features_fingerprint(file.features) in self.learnt_from for file in files.values())
        return {"slide_id": slide_id, "status": "done", "reason": "", **row, "seen_in_training": is_seen}

    def _row(self, each_model: list[np.ndarray]) -> dict[str, Any]:
        kind, mean = self.config.kind, np.mean(each_model, axis=0)
        said = kind.say(mean, self.objective, self.threshold)
        place = 0
        if isinstance(kind, ClassTarget):  # of more than two classes the score is that of the one said
            place = 1 if self.threshold is not None else int(mean.argmax())
        return {
            **said,
            **{fold: float(scores[place]) for fold, scores in zip(self.fold_names, each_model, strict=True)},
        }


def _but_adapter(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the folds of an adapted encoder share of their features' identity."""
    return {**identity, "encoder": without_fold(str(identity.get("encoder"))), "adapter": bool(identity.get("adapter"))}


def load_ensemble(path: Path) -> Ensemble:
    """Load the models of a folder ``RUN/mil/TASK/ENCODER``, of its ``model``, or one model file.

    Raises:
        WeightsError: there is no model, one is broken, or they do not belong together.
    """
    if path.suffix == ".safetensors":
        paths = [path]
    elif path.is_dir():
        paths = find_models(path / "model" if (path / "model").is_dir() else path)
    else:
        raise WeightsError(
            f"Opening models in {path}: there is no such folder. Name RUN/mil/TASK/ENCODER of a finished "
            "`wsi-dino mil`."
        )
    loaded = [load_model(item) for item in paths]
    return Ensemble(tuple(model for model, _ in loaded), tuple(config for _, config in loaded))


def feature_paths(run: RunFolder, ensemble: Ensemble) -> dict[str, dict[str, Path]]:
    """Return the feature files of a run that the models can take, by slide and encoder.

    Raises:
        ConfigError: the run has none of an encoder.
    """
    paths: dict[str, dict[str, Path]] = {}
    for encoder in dict.fromkeys(ensemble.encoders):
        found = sorted(run.features(encoder).glob("*.h5"))
        if not found:
            raise _no_features(run, ensemble, encoder)
        for path in found:
            paths.setdefault(path.stem, {})[encoder] = path
    return dict(sorted(paths.items()))


def _no_features(run: RunFolder, ensemble: Ensemble, encoder: str) -> ConfigError:
    present = run.encoders()
    near = nearest_name(safe_name(encoder), present)
    if is_adapted_to_a_fold(encoder):
        return ConfigError(
            f"Looking for features in {run.features(encoder)}: there are none, and a model for "
            f"{ensemble.config.target!r} takes those of an encoder adapted to its fold. For each fold run "
            f"`wsi-dino embed --run {run.path} --encoder {encoder.partition('+lora-')[0]} --adapter "
            f"ADAPTED_RUN/mil/{safe_name(ensemble.task)}/{safe_name(without_fold(encoder))}/adapter/fold-K`."
        )
    return ConfigError(
        f"Looking for features in {run.features(encoder)}: there are none, and the model for "
        f"{ensemble.config.target!r} takes those of {encoder}.{near} Features there are: "
        f"{', '.join(present) or 'none'}. Run `wsi-dino embed --encoder {encoder}`."
    )


def predict_run(
    run: RunFolder, ensemble: Ensemble, *, device: str = "cpu", threads: int | None = None,
    report: Callable[..., None] = lambda *_, **__: None,
) -> tuple[Path, list[dict[str, Any]]]:  # fmt: skip
    """Predict every slide of a run and write ``RUN/predictions/TASK/ENCODER/predictions.csv``.

    Of a model other than ABMIL the folder is ``ENCODER+MODEL``, as that of its results.

    Returns:
        The table's path and its rows. A slide whose features are broken has status ``failed`` and the
        reason, one without tiles ``empty``.

    Raises:
        ConfigError: the run has no features of the encoder.
        FeatureFileError: features are of another encoder, pooling or weights than the models were trained on.
    """
    paths = feature_paths(run, ensemble)
    report(0, total=len(paths))
    rows = []
    for slide_id, of_slide in paths.items():
        rows.append(_predict_slide(ensemble, slide_id, of_slide, device, threads))
        report(1, text=slide_id)
    table = run.path / "predictions" / safe_name(ensemble.task) / safe_name(ensemble.result_name) / "predictions.csv"
    run.write_table(table, rows, ensemble.columns())
    return table, rows


def _predict_slide(
    ensemble: Ensemble, slide_id: str, paths: Mapping[str, Path], device: str, threads: int | None
) -> dict[str, Any]:
    missing = [encoder for encoder in ensemble.encoders if encoder not in paths]
    if missing:
        return _failed(slide_id, f"no features of {missing[0]}: `wsi-dino embed` with that adapter makes them")
    files = {}
    for encoder, path in paths.items():
        try:
            files[encoder] = read_feature_file(path)
        except FeatureFileError as error:
            return _failed(slide_id, str(error).replace(f"{path.parent}/", ""))
    for config, encoder in zip(ensemble.configs, ensemble.encoders, strict=True):
        try:
            require_same_encoder(config, files[encoder].identity)
        except FeatureFileError as error:
            raise FeatureFileError(f"{paths[encoder]}: {error}") from error
    if any(len(file.features) == 0 for file in files.values()):
        return {"slide_id": slide_id, "status": "empty", "reason": "the slide has no tile"}
    try:
        return ensemble.predict(slide_id, files, device=device, threads=threads)
    except FeatureFileError as error:
        return _failed(slide_id, str(error))


def _failed(slide_id: str, reason: str) -> dict[str, Any]:
    return {"slide_id": slide_id, "status": "failed", "reason": reason}
