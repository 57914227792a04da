"""NIH ChestX-ray14 from its official archives and lists.

Source: Wang et al. 2017, https://nihcc.app.box.com/v/ChestXray-NIHCC. Give credit to the NIH Clinical Center.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from wsi_dino.errors import CohortError, nearest_name
from wsi_dino.radiology.datasets.image_set import ImageIndex, ImageSet, require_counts
from wsi_dino.radiology.datasets.reader import FOLDS, DatasetReader

NAME = "nih14"
NO_FINDING = "No Finding"
# the order of the data set; alphabetical order, as some loaders have it, would permute columns silently
LABELS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
_TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
COMPLETE = 112_120
TOTALS: Mapping[str, int] = dict(zip(
    LABELS, (11559, 2776, 13317, 19894, 5782, 6331, 1431, 5302, 4667, 2303, 2516, 1686, 3385, 227), strict=True
)) | {NO_FINDING: 60361, "patients": 30805, "PA": 67310, "AP": 44810}  # fmt: skip
LIST_LENGTHS: Mapping[str, int] = {"train": 86_524, "test": 25_596}


def read_nih14(root: Path, *, use_lists: bool = True) -> ImageSet:
    """Read the label table, the two official lists, and where the images lie (in any folders below `root`).

    Of the two label tables the cleaned one of 2020 is taken where both are there. There is no official validation
    list. A complete table is checked against the published counts.

    Args:
        root: folder with the table, the lists and the images.
        use_lists: take the official split; without, `subsets` is None.

    Raises:
        CohortError: a file is missing, a column or label is unknown, an image stands twice or in both lists, or
            the counts of a complete table are not the published ones.
    """
    index = ImageIndex(root)
    table = _locate(root, _TABLES)
    rows = list(_rows(table))
    names = [row["Image Index"] for row in rows]
    doubled = [name for name, n in Counter(names).items() if n > 1]
    if doubled:
        raise CohortError(f"Reading {table}: {doubled[0]} stands more than once ({len(doubled)} images do).")
    targets = _targets(table, rows)
    if len(rows) == COMPLETE:
        require_counts(str(table), _counts(rows, targets), TOTALS)
    files = [index.find(name) for name in names]
    images = ImageSet(
        NAME, root, tuple(names), tuple(files), tuple(row["Patient ID"] for row in rows), LABELS, targets,
        unlisted=index.unlisted(files), remarks=(f"labels of {table.name}",),
    )  # fmt: skip
    return _with_lists(images) if use_lists else images


def _locate(root: Path, names: Sequence[str]) -> Path:
    for name in names:
        found = [root / name] if (root / name).is_file() else sorted(root.rglob(name))
        if found:
            return found[0]
    raise CohortError(f"Reading NIH ChestX-ray14: no {' or '.join(names)} below {root}. It comes with the images.")


def _rows(table: Path) -> Iterator[dict[str, str]]:
    """Yield the rows; the header's commas inside brackets are separators, so that it has a column ``Height]``."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CohortError(f"Reading {table}: not UTF-8 text ({error}).") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    needed = ("Image Index", "Finding Labels", "Patient ID", "View Position")
    missing = [name for name in needed if name not in (reader.fieldnames or [])]
    if missing:
        raise CohortError(f"Reading {table}: no column {missing[0]!r}. It has {', '.join(reader.fieldnames or [])}.")
    for row in reader:
        if any(not row[name] for name in needed[:3]):
            raise CohortError(
                f"Reading {table}: line {reader.line_num} is cut off: it lacks an image, label or patient."
            )
        yield row


def _targets(table: Path, rows: Sequence[Mapping[str, str]]) -> np.ndarray:
    column_of = {name: column for column, name in enumerate(LABELS)}
    targets = np.zeros((len(rows), len(LABELS)), np.float32)
    for number, row in enumerate(rows):
        for finding in row["Finding Labels"].split("|"):
            if finding in column_of:
                targets[number, column_of[finding]] = 1
            elif finding != NO_FINDING:
                near = nearest_name(finding, LABELS)
                raise CohortError(f"Reading {table}: {row['Image Index']} has an unknown label {finding!r}.{near}")
    return targets


def _counts(rows: Sequence[Mapping[str, str]], targets: np.ndarray) -> dict[str, int]:
    views = Counter(row["View Position"] for row in rows)
    of_labels = dict(zip(LABELS, targets.sum(0).astype(int).tolist(), strict=True))
    healthy = sum(row["Finding Labels"] == NO_FINDING for row in rows)
    return of_labels | {NO_FINDING: healthy, "patients": len({row["Patient ID"] for row in rows}), **views}


def _with_lists(images: ImageSet) -> ImageSet:
    subset_of: dict[str, str] = {}
    for subset, file_name in _LISTS.items():
        path = _locate(images.root, (file_name,))
        names = path.read_text(encoding="utf-8-sig").split()
        if len(images) == COMPLETE:
            require_counts(str(path), {subset: len(set(names))}, {subset: LIST_LENGTHS[subset]})
        for name in names:
            if subset_of.setdefault(name, subset) != subset:
                raise CohortError(f"Reading {path}: {name} stands in {' and in '.join(_LISTS.values())}.")
    kept = [row for row, name in enumerate(images.image_ids) if name in subset_of]
    if not kept:
        raise CohortError(f"Reading {images.root}: no image of the table stands in {' or '.join(_LISTS.values())}.")
    remarks = images.remarks
    if len(kept) < len(images):
        remarks += (f"{len(images) - len(kept)} images of the table are in neither official list and are left out",)
    chosen = images.only(kept)
    return ImageSet(
        images.name, images.root, chosen.image_ids, chosen.files, chosen.patient_ids, chosen.label_names,
        chosen.targets, tuple(subset_of[name] for name in chosen.image_ids), "official lists", images.unlisted, remarks,
    )  # fmt: skip


READER = DatasetReader(
    NAME, "images", "NIH ChestX-ray14: 112,120 radiographs, 14 findings read from reports",
    lambda root, request: read_nih14(root, use_lists=request.split != FOLDS), splits=("official",),
)  # fmt: skip
