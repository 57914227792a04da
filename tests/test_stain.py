"""Stain normalisation: brings a re-coloured slide back, equals tiatoolbox on its own sample, leaves white alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsi_dino.errors import ConfigError
from wsi_dino.pathology.embed_spec import StainMethod
from wsi_dino.pathology.stain import StainReference, tissue_pixels

if importlib.util.find_spec("tiatoolbox") is None:
    pytest.skip("tiatoolbox is not installed: pip install 'wsi_dino[tiatoolbox]'", allow_module_level=True)

METHODS: list[StainMethod] = ["macenko", "vahadane", "reinhard"]
HAEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.27, 0.92, 0.28])


def phantom(haematoxylin: np.ndarray, eosin: np.ndarray, strength: tuple[float, float], seed: int = 0) -> np.ndarray:
    """Draw tissue whose stains are known: nuclei, cytoplasm and white background, uint8 ``(128, 128, 3)``."""
    random = np.random.default_rng(seed)
    amounts = random.gamma(2.0, 0.25, (128, 128, 2)) * strength
    amounts[..., 0] *= random.random((128, 128)) < 0.4
    amounts[:, :40] = 0
    matrix = np.stack([haematoxylin / np.linalg.norm(haematoxylin), eosin / np.linalg.norm(eosin)])
    noise = random.normal(0, 1, (128, 128, 3))
    return np.clip(255 * np.exp(-amounts @ matrix) + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def reference_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stain") / "reference.png"
    Image.fromarray(phantom(HAEMATOXYLIN, EOSIN, (1.0, 1.0))).save(path)
    return path


@pytest.fixture(scope="module", params=METHODS)
def reference(request: Any, reference_path: Path) -> StainReference:
    return StainReference(request.param, reference_path)


def _colour(image: np.ndarray) -> np.ndarray:
    pixels = tissue_pixels(image).astype(np.float64)
    return np.concatenate([pixels.mean(axis=0), pixels.std(axis=0)])


def test_a_slide_of_other_stains_comes_closer_to_the_reference(reference: StainReference, reference_path: Path) -> None:
    target = _colour(np.asarray(Image.open(reference_path)))
    slide = phantom(np.array([0.75, 0.55, 0.40]), np.array([0.15, 0.80, 0.45]), (0.6, 1.5), seed=1)
    normalise, basis = reference.fit(tissue_pixels(slide))
    before, after = np.abs(_colour(slide) - target).mean(), np.abs(_colour(normalise(slide)) - target).mean()
    assert basis == "slide"
    assert after < 0.5 * before


def test_tiles_are_mapped_pixel_by_pixel_so_that_equal_tissue_stays_equal(reference: StainReference) -> None:
    slide = phantom(np.array([0.75, 0.55, 0.40]), EOSIN, (0.8, 1.2), seed=2)
    normalise, _ = reference.fit(tissue_pixels(slide))
    assert (normalise(slide)[30:60, 50:90] == normalise(slide[30:60, 50:90])).all()
    again, _ = reference.fit(tissue_pixels(slide))
    assert (again(slide) == normalise(slide)).all()


@pytest.mark.parametrize("value", [255, 243, 0])
def test_blank_tiles_never_fail_and_white_stays_white(reference: StainReference, value: int) -> None:
    slide = phantom(HAEMATOXYLIN, EOSIN, (0.5, 2.0), seed=3)
    normalise, _ = reference.fit(tissue_pixels(slide))
    tile = np.full((16, 16, 3), value, np.uint8)
    result = normalise(tile)
    assert result.dtype == np.uint8
    assert result.shape == tile.shape
    assert (result.reshape(-1, 3) == result[0, 0]).all()
    if value:  # black is denser than any stain, so that its hue means nothing
        assert np.abs(result.astype(int) - value).max() <= (0 if value == 255 else 30)


def test_noisy_paper_does_not_turn_into_tissue(reference: StainReference) -> None:
    paper = np.random.default_rng(0).normal(241, 2, (128, 128, 3)).clip(0, 255).astype(np.uint8)
    normalise, basis = reference.fit(tissue_pixels(paper))
    assert basis.startswith("none")
    assert (normalise(paper) == paper).all()


@pytest.mark.parametrize("method", ["macenko", "vahadane"])
def test_one_flat_colour_is_fitted_with_the_references_stains(method: StainMethod, reference_path: Path) -> None:
    flat = np.full((3000, 3), (190, 110, 170), np.uint8)
    normalise, basis = StainReference(method, reference_path).fit(flat)
    assert basis.startswith(("reference vectors", "none"))
    assert normalise(flat[None]).dtype == np.uint8


@pytest.mark.parametrize("method", ["macenko", "vahadane"])
def test_the_map_equals_tiatoolbox_on_the_sample_it_was_fitted_to(method: StainMethod, reference_path: Path) -> None:
    def sample(image: np.ndarray) -> np.ndarray:
        pixels = tissue_pixels(image)
        return np.concatenate([pixels, np.full((len(pixels) // 4, 3), 255, np.uint8)])[:, None, :]

    reference = StainReference(method, reference_path)
    theirs = reference._tools.get_normalizer(method)
    theirs.fit(sample(np.asarray(Image.open(reference_path))))
    slide = phantom(np.array([0.75, 0.55, 0.40]), EOSIN, (0.8, 1.2), seed=4)
    normalise, _ = reference.fit(tissue_pixels(slide))
    image = sample(slide)
    difference = np.abs(normalise(image).astype(int) - theirs.transform(image.copy()))
    assert difference.max() <= 1  # theirs cuts off the fraction, ours rounds


def test_a_reference_without_tissue_or_of_one_stain_is_refused(tmp_path: Path) -> None:
    for name, image in {
        "white": np.full((64, 64, 3), 255, np.uint8),
        "flat": np.full((64, 64, 3), (190, 110, 170), np.uint8),
    }.items():
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        with pytest.raises(ConfigError, match=rf"{name}\.png.*H&E"):
            StainReference("macenko", tmp_path / f"{name}.png")
    (tmp_path / "text.png").write_text("no image")
    for name in ("text.png", "absent.png"):
        with pytest.raises(ConfigError, match=name):
            StainReference("macenko", tmp_path / name)


def test_real_tissue_comes_closer_to_a_real_reference(shared_data: Path, tmp_path: Path) -> None:
    from wsi_dino.pathology.slide import open_slide

    with open_slide(shared_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        tissue = slide.read_level((400, 400), 0, (800, 800))
    Image.fromarray(tissue).save(tmp_path / "reference.png")
    density = -np.log(np.maximum(tissue, 1) / 255)
    recoloured = (255 * np.exp(-density * (1.6, 0.8, 1.3))).astype(np.uint8)
    for method in METHODS:
        reference = StainReference(method, tmp_path / "reference.png")
        normalise, _ = reference.fit(tissue_pixels(recoloured))
        target = _colour(tissue)
        before, after = (
            np.abs(_colour(recoloured) - target).mean(),
            np.abs(_colour(normalise(recoloured)) - target).mean(),
        )
        assert after < 0.5 * before, method
