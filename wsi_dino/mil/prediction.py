"""Models of one task applied to slides they have never seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.errors import ConfigError, FeatureFileError, WeightsError, nearest_name
from wsi_dino.feature_file import FeatureFile, read_feature_file
from wsi_dino.mil.abmil import ABMIL
from wsi_dino.mil.bags import BagStore, features_fingerprint
from wsi_dino.mil.checkpoint import ModelConfig, find_models, load_model, require_same_encoder
from wsi_dino.mil.inference import score_slides
from wsi_dino.run_folder import RunFolder, safe_name


@dataclass(frozen=True)
class Ensemble:
    """The models of the folds of one task; their mean probability is the prediction.

    Attributes:
        models: in the order of the folds.
        configs: one a model; all of one target, classes and encoder.
    """

    models: tuple[ABMIL, ...]
    configs: tuple[ModelConfig, ...]

    def __post_init__(self) -> None:
        for config in self.configs[1:]:
            for name in ("target", "class_names", "encoder", "embed_dim"):
                ours, theirs = getattr(self.configs[0], name), getattr(config, name)
                if ours != theirs:
                    raise WeightsError(f"Opening models: fold {config.fold} has {name} {theirs!r}, the first {ours!r}.")

    @property
    def config(self) -> ModelConfig:
        """What all models share."""
        return self.configs[0]

    @property
    def task(self) -> str:
        """Name of the task the models were made for."""
        return str(self.config.provenance.get("task") or self.config.target)

    @property
    def encoder(self) -> str:
        """Name of the encoder whose features the models take."""
        return str(self.config.provenance.get("encoder") or self.config.encoder.get("encoder"))

    @property
    def threshold(self) -> float | None:
        """Mean of the folds' cuts on the score of the positive class; None with more than two classes."""
        cuts = [config.threshold for config in self.configs if config.threshold is not None]
        return float(np.mean(cuts)) if cuts else None

    @property
    def fold_names(self) -> tuple[str, ...]:
        """``fold_0`` ... as columns of the table."""
        return tuple(f"fold_{place if c.fold is None else c.fold}" for place, c in enumerate(self.configs))

    @cached_property
    def learnt_from(self) -> frozenset[str]:
        """Fingerprints of the bags that any of the models has seen in training or validation."""
        return frozenset(item for config in self.configs for item in config.provenance.get("learnt_from", ()))

    def columns(self) -> list[str]:
        """Return the columns of the table of predictions."""
        each_class = [f"score_{name}" for name in self.config.class_names]
        return ["slide_id", "status", "reason", "predicted", "score", *each_class, *self.fold_names, "seen_in_training"]

    def predict(self, slide_id: str, file: FeatureFile, *, device: str, threads: int | None) -> dict[str, Any]:
        """Return the row of one slide.

        Raises:
            FeatureFileError: the features are of another encoder, or a value is not finite.
        """
        require_same_encoder(self.config, file.identity)
        if not np.isfinite(file.features).all():
            raise FeatureFileError(f"Reading features of {slide_id}: a value is not finite. Embed the slide again.")
        bags = BagStore.of_arrays({slide_id: file.features}, file.identity)
        scores = [score_slides(model, bags, [slide_id], device=device, threads=threads)[0] for model in self.models]
        row = self._row([s.probabilities for s in scores])
        seen = features_fingerprint(file.features) in self.learnt_from
        return {"slide_id": slide_id, "status": "done", "reason": "", **row, "seen_in_training": seen}

    def _row(self, each_model: list[np.ndarray]) -> dict[str, Any]:
        mean = np.mean(each_model, axis=0)
        names, cut = self.config.class_names, self.threshold
        said = int(mean.argmax()) if cut is None else int(mean[1] >= cut)
        place = said if cut is None else 1  # of more than two classes the score is that of the one said
        return {
            "predicted": names[said],
            "score": float(mean[place]),
            **{f"score_{name}": float(p) for name, p in zip(names, mean, strict=True)},
            **{fold: float(p[place]) for fold, p in zip(self.fold_names, each_model, strict=True)},
        }


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


def feature_paths(run: RunFolder, ensemble: Ensemble) -> dict[str, Path]:
    """Return the feature files of a run that the models can take, by slide.

    Raises:
        ConfigError: the run has none of that encoder.
    """
    folder = run.features(ensemble.encoder)
    paths = {path.stem: path for path in sorted(folder.glob("*.h5"))}
    if not paths:
        present = run.encoders()
        near = nearest_name(safe_name(ensemble.encoder), present)
        raise ConfigError(
            f"Looking for features in {folder}: there are none, and the model for {ensemble.config.target!r} takes "
            f"those of {ensemble.encoder}.{near} Features there are: {', '.join(present) or 'none'}. "
            f"Run `wsi-dino embed --encoder {ensemble.encoder}`."
        )
    return paths


def predict_run(
    run: RunFolder, ensemble: Ensemble, *, device: str = "cpu", threads: int | None = None,
    report: Callable[..., None] = lambda *_, **__: None,
) -> tuple[Path, list[dict[str, Any]]]:  # fmt: skip
    """Predict every slide of a run and write ``RUN/predictions/TASK/ENCODER/predictions.csv``.

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
    for slide_id, path in paths.items():
        rows.append(_predict_file(ensemble, slide_id, path, device, threads))
        report(1, text=slide_id)
    table = run.path / "predictions" / safe_name(ensemble.task) / safe_name(ensemble.encoder) / "predictions.csv"
    run.write_table(table, rows, ensemble.columns())
    return table, rows


def _predict_file(ensemble: Ensemble, slide_id: str, path: Path, device: str, threads: int | None) -> dict[str, Any]:
    try:
        file = read_feature_file(path)
    except FeatureFileError as error:
        return _failed(slide_id, str(error).replace(f"{path.parent}/", ""))
    try:
        require_same_encoder(ensemble.config, file.identity)
    except FeatureFileError as error:
        raise FeatureFileError(f"{path}: {error}") from error
    if len(file.features) == 0:
        return {"slide_id": slide_id, "status": "empty", "reason": "the slide has no tile"}
    try:
        return ensemble.predict(slide_id, file, device=device, threads=threads)
    except FeatureFileError as error:
        return _failed(slide_id, str(error))


def _failed(slide_id: str, reason: str) -> dict[str, Any]:
    return {"slide_id": slide_id, "status": "failed", "reason": reason}
