"""A finished ``RUN/mil/TASK/ENCODER`` opened again: scores, attention, models and features of held-out slides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.errors import ConfigError, FeatureFileError, ResultError, nearest_name
from wsi_dino.evaluation.task_result import read_metrics, read_test_rows
from wsi_dino.feature_file import FeatureFile, read_feature_file
from wsi_dino.mil.attention_file import SlideAttention, read_attention
from wsi_dino.mil.checkpoint import load_model, require_same_encoder
from wsi_dino.mil.fold_work import FoldFiles
from wsi_dino.mil.tile_probability import softmax, tile_logits
from wsi_dino.run_folder import RunFolder


class FinishedTask:
    """Results of one task and encoder.

    Each slide is looked at with the model of a fold that had not learnt from it.

    Args:
        folder: ``RUN/mil/TASK/ENCODER``.
        test_run: run that holds the features of the slides of a task that tests on another cohort.
        fold: of slides that several folds tested, take this one; None = the first.
        device: where models run.

    Attributes:
        metrics: the content of metrics.json.
        runs: where slides and features are looked for.
        rows: one row of predictions.csv for each held-out slide, by slide id, highest score first.

    Raises:
        ResultError: there are no results of classes in the folder, or they are broken.
        ConfigError: no slide was tested in that fold.
    """

    def __init__(
        self, folder: Path, *, test_run: Path | None = None, fold: int | None = None, device: str = "cpu"
    ) -> None:
        above = folder.resolve().parents
        if not (folder / "metrics.json").is_file() or len(above) < 3 or above[1].name != "mil":
            raise ResultError(
                f"Opening results in {folder}: there is no metrics.json below RUN/mil. Name RUN/mil/TASK/ENCODER of a "
                "finished `wsi-dino mil`."
            )
        self.folder, self.device = folder, device
        self.metrics: Mapping[str, Any] = read_metrics(folder)
        if len(self.metrics.get("classes") or ()) < 2:
            raise ResultError(f"Opening results in {folder}: the task has no classes, so tiles have no probability.")
        self.run = RunFolder(above[2])
        self.runs = [self.run, *([RunFolder(test_run).require()] if test_run else [])]
        self._files = FoldFiles(folder)
        self.rows = _one_row_a_slide(read_test_rows(folder), fold)
        if not self.rows:
            raise ConfigError(f"Opening results in {folder}: fold {fold} tested no slide.")

    @property
    def classes(self) -> list[str]:
        """Class names; of two the last is the positive one."""
        return list(self.metrics["classes"])

    def choose(self, slide_ids: Sequence[str], number: int) -> list[str]:
        """Return the slides asked for, or the `number` with the highest scores (0 = all).

        Raises:
            ConfigError: a slide was held out in no fold.
        """
        for slide_id in slide_ids:
            if slide_id not in self.rows:
                raise ConfigError(
                    f"Looking at {slide_id}: no model of {self.folder} was tested on it."
                    f"{nearest_name(slide_id, self.rows)} predictions.csv lists the held-out slides (subset test)."
                )
        return list(dict.fromkeys(slide_ids)) or list(self.rows)[: number or None]

    def class_index(self, name: str | None) -> int:
        """Return the class of that name; without one the last, which of two is the positive one.

        Raises:
            ConfigError: there is no such class.
        """
        if name is None:
            return len(self.classes) - 1
        if name not in self.classes:
            known = ", ".join(self.classes)
            raise ConfigError(f"There is no class {name!r}.{nearest_name(name, self.classes)} Classes: {known}.")
        return self.classes.index(name)

    def fold_of(self, slide_id: str) -> int:
        """Return the fold whose model is taken for a slide."""
        return int(self.rows[slide_id]["fold"])

    def attention_path(self, slide_id: str) -> Path:
        """Return the file of a slide's attention."""
        return self._files.attention(self.fold_of(slide_id), slide_id)

    def attention(self, slide_id: str) -> SlideAttention:
        """Return what the model attended to on a slide.

        Raises:
            FeatureFileError: the file is missing or broken.
        """
        return read_attention(self.attention_path(slide_id))

    def features(self, slide_id: str) -> FeatureFile:
        """Return the features that the fold's model takes.

        Raises:
            FeatureFileError: they are missing, broken, of another encoder, or not those that were looked at.
        """
        config = self._model(self.fold_of(slide_id))[1]
        name = str(config.provenance.get("encoder") or config.encoder.get("encoder"))
        paths = [run.features(name) / f"{slide_id}.h5" for run in self.runs]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise FeatureFileError(
                f"Looking for features of {slide_id}: there is no {paths[-1]}. Embed the slide again, or name the run "
                "that holds it with --test-run."
            )
        file = read_feature_file(path)
        require_same_encoder(config, file.identity)
        if not np.array_equal(file.coords, self.attention(slide_id).coords):
            raise FeatureFileError(f"Reading features {path}: other tiles than the model was tested on. Run mil again.")
        return file

    def tile_probabilities(self, slide_id: str) -> np.ndarray:
        """Return float64 ``(n, n_classes)``: what the fold's model says of each tile alone, see `tile_logits`.

        Raises:
            FeatureFileError, WeightsError: features or model are missing, broken, or do not belong together.
        """
        features = self.features(slide_id).features
        return softmax(tile_logits(self._model(self.fold_of(slide_id))[0], features, device=self.device))

    def _model(self, fold: int) -> Any:
        return _load(self._files.model(fold))


@lru_cache(maxsize=2)
def _load(path: Path) -> Any:
    return load_model(path)


def _one_row_a_slide(rows: Sequence[Mapping[str, str]], fold: int | None) -> dict[str, Mapping[str, str]]:
    chosen: dict[str, Mapping[str, str]] = {}
    for row in sorted(rows, key=lambda row: int(row["fold"])):
        if fold is None or int(row["fold"]) == fold:
            chosen.setdefault(row["slide_id"], row)
    return dict(sorted(chosen.items(), key=lambda item: (-float(item[1]["score"]), item[0])))
