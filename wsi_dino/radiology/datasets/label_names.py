"""Labels of a data set by name."""

from __future__ import annotations

from collections.abc import Sequence

from wsi_dino.errors import CohortError, nearest_name


def label_places(data_set: str, label_names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Return where the wanted labels stand among all.

    Args:
        data_set: its name, for the message.
        label_names: all labels.
        wanted: those to find, in the order to return them.

    Raises:
        CohortError: the data set has no such label.

    Examples:
        >>> label_places("toy", ("Effusion", "Mass"), ["Mass"])
        [1]
    """
    for name in wanted:
        if name not in label_names:
            near = nearest_name(name, label_names)
            raise CohortError(f"Data set {data_set}: no label {name!r}.{near} Its labels: {label_names}.")
    return [label_names.index(name) for name in wanted]
