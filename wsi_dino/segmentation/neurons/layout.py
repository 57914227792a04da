"""Which file of an experiment on neurons lies where, and which stage of it is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_dino.errors import ConfigError
from wsi_dino.run_folder import RunFolder, safe_name


@dataclass(frozen=True)
class EmLayout:
    """Paths of one dataset and one set of results below a run.

    Attributes:
        run: the run folder.
        dataset: its name.
        label: of the results.
    """

    run: RunFolder
    dataset: str
    label: str

    @property
    def data(self) -> Path:
        """What all results of a dataset share."""
        return self.run.path / "em" / safe_name(self.dataset)

    @property
    def results(self) -> Path:
        """Folder of metrics, report, segmentation and what they were made from."""
        return self.data / safe_name(self.label)

    def maps(self, key: str, subset: str, view: str) -> Path:
        """Folder of the maps of all sections."""
        return self.data / "maps" / safe_name(key) / subset / view

    def affinities(self, subset: str) -> Path:
        """HDF5, key ``affinities``, uint8 ``(3, z, y, x)``."""
        return self.results / "affinities" / f"{subset}.h5"

    def fragments(self, subset: str) -> Path:
        """HDF5, key ``main``, uint32 ``(z, y, x)``."""
        return self.results / "fragments" / f"{subset}.h5"

    def merges(self, subset: str) -> Path:
        """Safetensors: ``thresholds`` and ``segments``, which segment each fragment belongs to."""
        return self.results / "merges" / f"{subset}.safetensors"

    @property
    def zarr(self) -> Path:
        """Folder of the segmentation as Zarr, where it was asked for."""
        return self.results / "segmentation.zarr"

    @property
    def checkpoint(self) -> Path:
        """The training in progress."""
        return self.run.state / safe_name(self.stage_name) / "training.safetensors"

    @property
    def stage_name(self) -> str:
        """Name of the rows of stages."""
        return f"em/{self.dataset}/{self.label}"


class StageRows:
    """Which stages are done, by fingerprint, and whether their files are still what was written."""

    def __init__(self, layout: EmLayout) -> None:
        self._layout = layout
        self.n_reused = 0

    def finished(self, stage: str, fingerprint: str) -> dict[str, Any] | None:
        """Return the row of a stage that is done with this fingerprint and whose files are there."""
        row = self._layout.run.read_row(self._layout.stage_name, stage)
        if row is None or row.get("fingerprint") != fingerprint:
            return None
        sizes = row.get("sizes", {})
        is_intact = all(
            (path := self._layout.results / name).is_file() and path.stat().st_size == n for name, n in sizes.items()
        )
        return row if is_intact else None

    def do(
        self, stage: str, fingerprint: str, outputs: Sequence[Path], work: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Return the row of a stage, done now if it is not."""
        row = self.finished(stage, fingerprint)
        if row is not None:
            self.n_reused += 1
            return row
        row = work()
        sizes = {str(path.relative_to(self._layout.results)): path.stat().st_size for path in outputs}
        row = {**row, "fingerprint": fingerprint, "sizes": sizes}
        self._layout.run.write_row(self._layout.stage_name, stage, row)
        return row

    def require(self, stage: str, fingerprint: str, wanted_by: str) -> dict[str, Any]:
        """Return the row of a stage that must be done.

        Raises:
            ConfigError: it is not, or was done with other settings.
        """
        row = self.finished(stage, fingerprint)
        if row is None:
            raise ConfigError(
                f"--stage {wanted_by}: the stage {stage} is not done with these settings in {self._layout.results}. "
                f"Give the same options with --stage {stage} first, or leave --stage out."
            )
        return row
