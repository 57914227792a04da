"""Datasets for segmentation: their forms and quirks, folds, cases read onto one grid, what is refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from toy_volumes import drawn_case, make_autopet, make_hecktor, make_msd, ramp, write_volume

from wsi_dino.errors import ConfigError, SplitError, VolumeError
from wsi_dino.evaluation.published.volume_tables import volume_tables
from wsi_dino.segmentation.case import Case, Channel, ChannelFile, SegmentationDataset
from wsi_dino.segmentation.case_reading import read_case
from wsi_dino.segmentation.datasets.msd import TASKS
from wsi_dino.segmentation.datasets.opening import dataset_openers, open_dataset
from wsi_dino.segmentation.folds import default_scheme, make_folds
from wsi_dino.segmentation.grey import as_grey
from wsi_dino.segmentation.nnunet_export import export_nnunet
from wsi_dino.volumes.nifti_channels import read_channel, write_labels_like


def _cases(ids: list[str]) -> list[Case]:
    return [Case(i, i, ()) for i in ids]


def test_folds_of_the_real_task04_are_nnunets(shared_data: Path) -> None:
    dataset = open_dataset("msd-task04", shared_data / "Task04_Hippocampus")
    folds = make_folds(dataset.cases, 5, "kfold")
    assert len(dataset.cases) == 260
    assert [len(fold.val) for fold in folds] == [52] * 5
    assert folds[0].val[:2] == ("hippocampus_017", "hippocampus_019")
    assert dataset.classes == {1: "Anterior", 2: "Posterior"}


@pytest.mark.parametrize(
    ("ids", "sizes", "first"),
    [
        ([f"BRATS_{i:03d}" for i in range(1, 485)], [97, 97, 97, 97, 96], ("BRATS_010", "BRATS_011")),
        ([f"liver_{i}" for i in range(131)], [27, 26, 26, 26, 26], ("liver_101", "liver_11")),
    ],
)
def test_kfold_sorts_ids_as_text(ids: list[str], sizes: list[int], first: tuple[str, str]) -> None:
    folds = make_folds(_cases(ids[::-1]), 5, "kfold")
    assert [len(fold.val) for fold in folds] == sizes
    assert folds[0].val[:2] == first
    held_out = list(itertools.chain.from_iterable(fold.val for fold in folds))
    assert sorted(held_out) == sorted(ids)


def test_repeated_holdout_draws_a_fifth_each_time() -> None:
    folds = make_folds(_cases([f"c{i:02d}" for i in range(50)]), 5, "repeated-holdout")
    assert [len(fold.val) for fold in folds] == [10] * 5
    assert all(not set(fold.train) & set(fold.val) for fold in folds)
    assert len(set(itertools.chain.from_iterable(fold.val for fold in folds))) < 50


def test_folds_refuse_what_would_leak() -> None:
    twice = [Case("a_1", "a", ()), Case("a_2", "a", ()), Case("b_1", "b", ())]
    with pytest.raises(SplitError, match="both sides"):
        make_folds(twice, 2, "kfold")
    with pytest.raises(SplitError, match="at least"):
        make_folds(_cases(["a", "b"]), 5, "kfold")
    with pytest.raises(SplitError, match="twice"):
        make_folds(_cases(["a", "a", "b"]), 2, "kfold")


def test_autopet_keeps_patients_together_where_one_id_begins_another(tmp_path: Path) -> None:
    dataset = open_dataset("autopet2", make_autopet(tmp_path).parent)
    assert [case.patient_id for case in dataset.cases].count("PETCT_0a") == 2
    folds = make_folds(dataset.cases, 5, default_scheme(dataset))
    patients = sorted({case.patient_id for case in dataset.cases})
    of_case = {case.case_id: case.patient_id for case in dataset.cases}
    for fold in folds:
        assert {of_case[i] for i in fold.val} == set(patients[fold.number :: 5])
        assert not {of_case[i] for i in fold.val} & {of_case[i] for i in fold.train}


def test_autopet_says_which_file_a_study_lacks(tmp_path: Path) -> None:
    dataset = open_dataset("autopet2", make_autopet(tmp_path))
    broken = [case for case in dataset.cases if case.problem]
    assert [case.patient_id for case in broken] == ["PETCT_3d"]
    with pytest.raises(VolumeError, match=r"SUV\.nii\.gz is not there"):
        read_case(broken[0], dataset)


def _make_exported(root: Path) -> Path:
    dataset = open_dataset("msd-task04", make_msd(root, n_cases=4))
    return export_nnunet(dataset, make_folds(dataset.cases, 2, "kfold"), root / "Dataset504_Balls").folder


# a small copy of every registered dataset: a new one needs one, too
_COPIES: dict[str, Callable[[Path], Path]] = {
    **{task: partial(make_msd, folder=known.folder, n_cases=4) for task, known in TASKS.items()},
    "autopet2": make_autopet,
    "hecktor2022": make_hecktor,
    "nnunet": _make_exported,
}


@pytest.mark.parametrize("name", dataset_openers())
def test_every_dataset_keeps_the_contract(name: str, tmp_path: Path) -> None:
    dataset = open_dataset(name, _COPIES[name](tmp_path))
    ids = [case.case_id for case in dataset.cases]
    assert ids == sorted(set(ids))
    assert 0 not in dataset.classes
    assert all(len(case.images) == len(dataset.channels) and case.label for case in dataset.cases)
    assert make_folds(dataset.cases, 2, default_scheme(dataset))
    assert name in (dataset.name, "nnunet")
    assert bool(volume_tables(dataset.published)) == (name != "nnunet"), "the paper's own rows, where it has some"
    read = next(read_case(case, dataset) for case in dataset.cases if not case.problem)
    assert {channel.shape for channel in read.channels} == {read.labels.shape}  # type: ignore[union-attr]


@pytest.mark.parametrize("task", TASKS)
def test_every_decathlon_task_opens_and_reads(task: str, tmp_path: Path) -> None:
    channels = {"msd-task01": 4, "msd-task05": 2}.get(task, 1)
    make_msd(tmp_path, TASKS[task].folder, task.replace("-", "_"), 3, channels=channels)
    dataset = open_dataset(task, tmp_path)
    assert [case.case_id[-1] for case in dataset.cases] == ["1", "2", "3"], "junk left out, sorted"
    assert len(dataset.channels) == channels
    for number, case in enumerate(dataset.cases, start=1):
        volumes = read_case(case, dataset)
        image, labels = drawn_case(number)
        # RAS+ becomes (z, y from anterior, x from the right)
        assert np.array_equal(volumes.labels, labels.transpose(2, 1, 0)[:, ::-1, ::-1])
        for c, channel in enumerate(volumes.channels):
            assert np.allclose(channel, image.transpose(2, 1, 0)[:, ::-1, ::-1] + 10 * c)


def test_dataset_json_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    task = make_msd(tmp_path)
    content = json.loads((task / "dataset.json").read_text())
    content["training"][0]["image"] = "../../etc/passwd.nii.gz"
    (task / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="outside of the folder"):
        open_dataset("msd-task04", tmp_path)


def test_hecktors_pet_is_resampled_by_geometry(tmp_path: Path) -> None:
    dataset = open_dataset("hecktor2022", make_hecktor(tmp_path))
    case = dataset.cases[0]
    ct = read_channel(case.images[0].path)
    expected = ramp(ct.voxels.shape, ct.affine)
    pet = read_case(case, dataset).channels[1]
    from wsi_dino.volumes.orientation import as_shown

    shown = as_shown(expected, ct.affine)[0]
    # trilinear interpolation of a linear function is exact inside the PET
    assert np.allclose(pet[1:-1, 3:-3, 3:-3], shown[1:-1, 3:-3, 3:-3], atol=1e-2)


def test_pet_alone_lies_on_the_grid_of_the_labels(tmp_path: Path) -> None:
    dataset = open_dataset("hecktor2022", make_hecktor(tmp_path)).with_channels(["pet"])
    volumes = read_case(dataset.cases[0], dataset)
    assert volumes.labels is not None
    assert volumes.channels[0].shape == volumes.labels.shape


def _dataset(tmp_path: Path, image: np.ndarray, labels: np.ndarray, affine: np.ndarray | None = None) -> tuple:
    files = write_volume(tmp_path / "i.nii.gz", image), write_volume(tmp_path / "l.nii.gz", labels, affine)
    case = Case("c", "c", (ChannelFile(files[0]),), files[1])
    return case, SegmentationDataset("toy", (case,), (Channel("mri", "mri"),), {1: "a", 2: "b"})


def test_what_does_not_fit_is_refused_with_its_reason(tmp_path: Path) -> None:
    image, labels = drawn_case(1)
    shifted = np.eye(4)
    shifted[0, 3] = 2.0
    wrong = {
        "do not lie on the grid": (image, labels[:-1], None),
        "another place": (image, labels, shifted),
        "not whole numbers": (image, labels * 0.5, None),
        "label values 7": (image, np.where(labels == 2, 7, labels).astype(np.uint8), None),
    }
    for number, (reason, (i, lab, affine)) in enumerate(wrong.items()):
        case, dataset = _dataset(tmp_path / str(number), i, lab, affine)
        with pytest.raises(VolumeError, match=reason):
            read_case(case, dataset)


def test_affines_that_differ_in_their_last_digits_are_one_grid(tmp_path: Path) -> None:
    image, labels = drawn_case(1)
    nearly = np.eye(4) + 1e-4 * np.random.default_rng(0).standard_normal((4, 4)) * np.array([[1], [1], [1], [0]])
    case, dataset = _dataset(tmp_path, image, labels, nearly)
    assert read_case(case, dataset).labels is not None


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    task = make_msd(tmp_path, n_cases=5)
    path = task / "imagesTr" / "hippocampus_3.nii.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    dataset = open_dataset("msd-task04", tmp_path)
    with pytest.raises(VolumeError, match="hippocampus_3"):
        read_case(dataset.cases[2], dataset)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_labels_return_to_the_grid_they_came_from(axes: tuple, signs: tuple, tmp_path: Path) -> None:
    """In all 48 orientations: what is read as shown and written back equals the file, voxel by voxel."""
    import nibabel

    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[list(axes)] * np.array(signs) * np.array([0.7, 1.2, 3.0])
    affine[:3, 3] = (5.0, -7.0, 11.0)
    labels = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.uint8)
    source = write_volume(tmp_path / "source.nii.gz", labels, affine)
    case = Case("c", "c", (ChannelFile(source),), source)
    dataset = SegmentationDataset("toy", (case,), (Channel("mri", "mri"),), {1: "a", 2: "b"})
    shown = read_case(case, dataset).labels
    assert shown is not None
    write_labels_like(tmp_path / "back.nii.gz", shown, source)
    back = nibabel.load(tmp_path / "back.nii.gz")
    assert np.array_equal(np.asarray(back.dataobj), labels)
    assert np.array_equal(back.affine, nibabel.load(source).affine)


def test_mri_is_standardised_over_voxels_that_are_not_zero() -> None:
    rng = np.random.default_rng(0)
    inside = rng.normal(700, 50, (4, 10, 10)).astype(np.float32)
    padded = np.zeros((4, 30, 30), np.float32)
    padded[:, 10:20, 10:20] = inside
    grey = as_grey(padded, Channel("mri", "mri"))[:, 10:20, 10:20]
    z = (inside - inside.mean()) / inside.std()
    assert np.abs(grey - np.clip((z + 3) / 7 * 255, 0, 255)).max() <= 0.51


def test_export_and_reading_back_give_the_same_cases(tmp_path: Path) -> None:
    make_msd(tmp_path, "Task05_Prostate", "prostate", 6, channels=2)
    dataset = open_dataset("msd-task05", tmp_path)
    folds = make_folds(dataset.cases, 3, "kfold")
    exported = export_nnunet(dataset, folds, tmp_path / "Dataset505_Prostate")
    assert exported.n_cases == 6
    again = open_dataset("nnunet", exported.folder)
    splits = json.loads((exported.folder / "splits_final.json").read_text())
    assert splits == [{"train": list(fold.train), "val": list(fold.val)} for fold in folds]
    for one, other in zip(dataset.cases, again.cases, strict=True):
        ours, theirs = read_case(one, dataset), read_case(other, again)
        assert np.array_equal(ours.labels, theirs.labels)
        assert all(np.array_equal(a, b) for a, b in zip(ours.channels, theirs.channels, strict=True))
    with pytest.raises(ConfigError, match="DatasetNNN_Name"):
        export_nnunet(dataset, folds, tmp_path / "prostate")
