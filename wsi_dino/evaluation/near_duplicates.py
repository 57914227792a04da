"""Which pictures show the same slide twice: by a perceptual hash, then by looking at the candidates again.

The hash is the sign of the 255 lowest frequencies but the mean of the cosine transform of a 32 x 32 grey
picture of the tissue's bounding box (after Zauner 2010, with 16 x 16 in place of 8 x 8 frequencies, since
tissue on white glass is alike at the coarsest ones). A slide that was scanned again, coded again, scaled,
mirrored or turned by quarter turns gives nearly the same bits.

The limits were set on 1,300 colon tiles, crops of some hundred source images: of 842,130 pairs from different
images none was within 80 bits, while 183 of 2,220 pairs of one image were within 60. Of 240 drawn slides, each
changed once (scaled by 0.7, turned, darkened, shifted by 4 %, mirrored and blurred, turned by 2 degrees, with
the tile grid drawn elsewhere), 205 were found again and none of the 114,720 other pairs was taken for one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SIDE = 32
_FREQUENCIES = 16
MAX_DISTANCE_BITS = 60
MIN_CORRELATION = 0.8
_READ_PX = 128
_DARKER_THAN_GLASS = 16
_LEAST_TISSUE = 0.005
_ROWS_AT_ONCE = 1000
_READERS = 4


@dataclass(frozen=True)
class NearDuplicate:
    """Two slides whose pictures are all but the same.

    Attributes:
        first, second: slide ids.
        distance_bits: differing bits of 255.
        correlation: of the two grey pictures, best of eight orientations.
    """

    first: str
    second: str
    distance_bits: int
    correlation: float


def find_near_duplicates(
    paths: Mapping[str, Path], report: Callable[..., None] = lambda *_, **__: None
) -> list[NearDuplicate]:
    """Return the pairs of slides whose pictures are nearly the same, by slide id.

    Pictures that cannot be read are passed over. About 13 KB are kept a slide; the time grows with the square of
    the number of slides only in one small matrix product.

    Args:
        paths: a picture of each slide, e.g. ``RUN/thumbnails/SLIDE.jpg``.
        report: called with 1 for each picture read.
    """

    def read(path: Path) -> np.ndarray | None:
        grey = read_tissue_grey(path)
        report(1)
        return grey

    with ThreadPoolExecutor(_READERS) as readers:
        greys = list(readers.map(read, paths.values()))
    names = [name for name, grey in zip(paths, greys, strict=True) if grey is not None]
    known = np.array([grey for grey in greys if grey is not None]).reshape(-1, SIDE, SIDE)
    pairs = []
    for i, j, distance in _candidates(known):
        correlation = best_correlation(known[i], known[j])
        if correlation >= MIN_CORRELATION:
            first, second = sorted((names[i], names[j]))
            pairs.append(NearDuplicate(first, second, distance, correlation))
    return sorted(pairs, key=lambda pair: (pair.first, pair.second))


def read_tissue_grey(path: Path) -> np.ndarray | None:
    """Read float32 ``(32, 32)`` grey of the tissue's bounding box; None for no picture or an even one."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.draft("L", (_READ_PX, _READ_PX))  # a JPEG is decoded at an eighth of its side
            picture = image.convert("L")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    values = np.asarray(picture)
    dark = values < np.percentile(values, 95) - _DARKER_THAN_GLASS
    if dark.mean() >= _LEAST_TISSUE:
        rows, columns = np.flatnonzero(dark.mean(1) > 0.01), np.flatnonzero(dark.mean(0) > 0.01)
        if len(rows) and len(columns):
            picture = picture.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    grey = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
    return grey if grey.std() > 1 else None


def orientations(grey: np.ndarray) -> Iterator[np.ndarray]:
    """Return the picture turned by quarter turns, plain and mirrored: eight in all."""
    for mirrored in (grey, grey[..., ::-1]):
        for turns in range(4):
            yield np.rot90(mirrored, turns, axes=(-2, -1))


def hash_bits(greys: np.ndarray) -> np.ndarray:
    """Return float32 ``(n, 255)`` of -1 and 1 for pictures ``(n, 32, 32)``."""
    basis = _cosines()
    frequencies = (basis @ greys @ basis.T).reshape(len(greys), -1)[:, 1:]
    return np.where(frequencies > np.median(frequencies, axis=1, keepdims=True), 1, -1).astype(np.float32)


def _cosines() -> np.ndarray:
    place, frequency = np.arange(SIDE) + 0.5, np.arange(_FREQUENCIES)[:, None]
    return np.cos(np.pi / SIDE * frequency * place).astype(np.float32)


def _candidates(greys: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Yield each pair within `MAX_DISTANCE_BITS` in some orientation."""
    if not len(greys):
        return
    plain, turned = hash_bits(greys), [hash_bits(each) for each in orientations(greys)]
    n_bits = plain.shape[1]
    for start in range(0, len(plain), _ROWS_AT_ONCE):
        rows = plain[start : start + _ROWS_AT_ONCE]
        agreement = np.max([rows @ other.T for other in turned], axis=0)
        distance = np.rint((n_bits - agreement) / 2).astype(int)
        for i, j in zip(*np.nonzero(distance <= MAX_DISTANCE_BITS), strict=True):
            if start + i < j:
                yield int(start + i), int(j), int(distance[i, j])


def best_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return the highest correlation of two grey pictures over eight orientations of the second."""
    return float(max(np.corrcoef(first.ravel(), each.ravel())[0, 1] for each in orientations(second)))
