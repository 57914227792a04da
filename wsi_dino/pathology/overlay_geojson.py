"""The values of tiles as GeoJSON for QuPath: a square a tile, with measurements and a class by its colour."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.errors import ConfigError
from wsi_dino.pathology.tile_values import TileValues, colours_of
from wsi_dino.provenance import write_atomically

_N_CLASSES = 10


def write_overlay_geojson(path: Path, tiles: TileValues, measurements: Mapping[str, np.ndarray]) -> None:
    """Write a FeatureCollection of QuPath tile objects, a line each, in level-0 px.

    Each has the class of its tenth of the colour bar (``attention rank 0.9-1.0``, ``tumour 0.9-1.0``), coloured
    as in the pictures, and its measurements, by which QuPath can draw a map of its own.

    Args:
        path: file to write, atomically.
        tiles: what is shown.
        measurements: values ``(n,)`` by name.

    Raises:
        ConfigError: a measurement has another number of values than there are tiles.
        StorageError: the disk is full or the folder cannot be written.
    """
    for name, values in measurements.items():
        if len(values) != len(tiles.values):
            raise ConfigError(f"Writing {path.name}: {name} has {len(values)} values for {len(tiles.values)} tiles.")
    with write_atomically(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write('{"type":"FeatureCollection","features":[')
        for number, feature in enumerate(_features(tiles, measurements)):
            stream.write((",\n" if number else "\n") + json.dumps(feature, separators=(",", ":")))
        stream.write("\n]}\n")


def _features(tiles: TileValues, measurements: Mapping[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    tenth = np.minimum((tiles.shades * _N_CLASSES).astype(int), _N_CLASSES - 1)
    classes = _classes(tiles)
    width, height = tiles.tile_wh_level0
    for number, (x, y) in enumerate(tiles.xy_level0.tolist()):
        corners = [[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]
        yield {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [corners]},
            "properties": {
                "objectType": "tile",
                "classification": classes[tenth[number]],
                "measurements": {name: _short(values[number]) for name, values in measurements.items()},
            },
        }


def _classes(tiles: TileValues) -> list[dict[str, Any]]:
    name = "attention rank" if tiles.kind == "attention" else tiles.of_class
    colours = colours_of((np.arange(_N_CLASSES) + 0.5) / _N_CLASSES).tolist()
    return [
        {"name": f"{name} {index / _N_CLASSES:.1f}-{(index + 1) / _N_CLASSES:.1f}", "color": colour}
        for index, colour in enumerate(colours)
    ]


def _short(value: float) -> float:
    return float(f"{float(value):.6g}")
