"""Files of which a table does not speak."""

from __future__ import annotations

from collections.abc import Sequence

from wsi_dino.errors import CohortError


def require_none_unlisted(name: str, unlisted: Sequence[str]) -> None:
    """Refuse files of which the table does not speak.

    Raises:
        CohortError: there are some; the first are named.
    """
    if unlisted:
        raise CohortError(
            f"Reading {name}: {len(unlisted)} files are not in the table, e.g. {', '.join(unlisted[:5])}. Add them, "
            "or leave out --unlisted fail."
        )
