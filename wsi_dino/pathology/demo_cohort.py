"""A small cohort of drawn slides with known truth: what `wsi-dino demo` works on."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi_dino.item_queue import Item, ItemQueue
from wsi_dino.provenance import fingerprint, slide_fingerprint, write_atomically, write_text_atomically
from wsi_dino.run_folder import RunFolder

TARGET = "tumour"
SLIDE_WH = (3584, 3072)
SLIDE_MPP = 0.5
_DRAWN_AS = "demo cohort 1"  # raise when the drawing changes, so that old slides are drawn anew
_SLIDES_A_PATIENT = (1, 1, 1, 1, 2)


@dataclass(frozen=True)
class DrawnSlide:
    """One slide of the cohort: half of the patients have tumour, in all of their slides."""

    slide_id: str
    patient_id: str
    has_tumour: bool
    seed: int


@dataclass(frozen=True)
class DemoCohort:
    """Where the cohort of one folder lies.

    Attributes:
        folder: holds ``slides/SLIDE.tif``, ``labels.csv`` and ``truth/SLIDE.png``.
        drawn: its slides.
    """

    folder: Path
    drawn: tuple[DrawnSlide, ...]

    @property
    def slides(self) -> Path:
        """Folder of the pyramids."""
        return self.folder / "slides"

    @property
    def labels(self) -> Path:
        """CSV with slide_id, patient_id and tumour (normal, tumour)."""
        return self.folder / "labels.csv"

    def truth_path(self, slide_id: str) -> Path:
        """Picture of the drawn tumour: white where it is, at 1 / `synthetic.REDUCED_BY` of the slide."""
        return self.folder / "truth" / f"{slide_id}.png"

    def read_truth(self, slide_id: str) -> np.ndarray:
        """Return where tumour was drawn: bool ``(height, width)`` at 1 / `synthetic.REDUCED_BY` of level 0."""
        from PIL import Image

        with Image.open(self.truth_path(slide_id)) as picture:
            return np.asarray(picture.convert("L")) > 127


def plan_demo_cohort(folder: Path, n_slides: int) -> DemoCohort:
    """Return the cohort of `n_slides` slides; every fifth patient has two, every other patient tumour.

    Examples:
        >>> cohort = plan_demo_cohort(Path("demo"), 12)
        >>> len(cohort.drawn), len({slide.patient_id for slide in cohort.drawn})
        (12, 10)
        >>> sum(slide.has_tumour for slide in cohort.drawn)
        6
    """
    drawn: list[DrawnSlide] = []
    patient = 0
    while len(drawn) < n_slides:
        for _ in range(min(_SLIDES_A_PATIENT[patient // 2 % len(_SLIDES_A_PATIENT)], n_slides - len(drawn))):
            number = len(drawn) + 1
            drawn.append(DrawnSlide(f"drawn-{number:02}", f"patient-{patient + 1:02}", patient % 2 == 1, number))
        patient += 1
    return DemoCohort(folder, tuple(drawn))


def draw_demo_cohort(
    cohort: DemoCohort, run: RunFolder, on_slide: Callable[[str], None] = lambda slide_id: None
) -> int:
    """Draw the slides that are not there yet, and write the label table.

    Args:
        cohort: what to draw.
        run: keeps note of what is drawn already.
        on_slide: called with each slide_id that is in place.

    Returns:
        How many slides had been drawn before.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    by_id = {slide.slide_id: slide for slide in cohort.drawn}
    items = [Item(slide.slide_id, _fingerprint(slide)) for slide in cohort.drawn]
    queue = ItemQueue(run, "draw", items, lambda item, row: _is_intact(cohort, item.key, row.get("files", [])))
    while (claimed := queue.take()) is not None:
        try:
            files = _draw(cohort, by_id[claimed.item.key])
        except BaseException:
            queue.give_back(claimed)
            raise
        queue.finish(claimed, {"status": "done", "files": files})
        on_slide(claimed.item.key)
    _write_labels(cohort)
    return queue.n_reused


def _fingerprint(slide: DrawnSlide) -> str:
    return fingerprint(_DRAWN_AS, slide.seed, slide.has_tumour, SLIDE_WH, SLIDE_MPP)


def _files(cohort: DemoCohort, slide_id: str) -> list[Path]:
    return [cohort.slides / f"{slide_id}.tif", cohort.truth_path(slide_id)]


def _is_intact(cohort: DemoCohort, slide_id: str, fingerprints: list[str]) -> bool:
    files = _files(cohort, slide_id)
    return all(file.is_file() for file in files) and [slide_fingerprint(file) for file in files] == fingerprints


def _draw(cohort: DemoCohort, slide: DrawnSlide) -> list[str]:
    from PIL import Image

    from wsi_dino.pathology.synthetic import TissuePainter, write_pyramid

    painter = TissuePainter(
        np.random.default_rng(slide.seed), SLIDE_WH, tumour=slide.has_tumour, pen=slide.seed % 7 == 3
    )
    path, truth = _files(cohort, slide.slide_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pyramid(path, painter, wh=SLIDE_WH, mpp=SLIDE_MPP)
    with write_atomically(truth) as temporary:
        Image.fromarray(painter.tumour_mask).save(temporary, format="PNG")
    return [slide_fingerprint(path), slide_fingerprint(truth)]


def _write_labels(cohort: DemoCohort) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["slide_id", "patient_id", TARGET])
    for slide in cohort.drawn:
        writer.writerow([slide.slide_id, slide.patient_id, "tumour" if slide.has_tumour else "normal"])
    write_text_atomically(cohort.labels, buffer.getvalue())


def tumour_fraction_of_tiles(truth: np.ndarray, xy: np.ndarray, tile_wh_level0: tuple[int, int]) -> np.ndarray:
    """Return how much of each tile was drawn as tumour.

    Args:
        truth: bool ``(height, width)`` at 1 / `synthetic.REDUCED_BY` of level 0.
        xy: int64 ``(n_tiles, 2)``, top-left x, y in level-0 px.
        tile_wh_level0: footprint of a tile in level-0 px.

    Returns:
        float64 ``(n_tiles,)`` in 0..1.

    Examples:
        >>> truth = np.zeros((4, 4), bool)
        >>> truth[:2, :2] = True
        >>> tumour_fraction_of_tiles(truth, np.array([[0, 0], [16, 0], [32, 32]]), (32, 32)).tolist()
        [1.0, 0.5, 0.0]
    """
    from wsi_dino.pathology.synthetic import REDUCED_BY

    w, h = (max(1, round(side / REDUCED_BY)) for side in tile_wh_level0)
    corners = np.round(xy / REDUCED_BY).astype(int)
    boxes = [truth[y : y + h, x : x + w] for x, y in corners]
    return np.array([box.mean() if box.size else 0.0 for box in boxes], np.float64)
