"""Arrays of electron microscopy on disk: HDF5 (one key, or FILE:KEY), TIFF stacks, folders of sections."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.errors import VolumeError, nearest_name

_HDF5 = (".h5", ".hdf5", ".hdf", ".he5")
_TIFF = (".tif", ".tiff")
_SECTIONS = (*_TIFF, ".png")
_BROKEN_HDF5 = (OSError, RuntimeError, KeyError, ValueError)  # h5py, by where it meets what is broken
_LAST_NUMBER = re.compile(r"(\d+)(?!.*\d)")


@dataclass(frozen=True)
class ArrayFile:
    """A stored volume whose sections are read when they are asked for.

    Attributes:
        path: file or folder.
        key: of the dataset in an HDF5 file, else "".
        shape: (z, y, x).
        dtype: as stored.
        resolution_nm: (z, y, x) where the file tells, else None.
        offset_nm: of the first voxel where the file tells, else zeros.
        read_sections: gives sections ``start`` to ``stop`` (exclusive) as stored.
    """

    path: Path
    key: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    resolution_nm: tuple[float, float, float] | None = None
    offset_nm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    read_sections: Callable[[int, int], np.ndarray] = field(repr=False, compare=False, default=lambda a, b: np.empty(0))

    @property
    def called(self) -> str:
        """Path and key, for messages."""
        return f"{self.path}:{self.key}" if self.key else str(self.path)


def split_key(text: str) -> tuple[Path, str]:
    """Return file and key of ``FILE`` or ``FILE:KEY``; the key is "" when none is given.

    Examples:
        >>> split_key("a.h5:volumes/raw")
        (PosixPath('a.h5'), 'volumes/raw')
        >>> split_key("stack.tif")
        (PosixPath('stack.tif'), '')
    """
    head, colon, key = text.rpartition(":")
    if colon and Path(head).suffix.lower() in _HDF5:
        return Path(head), key.strip("/")
    return Path(text), ""


def open_array(source: str | Path, keys: tuple[str, ...] = ()) -> ArrayFile:
    """Open a volume.

    Args:
        source: ``FILE.h5``, ``FILE.h5:KEY``, ``FILE.tif`` of pages, or a folder of numbered TIFF or PNG sections.
        keys: tried in order in an HDF5 file when no key is given; else its one dataset of three axes is taken.

    Raises:
        VolumeError: missing, broken, not three axes, the key is not there or not unique, sections are missing.
    """
    path, key = split_key(str(source))
    if not path.exists():
        raise VolumeError(f"Opening the volume {path}: there is no such file or folder.")
    if path.is_dir():
        return _folder(path)
    if path.suffix.lower() in _HDF5:
        return _hdf5(path, key, keys)
    if path.suffix.lower() in _TIFF:
        return _tiff(path)
    raise VolumeError(
        f"Opening the volume {path}: expected HDF5 ({', '.join(_HDF5)}), a TIFF stack, or a folder of sections."
    )


# HDF5 ------------------------------------------------------------------------------------------
def _hdf5(path: Path, key: str, keys: tuple[str, ...]) -> ArrayFile:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            key = key or _only_key(path, file, keys)
            dataset = file.get(key)
            if not isinstance(dataset, h5py.Dataset):
                near = nearest_name(key, _volume_keys(file))
                raise VolumeError(
                    f"Opening {path}: there is no dataset {key!r}; it holds {_listed(_volume_keys(file))}.{near}"
                )
            _require_3d(f"{path}:{key}", dataset.shape)
            attributes = {name: dataset.attrs.get(name) for name in ("resolution", "offset")}
            shape, dtype = dataset.shape, dataset.dtype
    except _BROKEN_HDF5 as error:
        raise VolumeError(f"Opening {path}: broken or no HDF5 file ({error}).") from error
    resolution = _triple(path, attributes["resolution"], "resolution")
    if resolution is not None and min(resolution) <= 0:
        raise VolumeError(f"Opening {path}: its attribute resolution must be above 0, got {resolution}.")
    offset = _triple(path, attributes["offset"], "offset") or (0.0, 0.0, 0.0)
    return ArrayFile(path, key, shape, dtype, resolution, offset, _hdf5_reader(path, key))


def _hdf5_reader(path: Path, key: str) -> Callable[[int, int], np.ndarray]:
    def read(start: int, stop: int) -> np.ndarray:
        import h5py

        try:
            with h5py.File(path, "r") as file:
                return np.asarray(file[key][start:stop])
        except _BROKEN_HDF5 as error:
            raise VolumeError(f"Reading {path}:{key}, sections {start} to {stop}: broken file ({error}).") from error

    return read


def _volume_keys(file: Any) -> list[str]:
    import h5py

    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    return found


def _only_key(path: Path, file: Any, keys: tuple[str, ...]) -> str:
    known = _volume_keys(file)
    for key in keys:
        if key in known:
            return key
    volumes = [name for name in known if file[name].ndim == 3]
    if len(volumes) == 1:
        return volumes[0]
    what = f"{len(volumes)} volumes ({_listed(volumes)})" if volumes else f"no volume; its datasets: {_listed(known)}"
    raise VolumeError(f"Opening {path}: it holds {what}. Name one as {path}:KEY.")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "") if names else "none"


def _triple(path: Path, value: Any, name: str) -> tuple[float, float, float] | None:
    if value is None:
        return None
    try:
        numbers = np.atleast_1d(np.asarray(value, np.float64))
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != (3,) or not np.isfinite(numbers).all():
        raise VolumeError(f"Opening {path}: its attribute {name} must be three numbers (z, y, x), got {value}.")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])


def _require_3d(called: str, shape: tuple[int, ...] | None) -> None:
    if shape is None or len(shape) != 3 or 0 in shape:
        raise VolumeError(f"Opening {called}: expected three axes (z, y, x), got the shape {shape}.")


# TIFF and folders --------------------------------------------------------------------------------
def _tiff(path: Path) -> ArrayFile:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            shape, dtype = tuple(int(n) for n in series.shape), np.dtype(series.dtype)
            has_colours = "S" in series.axes
    except Exception as error:  # tifffile meets damaged headers with many kinds of error
        raise VolumeError(f"Opening {path}: broken or no TIFF file ({error}).") from error
    if has_colours:
        raise VolumeError(f"Opening {path}: expected pages of one grey channel, got colours in the shape {shape}.")
    _require_3d(str(path), shape)

    def read(start: int, stop: int) -> np.ndarray:
        try:
            with tifffile.TiffFile(path) as stack:
                pages = stack.series[0].pages
                if len(pages) == shape[0]:
                    return np.stack([pages[i].asarray() for i in range(start, min(stop, shape[0]))])  # type: ignore[union-attr]
                return np.asarray(stack.series[0].asarray()[start:stop])
        except Exception as error:  # as above
            raise VolumeError(f"Reading {path}, sections {start} to {stop}: broken file ({error}).") from error

    return ArrayFile(path, "", (shape[0], shape[1], shape[2]), dtype, read_sections=read)


def _folder(path: Path) -> ArrayFile:
    files = numbered_sections(path)
    first = _section(files[0])

    def read(start: int, stop: int) -> np.ndarray:
        sections = []
        for file in files[start:stop]:
            section = _section(file)
            if section.shape != first.shape or section.dtype != first.dtype:
                raise VolumeError(
                    f"Reading the sections in {path}: {file.name} is {section.shape} {section.dtype}, "
                    f"{files[0].name} is {first.shape} {first.dtype}."
                )
            sections.append(section)
        return np.stack(sections)

    return ArrayFile(path, "", (len(files), *first.shape), first.dtype, read_sections=read)


def numbered_sections(folder: Path) -> list[Path]:
    """Return the sections of a folder in the order of their numbers, whatever the padding with zeros.

    Raises:
        VolumeError: none are there, one has no number, a number is missing or occurs twice.
    """
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in _SECTIONS and not p.name.startswith("."))
    if not files:
        raise VolumeError(f"Opening the sections in {folder}: there is no TIFF or PNG file.")
    numbers: dict[int, Path] = {}
    for file in files:
        match = _LAST_NUMBER.search(file.stem)
        if match is None:
            raise VolumeError(f"Opening the sections in {folder}: {file.name} has no number, so its place is unknown.")
        number = int(match.group(1))
        if number in numbers:
            raise VolumeError(
                f"Opening the sections in {folder}: {numbers[number].name} and {file.name} share a number."
            )
        numbers[number] = file
    missing = sorted(set(range(min(numbers), max(numbers) + 1)) - set(numbers))
    if missing:
        raise VolumeError(
            f"Opening the sections in {folder}: of {min(numbers)} to {max(numbers)}, missing are "
            f"{_listed([str(n) for n in missing])}. Put them there (a copy of a neighbour, or black)."
        )
    return [numbers[number] for number in sorted(numbers)]


def _section(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        if path.suffix.lower() in _TIFF:
            import tifffile

            section = tifffile.imread(path)
        else:
            section = np.asarray(Image.open(path))
    except Exception as error:  # damaged files bring every kind of error out of the decoders
        raise VolumeError(f"Reading the section {path}: broken or no image ({error}).") from error
    if section.ndim != 2:
        raise VolumeError(f"Reading the section {path}: expected one grey channel, got the shape {section.shape}.")
    return section
