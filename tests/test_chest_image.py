"""Radiographs of every file form, and what an encoder is shown of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from chest_folders import COMPRESSED, picture, write_dicom
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsi_dino.errors import ImageError
from wsi_dino.radiology.chest_image import ChestView, grey_square_rgb, read_chest_image, square_grey, to_eight_bits


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_every_mode_of_a_png_gives_the_same_grey(mode: str, tmp_path: Path) -> None:
    grey = picture(0)
    Image.fromarray(grey).convert(mode).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_chest_image(tmp_path / "a.png").grey, grey)


def test_sixteen_bits_keep_their_order_and_span(tmp_path: Path) -> None:
    deep = (picture(0).astype(np.uint16) * 200) + 1000
    Image.fromarray(deep).save(tmp_path / "a.png")
    grey = read_chest_image(tmp_path / "a.png").grey
    np.testing.assert_array_equal(grey, deep)
    eight = to_eight_bits(grey, "native")
    assert (eight.min(), eight.max(), eight.dtype) == (0, 255, np.uint8)
    np.testing.assert_allclose(eight, (deep - deep.min()) / (deep.max() - deep.min()) * 255, atol=0.5)
    assert to_eight_bits(grey, "max").min() > 0


@pytest.mark.parametrize("syntax", [None, *COMPRESSED])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_of_every_transfer_syntax(syntax: str | None, photometric: str, tmp_path: Path) -> None:
    grey = picture(1, bright=True)
    write_dicom(tmp_path / "a.dcm", grey, syntax=syntax, photometric=photometric)
    expected = grey if photometric == "MONOCHROME2" else 255 - grey
    lossy = syntax == "1.2.840.10008.1.2.4.50"
    np.testing.assert_allclose(read_chest_image(tmp_path / "a.dcm").grey, expected, atol=6 if lossy else 0)


def test_pydicom_reads_the_rle_of_its_own(tmp_path: Path) -> None:
    import pydicom

    grey = picture(2)
    write_dicom(tmp_path / "a.dcm", grey)
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.compress("1.2.840.10008.1.2.5")
    dataset.save_as(tmp_path / "b.dcm")
    np.testing.assert_array_equal(read_chest_image(tmp_path / "b.dcm").grey, grey)


@pytest.mark.parametrize("syntax", [None, "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90"])
def test_twelve_bits_with_and_without_slope(syntax: str | None, tmp_path: Path) -> None:
    deep = picture(3).astype(np.uint16) * 16
    write_dicom(tmp_path / "a.dcm", deep, syntax=syntax, bits=12)
    np.testing.assert_array_equal(read_chest_image(tmp_path / "a.dcm").grey, deep)
    write_dicom(tmp_path / "b.dcm", deep, syntax=syntax, bits=12, RescaleSlope="2", RescaleIntercept="-100")
    np.testing.assert_allclose(read_chest_image(tmp_path / "b.dcm").grey, deep * 2.0 - 100)
    write_dicom(tmp_path / "c.dcm", deep, syntax=syntax, bits=12, RescaleSlope="2")  # no intercept: no rescaling
    np.testing.assert_array_equal(read_chest_image(tmp_path / "c.dcm").grey, deep)
    write_dicom(tmp_path / "d.dcm", deep, syntax=syntax, bits=12, photometric="MONOCHROME1")
    np.testing.assert_array_equal(read_chest_image(tmp_path / "d.dcm").grey, 4095 - deep)


def _broken(folder: Path) -> dict[str, Path]:
    grey = picture(0)
    Image.fromarray(grey).save(folder / "whole.png")
    Image.fromarray(grey).save(folder / "whole.jpg")
    write_dicom(folder / "whole.dcm", grey)
    write_dicom(folder / "packed.dcm", grey, syntax="1.2.840.10008.1.2.4.70")
    for name in ("whole.png", "whole.jpg", "whole.dcm", "packed.dcm"):
        content = (folder / name).read_bytes()
        (folder / f"cut-{name}").write_bytes(content[: len(content) * 2 // 3])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    (folder / "text.dcm").write_text("not an image")
    Image.fromarray(np.full((8, 8), 17, np.uint8)).save(folder / "constant.png")
    write_dicom(folder / "colour.dcm", grey, photometric="PALETTE COLOR")
    write_dicom(folder / "frames.dcm", np.vstack([grey, grey]), NumberOfFrames=2)
    return {
        path.name: path for path in folder.iterdir() if not path.name.startswith("whole") and path.name != "packed.dcm"
    }


def test_what_cannot_be_read_is_an_image_error_that_names_the_file(tmp_path: Path) -> None:
    broken = {**_broken(tmp_path), "absent.png": tmp_path / "absent.png"}
    assert len(broken) == 11
    for name, path in broken.items():
        with pytest.raises(ImageError, match=name.replace(".", r"\.")) as caught:
            read_chest_image(path)
        assert len(str(caught.value)) < 400, name
    with pytest.raises(ImageError, match="every pixel is 17"):
        read_chest_image(broken["constant.png"])


def test_a_header_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    Image.new("1", (9000, 9000)).save(tmp_path / "vast.png")
    with pytest.raises(ImageError, match="9000 x 9000 px are too many"):
        read_chest_image(tmp_path / "vast.png")


@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=5))
@settings(max_examples=200, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_any_bytes_in_a_dicom_header_give_a_picture_or_an_image_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]]
) -> None:
    path = tmp_path_factory.mktemp("dicom") / "a.dcm"
    write_dicom(path, picture(1, side=16), RescaleSlope="2", RescaleIntercept="-100", NumberOfFrames="1")
    content = bytearray(path.read_bytes())
    head = content.index(b"\xe0\x7f\x10\x00") - 132  # between the mark DICM and the pixels
    for place, value in changes:
        content[132 + int(place * head)] = value
    path.write_bytes(content)
    try:
        assert read_chest_image(path).grey.ndim == 2
    except ImageError as error:
        assert "a.dcm" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("element", "value"),
    [(b"\x28\x00\x53\x10DS", b"a.bc"), (b"\x28\x00\x52\x10DS", b"low "), (b"\x28\x00\x08\x00IS", b"many")],
)
@pytest.mark.filterwarnings("ignore")
def test_a_number_of_the_header_that_is_none_is_an_image_error(element: bytes, value: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    write_dicom(path, picture(1), RescaleSlope="1.25", RescaleIntercept="-100", NumberOfFrames="0001")
    content = bytearray(path.read_bytes())
    start = content.index(element) + len(element) + 2
    content[start : start + 4] = value
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.dcm: its header makes no sense"):
        read_chest_image(path)


def test_a_dicom_file_without_a_transfer_syntax_is_refused(tmp_path: Path) -> None:
    import pydicom

    write_dicom(tmp_path / "a.dcm", picture(1))
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    del dataset.file_meta.TransferSyntaxUID
    pydicom.dcmwrite(tmp_path / "b.dcm", dataset, implicit_vr=False, little_endian=True)
    with pytest.raises(ImageError, match=r"b\.dcm: .*no transfer syntax"):
        read_chest_image(tmp_path / "b.dcm")


# the transform -----------------------------------------------------------------------------------
def test_three_channels_are_one_grey() -> None:
    shown = grey_square_rgb(picture(0), ChestView(size_px=32))
    assert shown.shape == (32, 32, 3)
    assert (shown == shown[..., :1]).all()


def test_a_square_of_the_right_size_is_left_as_it_is() -> None:
    grey = picture(0)
    for aspect in ("pad", "squash", "crop"):
        np.testing.assert_array_equal(square_grey(grey, ChestView(size_px=64, aspect=aspect)), grey)


def test_aspects_of_a_wide_image() -> None:
    """Left half 50, right half 150, twice as wide as high."""
    wide = np.repeat(np.array([[50, 150]], np.uint8), 32, axis=1).repeat(32, axis=0)
    pad = square_grey(wide, ChestView(size_px=32, aspect="pad"))
    assert (pad[:8] == 0).all() and (pad[24:] == 0).all()  # noqa: PT018
    assert pad[16, 4] == 50 and pad[16, 28] == 150  # noqa: PT018
    squash = square_grey(wide, ChestView(size_px=32, aspect="squash"))
    assert squash[0, 4] == 50 and squash[31, 28] == 150  # noqa: PT018
    crop = square_grey(wide, ChestView(size_px=32, aspect="crop"))
    np.testing.assert_array_equal(crop, wide[:, 16:48])


def test_pixels_equal_pillow_and_the_middle_is_kept() -> None:
    grey = picture(0, side=200)
    expected = Image.fromarray(grey).resize((64, 64), Image.Resampling.BICUBIC)
    view = ChestView(size_px=56, crop_fraction=0.875)
    assert view.resized_px == 64
    np.testing.assert_array_equal(square_grey(grey, view), np.asarray(expected)[4:60, 4:60])
    whole = square_grey(grey, ChestView(size_px=64))
    np.testing.assert_array_equal(whole, np.asarray(expected))


@pytest.mark.parametrize("shape", [(1, 500), (500, 1), (3, 7), (1000, 999)])
@pytest.mark.parametrize("aspect", ["pad", "squash", "crop"])
@pytest.mark.parametrize("crop_fraction", [1.0, 0.875])
def test_any_shape_gives_the_square(shape: tuple[int, int], aspect: str, crop_fraction: float) -> None:
    grey = np.arange(shape[0] * shape[1]).reshape(shape).astype(np.uint16)
    view = ChestView(size_px=33, aspect=aspect, crop_fraction=crop_fraction)
    assert square_grey(grey, view).shape == (33, 33)
