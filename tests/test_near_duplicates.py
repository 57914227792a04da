"""Slides that are another one once more are found by their pictures; different ones are left alone."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from wsi_dino.evaluation.near_duplicates import MAX_DISTANCE_BITS, find_near_duplicates, hash_bits, read_tissue_grey


def _slide(seed: int) -> Image.Image:
    """A blob of uneven tissue on white glass."""
    rng = np.random.default_rng(seed)
    rough = Image.fromarray(rng.integers(60, 200, (9, 12, 3)).astype(np.uint8)).resize(
        (480, 360), Image.Resampling.BICUBIC
    )
    y, x = np.mgrid[:360, :480]
    angle = np.arctan2(y - 180, x - 240)
    radius = 120 * (1 + sum(rng.normal(0, 0.12) * np.cos(k * angle + rng.uniform(0, 6)) for k in range(1, 6)))
    inside = np.hypot(y - 180, x - 240) < radius
    return Image.fromarray(np.where(inside[..., None], np.asarray(rough), 244).astype(np.uint8))


_CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "scaled": lambda image: image.resize((300, 225)),
    "turned": lambda image: image.rotate(90, expand=True),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.9),
    "moved": lambda image: image.rotate(0, translate=(20, -15), fillcolor=(244, 244, 244)),
}


@pytest.mark.parametrize("change", list(_CHANGES))
def test_changed_copy_is_found_among_others(tmp_path: Path, change: str) -> None:
    paths = {f"S{i}": tmp_path / f"S{i}.jpg" for i in range(12)}
    for index, path in enumerate(paths.values()):
        _slide(index).save(path)
    assert find_near_duplicates(paths) == []
    paths["copy"] = tmp_path / "copy.jpg"
    _CHANGES[change](_slide(4)).save(paths["copy"], quality=60)
    (pair,) = find_near_duplicates(paths)
    assert (pair.first, pair.second) == ("S4", "copy")
    assert pair.distance_bits <= MAX_DISTANCE_BITS


def test_pictures_that_say_nothing_are_passed_over(tmp_path: Path) -> None:
    Image.new("RGB", (300, 200), "white").save(tmp_path / "white.jpg")
    Image.new("RGB", (300, 200), "white").save(tmp_path / "white2.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    paths = {path.stem: path for path in tmp_path.iterdir()} | {"gone": tmp_path / "gone.jpg"}
    assert find_near_duplicates(paths) == []
    assert find_near_duplicates({}) == []


def test_hash_is_the_sign_of_the_lowest_frequencies() -> None:
    from scipy.fft import dctn

    greys = np.random.default_rng(0).uniform(0, 255, (3, 32, 32)).astype(np.float32)
    for grey, bits in zip(greys, hash_bits(greys), strict=True):
        # unnormalised cosines, as ours: every frequency has the same factor in scipy's type 2
        expected = dctn(grey, type=2)[:16, :16].ravel()[1:]
        assert np.array_equal(bits > 0, expected > np.median(expected))


def test_real_tiles_of_different_images_are_never_taken_for_one(shared_data: Path) -> None:
    folder = shared_data / "histology_tiles"
    with (folder / "index.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))[:300]
    group_of = {row["image"]: row["source_group"] for row in rows}
    found = find_near_duplicates({image: folder / image for image in group_of})
    assert found  # crops and turned copies of one image
    assert [pair for pair in found if group_of[pair.first] != group_of[pair.second]] == []


def test_grey_is_of_the_tissue_alone(tmp_path: Path) -> None:
    picture = np.full((400, 600), 240, np.uint8)
    picture[100:300, 200:500] = np.linspace(50, 200, 300).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    grey = read_tissue_grey(tmp_path / "a.png")
    assert grey is not None
    assert np.allclose(grey, np.linspace(50, 200, 32)[None], atol=6)
