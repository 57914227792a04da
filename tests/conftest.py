"""Where the real data lies, for tests that need it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# A shell that starts the suite in its background has SIGINT ignored, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

_REPOSITORY = Path(__file__).resolve().parent.parent


def _folder(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set {variable} to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real slides, tiles and weights."""
    return _folder("WSI_DINO_TEST_DATA", _REPOSITORY.parent / "shared" / "data")


@pytest.fixture(scope="session")
def shared_golden() -> Path:
    """Folder of the reference tool's outputs."""
    return _folder("WSI_DINO_TEST_GOLDEN", _REPOSITORY.parent / "shared" / "golden")


@pytest.fixture(scope="session")
def paper_text() -> list[str]:
    """Lines of the paper's text, which is not shipped."""
    path = Path(os.environ.get("WSI_DINO_TEST_PAPER", _REPOSITORY.parent / "shared" / "paper.txt"))
    if not path.is_file():
        pytest.skip(f"no text of the paper at {path}: set WSI_DINO_TEST_PAPER to the file")
    return path.read_text(encoding="utf-8").splitlines()
