"""Libraries that not every installation has, imported with a message that names the extra."""

from __future__ import annotations

import importlib
from typing import Any

from wsi_dino.errors import EncoderError


def require_extra(module: str, extra: str, encoder: str) -> Any:
    """Return an imported module.

    Args:
        module: its name.
        extra: of ``wsi_dino`` that brings it.
        encoder: that needs it, for the message.

    Raises:
        EncoderError: it is not installed, or is and does not work.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise _broken(module, extra, encoder, error) from error
        raise EncoderError(
            f"Encoder {encoder}: it needs {module}, which is not installed. `pip install 'wsi_dino[{extra}]'`"
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise _broken(module, extra, encoder, error) from error


def _broken(module: str, extra: str, encoder: str, error: Exception) -> EncoderError:
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return EncoderError(
        f"Encoder {encoder}: {module} is installed but cannot be imported ({first_line}). "
        f"`pip install --force-reinstall 'wsi_dino[{extra}]'` repairs most such cases."
    )
