"""Volumes are read right from every orientation and format, and refused where they cannot be right."""

from __future__ import annotations

import gzip
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
from ct_fixtures import SPACING_MM, chest_hu, write_dicom_series, write_nifti
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_dino.errors import ConfigError, VolumeError
from wsi_dino.volumes.hounsfield import decide_hu
from wsi_dino.volumes.orientation import as_shown, axis_codes, obliquity_deg
from wsi_dino.volumes.reading import open_volume
from wsi_dino.volumes.volume import Rescale, Volume
from wsi_dino.volumes.windows import WINDOWS, grey_values, parse_window

_CODES = ["".join(letters) for pairs in permutations(["LR", "PA", "IS"]) for letters in product(*pairs)]


@pytest.fixture(scope="module")
def hu() -> np.ndarray:
    return chest_hu(np.random.default_rng(0))


# orientation -----------------------------------------------------------------------------------
@pytest.mark.parametrize("axes", _CODES)
def test_all_48_orientations_give_the_same_picture(hu: np.ndarray, axes: str, tmp_path: Path) -> None:
    volume = open_volume(write_nifti(tmp_path / "v.nii", hu, axes=axes))
    assert volume.stored_axes == axes
    assert volume.spacing_mm == pytest.approx(SPACING_MM)
    assert (volume.hu() == hu).all()
    assert axis_codes(volume.affine) == "LPS"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_axes_and_affine_agree_with_nibabel(seed: int) -> None:
    random = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(random.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation * random.uniform(0.5, 5, 3), random.normal(size=3)
    shown, turned = as_shown(random.normal(size=(3, 4, 5)), affine)
    cosines = np.sort(np.abs(rotation).ravel())
    if cosines[-1] - cosines[-2] > 0.05 and obliquity_deg(affine) < 30:
        assert axis_codes(affine) == "".join(nibabel.aff2axcodes(affine))
    # a voxel stays where it was in the patient
    voxels = np.arange(60).reshape(3, 4, 5)
    shown, turned = as_shown(voxels, affine)
    z, y, x = (int(random.integers(side)) for side in shown.shape)
    i, j, k = (int(v[0]) for v in np.where(voxels == shown[z, y, x]))
    np.testing.assert_allclose(turned @ [x, y, z, 1], affine @ [i, j, k, 1], atol=1e-9)


def test_nothing_is_copied_to_turn_a_volume() -> None:
    stored = np.zeros((4, 5, 6), np.int16)
    assert np.shares_memory(as_shown(stored, np.diag([1, -1, 2, 1]))[0], stored)


def test_obliquity_is_the_angle_of_the_gantry() -> None:
    angle = np.deg2rad(20)
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    assert obliquity_deg(affine) == pytest.approx(20)


# formats ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["int16", "int32", "float32", "float64", "int64"])
def test_number_formats_give_the_same_hu(hu: np.ndarray, dtype: str, tmp_path: Path) -> None:
    volume = open_volume(write_nifti(tmp_path / "v.nii.gz", hu, dtype=dtype))
    assert (volume.hu() == hu).all()
    assert volume.voxels.dtype.itemsize <= 4


def test_scaling_of_the_header_is_applied_as_nibabel_does(hu: np.ndarray, tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "v.nii.gz", hu.astype(float), dtype="float64")
    image = nibabel.load(path)
    image.set_data_dtype("int16")  # saves with a slope and intercept of its own
    nibabel.save(image, path)
    reference = np.asarray(nibabel.load(path).dataobj).transpose(2, 1, 0)
    np.testing.assert_allclose(open_volume(path).hu(), reference, atol=0.01)


def test_a_big_endian_file_is_read_like_any(hu: np.ndarray, tmp_path: Path) -> None:
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    path = tmp_path / "big.nii.gz"
    nibabel.save(nibabel.Nifti1Image(hu.transpose(2, 1, 0), np.diag([-1, -1, 2, 1]), header), path)
    assert (open_volume(path).hu() == hu).all()


def test_dicom_gives_what_nifti_gives_whatever_the_files_are_called(hu: np.ndarray, tmp_path: Path) -> None:
    write_dicom_series(tmp_path / "series", hu)
    (tmp_path / "series" / "notes.txt").write_text("not a slice")
    volume = open_volume(tmp_path / "series")
    assert (volume.hu() == hu).all()
    assert volume.spacing_mm == pytest.approx(SPACING_MM)
    assert volume.hu_state == "applied"


def test_slope_and_intercept_of_each_slice_are_applied(hu: np.ndarray, tmp_path: Path) -> None:
    write_dicom_series(tmp_path / "s", hu, slope=2.0, intercept=[-1024.0 + 2 * z for z in range(len(hu))])
    assert np.abs(open_volume(tmp_path / "s").hu() - hu).max() <= 1


def test_a_tilted_series_keeps_its_geometry_and_says_so(hu: np.ndarray, tmp_path: Path) -> None:
    angle = np.deg2rad(15)
    along = [1, 0, 0, 0, np.cos(angle), np.sin(angle)]
    across = np.cross(along[:3], along[3:])
    for z, path in enumerate(write_dicom_series(tmp_path / "s", hu, ImageOrientationPatient=along)):
        import pydicom

        head = pydicom.dcmread(path)
        head.ImagePositionPatient = [float(value) for value in across * 2.5 * z]
        head.save_as(path)
    volume = open_volume(tmp_path / "s")
    assert volume.obliquity_deg == pytest.approx(15, abs=0.01)
    assert volume.spacing_mm == pytest.approx(SPACING_MM)


def test_one_slice_is_a_volume(hu: np.ndarray, tmp_path: Path) -> None:
    assert len(open_volume(write_nifti(tmp_path / "one.nii.gz", hu[:1]))) == 1
    write_dicom_series(tmp_path / "s", hu[:1])
    assert len(open_volume(tmp_path / "s")) == 1


# Hounsfield units --------------------------------------------------------------------------------
_METADATA = Rescale(1.0, -1024.0, "metadata table")


def test_original_files_are_rescaled_and_corrected_ones_are_not(hu: np.ndarray, tmp_path: Path) -> None:
    original = write_nifti(tmp_path / "v1.nii.gz", (hu.astype(int) + 1024).astype(np.uint16))
    fixed = write_nifti(tmp_path / "v2.nii.gz", hu)
    first, second = (open_volume(path, rescale=_METADATA) for path in (original, fixed))
    assert (first.hu_state, second.hu_state) == ("applied", "already")
    assert (first.hu() == hu).all()
    assert (second.hu() == hu).all()


def test_padding_far_below_air_is_not_taken_for_hu(hu: np.ndarray) -> None:
    stored = hu.astype(np.int32) + 1024
    stored[:, :6, :6] = -2000  # outside of the scanner's circle
    assert decide_hu(stored, _METADATA).state == "applied"
    shifted = stored - 1024
    assert decide_hu(shifted, _METADATA).state == "already"


def test_applying_twice_is_refused(hu: np.ndarray) -> None:
    with pytest.raises(VolumeError, match="applied twice"):
        decide_hu(hu, _METADATA, "apply")


def test_not_applying_is_refused(hu: np.ndarray) -> None:
    with pytest.raises(VolumeError, match="not applied"):
        decide_hu(hu.astype(int) + 1024, None, "already")
    with pytest.raises(VolumeError, match="neither file nor table"):
        decide_hu(hu.astype(int) + 1024, None)
    with pytest.raises(VolumeError, match="neither file nor table"):
        decide_hu(hu, None, "apply")


def test_an_empty_and_a_metal_volume_are_refused() -> None:
    with pytest.raises(VolumeError, match="every voxel"):
        decide_hu(np.full((4, 4, 4), -1000), None)
    with pytest.raises(VolumeError, match="denser than metal"):
        decide_hu(np.linspace(-1000, 60_000, 4096).reshape(16, 16, 16), None)


def test_real_ct_is_taken_as_it_is(shared_data: Path) -> None:
    paths = [*sorted((shared_data / "ct_lidc_nodules" / "image").glob("*.nii.gz"))[::16],
             shared_data / "ct/totalseg_example/example_ct.nii.gz"]  # fmt: skip
    assert {open_volume(path, rescale=_METADATA).hu_state for path in paths} == {"already"}


def test_the_liver_is_on_the_viewers_left(shared_data: Path) -> None:
    """Of the labels that came with a real CT: the liver (5) left of the spleen (1), the spine behind both."""
    folder = shared_data / "ct" / "totalseg_example"
    stored, labels = (nibabel.load(folder / f"example_{name}.nii.gz") for name in ("ct", "seg"))
    shown, _ = as_shown(np.asarray(labels.dataobj), labels.affine)
    organ = {number: np.argwhere(shown == number).mean(0) for number in (1, 5) if (shown == number).any()}
    if len(organ) == 2:
        assert organ[5][2] < organ[1][2]
    volume = open_volume(folder / "example_ct.nii.gz")
    bone = np.argwhere(volume.hu(60, 110) > 300)
    body = np.argwhere(volume.hu(60, 110) > -200)
    assert bone[:, 1].mean() > body[:, 1].mean()
    assert stored.shape == tuple(volume.voxels.shape[i] for i in (2, 1, 0)) or volume.stored_axes != "RAS"


# windows -----------------------------------------------------------------------------------------
def test_windows_are_linear_between_their_ends() -> None:
    for window in WINDOWS.values():
        hu = np.array([window.low_hu - 1, window.low_hu, window.high_hu, window.high_hu + 1])
        assert grey_values(hu, window).tolist() == [0, 0, 255, 255]
    ramp = grey_values(np.arange(-1400, 300), WINDOWS["lung"])
    assert (np.diff(ramp.astype(int)) >= 0).all()


def test_unknown_windows_are_refused() -> None:
    for name in ("lungs", "5", "100:-100", "three:1"):
        with pytest.raises(ConfigError, match="expected lung"):
            parse_window(name)


# what cannot be right ----------------------------------------------------------------------------
def test_a_truncated_file_says_where(hu: np.ndarray, tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "v.nii.gz", hu)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(VolumeError, match="truncated"):
        open_volume(path)
    short = tmp_path / "w.nii.gz"
    short.write_bytes(gzip.compress(gzip.decompress(write_nifti(tmp_path / "x.nii.gz", hu).read_bytes())[:-500]))
    with pytest.raises(VolumeError, match="truncated at slice 0 of 6"):
        open_volume(short)


def test_text_instead_of_a_volume_is_refused(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii"):
        (tmp_path / name).write_text("<html>not found</html>" * 50)
        with pytest.raises(VolumeError, match="not a NIfTI file"):
            open_volume(tmp_path / name)


def test_a_series_in_time_is_refused(hu: np.ndarray, tmp_path: Path) -> None:
    four = np.stack([hu.transpose(2, 1, 0)] * 3, axis=3)
    nibabel.save(nibabel.Nifti1Image(four, np.diag([-1, -1, 2, 1])), tmp_path / "t.nii.gz")
    with pytest.raises(VolumeError, match="expected one volume"):
        open_volume(tmp_path / "t.nii.gz")


_CHANGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=5)


def _changed(content: bytes, start: int, stop: int, changes: list[tuple[float, int]]) -> bytes:
    changed = bytearray(content)
    for place, value in changes:
        changed[start + int(place * (stop - start))] = value
    return bytes(changed)


def _volume_or_error(path: Path) -> None:
    try:
        assert len(open_volume(path, hu="already").spacing_mm) == 3
    except VolumeError as error:
        assert path.name in str(error)  # noqa: PT017


@given(_CHANGES)
@settings(max_examples=200, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_any_bytes_in_a_dicom_header_give_a_volume_or_a_volume_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]]
) -> None:
    folder = tmp_path_factory.mktemp("series")
    write_dicom_series(folder, chest_hu(np.random.default_rng(0), side=8, n_slices=3))
    slices = sorted(path for path in folder.rglob("*") if path.is_file())
    content = slices[1].read_bytes()
    slices[1].write_bytes(_changed(content, 132, content.index(b"\xe0\x7f\x10\x00"), changes))
    _volume_or_error(folder)


@pytest.mark.parametrize("tag", ["Rows", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"])
def test_a_slice_with_an_empty_place_is_refused(hu: np.ndarray, tmp_path: Path, tag: str) -> None:
    import pydicom

    write_dicom_series(tmp_path, hu)
    path = sorted(path for path in tmp_path.rglob("*") if path.is_file())[1]
    dataset = pydicom.dcmread(path)
    setattr(dataset, tag, None)
    dataset.save_as(path)
    with pytest.raises(VolumeError, match=f"{path.name}: it lacks {tag}"):
        open_volume(tmp_path)


@given(changes=_CHANGES, packed=st.booleans())
@settings(max_examples=200, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_any_bytes_in_a_nifti_header_give_a_volume_or_a_volume_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]], packed: bool
) -> None:
    path = tmp_path_factory.mktemp("nifti") / ("a.nii.gz" if packed else "a.nii")
    write_nifti(path, chest_hu(np.random.default_rng(0), side=8, n_slices=3))
    content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    content = _changed(content, 0, 352, changes)
    path.write_bytes(gzip.compress(content) if packed else content)
    _volume_or_error(path)


@pytest.mark.parametrize("sides", [(-2, 4, 4), (32767, 32767, 32767)])
def test_a_header_with_impossible_sides_is_refused(hu: np.ndarray, tmp_path: Path, sides: tuple[int, ...]) -> None:
    path = tmp_path / "a.nii"
    write_nifti(path, hu)
    content = bytearray(path.read_bytes())
    content[42:48] = np.array(sides, "<i2").tobytes()
    path.write_bytes(content)
    with pytest.raises(VolumeError, match=r"a\.nii: (expected one volume|its header promises|truncated)"):
        open_volume(path)


def test_nan_is_counted_and_placed(hu: np.ndarray, tmp_path: Path) -> None:
    broken = hu.astype(np.float32)
    broken[4, 3, 2] = np.nan
    with pytest.raises(VolumeError, match="1 voxels are NaN or infinite, the first in slice 4"):
        open_volume(write_nifti(tmp_path / "v.nii.gz", broken))


def test_zero_spacing_is_refused(hu: np.ndarray, tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "v.nii", hu)
    content = bytearray(path.read_bytes())
    content[80:84] = np.float32(0).tobytes()  # pixdim[1]
    content[252:256] = np.int16([0, 0]).tobytes()  # qform_code, sform_code
    path.write_bytes(bytes(content))
    with pytest.raises(VolumeError, match=r"voxels of 0 x 0\.8 x 2\.5 mm"):
        open_volume(path)
    with pytest.raises(VolumeError, match="make no sense"):
        open_volume(write_nifti(tmp_path / "w.nii", hu), spacing_mm=(0.0, 1.0, 1.0))


def test_a_missing_slice_two_at_one_place_and_two_series_are_refused(hu: np.ndarray, tmp_path: Path) -> None:
    write_dicom_series(tmp_path / "gap", hu)[3].unlink()
    with pytest.raises(VolumeError, match="a slice is missing"):
        open_volume(tmp_path / "gap")
    paths = write_dicom_series(tmp_path / "twice", hu)
    (tmp_path / "twice" / "copy.dcm").write_bytes(paths[2].read_bytes())
    with pytest.raises(VolumeError, match="same place"):
        open_volume(tmp_path / "twice")
    write_dicom_series(tmp_path / "mixed", hu)
    write_dicom_series(tmp_path / "mixed", hu, series="1.2.4")
    with pytest.raises(VolumeError, match=r"mixes 2 series.*series 1.2.4 \(6 slices\)"):
        open_volume(tmp_path / "mixed")


def test_other_modalities_scouts_and_empty_folders_are_refused(hu: np.ndarray, tmp_path: Path) -> None:
    write_dicom_series(tmp_path / "mr", hu, Modality="MR")
    with pytest.raises(VolumeError, match="modality is MR"):
        open_volume(tmp_path / "mr")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(VolumeError, match="no DICOM file"):
        open_volume(tmp_path / "nothing")
    with pytest.raises(VolumeError, match="no such file"):
        open_volume(tmp_path / "absent.mha")


def test_a_series_without_slope_is_decided_by_its_values(hu: np.ndarray, tmp_path: Path) -> None:
    write_dicom_series(tmp_path / "hu", hu, slope=None, intercept=0.0)
    assert open_volume(tmp_path / "hu").hu_state == "already"
    write_dicom_series(tmp_path / "raw", hu, slope=None)
    with pytest.raises(VolumeError, match="neither file nor table"):
        open_volume(tmp_path / "raw")


def test_the_metadata_tables_spacing_goes_before_the_files(hu: np.ndarray, tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "v.nii.gz", hu, spacing_mm=(1.0, 1.0, 1.0))
    volume = open_volume(path, spacing_mm=SPACING_MM)
    assert volume.spacing_mm == SPACING_MM
    np.testing.assert_allclose(np.linalg.norm(volume.affine[:3, :3], axis=0), SPACING_MM[::-1])
    assert "metadata table is believed" in volume.remarks[0]


def test_a_volume_without_geometry_cannot_be_made(hu: np.ndarray) -> None:
    with pytest.raises(VolumeError, match="make no sense"):
        Volume(hu, (0.0, 1.0, 1.0), np.eye(4), _METADATA, "already")
    with pytest.raises(VolumeError, match="n_slices"):
        Volume(hu[0], SPACING_MM, np.eye(4), _METADATA, "already")


def test_looking_at_hu_changes_nothing(hu: np.ndarray) -> None:
    volume = Volume(np.ascontiguousarray(hu + 1024.0, np.float32), SPACING_MM, np.eye(4), _METADATA, "applied")
    assert (volume.hu() == hu).all()
    assert (volume.hu() == hu).all()
