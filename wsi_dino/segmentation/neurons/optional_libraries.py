"""Libraries of the extra ``em``, imported with a message that names it."""

from __future__ import annotations

import importlib
from typing import Any

from wsi_dino.errors import ConfigError


def require(module: str, package: str) -> Any:
    """Return an imported module.

    Args:
        module: its name.
        package: that brings it.

    Raises:
        ConfigError: it is not installed, or is and does not work.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        first_line = (str(error).splitlines() or [""])[0][:200]
        raise ConfigError(
            f"Segmenting neurons needs {package}, which cannot be imported ({first_line}). `pip install 'wsi_dino[em]'`"
        ) from error
