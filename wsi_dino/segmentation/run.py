"""One segmentation experiment from a folder of volumes to metrics and a report. Imports torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from wsi_dino.encoders.devices import resolve_device
from wsi_dino.errors import ConfigError
from wsi_dino.run_folder import RunFolder
from wsi_dino.segmentation.atlas import atlas_rows
from wsi_dino.segmentation.case import Case, SegmentationDataset
from wsi_dino.segmentation.datasets.opening import open_dataset
from wsi_dino.segmentation.encoding import encode_cases, plan_features
from wsi_dino.segmentation.feature_maps import SliceEncoder
from wsi_dino.segmentation.fold_work import FoldContext, score_fold, train_folds
from wsi_dino.segmentation.folds import (
    Scheme,
    SegmentationFold,
    default_scheme,
    describe_scheme,
    make_folds,
)
from wsi_dino.segmentation.layout import SegmentationLayout
from wsi_dino.segmentation.learners import DecoderLearner, Learner
from wsi_dino.segmentation.preparing import PreparedCases, prepare_cases
from wsi_dino.segmentation.request import FeatureSpec, SegmentRequest
from wsi_dino.segmentation.results import Outcome, write_outcome
from wsi_dino.segmentation.training import TrainingSpec, learning_precision
from wsi_dino.segmentation.views import VIEWS
from wsi_dino.share import end_part

_PET_WARMUP_EPOCHS = 1
_DECODER_RATE = 3e-3  # decoders are small; networks of voxels keep the recipe's own


class Reporter(Protocol):
    """How a run tells what it does."""

    def say(self, message: str) -> None:
        """Tell a sentence."""

    def begin(self, title: str, total: int) -> None:
        """Begin a step of `total` parts."""

    def advance(self, text: str = "") -> None:
        """One part is done."""


@dataclass(frozen=True)
class _Experiment:
    """A request with its dataset and folds."""

    request: SegmentRequest
    dataset: SegmentationDataset
    layout: SegmentationLayout
    scheme: Scheme
    all_folds: tuple[SegmentationFold, ...]
    folds: tuple[SegmentationFold, ...]
    cases: tuple[Case, ...]
    remarks: list[str] = field(default_factory=list)


def segment(request: SegmentRequest, reporter: Reporter) -> Outcome:
    """Prepare, encode, train and score what is not done yet, and write results.

    Raises:
        PartDone: this process has a part of the folds (`share`), and it is done.
        ConfigError: the request makes no sense, or the dataset cannot be opened.
        SplitError: folds cannot be made.
        EncoderError: the encoder is not to be had.
        StorageError: the disk is full or the folder cannot be written.
    """
    experiment = _experiment(request)
    torch.set_num_threads(_threads(request.workers))
    reporter.begin("preparing", len(experiment.cases))
    prepared = prepare_cases(experiment.layout, experiment.dataset, experiment.cases, reporter.advance)
    folds = [_usable(fold, prepared) for fold in experiment.folds]
    _require_cases(experiment, folds)
    learner, timing = _learner(experiment, prepared, folds, reporter)
    context = _context(experiment, prepared, learner, reporter)
    reporter.begin("learning", len(folds) * context.training.epochs + sum(len(fold.val) for fold in folds))
    fold_rows, case_rows = [], []
    for fold, row in train_folds(context, folds):
        fold_rows.append(row)
        case_rows += score_fold(context, fold, row)
    end_part("segment", [*fold_rows, *case_rows])
    reporter.begin("baselines and report", 1)
    outcome = Outcome(
        request=request, dataset=experiment.dataset, layout=experiment.layout, folds=folds, prepared=prepared,
        fold_rows=fold_rows, case_rows=case_rows, atlas_rows=atlas_rows(context, folds), learner=learner, timing=timing,
        training=context.training, scheme=describe_scheme(experiment.scheme, request.n_folds),
        facts=learner.facts(folds[0].number), precision=context.precision,
    )  # fmt: skip
    write_outcome(outcome, experiment.all_folds)
    return outcome


def _threads(workers: int) -> int:
    if workers:
        return workers
    named = os.environ.get("OMP_NUM_THREADS", "")
    return int(named) if named.isdigit() and int(named) else len(os.sched_getaffinity(0))


def _experiment(request: SegmentRequest) -> _Experiment:
    dataset = open_dataset(request.dataset, request.root)
    data_name = dataset.name
    if request.channels is not None:
        dataset = dataset.with_channels(request.channels)
        data_name = f"{data_name}-{'+'.join(request.channels)}"
    scheme = request.scheme or default_scheme(dataset)
    all_folds = make_folds(dataset.cases, request.n_folds, scheme)
    wrong = [number for number in request.folds or () if number >= len(all_folds)]
    if wrong:
        raise ConfigError(f"--fold {wrong[0]}: there are {len(all_folds)} folds, numbered from 0.")
    kept = _kept_cases(dataset, all_folds, request.n_cases)
    folds = tuple(_limited(fold, kept) for fold in all_folds if request.folds is None or fold.number in request.folds)
    cases = tuple(case for case in dataset.cases if case.case_id in kept)
    layout = SegmentationLayout(RunFolder(request.run), data_name, request.label)
    return _Experiment(request, dataset, layout, scheme, tuple(all_folds), folds, cases)


def _kept_cases(dataset: SegmentationDataset, folds: Sequence[SegmentationFold], n_cases: int | None) -> set[str]:
    """Return the ids of at most `n_cases`, as many from the held-out cases of each fold as from those of others."""
    ids = [case.case_id for case in dataset.cases]
    if n_cases is None or n_cases >= len(ids):
        return set(ids)
    if n_cases < 2 * len(folds):
        raise ConfigError(f"--limit {n_cases}: {len(folds)} folds need at least {2 * len(folds)} cases.")
    longest = max(len(fold.val) for fold in folds)
    in_turn = [fold.val[i] for i in range(longest) for fold in folds if i < len(fold.val)]
    return set(list(dict.fromkeys(in_turn))[:n_cases])


def _limited(fold: SegmentationFold, kept: set[str]) -> SegmentationFold:
    return SegmentationFold(
        fold.number, tuple(i for i in fold.train if i in kept), tuple(i for i in fold.val if i in kept)
    )


def _usable(fold: SegmentationFold, prepared: PreparedCases) -> SegmentationFold:
    return _limited(fold, set(prepared.by_id))


def _require_cases(experiment: _Experiment, folds: Sequence[SegmentationFold]) -> None:
    for fold in folds:
        if not fold.train or not fold.val:
            side = "training" if not fold.train else "validation"
            raise ConfigError(
                f"Segmenting {experiment.dataset.name}: fold {fold.number} has no {side} case that can be read. "
                f"See {experiment.layout.run.state} for the reasons, or take more cases."
            )


def _learner(
    experiment: _Experiment, prepared: PreparedCases, folds: Sequence[SegmentationFold], reporter: Reporter
) -> tuple[Learner, dict[str, Any]]:
    base = {
        "dataset": experiment.dataset.name,
        "classes": experiment.dataset.classes,
        "channels": tuple(vars(channel) for channel in experiment.dataset.channels),
    }
    if experiment.request.is_network:
        from wsi_dino.segmentation.monai_learner import MonaiLearner

        return MonaiLearner(experiment.request, base, prepared.by_id), {}
    return _decoder_learner(experiment, base, prepared, folds, reporter)


def _decoder_learner(
    experiment: _Experiment,
    base: Mapping[str, Any],
    prepared: PreparedCases,
    folds: Sequence[SegmentationFold],
    reporter: Reporter,
) -> tuple[Learner, dict[str, Any]]:
    request = experiment.request
    encoder = SliceEncoder(
        request.encoder, request.features.layers, device=request.device, workers=_threads(request.workers),
        **request.encoder_settings,
    )  # fmt: skip
    plan = plan_features(encoder, request.features, list(prepared.by_id.values()))
    wanted = _wanted_views(folds, request.features)
    reporter.say(
        f"{plan.encoder}: a patch of {plan.patch_px} px covers {plan.patch_mm:g} mm; "
        f"{sum(len(views) for views in wanted.values())} volumes to encode, views counted"
    )
    reporter.begin("encoding", sum(len(views) for views in wanted.values()))
    encoded = encode_cases(experiment.layout, encoder, plan, wanted, prepared.by_id, reporter.advance)
    timing = {
        "encoding_s": round(encoded.seconds, 1),
        "volumes_encoded": sum(map(len, wanted.values())),
        "feature_key": plan.key,
        "shown_px": max(plan.shown_px(prepared.by_id[case_id]) for case_id in wanted),
        "enlargement": round(plan.patch_px / plan.patch_mm * plan.spacing_mm, 4),
    }
    return DecoderLearner(request, encoder, plan, base, encoded.cases), timing


def _wanted_views(folds: Sequence[SegmentationFold], spec: FeatureSpec) -> dict[str, tuple[str, ...]]:
    n_views: dict[str, int] = {}
    for fold in folds:
        of_fold = [*((i, spec.n_views) for i in fold.train), *((i, spec.n_test_views) for i in fold.val)]
        n_views |= {case_id: max(n, n_views.get(case_id, 1)) for case_id, n in of_fold}
    return {case_id: VIEWS[: n_views[case_id]] for case_id in sorted(n_views)}


def _context(experiment: _Experiment, prepared: PreparedCases, learner: Learner, reporter: Reporter) -> FoldContext:
    request = experiment.request
    given = dict(request.training)
    if not request.is_network:
        given.setdefault("learning_rate", _DECODER_RATE)
    if any(channel.modality == "pet" for channel in experiment.dataset.channels):
        given.setdefault("warmup_epochs", _PET_WARMUP_EPOCHS)
    device = resolve_device(request.device)
    given.setdefault("precision", learning_precision(device, learner.depths()))
    return FoldContext(
        layout=experiment.layout,
        dataset=experiment.dataset,
        learner=learner,
        prepared=prepared.by_id,
        training=TrainingSpec(**given),
        scoring=request.scoring,
        device=device,
        is_partition=experiment.scheme != "repeated-holdout",
        keep_predictions=request.keep_predictions,
        n_test_views=1 if request.is_network else request.features.n_test_views,
        advance=reporter.advance,
    )
