"""Folds, seeds and tasks over the same features, trained together on an accelerator.

Each model takes exactly the steps that `train_fold` would have it take (same slides, same order, same seeds); what is
shared is the reading of the features and every product, which `stacked` runs for all models at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor

from wsi_dino.mil.abmil import ABMIL
from wsi_dino.mil.bags import BagStore
from wsi_dino.mil.early_stopping import EarlyStopping
from wsi_dino.mil.packed import dropout_mask, rounded_rows
from wsi_dino.mil.resident_features import ResidentFeatures
from wsi_dino.mil.stacked import StackedAdamW, StackedModels, StackedUnit
from wsi_dino.mil.training import (
    Batch,
    TrainedFold,
    build_model,
    drawn_rows,
    epoch_batches,
    measure_scale,
    resolve_precision,
)  # fmt: skip
from wsi_dino.mil.training_job import TrainingJob

_VALIDATION_ROWS = 2**19  # of all models together in one product


def train_together(
    jobs: Sequence[TrainingJob],
    bags: BagStore,
    *,
    device: str | torch.device,
    on_epoch: Callable[[int, dict[str, float]], None] = lambda job, row: None,
) -> list[TrainedFold]:
    """Train one model for each job; each stops by its own validation loss.

    Args:
        jobs: alike but for slides, labels and seed.
        bags: features of all slides named; they must fit on the device (`fits_on`).
        device: an accelerator; a CPU does it too, more slowly than `train_fold`.
        on_epoch: called with the index of a job and each row of its history.

    Raises:
        FeatureFileError: a feature file is broken.
        ConfigError: a loss is not finite.
    """
    slides = sorted({slide for job in jobs for slide in (*job.train_ids, *job.val_ids)})
    resident = ResidentFeatures(bags, slides, torch.device(device))
    return _JointTrainer(jobs, bags, resident, torch.device(device)).run(on_epoch)


class _JointTrainer:
    """State of one joint training: row ``k`` of everything belongs to job ``k``."""

    def __init__(
        self, jobs: Sequence[TrainingJob], bags: BagStore, resident: ResidentFeatures, device: torch.device
    ) -> None:
        self._jobs, self._resident, self._device, self._spec = jobs, resident, device, jobs[0].spec
        self._precision = resolve_precision(self._spec.precision, device)
        self._dtype = torch.bfloat16 if self._precision == "bf16" else torch.float32
        models = [build_model(job.spec, bags.embed_dim, job.objective.n_outputs) for job in jobs]
        for model, job in zip(models, jobs, strict=True):
            model.feature_scale.fill_(measure_scale(bags, job.train_ids) if job.spec.rescale else 1.0)
        self._models = StackedModels([cast(ABMIL, model.to(device)) for model in models])
        self._optimizer = StackedAdamW(self._models.flat, self._spec.weight_decay)
        self._stopping = [EarlyStopping(s.epochs, s.min_epochs, s.patience) for s in (job.spec for job in jobs)]

    def run(self, on_epoch: Callable[[int, dict[str, float]], None]) -> list[TrainedFold]:
        rows = list(range(len(self._jobs)))
        while rows:
            rate = self._stopping[rows[0]].rate(self._spec.learning_rate)
            train_losses = self._train_epoch(rows, rate)
            val_losses = self._validate(rows)
            states = {row: partial(self._models.state, row) for row in rows}
            going_on = [
                row for row in rows if self._stopping[row].add(rate, train_losses[row], val_losses[row], states[row])
            ]
            for row in rows:
                on_epoch(row, self._stopping[row].history[-1])
            rows = going_on
        return [self._trained(row) for row in range(len(self._jobs))]

    def _trained(self, row: int) -> TrainedFold:
        job, stopping = self._jobs[row], self._stopping[row]
        best = stopping.best(len(job.train_ids), job.spec.learning_rate)
        model = build_model(job.spec, self._resident.embed_dim, job.objective.n_outputs).eval()
        model.load_state_dict(best)
        return TrainedFold(model, tuple(stopping.history), stopping.best_epoch, self._precision)

    def _train_epoch(self, rows: Sequence[int], rate: float) -> dict[int, float]:
        epoch = len(self._stopping[rows[0]].history)
        batches = {row: self._batches(self._jobs[row], epoch) for row in rows}
        losses: dict[int, list[Tensor]] = {row: [] for row in rows}
        for step in range(max(map(len, batches.values()))):
            taking_part = [row for row in rows if step < len(batches[row])]
            found = self._step(taking_part, [batches[row][step] for row in taking_part], rate)
            for row, loss in zip(taking_part, found, strict=True):
                losses[row].append(loss)
        return {row: float(torch.stack(each).double().mean()) for row, each in losses.items()}

    def _batches(self, job: TrainingJob, epoch: int) -> list[Batch]:
        return epoch_batches(job.spec, job.train_ids, epoch, coupled=job.objective.couples_bags)

    def _step(self, rows: Sequence[int], batches: Sequence[Batch], rate: float) -> Tensor:
        index = torch.tensor(rows, device=self._device)
        flat = self._models.flat[index].requires_grad_()
        unit = self._unit([batch.slides for batch in batches], [batch.seeds[0] for batch in batches])
        outputs = self._models.forward(flat, self._models.feature_scale[index], unit)
        losses, slopes = self._losses(rows, [batch.slides for batch in batches], outputs)
        (gradient,) = torch.autograd.grad(outputs, flat, slopes)
        self._optimizer.step(rows, gradient, rate)
        return losses

    @torch.no_grad()
    def _validate(self, rows: Sequence[int]) -> dict[int, float]:
        """Mean loss on the validation slides of each model, bags weighted as in training."""
        slides = [self._jobs[row].val_ids for row in rows]
        index = torch.tensor(rows, device=self._device)
        flat, scale = self._models.flat[index], self._models.feature_scale[index]
        parts = [self._models.forward(flat, scale, self._unit(part)) for part in self._chunks(slides)]
        losses, _ = self._losses(rows, slides, torch.cat(parts, 1))
        return dict(zip(rows, losses.double().tolist(), strict=True))

    def _chunks(self, slides: Sequence[Sequence[str]]) -> list[list[Sequence[str]]]:
        """Cut the slides of all models at the same places, so that a product stays within its rows."""
        largest = max(self._resident.n_tiles[slide] for each in slides for slide in each)
        size = max(1, _VALIDATION_ROWS // (largest * len(slides)))
        longest = max(map(len, slides))
        return [[each[start : start + size] for each in slides] for start in range(0, longest, size)]

    def _losses(
        self, rows: Sequence[int], slides: Sequence[Sequence[str]], outputs: Tensor
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return the mean loss of each model over its slides ``(len(rows),)``, and its gradient at `outputs`."""
        known = [self._known(self._jobs[row], each) for row, each in zip(rows, slides, strict=True)]
        # one transfer for all
        lengths = [len(each) for each in slides]
        truths = torch.split(torch.cat([truth for truth, _ in known]).to(self._device), lengths)
        weights = torch.split(torch.cat([weight for _, weight in known]).to(self._device), lengths)
        losses, slopes = [], torch.zeros_like(outputs)
        for place, row in enumerate(rows):
            mine = outputs[place, : lengths[place]].detach()
            loss, slope = self._jobs[row].objective.loss_and_gradient(mine, truths[place], weights[place])
            losses.append(loss)
            slopes[place, : lengths[place]] = slope
        return torch.stack(losses), slopes

    @staticmethod
    def _known(job: TrainingJob, slides: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the truth of slides and their weights, which sum to one."""
        truth = torch.tensor([list(job.truth[slide]) for slide in slides], dtype=torch.float32)
        weights = job.objective.bag_weights(truth)
        return truth, weights / weights.sum()

    def _unit(self, slides: Sequence[Sequence[str]], seeds: Sequence[int] | None = None) -> StackedUnit:
        """Gather the features of a step; `seeds` = training (dropout and drawn tiles), None = all tiles."""
        chosen = [self._rows(each, seeds[place] if seeds else None) for place, each in enumerate(slides)]
        n = rounded_rows(max(sum(map(len, each)) for each in chosen))
        rows = np.full((len(chosen), n), self._resident.padding, np.int64)
        owner = np.full((len(chosen), n), -1, np.int64)
        for place, each in enumerate(chosen):
            filled = sum(map(len, each))
            rows[place, :filled] = np.concatenate(each) if each else []
            owner[place, :filled] = np.repeat(np.arange(len(each)), [len(part) for part in each])
        features = self._resident.gather(rows, self._dtype)
        lengths = [sum(map(len, each)) for each in chosen]
        keep = self._keep(lengths, n, seeds) if seeds is not None else None
        return StackedUnit(features, torch.from_numpy(owner).to(self._device), max(map(len, slides)), keep)

    def _rows(self, slides: Sequence[str], seed: int | None) -> list[np.ndarray]:
        """Return the rows of the resident features that each slide gives."""
        limit, random = (None, None) if seed is None else (self._spec.max_tiles, np.random.default_rng([seed, 1]))
        sizes = [(self._resident.starts[slide], self._resident.n_tiles[slide]) for slide in slides]
        if limit is None or random is None:
            return [np.arange(start, start + n) for start, n in sizes]
        return [start + drawn_rows(n, limit, random) for start, n in sizes]

    def _keep(self, lengths: Sequence[int], n: int, seeds: Sequence[int]) -> Tensor | None:
        if self._spec.dropout == 0:
            return None
        keep = torch.ones(len(lengths), n, self._spec.hidden_dim, dtype=torch.bool, device=self._device)
        for place, (length, seed) in enumerate(zip(lengths, seeds, strict=True)):
            rows = rounded_rows(length)  # as the fold alone would draw them
            drawn = dropout_mask(self._spec.dropout, (rows, self._spec.hidden_dim), seed, self._dtype, self._device)
            keep[place, :rows] = drawn != 0
        return keep
