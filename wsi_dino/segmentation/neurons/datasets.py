"""CREMI, AC3/AC4 and Wafer4 as they are published and as they are passed on, and any two pairs of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from wsi_dino.errors import ConfigError, VolumeError, nearest_name
from wsi_dino.segmentation.neurons.em_volume import EmSource, pair

Ac3End = Literal["first", "last"]
DATASETS = ("cremi-a", "cremi-b", "cremi-c", "ac34", "wafer4")
_N_TEST = {"cremi-a": 25, "cremi-b": 25, "cremi-c": 25, "wafer4": 25}
_AC4_NAMES = [("AC4_inputs.h5", "AC4_labels.h5"), ("train-input.tif", "train-labels.tif")]  # SNEMI3D is AC4
_AC4_TRAIN, _AC3_TEST = 80, 100


@dataclass(frozen=True)
class EmDataset:
    """Three subsets that share no section.

    Attributes:
        name: of the dataset.
        train, val, test: to learn from, to choose the threshold on, to be judged on.
        split: in words.
    """

    name: str
    train: EmSource
    val: EmSource
    test: EmSource
    split: str

    @property
    def subsets(self) -> tuple[EmSource, EmSource, EmSource]:
        """All three."""
        return self.train, self.val, self.test


def open_dataset(
    name: str, root: Path, *, n_val: int | None = None, ac3_end: Ac3End = "first", repair: bool = False
) -> EmDataset:
    """Open a published dataset.

    CREMI A, B, C and Wafer4: the last 25 sections are the test, of those before them the last `n_val` (20 by default)
    choose the threshold. Of Wafer4's files that are not 8 bit, values above 255 are taken for 255, as public code has
    it. AC3/AC4: AC4's first 80 sections train, its last 20 choose, 100 sections of AC3 are the test.

    Args:
        name: one of `DATASETS`.
        root: folder with CREMI's ``sample_A_20160501.hdf`` or ``cremiA_inputs.h5`` and ``cremiA_labels.h5``, and so
            on, at any depth.
        n_val: sections of the training volume that choose the threshold.
        ac3_end: which 100 of AC3; published code takes either.
        repair: replace blank sections by their neighbours.

    Raises:
        ConfigError: no such dataset.
        VolumeError: files are missing or do not fit.
    """
    if name not in DATASETS:
        raise ConfigError(f"--dataset {name}: expected {', '.join(DATASETS)}.{nearest_name(name, DATASETS)}")
    if name == "ac34":
        return _ac34(root, n_val, ac3_end, repair)
    names = _cremi_names(name[-1].upper()) if name.startswith("cremi") else _wafer_names()
    whole = pair("train", *_found(root, name, names), repair=repair)
    if name == "wafer4" and whole.raw.dtype != np.uint8:
        whole = replace(whole, clips=True)
    n_test = _N_TEST[name]
    train, val = _with_validation(_sections(whole, "train", 0, whole.shape[0] - n_test), n_val)
    test = _sections(whole, "test", whole.shape[0] - n_test, whole.shape[0])
    return EmDataset(name, train, val, test, f"sections {_told(train)} train, {_told(val)} choose, {_told(test)} test")


def open_files(
    train: tuple[str, str], test: tuple[str, str], *, name: str, n_val: int | None = None, repair: bool = False
) -> EmDataset:
    """Open raw and labels to learn from and to be judged on.

    Args:
        train: raw and labels, as `open_array` takes them.
        test: likewise.
        name: of the dataset.
        n_val: last sections of the training volume that choose the threshold; None for a fifth of it.
        repair: replace blank sections by their neighbours.

    Raises:
        VolumeError: files are missing or do not fit, or training and test are the same file.
    """
    whole, held_out = pair("train", *train, repair=repair), pair("test", *test, repair=repair)
    if whole.fingerprint() == replace(held_out, name="train").fingerprint():
        raise VolumeError(f"Opening {held_out.raw.called}: the same content is given to train and to test.")
    learning, val = _with_validation(whole, n_val)
    split = f"training sections {_told(learning)} learn, {_told(val)} choose; another volume is the test"
    return EmDataset(name, learning, val, held_out, split)


def _ac34(root: Path, n_val: int | None, ac3_end: Ac3End, repair: bool) -> EmDataset:
    ac4 = pair("train", *_found(root, "AC4", _AC4_NAMES), repair=repair)
    ac3 = pair("test", *_found(root, "AC3", [("AC3_inputs.h5", "AC3_labels.h5")]), repair=repair)
    n_train = ac4.shape[0] - n_val if n_val is not None else _AC4_TRAIN
    _require(0 < n_train < ac4.shape[0], ac4, n_train + 1)
    _require(ac3.shape[0] >= _AC3_TEST, ac3, _AC3_TEST)
    start = 0 if ac3_end == "first" else ac3.shape[0] - _AC3_TEST
    train, val = _sections(ac4, "train", 0, n_train), _sections(ac4, "val", n_train, ac4.shape[0])
    test = _sections(ac3, "test", start, start + _AC3_TEST)
    split = f"AC4 {_told(train)} train, AC4 {_told(val)} choose, AC3 {_told(test)} ({ac3_end} 100) test"
    return EmDataset("ac34", train, val, test, split)


def _cremi_names(letter: str) -> list[tuple[str, str]]:
    official = [f"sample_{letter}_20160501.hdf", f"sample_{letter}_padded_20160501.hdf"]
    passed_on = (f"cremi{letter}_inputs.h5", f"cremi{letter}_labels.h5")
    return [*((name, name) for name in official), passed_on, (f"cremi{letter}_inputs_interp.h5", passed_on[1])]


def _wafer_names() -> list[tuple[str, str]]:
    return [("wafer4_inputs.h5", "wafer4_labels.h5"), ("wafer4_raw.h5", "wafer4_seg.h5")]


def _found(root: Path, name: str, candidates: Sequence[tuple[str, str]]) -> tuple[str, str]:
    if not root.is_dir():
        raise VolumeError(f"Opening {name}: {root} is no folder. Name it with --root.")
    for raw, labels in candidates:
        paths = [sorted(root.rglob(file)) for file in (raw, labels)]
        if all(paths):
            in_official = raw == labels
            return tuple(
                f"{path[0]}:{key}" if in_official else str(path[0])
                for path, key in zip(paths, ("volumes/raw", "volumes/labels/neuron_ids"), strict=True)
            )  # type: ignore[return-value]
    wanted = " or ".join(" with ".join(dict.fromkeys(names)) for names in candidates)
    raise VolumeError(f"Opening {name}: below {root} there is no {wanted}.")


def _sections(source: EmSource, name: str, start: int, stop: int) -> EmSource:
    return replace(source, name=name, sections=(source.sections[0] + start, source.sections[0] + stop))


def _with_validation(whole: EmSource, n_val: int | None) -> tuple[EmSource, EmSource]:
    n_sections = whole.shape[0]
    n_val = max(1, n_sections // 5) if n_val is None else n_val
    _require(0 < n_val < n_sections, whole, n_val + 1)
    return _sections(whole, "train", 0, n_sections - n_val), _sections(whole, "val", n_sections - n_val, n_sections)


def _require(holds: bool, source: EmSource, n_needed: int) -> None:
    if not holds:
        raise VolumeError(
            f"Splitting {source.raw.called}: {n_needed} sections or more are needed, {source.shape[0]} are there."
        )


def _told(source: EmSource) -> str:
    return f"{source.sections[0]}-{source.sections[1] - 1}"
