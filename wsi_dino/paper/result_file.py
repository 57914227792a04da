"""A ``metrics.json`` that a step left: its content, and a fingerprint that times do not change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsi_dino.errors import ResultError
from wsi_dino.provenance import fingerprint

TIMES = ("seconds", "cpu_s", "training_minutes", "encoding_s", "device")
"""Keys that differ from run to run of one command, whatever it found."""


def read_result(path: Path) -> dict[str, Any]:
    """Return the content.

    Raises:
        ResultError: the file is missing or broken.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(f"Reading {path}: {error}. Run `wsi-dino paper run` again.") from error
    if not isinstance(content, dict):
        raise ResultError(f"Reading {path}: expected a JSON object. Run `wsi-dino paper run` again.")
    return content


def result_fingerprint(content: Mapping[str, Any]) -> str:
    """Return 32 hex digits of all but the times.

    Examples:
        >>> result_fingerprint({"auc": 0.9, "seconds": 1.5}) == result_fingerprint({"auc": 0.9, "seconds": 2.5})
        True
    """
    return fingerprint(_without_times(content))


def _without_times(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_times(item) for key, item in value.items() if key not in TIMES}
    if isinstance(value, list):
        return [_without_times(item) for item in value]
    return value
