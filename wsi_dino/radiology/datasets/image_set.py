"""What a reader of an image data set returns: one row an image, its labels, and what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from wsi_dino.errors import CohortError
from wsi_dino.radiology.datasets.label_names import label_places
from wsi_dino.radiology.datasets.unlisted import require_none_unlisted

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".tif", ".tiff", ".bmp")
_SHOWN = 5


@dataclass(frozen=True)
class ImageSet:
    """Labelled images, in the order of their table.

    Attributes:
        name: of the data set; a folder of the run is named after it.
        root: folder that `files` are relative to.
        image_ids: unique.
        files: path below `root`, or None where no file was found.
        patient_ids: of whom; a patient is on one side of every split.
        label_names: in order.
        targets: float32 ``(n, n_labels)`` of 0, 1 and NaN (unknown).
        subsets: ``train``, ``val`` or ``test`` of each image, or None without a split of its own.
        scheme: what that split is called.
        unlisted: image files below `root` of which the table does not speak.
        remarks: what a reader should know, in words.
    """

    name: str
    root: Path
    image_ids: tuple[str, ...]
    files: tuple[str | None, ...]
    patient_ids: tuple[str, ...]
    label_names: tuple[str, ...]
    targets: np.ndarray
    subsets: tuple[str, ...] | None = None
    scheme: str = ""
    unlisted: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def missing(self) -> tuple[str, ...]:
        """Images of the table without a file."""
        return tuple(name for name, file in zip(self.image_ids, self.files, strict=True) if file is None)

    def only(self, rows: Sequence[int]) -> ImageSet:
        """Return the set of these rows, in this order."""
        return replace(
            self,
            image_ids=tuple(self.image_ids[i] for i in rows),
            files=tuple(self.files[i] for i in rows),
            patient_ids=tuple(self.patient_ids[i] for i in rows),
            targets=self.targets[np.asarray(rows, np.int64)],
            subsets=None if self.subsets is None else tuple(self.subsets[i] for i in rows),
        )

    def limited(self, limit: int) -> ImageSet:
        """Return `limit` images spread evenly over the table."""
        if not limit or limit >= len(self):
            return self
        return self.only([i * len(self) // limit for i in range(limit)])

    def with_labels(self, names: Sequence[str]) -> ImageSet:
        """Return the set with these labels alone.

        Raises:
            CohortError: it has no such label.
        """
        columns = label_places(self.name, self.label_names, names)
        return replace(self, label_names=tuple(names), targets=self.targets[:, columns])

    def settled(self, *, skip_missing: bool, refuse_unlisted: bool = False) -> ImageSet:
        """Return the set as it can be used: rows without any known label left out, and on request those without a file.

        Raises:
            CohortError: no image is left, or `refuse_unlisted` and there are files of which the table does not speak.
        """
        if refuse_unlisted:
            require_none_unlisted(self.name, self.unlisted)
        known = ~np.isnan(self.targets).all(1)
        there = np.array([file is not None for file in self.files], bool)
        if not there.any():
            raise CohortError(
                f"Reading {self.name}: none of its {len(self)} images is below {self.root}, e.g. {self.image_ids[:1]}. "
                "Is --root the right folder?"
            )
        remarks = list(self.remarks)
        if not known.all():
            remarks.append(f"{int((~known).sum())} images have no known label and are left out")
        if skip_missing and not there.all():
            remarks.append(f"{int((~there).sum())} images of the table have no file and are left out, as asked")
        kept = np.flatnonzero(known & (there | (not skip_missing)))
        if not len(kept):
            raise CohortError(f"Reading {self.name}: no image with a label is left.")
        return replace(self.only(kept.tolist()), remarks=tuple(remarks))


class ImageIndex:
    """All image files below a folder, found by path or, where that is unique, by name.

    Names that start with a dot (``._x.png`` of macOS archives) are passed over.

    Raises:
        CohortError: there is no such folder.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise CohortError(f"Reading images: --root {root} is not a folder.")
        self.root = root
        self._paths: dict[str, list[str]] = {}
        for folder, folders, names in os.walk(root, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            below = os.path.relpath(folder, root)
            for name in sorted(names):
                if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith("."):
                    path = name if below == "." else f"{below}{os.sep}{name}".replace(os.sep, "/")
                    self._paths.setdefault(name, []).append(path)

    @cached_property
    def paths(self) -> frozenset[str]:
        """All files, relative to the root."""
        return frozenset(path for paths in self._paths.values() for path in paths)

    def find(self, name: str) -> str | None:
        """Return the path of the file `name`, a path below the root or a bare file name, or None.

        Raises:
            CohortError: several folders hold a file of that bare name.
        """
        if name in self.paths:
            return name
        found = self._paths.get(name, [])
        if len(found) > 1:
            raise CohortError(
                f"Reading images: {name} lies in {len(found)} folders ({', '.join(found[:_SHOWN])}). "
                "Name it with its folder, or give a --root that holds it once."
            )
        return found[0] if found else None

    def unlisted(self, files: Sequence[str | None]) -> tuple[str, ...]:
        """Return the image files that are not among `files`."""
        return tuple(sorted(self.paths - set(files)))


def require_counts(where: str, found: Mapping[str, int], expected: Mapping[str, int]) -> None:
    """Check a complete data set against its published counts.

    Raises:
        CohortError: a count differs: another release, or a changed file.
    """
    wrong = [f"{name}: {found.get(name)} instead of {n}" for name, n in expected.items() if found.get(name) != n]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise CohortError(
            f"Checking {where}: it is as long as the complete list, but has {'; '.join(wrong[:_SHOWN])}{more}. "
            "The file is another release or was changed; get the published one."
        )
