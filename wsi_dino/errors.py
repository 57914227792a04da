"""Every error this package raises on purpose.

::

    WsiDinoError
    ├── ConfigError            a setting, an option or wsi-dino.yaml is wrong
    │   └── DivergedError      a training never came to a finite loss
    ├── StorageError           the disk is full, or a folder cannot be written
    ├── SlideError             a slide cannot be opened, read or placed in space
    │   └── MissingMppError    nothing says how large a pixel of the slide is
    ├── ImageError             an image cannot be read, or shows nothing
    ├── VolumeError            a volume cannot be read, or its geometry or grey values make no sense
    ├── TileGridError          a tile file is missing, stale or broken
    ├── EncoderError           an encoder cannot do what is asked of it
    │   ├── UnknownEncoderError
    │   └── WeightsError       weights are missing, gated, corrupt or of another architecture
    │       └── HubError       the hub did not give a file; `kind` tells why
    ├── FeatureFileError       a feature file is missing, broken or of other provenance
    ├── CohortError            a label table does not say what is needed
    ├── SplitError             folds cannot be made, or would leak
    └── ResultError            results of a task are missing, broken, or cannot be compared

A message says in three lines or fewer what was being done, what was expected, what came, where
(file, slide, row, fold) and what to do. Exit codes of the command line: 0 all done, 1 some items
failed and are listed, 2 wrong usage or input (any of these errors outside one item's own work).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WsiDinoError(Exception):
    """Base of all errors raised on purpose; its message is written for the user."""


class ConfigError(WsiDinoError):
    """A setting, an option or wsi-dino.yaml is wrong."""


class DivergedError(ConfigError):
    """A training never came to a finite validation loss."""


class StorageError(WsiDinoError):
    """The disk is full, or a folder cannot be written."""


class SlideError(WsiDinoError):
    """A slide cannot be opened, read or placed in space."""


class MissingMppError(SlideError):
    """Nothing says how large a pixel of the slide is, and nothing is guessed."""


class ImageError(WsiDinoError):
    """An image cannot be read, or shows nothing."""


class VolumeError(WsiDinoError):
    """A volume cannot be read, or its geometry or grey values make no sense."""


class TileGridError(WsiDinoError):
    """A tile file is missing, stale or broken."""


class EncoderError(WsiDinoError):
    """An encoder cannot do what is asked of it."""


class UnknownEncoderError(EncoderError):
    """No encoder has the name that was asked for."""


class WeightsError(EncoderError):
    """Weights are missing, gated, corrupt or of another architecture."""


class HubError(WeightsError):
    """The hub did not give a file.

    Attributes:
        kind: why, in one word for programs: ``offline`` (forbidden by the environment), ``no-network``,
            ``no-token``, ``bad-token``, ``terms`` (not accepted, or not for this token), ``no-repository``,
            ``no-revision``, ``no-file``, ``server`` (it answered with an error of its own), ``interrupted``
            (the download broke off), ``checksum`` (other bytes came than were published).
    """

    def __init__(self, message: str, kind: str = "server") -> None:
        super().__init__(message)
        self.kind = kind


class FeatureFileError(WsiDinoError):
    """A feature file is missing, broken or of other provenance than its neighbours."""


class CohortError(WsiDinoError):
    """A label table does not say what is needed."""


class SplitError(WsiDinoError):
    """Folds cannot be made from the cohort, or would leak."""


class ResultError(WsiDinoError):
    """Results of a task are missing, broken, or cannot be compared."""


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its kind when it says nothing.

    Examples:
        >>> first_line(ValueError("no such key\\nin the header")), first_line(KeyError())
        ('no such key', 'KeyError')
    """
    return (str(error).splitlines() or [type(error).__name__])[0]


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'X'?"`` for the closest known name, or an empty string.

    Examples:
        >>> nearest_name("dinov3s", ["dinov3-s", "uni"])
        " Did you mean 'dinov3-s'?"
        >>> nearest_name("zzz", ["dinov3-s", "uni"])
        ''
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""
