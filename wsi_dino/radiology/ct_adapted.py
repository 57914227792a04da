"""Volumes through an encoder that is adapted to each fold. Imports torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wsi_dino.errors import VolumeError
from wsi_dino.evaluation.label_folds import rows_of_folds
from wsi_dino.radiology.adapt_request import AdaptRequest
from wsi_dino.radiology.adaptation import LabelAdaptation, learn_all
from wsi_dino.radiology.adapted_files import SUFFIX, FoldAdapters, identity_of_all, told_of
from wsi_dino.radiology.ct_adaptation import VolumeBags
from wsi_dino.radiology.ct_embedding import embed_volumes
from wsi_dino.radiology.ct_features import CtFeatures
from wsi_dino.radiology.ct_task import AdaptedVolumes, CtTask


def adapt_volumes(frozen: CtTask, request: AdaptRequest, *, readers: int = 0) -> tuple[CtTask, Any]:
    """Adapt the encoder to each fold and encode all volumes with each.

    Args:
        frozen: the same volumes through the encoder as published.
        request: how.
        readers: threads that decode volumes.

    Returns:
        What is to be judged beside `frozen`, and the encoder of the first fold, for pictures.

    Raises:
        EncoderError: the encoder cannot be adapted.
        CohortError: one volume stands on two sides of a fold.
        VolumeError: a volume can no longer be read.
    """
    volumes, base = frozen.used, request.base
    source = VolumeBags(
        volumes, frozen.features.spec, base.chosen_px, base.record.interpolation, frozen.spec.pool, request.n_slices
    )
    folds = rows_of_folds(frozen.split(), [row.patient_id for row in volumes])
    # one folder for all probes: what is learnt does not depend on them
    folder = _named(frozen.features, [frozen.features.identity]).result_folder(frozen.task, source.pool, "adapter")
    files = FoldAdapters(frozen.features.run, folder, "-".join(filter(None, (frozen.table.name, frozen.task))))
    plan = LabelAdaptation(
        files, base, request.spec, source, frozen.table.label_names, frozen.targets,
        [row.volume_id for row in volumes], frozen.contents, folds,
    )  # fmt: skip
    adapters = learn_all(plan, request, len(volumes), "volumes")
    of_fold, first = [], None
    for number, _ in enumerate(adapters):
        encoder = base.load_adapted(files.folder_of(number))
        features = CtFeatures(
            frozen.features.run, frozen.table.name, encoder.spec, encoder.identity(), frozen.features.spec
        )
        with request.bars(f"encode, fold {number + 1} of {len(adapters)}", "volumes") as report:
            report(0, total=len(volumes))
            made = embed_volumes(
                features, encoder, volumes, with_slices=frozen.spec.pool == "attention", readers=readers, report=report
            )
        if made.failed:
            row = made.failed[0]
            raise VolumeError(f"Encoding {row['volume_id']} again: {row['reason']} Run the same command once more.")
        of_fold.append(features)
        first = first or encoder
    told = told_of(adapters, source.recipe)
    adapted = AdaptedVolumes(frozen.features, tuple(of_fold), adapters, told)
    named = _named(frozen.features, [each.identity for each in of_fold])
    return replace(frozen, features=named, adapted=adapted), first


def _named(frozen: CtFeatures, identities: list[dict[str, Any]]) -> CtFeatures:
    """Return what stands for the features of all folds together, in names and in what is told."""
    record = frozen.record.model_copy(update={"name": f"{frozen.record.name}{SUFFIX}"})
    return replace(frozen, record=record, identity=identity_of_all(identities, frozen.record.name))
