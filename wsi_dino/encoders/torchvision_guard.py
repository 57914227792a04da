"""Make ``import torchvision`` (and so timm) work where torchvision's C++ extension cannot be loaded.

torchvision registers shape rules for two operators that its extension declares. A torchvision that
was built for CUDA beside a CPU-only torch cannot load the extension, and then the mere import fails:
``operator torchvision::nms does not exist``. Declaring the two operators without an implementation
lets everything else be imported; calling ``ops.nms`` itself still fails, and nothing here does.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_logger = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def ensure_torchvision() -> None:
    """Declare torchvision's operators if its extension cannot; call before the first import of timm.

    Does nothing where the extension loads, where torchvision is already imported or is not installed.
    Logs it once when the extension is broken; `wsi-dino doctor` tells of it too.
    """
    if "torchvision" in sys.modules:
        return
    trouble = extension_trouble()
    if trouble:
        _declare_operators()
        _logger.info("torchvision's compiled part does not fit this torch (%s); doing without it", trouble)


def extension_trouble() -> str | None:
    """Return why torchvision's extension cannot be loaded; None when it is loaded or there is no torchvision."""
    specification = importlib.util.find_spec("torchvision")
    if specification is None or specification.origin is None:
        return None
    folder = Path(specification.origin).parent
    import torch

    load_library: Any = torch.ops.load_library
    libraries = [path for path in sorted(folder.glob("_C*")) if path.suffix in (".so", ".pyd")]
    if not libraries:
        return "no compiled extension"
    try:
        load_library(str(libraries[0]))
    except (OSError, ImportError) as error:
        return str(error).splitlines()[0]
    return None


@lru_cache(maxsize=1)
def _declare_operators() -> Any:
    """Return the library that holds the declarations; it must stay alive, hence the cache."""
    import torch

    make_library: Any = torch.library.Library
    library = make_library("torchvision", "DEF")
    for name in _OPERATORS:
        library.define(f"{name}{_SCHEMA}")
    return library
