"""What goes wrong inside a plug-in's functions, told as a message that names the plug-in and its line."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from wsi_dino.errors import EncoderError, WsiDinoError

_GUARDED = ("build", "convert", "packaged_weights", "make_record")
_LONGEST = 300
_MARK = "__guarded_plugin__"


def guard_functions(module: ModuleType, sources: Sequence[Path], origin: str) -> None:
    """Wrap the functions of a plug-in, and the network that its ``build`` returns, in place."""
    for name in _GUARDED:
        function = getattr(module, name, None)
        if callable(function) and not hasattr(function, _MARK):
            guarded = _guarded(function, name, sources, origin)
            guarded = _checked_build(guarded, sources, origin) if name == "build" else guarded
            setattr(guarded, _MARK, True)
            setattr(module, name, guarded)


def in_words(error: BaseException, sources: Sequence[Path]) -> str:
    """Return type, message and the last line in `sources` that took part in `error`, in one line.

    Examples:
        >>> in_words(ValueError("no such\\nthing"), [])
        'ValueError: no such thing'
    """
    text = " ".join(str(error).split())
    text = f"{text[:_LONGEST]}..." if len(text) > _LONGEST else text
    names = {str(path) for path in sources}
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename in names]
    if isinstance(error, SyntaxError):
        lines, text = [error.lineno], str(error.msg)
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {text}{where}".replace(": (line", " (line").rstrip(": ")


def _guarded(function: Callable[..., Any], name: str, sources: Sequence[Path], origin: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **settings: Any) -> Any:
        try:
            return function(*arguments, **settings)
        except WsiDinoError:
            raise
        except Exception as error:
            # Too little memory is no fault of the plug-in: smaller batches are tried after it.
            if type(error).__name__ == "OutOfMemoryError":
                raise
            raise EncoderError(f"Running {name} of the plug-in {origin}: {in_words(error, sources)}") from error

    return call


def _checked_build(build: Callable[..., Any], sources: Sequence[Path], origin: str) -> Callable[..., Any]:
    @functools.wraps(build)
    def call(*arguments: Any, **settings: Any) -> Any:
        from wsi_dino.encoders.backbone import Backbone

        network = build(*arguments, **settings)
        if not isinstance(network, Backbone):
            raise EncoderError(
                f"Running build of the plug-in {origin}: expected a wsi_dino.encoders.backbone.Backbone, "
                f"got {type(network).__name__}. TimmVit.create(record) makes one of any ViT of timm."
            )
        kind = type(network)
        methods = {name: _guarded(getattr(kind, name), name, sources, origin) for name in ("vectors", "maps")}
        # A class of its own rather than attributes of the network: a copy of the network must call itself.
        network.__class__ = type(kind.__name__, (kind,), methods)
        return network

    return call
