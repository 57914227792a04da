"""What `wsi-dino radiology chest-xray` does once all is checked: each encoder at each size, then the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_dino import share
from wsi_dino.cli import console
from wsi_dino.cli.probe_adapting import adapt_request
from wsi_dino.errors import ConfigError

if TYPE_CHECKING:
    from wsi_dino.cli.probe_options import ProbedEncoder
    from wsi_dino.encoders.record import EncoderSpec
    from wsi_dino.radiology.adapt_request import AdaptRequest
    from wsi_dino.radiology.chest_image import ChestView
    from wsi_dino.radiology.chest_run import ChestSpec, Combination
    from wsi_dino.radiology.datasets.image_set import ImageSet
    from wsi_dino.run_folder import RunFolder


@dataclass(frozen=True)
class Asked:
    """Everything that was asked for.

    Attributes:
        run: the run folder.
        images: the data set.
        encoders: those to judge, with their sizes.
        view: fields of `ChestView` as typed.
        spec: how features become figures.
        task: name of these labels, or "".
        device: where encoders run.
        workers: threads.
        command: as typed, for the report.
        with_pictures: show images, patches and similarities in the report.
        adapting: ``--adapt`` and its options as typed.
    """

    run: RunFolder
    images: ImageSet
    encoders: tuple[ProbedEncoder, ...]
    view: Mapping[str, str]
    spec: ChestSpec
    task: str
    device: str
    workers: int
    command: str
    with_pictures: bool = True
    adapting: Mapping[str, Any] = field(default_factory=lambda: {"adapt": None})

    @property
    def folder(self) -> Path:
        """Of all results."""
        from wsi_dino.radiology.chest_run import task_folder

        return task_folder(self.run, self.images.name, self.task)


def run_study(asked: Asked) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the content of each metrics.json, and the images that failed with their reason."""
    plan = [
        (encoder, view, _adaptation(asked, encoder, view.size_px))
        for encoder in asked.encoders
        for view in _views(asked, encoder)
    ]
    results: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    for encoder, view, adaptation in plan:
        console.say(f"{encoder.name} at {view.size_px} px")
        with share.one_part():
            made, failed = _one(asked, encoder.settings, view, adaptation)
            results += made
            failures |= failed
    share.end_all_parts()
    if len(results) > 1:
        from wsi_dino.evaluation.size_study import write_study

        write_study(asked.folder, results)
    return results, failures


def _views(asked: Asked, encoder: ProbedEncoder) -> list[ChestView]:
    from pydantic import ValidationError

    from wsi_dino.radiology.chest_image import ChestView

    record = encoder.record
    fields: dict[str, Any] = {**asked.view, "crop_fraction": _crop_fraction(asked.view["crop_fraction"], record)}
    try:
        return [ChestView(size_px=side, interpolation=record.interpolation, **fields) for side in encoder.sides]
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][-1]).replace("_", "-")
        raise ConfigError(f"--{option}: {first['msg']}, got {first['input']}.") from error


def _crop_fraction(text: str, record: EncoderSpec) -> float:
    if text == "record":
        return record.crop_fraction
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--crop-fraction {text}: expected a number above 0 up to 1, or record.") from None


def _adaptation(asked: Asked, encoder: ProbedEncoder, side: int) -> AdaptRequest | None:
    return adapt_request(
        asked.adapting, encoder, side, device=asked.device, workers=asked.workers, seed=asked.spec.seed, batch_bags=1
    )


def _one(
    asked: Asked, settings: Mapping[str, Any], view: ChestView, adaptation: AdaptRequest | None
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the figures of the frozen encoder, then those of the adapted one, and the images that failed."""
    from wsi_dino.encoders.loading import load_encoder
    from wsi_dino.radiology.chest_features import embed_images
    from wsi_dino.radiology.chest_run import Combination, require_some

    arguments = {**settings, "input_px": view.size_px}
    encoder = load_encoder(**arguments, device=asked.device, workers=asked.workers)
    with console.progress("encode", unit="images") as report:
        features = embed_images(asked.run, asked.images, encoder, view, workers=asked.workers, report=report)
    if features.n_encoded:
        console.say(
            f"{features.n_encoded} images encoded in {features.seconds:.1f} s, {features.images_per_s:.1f} images/s"
        )
    require_some(features, asked.images)
    frozen = Combination(asked.images, encoder, view, features, asked.task)
    results = [_judged(asked, frozen)]
    if adaptation is not None:
        from wsi_dino.radiology.chest_adapted import adapt_images

        adapted = adapt_images(asked.run, frozen, asked.spec, adaptation, workers=asked.workers)
        results.append(_judged(asked, adapted))
    return results, features.failures


def _judged(asked: Asked, combination: Combination) -> dict[str, Any]:
    from wsi_dino.radiology.chest_page import render_chest_page
    from wsi_dino.radiology.chest_run import judge

    def render(metrics: Mapping[str, Any], folds: Sequence[Any], models: Sequence[Any]) -> str:
        from wsi_dino.radiology.chest_pictures import chest_pictures

        pictures = chest_pictures(combination, metrics, folds) if asked.with_pictures else ()
        return render_chest_page(metrics, folds, pictures, asked.command)

    return judge(asked.run, combination, asked.spec, render=render)
