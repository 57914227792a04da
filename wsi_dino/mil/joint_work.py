"""The folds of several tasks worked off together where an accelerator trains them as one computation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wsi_dino.item_queue import ClaimedItem
from wsi_dino.mil.bags import BagStore
from wsi_dino.mil.cross_validation import plan_fold
from wsi_dino.mil.fold_work import Learning, fold_number, learn_fold
from wsi_dino.mil.joint_training import train_together
from wsi_dino.mil.models import DEFAULT_MODEL
from wsi_dino.mil.resident_features import fits_on
from wsi_dino.mil.run import EpochProgress, OpenTask, Report
from wsi_dino.mil.training_job import TrainingJob

_MOST_MODELS = 64
_BYTES_A_VALUE = 4
_GATE_COPIES, _HIDDEN_COPIES = 8, 6  # of the intermediates of attention and projection that autograd keeps


def trains_together(learning: Learning) -> bool:
    """Tell whether folds are trained together: ABMIL on CUDA, without a search; a CPU is faster one at a time."""
    on_cuda = torch.device(learning.device).type == "cuda"
    return on_cuda and learning.spec.model == DEFAULT_MODEL and learning.search is None


@dataclass(frozen=True, eq=False)
class _Claimed:
    """A fold in hand."""

    task: OpenTask
    item: ClaimedItem

    @property
    def number(self) -> int:
        return fold_number(self.item.item)

    @property
    def job(self) -> TrainingJob:
        material, learning = self.task.material, self.task.request.learning
        plan = plan_fold(
            material.cohort, self.task.split.folds[self.number], material.store, learning.spec,
            fold_index=self.number, target=material.target_kind, threshold_policy=learning.threshold_policy,
        )  # fmt: skip
        return plan.job


def work_together(tasks: Sequence[OpenTask], progress: Report) -> None:
    """Learn every fold of `tasks` that nobody has learnt or is learning, as many at once as the device holds.

    Args:
        tasks: over features of one encoder, learnt by one recipe, with materials that hold for all their folds.
        progress: told of epochs over all folds.

    Raises:
        WsiDinoError: see `learn_fold`.
    """
    epochs = tasks[0].request.learning.spec.epochs
    progress(0, total=sum(len(task.split) for task in tasks) * epochs)
    while in_hand := _take(tasks):
        try:
            for group in _groups(list(in_hand)):
                for done, row in _learn(group, epochs, progress):
                    in_hand.remove(done)
                    done.task.queue.finish(done.item, row)
        except BaseException:
            for each in in_hand:
                each.task.queue.give_back(each.item)
            raise
    progress(sum(task.queue.n_reused for task in tasks) * epochs)


def _take(tasks: Sequence[OpenTask]) -> list[_Claimed]:
    """Claim all folds that are free; only when there is none wait for those that others work on."""
    claimed = []
    for task in tasks:
        for number in range(len(task.split)):
            item = task.queue.take_if_free(f"fold-{number}")
            claimed += [_Claimed(task, item)] if item else []
    if claimed:
        return claimed
    for task in tasks:
        if (item := task.queue.take()) is not None:
            return [_Claimed(task, item)]
    return []


def _groups(claimed: Sequence[_Claimed]) -> Iterator[list[_Claimed]]:
    """Put folds with as many outputs together, as many as the device's memory holds."""
    by_outputs: dict[int, list[_Claimed]] = {}
    for each in claimed:
        by_outputs.setdefault(each.job.objective.n_outputs, []).append(each)
    for group in by_outputs.values():
        size = _models_at_once(group)
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _models_at_once(group: Sequence[_Claimed]) -> int:
    """Return how many models' steps fit into two fifths of the free memory, at least one."""
    learning, store = group[0].task.request.learning, group[0].task.material.store
    device = torch.device(learning.device)
    if device.type != "cuda":
        return _MOST_MODELS
    spec = learning.spec
    largest = sorted((n for each in group for n in each.task.material.store.n_tiles.values()), reverse=True)
    rows = sum(min(n, spec.max_tiles or n) for n in largest[: spec.batch_bags])
    values = store.embed_dim + _HIDDEN_COPIES * spec.hidden_dim + _GATE_COPIES * spec.attention_dim
    free, _ = torch.cuda.mem_get_info(device)
    return int(min(max(0.4 * free // max(rows * values * _BYTES_A_VALUE, 1), 1), _MOST_MODELS))


def _learn(
    group: Sequence[_Claimed], epochs: int, progress: Report
) -> Iterator[tuple[_Claimed, dict[str, Any]]]:  # fmt: skip
    """Train a group together, then test each fold and write its files as if it had been learnt alone."""
    store, learning = _united_store(group), group[0].task.request.learning
    names = [f"{each.task.material.task.name} fold {each.number + 1}" for each in group]
    shown = [EpochProgress(progress, name, epochs) for name in names]
    trained = None
    if store is not None and _fits(store, learning):
        on_epoch: Callable[[int, dict[str, float]], None] = lambda job, row: shown[job](row)  # noqa: E731
        trained = train_together([each.job for each in group], store, device=learning.device, on_epoch=on_epoch)
    for place, each in enumerate(group):
        task, done = each.task, trained[place] if trained else None
        row = learn_fold(
            task.material, task.split, each.number, task.request.learning, task.files, shown[place], trained=done
        )
        yield each, row
        shown[place].finish()


def _united_store(group: Sequence[_Claimed]) -> BagStore | None:
    """Return one store over the features of all tasks; None when a slide's name means another file to another task."""
    materials = {id(each.task.material): each.task.material for each in group}
    if len(materials) == 1:
        return group[0].task.material.store
    paths: dict[str, Path] = {}
    for material in materials.values():
        for slide_id, path in material.paths.items():
            if paths.setdefault(slide_id, path) != path:
                return None
    return BagStore(paths, allow_random_weights=True)  # each task's own store has refused them or not


def _fits(store: BagStore, learning: Learning) -> bool:
    first = store.features(store.slide_ids[0])
    return fits_on(torch.device(learning.device), sum(store.n_tiles.values()), store.embed_dim, first.itemsize)
