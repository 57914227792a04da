"""What a track must give: its commands, and its figures as the paper's tables name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from wsi_dino.paper.roots import Entry
from wsi_dino.paper.step import Step


@dataclass(frozen=True)
class Figure:
    """One number of ours.

    Attributes:
        value: in `unit`; None where it is not defined.
        low, high: of its 95 % interval; None where there is none.
        unit: ``share``, ``percent``, ``bits``, ``mm``, ``count``.
        convention: which of the usual conventions it follows.
        why: no value, or no interval.
    """

    value: float | None
    low: float | None
    high: float | None
    unit: str
    convention: str
    why: str = ""


@dataclass(frozen=True)
class Context:
    """What all steps of a plan share.

    Attributes:
        run: folder of the whole run, absolute.
        entries: all datasets at hand.
        weights: file of weights of encoders, by name.
        weights_dir: folder of checkpoints.
        device, workers: as the commands take them.
    """

    run: Path
    entries: Mapping[str, Entry]
    weights: Mapping[str, Path]
    weights_dir: Path | None
    device: str
    workers: int

    def run_of(self, entry: Entry) -> Path:
        """Folder that the commands of a dataset get as ``--run``."""
        return self.run / entry.folder

    def model_words(self, encoder: str) -> list[str]:
        """Words that say where weights come from and where they run."""
        words = ["--weights", str(self.weights[encoder])] if encoder in self.weights else []
        words += ["--weights-dir", str(self.weights_dir)] if self.weights_dir is not None else []
        return words + self.running_words()

    def running_words(self) -> list[str]:
        """Words that say where models run."""
        return ["--device", self.device, "--workers", str(self.workers)]

    def weights_inputs(self, encoder: str) -> tuple[Path, ...]:
        """Files of weights that the user named."""
        named = (self.weights.get(encoder), self.weights_dir)
        return tuple(path for path in named if path is not None)


@dataclass(frozen=True)
class Work:
    """How much an encoder has to do for a dataset, counted and not guessed.

    Attributes:
        items: slides, volumes, images, sections.
        unit: which of them.
        images: forward passes of one image.
        input_px: their side.
        maps: feature maps are wanted, not vectors.
        kept: share of the encoder's output bytes that stays on disk (float16 halves, a mean over slices keeps one).
        counted: what was counted or read for this.
        left_out: what the estimate does not hold.
    """

    items: int
    unit: str
    images: float
    input_px: int | None
    maps: bool
    kept: float
    counted: str
    left_out: str = ""


class Kind(Protocol):
    """A track."""

    name: str
    commands: tuple[str, ...]
    unit_of_resampling: str

    def steps(self, entry: Entry, encoders: Sequence[str], context: Context) -> list[Step]:
        """Return the commands for a dataset, in an order in which they can be run."""

    def figures(self, metrics: Mapping[str, Any], folder: Path) -> dict[str, Figure]:
        """Return figures by the published tables' metric names.

        Args:
            metrics: content of ``metrics.json``.
            folder: in which it lies.
        """

    def protocol(self, metrics: Mapping[str, Any]) -> str:
        """Return in a sentence or two how the figures came about."""

    def work(self, entry: Entry, encoder: str) -> Work:
        """Count what an encoder has to do; reads names and heads of files, no pixels."""
