"""Deletion and insertion: does the score fall when what got most attention is taken away, and come back with it?

After Petsiuk et al., RISE, BMVC 2018, with tiles of a slide in place of pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wsi_dino.evaluation.bootstrap import percentile_bounds

_WAYS = ("deletion", "insertion")
_METHOD = (
    "score: probability of the class that the model says of the whole slide, of bags from which the most attended "
    "tiles are removed (deletion; the least attended one stays) or which hold only them (insertion; the most attended "
    "one is there from the start); AUC: area under it over the share of tiles moved; random: mean over {n_random} "
    "random orders; gain: random less attention for deletion, attention less random for insertion, so that above 0 "
    "attention orders tiles better than chance; intervals: 95 %, bootstrap over patients"
)


@dataclass(frozen=True)
class SlideCurves:
    """The curves of one slide.

    Attributes:
        slide_id, patient_id: text ids.
        fold: number of the fold whose model was asked.
        said: the class whose probability is followed.
        n_tiles: of the slide.
        curves: float64 ``(n_points,)`` by ``"deletion"``, ``"insertion"``, ``"random_deletion"`` and
            ``"random_insertion"``, over equal steps of the share of tiles moved, 0 to 1.
    """

    slide_id: str
    patient_id: str
    fold: int
    said: str
    n_tiles: int
    curves: dict[str, np.ndarray]

    @property
    def areas(self) -> dict[str, float]:
        """Area under each curve, and ``deletion_gain``, ``insertion_gain``."""
        areas = {name: float((curve[1:] + curve[:-1]).mean() / 2) for name, curve in self.curves.items()}
        areas["deletion_gain"] = areas["random_deletion"] - areas["deletion"]
        areas["insertion_gain"] = areas["insertion"] - areas["random_insertion"]
        return areas


def follow(
    values: np.ndarray, score_of: Callable[[np.ndarray], float], *, n_steps: int, n_random: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return the four curves of a slide.

    Args:
        values: float ``(n,)``, n > 0: the order that is tested, e.g. attention.
        score_of: scores a bag of the tiles whose indices it is given; at least one.
        n_steps: steps from all tiles to one.
        n_random: random orders that are averaged.
        rng: draws them.

    Examples:
        >>> curves = follow(np.array([3.0, 1.0, 2.0]), lambda kept: float(0 in kept), n_steps=2, n_random=1,
        ...                 rng=np.random.default_rng(0))
        >>> curves["deletion"].tolist(), curves["insertion"].tolist()
        ([1.0, 0.0, 0.0], [1.0, 1.0, 1.0])
    """
    moved = np.rint(np.linspace(0, 1, n_steps + 1) * (len(values) - 1)).astype(int)

    def both(order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        deletion = np.array([score_of(order[count:]) for count in moved])
        return deletion, np.array([score_of(order[: count + 1]) for count in moved])

    deletion, insertion = both(np.argsort(-values, kind="stable"))
    random = np.mean([both(rng.permutation(len(values))) for _ in range(n_random)], axis=0)
    return {
        "deletion": deletion, "insertion": insertion, "random_deletion": random[0], "random_insertion": random[1],
    }  # fmt: skip


def summarise_curves(
    slides: Sequence[SlideCurves], *, n_random: int, n_resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Return the content of ``faithfulness`` in metrics.json.

    Args:
        slides: at least one.
        n_random: of `follow`, to be told.
        n_resamples: bootstrap replicates over patients.
        seed: of the bootstrap.

    Returns:
        ``deletion`` and ``insertion``, each with ``attention``, ``random`` and ``gain`` (``value``, ``low``,
        ``high``); ``curves``: mean of each over slides by ``share``; ``slides``: areas of each; ``method``.
    """
    areas = [slide.areas for slide in slides]
    names = list(areas[0])
    table = np.array([[row[name] for name in names] for row in areas])
    intervals = dict(zip(names, _means(table, [slide.patient_id for slide in slides], n_resamples, seed), strict=True))
    curves = {name: np.mean([slide.curves[name] for slide in slides], axis=0).tolist() for name in slides[0].curves}
    n_points = len(slides[0].curves["deletion"])
    return {
        **{way: {
            "attention": intervals[way], "random": intervals[f"random_{way}"], "gain": intervals[f"{way}_gain"]
        } for way in _WAYS},
        "n_slides": len(slides), "n_patients": len({slide.patient_id for slide in slides}),
        "curves": {"share": np.linspace(0, 1, n_points).tolist(), **curves},
        "slides": [_row(slide, area) for slide, area in zip(slides, areas, strict=True)],
        "method": _METHOD.format(n_random=n_random),
    }  # fmt: skip


def _row(slide: SlideCurves, areas: dict[str, float]) -> dict[str, Any]:
    return {key: value for key, value in asdict(slide).items() if key != "curves"} | areas


def _means(table: np.ndarray, patients: Sequence[str], n_resamples: int, seed: int) -> list[dict[str, float]]:
    """Return the mean of each column with its interval; a patient is drawn with all its slides."""
    names, patient_of = np.unique(np.asarray(patients, str), return_inverse=True)
    share = np.full(len(names), 1 / len(names))
    drawn = np.random.default_rng([seed, 0]).multinomial(len(names), share, n_resamples)[:, patient_of]
    replicates = drawn @ table / drawn.sum(1, keepdims=True)
    low, high = percentile_bounds(replicates)
    columns = zip(table.mean(0), low, high, strict=True)
    return [dict(zip(("value", "low", "high"), map(float, column), strict=True)) for column in columns]
