"""What is already embedded in a run, and whether it is what is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsi_dino import share
from wsi_dino.errors import ConfigError, FeatureFileError, SlideError
from wsi_dino.feature_file import IDENTITY_KEYS, read_provenance
from wsi_dino.item_queue import Item
from wsi_dino.pathology.embed_spec import EncoderTask, feature_path
from wsi_dino.pathology.slide_paths import SlidePaths, slide_stat
from wsi_dino.pathology.tile_grid import TileGrid
from wsi_dino.provenance import slide_fingerprint
from wsi_dino.run_folder import RunFolder

_SAMPLED = 32


class IsIntact:
    """Whether the feature file that a finished row promises is there, whole, and still of this slide."""

    def __init__(
        self,
        run: RunFolder,
        task: EncoderTask,
        tile_rows: Mapping[str, Mapping[str, Any]],
        paths: SlidePaths,
        report: Callable[..., None],
    ) -> None:
        self._run, self._task, self._tile_rows, self._paths, self._report = run, task, tile_rows, paths, report

    def __call__(self, item: Item, row: dict[str, Any]) -> bool:
        if row.get("status") == "empty":
            return True
        try:
            provenance = read_provenance(feature_path(self._run, self._task.name, item.key))
        except FeatureFileError:
            return False
        whole = provenance.get("fingerprint") == item.fingerprint and provenance["n"] == row.get("tiles")
        intact = whole and self._is_same_slide(item, row)
        if intact:
            self._report(provenance["n"])
        return intact

    def _is_same_slide(self, item: Item, row: dict[str, Any]) -> bool:
        try:
            path = self._paths.find(self._tile_rows[item.key])
            # a slide that was archived leaves its features valid; one that was replaced does not
            return slide_stat(path) == row.get("slide_stat") or slide_fingerprint(path) == row.get("slide_fingerprint")
        except (SlideError, OSError):
            return True


def done_row(
    task: EncoderTask,
    grid: TileGrid,
    backend: str | None,
    *,
    slide_path: Path | None,
    seconds: float,
    n_encoded: int,
    n_resumed: int,
    reason: str = "",
) -> dict[str, Any]:
    """Return the row of a finished slide."""
    return {
        "encoder": task.name,
        "slide_id": grid.slide_id,
        "status": "done",
        "reason": reason,
        "tiles": len(grid),
        "seconds": round(seconds, 3),
        "tiles_per_s": round(n_encoded / seconds, 2) if seconds and n_encoded else None,
        "backend": backend,
        "tiles_encoded": n_encoded,
        "tiles_resumed": n_resumed,
        "slide_stat": slide_stat(slide_path),
        "slide_fingerprint": grid.slide_fingerprint,
    }


def check_features_folder(run: RunFolder, task: EncoderTask, slide_ids: Sequence[str]) -> int:
    """Look for feature files that the task would not redo and that could not be mixed with its own.

    Returns:
        How many files of the run's slides are of another pooling, weights or stain normalisation, and
        are therefore made anew.

    Raises:
        ConfigError: the folder holds imported features, or others of a slide that the run does not know.
    """
    identity = task.identity | {"embed_dim": task.encoder.embed_dim}
    keys = [key for key in IDENTITY_KEYS if key in identity]  # what a tile shows is each slide's own
    n_other = 0
    paths = sorted(run.features(task.name).glob("*.h5"))
    # of many workers none reads everything: who writes the results looks at all of it
    for path in paths if share.current() is None else paths[:: max(1, len(paths) // _SAMPLED)]:
        try:
            provenance = read_provenance(path)
        except FeatureFileError:
            continue
        differing = [key for key in keys if provenance.get(key) != identity.get(key)]
        n_other += bool(differing) and not provenance.get("imported")
        if provenance.get("imported") or (differing and path.stem not in slide_ids):
            what = "imported features" if provenance.get("imported") else f"features of another {differing[0]}"
            raise ConfigError(
                f"Embedding with {task.name}: {path} holds {what}, which `embed` would not redo and which cannot "
                "be mixed with its own. Move it away, or use another --run."
            )
    return n_other
