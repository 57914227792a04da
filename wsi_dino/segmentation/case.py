"""What is to be segmented: cases of files, the channels they have, the classes their labels name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from wsi_dino.errors import ConfigError, nearest_name

Modality = Literal["mri", "ct", "pet"]


@dataclass(frozen=True)
class Channel:
    """One kind of grey values.

    Attributes:
        name: lower case, as typed after ``--channels``.
        modality: how values become grey: ``mri`` by z-score, ``ct`` and ``pet`` by a window.
        window: black and white, in HU or SUV; None for MRI.
    """

    name: str
    modality: Modality
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class ChannelFile:
    """Where the voxels of a channel lie: a file, and which channel of it when it has several."""

    path: Path
    index: int | None = None


@dataclass(frozen=True)
class Case:
    """One volume with its channels.

    Attributes:
        case_id: unique in the dataset.
        patient_id: cases of one patient stay together in folds.
        images: a file for each channel of the dataset, in its order.
        label: label map, or None.
        grid: the file on whose grid labels lie and predictions are made; None for the first image.
        problem: why this case cannot be used, known without opening it.
    """

    case_id: str
    patient_id: str
    images: tuple[ChannelFile, ...]
    label: Path | None = None
    grid: ChannelFile | None = None
    problem: str = ""

    @property
    def grid_file(self) -> ChannelFile:
        """The file on whose grid predictions are made."""
        return self.grid or self.images[0]


@dataclass(frozen=True)
class SegmentationDataset:
    """A folder of cases in one official form.

    Attributes:
        name: e.g. ``"msd-task04"``.
        cases: sorted by id, as text.
        channels: in the order of each case's images.
        classes: label values above 0 and their names.
        metric_sets: ``"autopet"`` (false volumes) or ``"hecktor"`` (aggregated Dice), beside the usual ones.
        by_patient: folds are made over patients as nnU-Net's autoPET converter makes them, not over cases.
        resample: whether channels may lie on grids of their own, to be resampled onto the labels'.
        remarks: what was unusual.
        published: how ``evaluation.published`` calls it, where the paper prints figures of it.
    """

    name: str
    cases: tuple[Case, ...]
    channels: tuple[Channel, ...]
    classes: dict[int, str]
    metric_sets: tuple[str, ...] = ()
    by_patient: bool = False
    resample: bool = False
    remarks: tuple[str, ...] = ()
    published: str = ""

    def with_channels(self, names: Sequence[str]) -> Self:
        """Return the dataset with only the named channels, in that order.

        Raises:
            ConfigError: it has no such channel.
        """
        known = [channel.name for channel in self.channels]
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"--channels {'+'.join(names)}: {self.name} has no channel {name!r}.{nearest_name(name, known)} "
                    f"It has {', '.join(known)}."
                )
        taken = [known.index(name) for name in names]
        cases = tuple(
            replace(case, images=tuple(case.images[i] for i in taken), grid=case.grid_file) if case.images else case
            for case in self.cases
        )
        return replace(self, cases=cases, channels=tuple(self.channels[i] for i in taken))

    def limited(self, n_cases: int | None) -> Self:
        """Return the dataset with `n_cases` cases spread evenly over it, or all."""
        if n_cases is None or n_cases >= len(self.cases):
            return self
        step = len(self.cases) / n_cases
        return replace(self, cases=tuple(self.cases[int(i * step)] for i in range(n_cases)))
