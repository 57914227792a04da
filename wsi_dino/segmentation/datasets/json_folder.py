"""dataset.json and the names of files, as the Decathlon and nnU-Net have them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsi_dino.errors import ConfigError

_ENDINGS = (".nii.gz", ".nii")


def read_dataset_json(folder: Path) -> dict[str, Any]:
    """Return the content of ``dataset.json``, which must name labels.

    Raises:
        ConfigError: it is missing, no JSON, or lacks ``labels``.
    """
    path = folder / "dataset.json"
    if not folder.is_dir():
        raise ConfigError(f"Opening a dataset: {folder} is not a folder. Check --root.")
    if not path.is_file():
        raise ConfigError(f"Opening {folder}: there is no dataset.json in it. Is --root the folder of the task?")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        raise ConfigError(f"Opening {path}: broken ({error}).") from error
    if not isinstance(content, dict) or not isinstance(content.get("labels"), dict):
        raise ConfigError(f'Opening {path}: expected an object with "labels", got none.')
    return content


def foreground_classes(folder: Path, labels: Mapping[str, Any]) -> dict[int, str]:
    """Return label values above 0 and their names, from ``{"1": "liver"}`` (Decathlon) or ``{"liver": 1}`` (nnU-Net).

    Raises:
        ConfigError: labels are neither, or regions of several values, which are not learned here.

    Examples:
        >>> foreground_classes(Path("."), {"0": "background", "1": "liver"})
        {1: 'liver'}
        >>> foreground_classes(Path("."), {"background": 0, "tumor": 1})
        {1: 'tumor'}
    """
    classes: dict[int, str] = {}
    for key, value in labels.items():
        number, name = (key, value) if str(key).isdigit() else (value, key)
        if str(name).lower() == "ignore":
            raise ConfigError(f"Opening {folder}: dataset.json has an ignore label, which is not understood here.")
        if not str(number).isdigit():
            raise ConfigError(
                f"Opening {folder}: label {key!r}: {value!r} of dataset.json; expected one number a label (no regions)."
            )
        if not 0 <= int(number) <= 255:
            raise ConfigError(f"Opening {folder}: label {number} of dataset.json; expected 0 .. 255.")
        if int(number) > 0:
            classes[int(number)] = str(name)
    if not classes:
        raise ConfigError(f"Opening {folder}: dataset.json names no label above 0.")
    return dict(sorted(classes.items()))


def inside(folder: Path, relative: str) -> Path:
    """Return a path named by a file, which must not leave `folder`.

    Raises:
        ConfigError: it does.
    """
    path = folder / relative
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"Opening {folder}: dataset.json names {relative!r}, outside of the folder.")
    return path


def is_junk(name: str) -> bool:
    """Tell whether a file is what macOS leaves behind, or hidden.

    Examples:
        >>> is_junk("._liver_0.nii.gz"), is_junk("liver_0.nii.gz")
        (True, False)
    """
    return name.startswith((".", "_"))


def stem(path: Path) -> str:
    """Return the name of a NIfTI file without its ending.

    Examples:
        >>> stem(Path("imagesTr/liver_0.nii.gz"))
        'liver_0'
    """
    ending = next((ending for ending in _ENDINGS if path.name.endswith(ending)), path.suffix)
    return path.name.removesuffix(ending)


def nifti_files(folder: Path) -> list[Path]:
    """Return the NIfTI files of a folder, sorted, junk left out."""
    return sorted(
        path for path in folder.glob("*") if path.name.endswith(_ENDINGS) and not is_junk(path.name) and path.is_file()
    )
