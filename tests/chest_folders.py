"""Small copies of NIH ChestX-ray14 and of RSNA Pneumonia, with the quirks of the published files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.radiology.datasets.nih14 import LABELS

NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
# transfer syntaxes of compressed frames, and how to make one of a grey picture
COMPRESSED = {
    "1.2.840.10008.1.2.4.50": ("jpeg8_encode", {"level": 98, "colorspace": "GRAYSCALE"}),
    "1.2.840.10008.1.2.4.70": ("ljpeg_encode", {}),
    "1.2.840.10008.1.2.4.80": ("jpegls_encode", {}),
    "1.2.840.10008.1.2.4.90": ("jpeg2k_encode", {"codecformat": "j2k", "reversible": True, "level": 0}),
    "1.2.840.10008.1.2.4.201": ("htj2k_encode", {"reversible": True}),
}


def picture(seed: int, bright: bool = False, side: int = 64) -> np.ndarray:
    """Return uint8 ``(side, side)`` noise over a ramp; a bright one has a white disc."""
    random = np.random.default_rng(seed)
    grey = np.linspace(20, 90, side)[:, None] + random.normal(0, 8, (side, side))
    if bright:
        y, x = np.mgrid[:side, :side]
        grey[(y - side / 2) ** 2 + (x - side / 2) ** 2 < (side / 4) ** 2] += 120
    return np.clip(grey, 0, 255).astype(np.uint8)


def make_fake_nih14(root: Path, n: int = 120, *, cleaned: bool = False) -> list[str]:
    """Write `n` images in two archives' folders, the label table with its header, both lists; return the names.

    One image is RGBA, ages read ``058Y``, the table ends its lines with a comma; images of Effusion have a disc.
    """
    from PIL import Image

    random = np.random.default_rng(0)
    rows, names = [], []
    for number in range(n):
        patient, follow_up = number // 2 + 1, number % 2
        name = f"{patient:08d}_{follow_up:03d}.png"
        findings = [label for label in LABELS if random.random() < 0.12]
        grey = picture(number, "Effusion" in findings)
        folder = root / f"images_{1 + number * 2 // n:03d}" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(grey)
        (image.convert("RGBA") if number == 3 else image).save(folder / name)
        age = f"{number % 90}" if cleaned else f"{number % 90:03d}Y"
        view = "PA" if number % 3 else "AP"
        end = "" if cleaned else ","
        rows.append(
            f"{name},{'|'.join(findings) or 'No Finding'},{follow_up},{patient},{age},M,{view},"
            f"2682,2749,0.143,0.143{end}"
        )
        names.append(name)
    table = "Data_Entry_2017_v2020.csv" if cleaned else "Data_Entry_2017.csv"
    (root / table).write_text("\n".join([NIH_HEADER + ("" if cleaned else ","), *rows]) + "\n")
    n_train = n * 3 // 4 // 2 * 2
    (root / "train_val_list.txt").write_text("\n".join(names[:n_train]) + "\n")
    (root / "test_list.txt").write_text("\n".join(names[n_train:]))
    (root / "images_001" / "images" / "._00000001_000.png").write_bytes(b"junk of an archive")
    return names


def make_fake_rsna(root: Path, n: int = 60) -> list[str]:
    """Write `n` DICOM files of five compressed and one plain transfer syntax, with multi-box rows; return the ids.

    Every seventh is MONOCHROME1. Two files of the unlabelled test stage lie beside them.
    """
    random = np.random.default_rng(1)
    names = [f"{random.integers(2**32):08x}-0000-4000-8000-{i:012x}" for i in range(n)]
    (root / "stage_2_train_images").mkdir(parents=True)
    (root / "stage_2_test_images").mkdir()
    rows, classes = [], []
    for number, name in enumerate(names):
        positive = number % 4 == 0
        grey = picture(number, positive)
        inverted = number % 7 == 2
        syntax = [None, *COMPRESSED][number % 6]
        write_dicom(root / "stage_2_train_images" / f"{name}.dcm", 255 - grey if inverted else grey,
                    syntax=syntax, photometric="MONOCHROME1" if inverted else "MONOCHROME2")  # fmt: skip
        boxes = [f"{name},10.0,12.0,20.0,22.0,1"] * (1 + number % 8 // 4) if positive else [f"{name},,,,,0"]
        rows += boxes
        classes += [f"{name},{'Lung Opacity' if positive else 'Normal'}"] * len(boxes)
    for name in ("aaaa", "bbbb"):
        write_dicom(root / "stage_2_test_images" / f"{name}.dcm", picture(5))
    (root / "stage_2_train_labels.csv").write_text("\n".join(["patientId,x,y,width,height,Target", *rows]) + "\n")
    (root / "stage_2_detailed_class_info.csv").write_text("\n".join(["patientId,class", *classes]) + "\n")
    return names


def write_dicom(
    path: Path, grey: np.ndarray, *, syntax: str | None = None, photometric: str = "MONOCHROME2", **tags: Any
) -> None:
    """Write a radiograph with pydicom; `syntax` compresses its one frame."""
    import imagecodecs
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.1")
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    meta.TransferSyntaxUID = UID(syntax) if syntax else ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    bits = tags.pop("bits", grey.dtype.itemsize * 8)
    dataset.Rows, dataset.Columns = grey.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = grey.dtype.itemsize * 8, bits, bits - 1
    dataset.PixelRepresentation = int(grey.dtype.kind == "i")
    dataset.Modality, dataset.PatientID, dataset.ViewPosition = "CR", path.stem, "PA"
    for name, value in tags.items():
        setattr(dataset, name, value)
    if syntax:
        encoder, options = COMPRESSED[syntax]
        frame = bytes(getattr(imagecodecs, encoder)(np.ascontiguousarray(grey), **options))
        dataset.PixelData = encapsulate([frame])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    else:
        dataset.PixelData = grey.tobytes() + b"\0" * (grey.nbytes % 2)
    dataset.save_as(path, enforce_file_format=True)
