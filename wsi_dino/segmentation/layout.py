"""Which file of a segmentation lies where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wsi_dino.run_folder import RunFolder, safe_name


@dataclass(frozen=True)
class SegmentationLayout:
    """Paths of one dataset and one set of results below a run.

    Attributes:
        run: the run folder.
        data_name: dataset and channels.
        label: of the results.
    """

    run: RunFolder
    data_name: str
    label: str

    @property
    def data(self) -> Path:
        """What all results of a dataset share."""
        return self.run.path / "segmentation" / safe_name(self.data_name)

    @property
    def results(self) -> Path:
        """Folder of metrics, report, models and predictions."""
        return self.data / safe_name(self.label)

    def prepared(self, case_id: str) -> Path:
        """Grey channels and labels of a case."""
        return self.data / "prepared" / f"{safe_name(case_id)}.safetensors"

    def stack(self, feature_key: str, case_id: str, view: str) -> Path:
        """Stacked maps of a case in a view."""
        return self.data / "stacks" / safe_name(feature_key) / f"{safe_name(case_id)}.{view}.safetensors"

    def model(self, fold: int) -> Path:
        """Trained decoder or network of a fold."""
        return self.results / "model" / f"fold_{fold}.safetensors"

    def checkpoint(self, fold: int) -> Path:
        """A training in progress."""
        return self.run.state / safe_name(self.stage("training")) / f"fold_{fold}.safetensors"

    def prediction(self, case_id: str, fold: int, *, is_alone: bool) -> Path:
        """Label map of a validated case; with validation sets that overlap one a fold."""
        name = safe_name(case_id) + ("" if is_alone else f".fold_{fold}")
        return self.results / "predictions" / f"{name}.nii.gz"

    def stage(self, step: str) -> str:
        """Name of the rows of a step."""
        return f"segment-{step}/{self.data_name}/{self.label}"

    def data_stage(self, step: str, key: str = "") -> str:
        """Name of the rows of a step that all results of the dataset share."""
        return f"segment-{step}/{self.data_name}/{key}".rstrip("/")
