"""Segmenting new volumes with trained models, onto exactly the grid they came on. Imports torch."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from wsi_dino.encoders.devices import resolve_device, resolve_precision
from wsi_dino.errors import ConfigError, WeightsError
from wsi_dino.segmentation.case import Case, Channel, ChannelFile, SegmentationDataset
from wsi_dino.segmentation.case_reading import read_case
from wsi_dino.segmentation.encoding import FeaturePlan
from wsi_dino.segmentation.feature_maps import Layer, SliceEncoder
from wsi_dino.segmentation.feature_stack import FeatureStack, write_stack
from wsi_dino.segmentation.grey import as_grey
from wsi_dino.segmentation.learners import mean_of_views
from wsi_dino.segmentation.model_file import SegmentationModel, read_facts, read_network
from wsi_dino.segmentation.prepared import PreparedCase, write_prepared
from wsi_dino.segmentation.request import require_learned_views
from wsi_dino.segmentation.sliding_window import added, most_likely
from wsi_dino.segmentation.stack_samples import StackedCase
from wsi_dino.segmentation.views import VIEWS
from wsi_dino.volumes.nifti_channels import write_labels_like

# What of an encoder's identity may differ between training and use: where the weights were found, not which they are.
_MAY_DIFFER = ("weights_source", "weights_revision", "precision")


@dataclass(frozen=True)
class Predictor:
    """Trained models of one experiment, one a fold, whose probabilities are averaged.

    Attributes:
        facts: of the first; all agree but for the fold.
        networks: on the device.
        encoder: of slices, None for networks of voxels.
        device, precision: of the networks.
        n_test_views: ways in which each slice is encoded; the answers are averaged.
    """

    facts: SegmentationModel
    networks: tuple[nn.Module, ...]
    encoder: SliceEncoder | None
    device: str
    precision: str
    n_test_views: int = 1

    @property
    def channels(self) -> tuple[Channel, ...]:
        """What an image must bring, in order."""
        return tuple(Channel(**{**channel, "window": _window(channel)}) for channel in self.facts.channels)

    def labels(self, images: Sequence[ChannelFile]) -> npt.NDArray[np.uint8]:
        """Return the label map of one volume, uint8 ``(z, y, x)`` as shown.

        Raises:
            VolumeError: a file is damaged, or grids do not agree.
        """
        dataset = SegmentationDataset(self.facts.dataset, (), self.channels, self.facts.classes, resample=True)
        volumes = read_case(Case("new", "new", tuple(images), None), dataset)
        grey = np.stack([as_grey(v, c) for v, c in zip(volumes.channels, self.channels, strict=True)])
        spacing_mm = volumes.spacing_mm
        del volumes  # four times as large as what is needed from here on
        with tempfile.TemporaryDirectory(prefix="wsi-dino-") as folder:
            row = write_prepared(Path(folder) / "case.safetensors", "new", grey, None, spacing_mm)
            del grey
            case = PreparedCase.of_row(Path(folder) / "case.safetensors", {**row, "fingerprint": ""})
            chances = self._from_voxels(case) if self.encoder is None else self._from_stack(case, Path(folder))
        return most_likely(chances, self.facts.label_values)

    def _from_voxels(self, case: PreparedCase) -> npt.NDArray[np.float32]:
        from wsi_dino.segmentation.monai_learner import network_probabilities

        facts, grey = self.facts, torch.from_numpy(case.grey()).float().div_(255)[None]
        window = (facts.window_slices, facts.window_cells, facts.window_cells)
        answers = [
            network_probabilities(network, grey, window, device=self.device, precision=self.precision)
            for network in self.networks
        ]
        mean: npt.NDArray[np.float32] = np.mean(answers, axis=0)
        return mean

    def _from_stack(self, case: PreparedCase, folder: Path) -> npt.NDArray[np.float32]:
        assert self.encoder is not None
        facts = self.facts
        plan = _plan(facts)
        views = VIEWS[: self.n_test_views]
        stacks = {}
        for view in views:
            path, geometry = folder / f"{view}.safetensors", plan.geometry(case.shape, case.spacing_mm, view)
            write_stack(path, case.grey(), view, self.encoder, plan.meeting, geometry)
            stacks[view] = FeatureStack(path, case.shape[0], geometry, plan.layers)
        stacked = StackedCase(case, stacks)
        total: npt.NDArray[np.float32] | None = None
        for network in self.networks:
            answer = mean_of_views(network, facts, stacked, views, device=self.device, precision=self.precision)
            total = added(total, answer)
        assert total is not None
        total /= len(self.networks)
        return total


def _window(channel: dict[str, Any]) -> tuple[float, float] | None:
    return None if channel["window"] is None else (float(channel["window"][0]), float(channel["window"][1]))


def _plan(facts: SegmentationModel) -> FeaturePlan:
    layers = tuple(Layer(*layer) for layer in facts.layers)
    meeting = "late" if facts.meeting == "late" else "early"
    return FeaturePlan(
        facts.encoder, facts.identity, layers, meeting, facts.patch_mm, facts.patch_px, facts.cell_px, 1.0  # type: ignore[arg-type]
    )  # fmt: skip


def open_predictor(
    path: Path,
    *,
    device: str = "auto",
    workers: int = 0,
    folds: Sequence[int] | None = None,
    n_test_views: int = 1,
    **encoder: Any,
) -> Predictor:
    """Return the models of an experiment, ready to segment.

    Args:
        path: one ``fold_N.safetensors``, a folder of them, or the experiment's folder with ``model/`` in it.
        device: torch's, or auto.
        workers: threads of the encoder; 0 for one a core.
        folds: to use; None for all.
        n_test_views: ways in which each slice is encoded.
        encoder: further arguments of `load_encoder`, e.g. ``weights``.

    Raises:
        ConfigError: there is no model, or it has not learned from so many views.
        WeightsError: a model is broken, or the encoder's weights are not those it was trained with.
    """
    paths = _model_files(path, folds)
    all_facts = [read_facts(item) for item in paths]
    facts = all_facts[0]
    if any(_shared(other) != _shared(facts) for other in all_facts[1:]):
        raise WeightsError(f"Opening models in {path}: they are of several experiments. Name one folder or file.")
    learned = facts.n_views if facts.kind == "decoder" else 1
    if learned:
        require_learned_views(n_test_views, learned, f"{learned}, as this one was trained with")
    running = resolve_device(device)
    networks = tuple(read_network(item, own).to(running) for item, own in zip(paths, all_facts, strict=True))
    slice_encoder = None
    if facts.kind == "decoder":
        slice_encoder = _slice_encoder(facts, device=device, workers=workers, **encoder)
    asked = facts.training.get("precision", "auto")
    precision = resolve_precision("auto" if asked == "bf16" else asked, running, ("fp32", "bf16"))
    return Predictor(facts, networks, slice_encoder, running, precision, n_test_views)


def _shared(facts: SegmentationModel) -> dict[str, Any]:
    return facts.model_dump(exclude={"fold", "training"})


def _model_files(path: Path, folds: Sequence[int] | None) -> list[Path]:
    folder = path / "model" if (path / "model").is_dir() else path
    found = [path] if path.is_file() else sorted(folder.glob("fold_*.safetensors"))
    if folds is not None:
        found = [item for item in found if item.stem in {f"fold_{number}" for number in folds}]
    if not found:
        raise ConfigError(
            f"Opening models in {path}: no fold_*.safetensors there. `wsi-dino radiology segment` writes them below "
            "RUN/segmentation/DATASET/NAME/model/."
        )
    return found


def _slice_encoder(facts: SegmentationModel, **settings: Any) -> SliceEncoder:
    layers = facts.identity.get("layers")
    encoder = SliceEncoder(facts.encoder, layers, **settings)
    identity = encoder.identity()
    for key, trained in facts.identity.items():
        if key not in _MAY_DIFFER and identity.get(key) != trained:
            raise WeightsError(
                f"Applying a decoder for {facts.dataset}: it was trained on maps of {facts.encoder} with {key} = "
                f"{trained!r}, these have {identity.get(key)!r}. Give the same --weights as then."
            )
    return encoder


def predict_file(predictor: Predictor, images: Sequence[ChannelFile], path: Path) -> None:
    """Segment one volume and write its label map on the grid of its first channel.

    Raises:
        VolumeError: a file is damaged, or grids do not agree.
        StorageError: the disk is full or the folder cannot be written.
    """
    write_labels_like(path, predictor.labels(images), images[0].path)
