"""Radiographs through an encoder that is adapted to each fold. Imports torch."""

from __future__ import annotations

from dataclasses import replace

from wsi_dino.errors import ImageError
from wsi_dino.evaluation.label_folds import rows_of_folds
from wsi_dino.radiology.adapt_request import AdaptRequest
from wsi_dino.radiology.adaptation import LabelAdaptation, learn_all
from wsi_dino.radiology.adapted_files import FoldAdapters, told_of
from wsi_dino.radiology.chest_adaptation import ImageBags
from wsi_dino.radiology.chest_features import embed_images
from wsi_dino.radiology.chest_run import AdaptedImages, ChestSpec, Combination, split_of
from wsi_dino.run_folder import RunFolder


def adapt_images(
    run: RunFolder, frozen: Combination, spec: ChestSpec, request: AdaptRequest, *, workers: int = 0
) -> Combination:
    """Adapt the encoder to each fold and encode all images with each.

    Adapters and features that are finished are kept, so that the same command goes on where another was killed.

    Args:
        run: the run folder.
        frozen: the same images through the encoder as published.
        spec: of the folds.
        request: how.
        workers: decoding threads.

    Returns:
        What is to be judged beside `frozen`.

    Raises:
        EncoderError: the encoder cannot be adapted.
        CohortError: one picture stands on two sides of a fold.
        ImageError: an image can no longer be read.
    """
    used = frozen.used
    source = ImageBags(used, frozen.view)
    folds = rows_of_folds(split_of(used, spec), used.patient_ids)
    name = "-".join(filter(None, (used.name, frozen.task)))
    files = FoldAdapters(run, replace(frozen, adapted=_NOTHING).folder(run) / "adapter", name)
    plan = LabelAdaptation(
        files, request.base, request.spec, source, used.label_names, used.targets, used.image_ids,
        frozen.features.contents, folds,
    )  # fmt: skip
    adapters = learn_all(plan, request, len(used), "images")
    features, identities, first = [], [], None
    for number, _ in enumerate(adapters):
        encoder = request.base.load_adapted(files.folder_of(number))
        with request.bars(f"encode, fold {number + 1} of {len(adapters)}", "images") as report:
            made = embed_images(run, used, encoder, frozen.view, workers=workers, report=report)
        if made.failures:
            image, reason = next(iter(made.failures.items()))
            raise ImageError(f"Encoding {image} again: {reason} Run the same command once more.")
        features.append(made.features)
        identities.append(encoder.identity())
        first = first or encoder
    told = told_of(adapters, source.recipe)
    return replace(frozen, adapted=AdaptedImages(tuple(features), tuple(identities), adapters, told, first))


_NOTHING = AdaptedImages((), (), (), {}, None)
