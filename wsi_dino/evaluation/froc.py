"""Free-response ROC of detections against annotated lesions, as Camelyon16 evaluates it.

Source: Ehteshami Bejnordi et al., JAMA 2017;318(22):2199-2210, and the challenge's evaluation page and script
(camelyon16.grand-challenge.org). Annotated regions nearer than 75 um count as one lesion; lesions whose longest
axis is below 275 um after that are isolated tumour cells, neither to be found nor wrong to find; a lesion's score
is that of the best detection in it; everything outside of lesions is a false positive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wsi_dino.errors import ConfigError

FALSE_POSITIVES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
EVALUATION_MPP = 0.243 * 2**5
"""um/px at which Camelyon16 evaluates: level 5 of slides of 0.243 um/px."""
MERGE_UM, ITC_UM = 75.0, 275.0
NOT_A_LESION, ISOLATED_CELLS = 0, -1
Counted = Literal["normal", "all"]


@dataclass(frozen=True)
class Lesions:
    """The lesions of one slide, on a grid of `mpp` um/px.

    Attributes:
        labels: int32 ``(height, width)``: 0 outside, then 1, 2, ... a number for each lesion.
        is_itc: bool ``(n_lesions,)``: which are isolated tumour cells.
        longest_um: float64 ``(n_lesions,)``: major axis of the ellipse of equal second moments.
        mpp: um/px.
    """

    labels: np.ndarray
    is_itc: np.ndarray
    longest_um: np.ndarray
    mpp: float

    @property
    def n_to_find(self) -> int:
        """Lesions that are not isolated tumour cells."""
        return int((~self.is_itc).sum())

    def at(self, xy_um: np.ndarray) -> np.ndarray:
        """Return for points ``(n, 2)``, x and y in um, the lesion number, `NOT_A_LESION` or `ISOLATED_CELLS`."""
        column, row = np.floor(xy_um / self.mpp).astype(int).reshape(-1, 2).T
        height, width = self.labels.shape
        inside = (column >= 0) & (row >= 0) & (column < width) & (row < height)
        found = np.zeros(len(column), np.int64)
        found[inside] = self.labels[row[inside], column[inside]]
        itc = np.concatenate([[False], self.is_itc])[found]
        return np.where(itc, ISOLATED_CELLS, found)


def find_lesions(annotated: np.ndarray, mpp: float, *, merge_um: float = MERGE_UM, itc_um: float = ITC_UM) -> Lesions:
    """Turn annotated pixels into lesions as Camelyon16 does.

    Pixels nearer than ``merge_um / 2`` to an annotated one belong to it, holes are filled, what touches
    (corners too) is one lesion.

    Args:
        annotated: bool ``(height, width)``.
        mpp: um/px of it; the challenge takes `EVALUATION_MPP`.
        merge_um: regions nearer than this are one lesion.
        itc_um: lesions with a shorter major axis are isolated tumour cells.

    Examples:
        >>> mask = np.zeros((100, 100), bool)
        >>> mask[10:60, 10:60] = mask[80:83, 80:83] = True  # 500 and 30 um at 10 um/px
        >>> lesions = find_lesions(mask, 10.0)
        >>> lesions.is_itc.tolist(), lesions.n_to_find
        ([False, True], 1)
    """
    from scipy import ndimage

    if not annotated.any():
        return Lesions(np.zeros(annotated.shape, np.int32), np.zeros(0, bool), np.zeros(0), mpp)
    near = ndimage.distance_transform_edt(~annotated) < merge_um / 2 / mpp
    labels, n = ndimage.label(ndimage.binary_fill_holes(near), np.ones((3, 3)))
    boxes = ndimage.find_objects(labels)
    longest = np.array([_major_axis_px(labels[box] == number + 1) for number, box in enumerate(boxes)]) * mpp
    return Lesions(labels.astype(np.int32), longest < itc_um, longest.reshape(n), mpp)


def _major_axis_px(region: np.ndarray) -> float:
    """Return the long axis of the ellipse with the second moments of the px, as scikit-image does."""
    points = np.argwhere(region).astype(np.float64)
    moments = np.cov(points, rowvar=False, bias=True).reshape(2, 2)
    return float(4 * np.sqrt(max(0.0, np.linalg.eigvalsh(moments)[-1])))


@dataclass(frozen=True)
class Detections:
    """What was detected on one slide, and what it hit.

    Attributes:
        slide_id: text id.
        scores: float64 ``(n,)``.
        hits: int64 ``(n,)``: of `Lesions.at`; all `NOT_A_LESION` on a normal slide.
        n_lesions: lesions to find, isolated tumour cells not among them.
        is_normal: the slide holds no annotated pixel at all.
    """

    slide_id: str
    scores: np.ndarray
    hits: np.ndarray
    n_lesions: int
    is_normal: bool

    @property
    def best_of_lesions(self) -> np.ndarray:
        """float64: the best score in each lesion that was hit."""
        numbers = np.unique(self.hits[self.hits > 0])
        return np.array([self.scores[self.hits == number].max() for number in numbers])


def compute_froc(slides: Sequence[Detections], *, counted: Counted = "normal") -> dict[str, Any]:
    """Return the FROC curve and its mean sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false positives a slide.

    Between two rates of false positives the sensitivity is interpolated linearly, beyond the last it stays.

    Args:
        slides: normal ones and such with lesions.
        counted: false positives of ``"normal"`` slides over their number, as the JAMA paper words it, or of
            ``"all"`` slides over theirs, as the challenge's script counts.

    Returns:
        ``score``; ``sensitivity`` by ``false_positives``; ``curve`` of both by falling ``threshold``, as far as
        the first point beyond 8;
        ``n_lesions``, ``n_slides``, ``n_counted`` (slides whose false positives count), ``counted``.

    Raises:
        ConfigError: no lesion to find, or no slide whose false positives count.
    """
    counting = [slide for slide in slides if slide.is_normal or counted == "all"]
    n_lesions = sum(slide.n_lesions for slide in slides)
    if not n_lesions or not counting:
        raise ConfigError(
            f"Computing FROC: there are {n_lesions} lesions to find and {len(counting)} slides whose false positives "
            "count; both are needed. --count-in all counts those of slides with lesions too."
        )
    wrong = np.concatenate([slide.scores[slide.hits == NOT_A_LESION] for slide in counting])
    found = np.concatenate([slide.best_of_lesions for slide in slides])
    thresholds = np.unique(np.concatenate([wrong, found]))[::-1]
    per_slide = np.r_[0.0, _at_least(wrong, thresholds) / len(counting)]
    sensitivity = np.r_[0.0, _at_least(found, thresholds) / n_lesions]
    at = np.interp(FALSE_POSITIVES, per_slide, sensitivity)
    shown = slice(0, int(np.searchsorted(per_slide, FALSE_POSITIVES[-1], "right")) + 1)
    return {
        "score": float(at.mean()), "false_positives": list(FALSE_POSITIVES), "sensitivity": at.tolist(),
        "curve": {
            "threshold": [None, *thresholds.tolist()][shown], "false_positives": per_slide[shown].tolist(),
            "sensitivity": sensitivity[shown].tolist(),
        },
        "n_lesions": n_lesions, "n_slides": len(slides), "n_counted": len(counting), "counted": counted,
    }  # fmt: skip


def _at_least(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    return len(scores) - np.searchsorted(np.sort(scores), thresholds, "left")
