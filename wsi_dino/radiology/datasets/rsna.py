"""RSNA Pneumonia Detection Challenge 2018, stage 2, from the layout of Kaggle, with MGCA's splits.

Sources: https://www.kaggle.com/c/rsna-pneumonia-detection-challenge; the rule of the splits is that of MGCA
(Wang et al. 2022, https://github.com/HKU-MedAI/MGCA), which papers refer to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from wsi_dino.errors import CohortError, nearest_name
from wsi_dino.evaluation.label_table import read_columns
from wsi_dino.radiology.datasets.image_set import ImageIndex, ImageSet, require_counts
from wsi_dino.radiology.datasets.reader import DataRequest, DatasetReader

NAME = "rsna"
LABEL = "Pneumonia"
MgcaSplit = Literal["classification", "detection"]
COMPLETE = 26_684
_TABLE = "stage_2_train_labels.csv"
_COUNTS: Mapping[MgcaSplit, Mapping[str, int]] = {
    "classification": {"train": 18_678, "val": 4_003, "test": 4_003,
                       "train positive": 4_162, "val positive": 928, "test positive": 922},
    "detection": {"train": 16_010, "val": 5_337, "test": 5_337,
                  "train positive": 3_579, "val positive": 1_182, "test positive": 1_251},
}  # fmt: skip
_FIRST_TEST_IDS = ("f2698fda-0477", "b76dd4b8", "5d8dbcf9")  # of the classification split


def read_rsna(root: Path, *, split: MgcaSplit | None = "classification") -> ImageSet:
    """Read the label table (several rows an image where there are several boxes) and where the images lie.

    ``patientId`` names an image, not a patient: the challenge does not say whose it is. Several can be of one
    person, so a split by it may leak; `remarks` say so. The 3,000 images of the test stage have no labels.

    Args:
        root: folder with ``stage_2_train_labels.csv`` and ``stage_2_train_images``.
        split: which of MGCA's; None for no split of its own.

    Raises:
        CohortError: a file or column is missing, Target is neither 0 nor 1 or contradicts itself, or a complete
            table does not give the known subsets.
    """
    if split is not None and split not in get_args(MgcaSplit):
        near = nearest_name(split, get_args(MgcaSplit))
        raise CohortError(f"Reading RSNA: no split {split!r}.{near} Known: {', '.join(get_args(MgcaSplit))}.")
    found = [root / _TABLE] if (root / _TABLE).is_file() else sorted(root.rglob(_TABLE))
    if not found:
        raise CohortError(f"Reading RSNA: no {_TABLE} below {root}. It comes with the images.")
    target_of = _targets(found[0])
    names = sorted(target_of)  # as pandas groups them: the splits depend on this order
    targets = np.array([[target_of[name]] for name in names], np.float32)
    index = ImageIndex(root)
    files = [index.find(f"{name}.dcm") for name in names]
    subsets = None if split is None else mgca_subsets(len(names), split)
    if subsets is not None and len(names) == COMPLETE:
        _check(str(found[0]), names, targets[:, 0], subsets, split or "classification")
    remarks = ["patientId names an image here: images of one person may stand on both sides of a split"]
    if subsets is not None and len(names) != COMPLETE:
        remarks.append(f"MGCA's rule was applied to {len(names)} images: its own subsets need all {COMPLETE}")
    unlisted = tuple(path for path in index.unlisted(files) if "stage_2_test_images" not in path)
    return ImageSet(
        NAME, root, tuple(names), tuple(files), tuple(names), (LABEL,), targets, subsets,
        f"MGCA, {split}" if split else "", unlisted, tuple(remarks),
    )  # fmt: skip


def _targets(table: Path) -> dict[str, int]:
    columns = read_columns(table)
    for name in ("patientId", "Target"):
        if name not in columns:
            raise CohortError(f"Reading {table}: there is no column {name!r}. It has {', '.join(columns)}.")
    target_of: dict[str, int] = {}
    for row, (name, cell) in enumerate(zip(columns["patientId"], columns["Target"], strict=True), 2):
        if cell not in ("0", "1"):
            raise CohortError(f"Reading {table}: row {row}: Target must be 0 or 1, got {cell!r}.")
        if target_of.setdefault(name, int(cell)) != int(cell):
            raise CohortError(f"Reading {table}: row {row}: {name} has Target 0 in one row and 1 in another.")
    return target_of


def mgca_subsets(n: int, split: MgcaSplit) -> tuple[str, ...]:
    """Return the subset of each of `n` images sorted by id, as ``train_test_split(random_state=0)`` twice gives it.

    The first half of what is held out is the test, the second the validation.

    Raises:
        CohortError: so few images that a subset would be empty.

    Examples:
        >>> from collections import Counter
        >>> sorted(Counter(mgca_subsets(26_684, "classification")).items())
        [('test', 4003), ('train', 18678), ('val', 4003)]
    """
    n_held_out = math.ceil(0.15 * 2 * n) if split == "classification" else round(5337 * 2 * n / COMPLETE)
    if n_held_out < 2 or n - n_held_out < 1:
        raise CohortError(f"Splitting {n} images by MGCA's rule: too few.")
    order = np.random.RandomState(0).permutation(n)
    held_out = order[:n_held_out]
    again = np.random.RandomState(0).permutation(n_held_out)
    n_val = math.ceil(0.5 * n_held_out)
    subsets = np.full(n, "train", dtype="U5")
    subsets[held_out[again[:n_val]]] = "val"
    subsets[held_out[again[n_val:]]] = "test"
    return tuple(subsets.tolist())


def first_test_rows(n: int, split: MgcaSplit, k: int = 3) -> list[int]:
    """Return the rows of the first `k` test images in the order in which MGCA's file has them."""
    n_held_out = math.ceil(0.15 * 2 * n) if split == "classification" else round(5337 * 2 * n / COMPLETE)
    held_out = np.random.RandomState(0).permutation(n)[:n_held_out]
    n_val = math.ceil(0.5 * n_held_out)
    return [int(row) for row in held_out[np.random.RandomState(0).permutation(n_held_out)[n_val : n_val + k]]]


def _check(where: str, names: Sequence[str], positive: np.ndarray, subsets: Sequence[str], split: MgcaSplit) -> None:
    found: dict[str, int] = {"all positive": int(positive.sum())}
    for subset in ("train", "val", "test"):
        members = np.array([name == subset for name in subsets])
        found |= {subset: int(members.sum()), f"{subset} positive": int(positive[members].sum())}
    require_counts(where, found, {**_COUNTS[split], "all positive": 6_012})
    if split == "classification":
        rows = first_test_rows(len(names), split)
        firsts = {f"test image {i} starts with {known}": int(names[row].startswith(known))
                  for i, (row, known) in enumerate(zip(rows, _FIRST_TEST_IDS, strict=True), 1)}  # fmt: skip
        require_counts(where, firsts, dict.fromkeys(firsts, 1))


def _read(root: Path, request: DataRequest) -> ImageSet:
    rule = next((name for name in get_args(MgcaSplit) if name == request.split), None)
    return read_rsna(root, split=rule)


READER = DatasetReader(
    NAME, "images", "RSNA Pneumonia Detection Challenge: 26,684 radiographs, pneumonia or not", _read,
    splits=get_args(MgcaSplit),
)  # fmt: skip
