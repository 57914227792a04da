"""What `embed` was asked for, in a form that can be handed to a process, and doing it on one device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_dino.run_folder import RunFolder

if TYPE_CHECKING:
    from wsi_dino.cli.console import Progress
    from wsi_dino.pathology.embed_spec import EmbedSpec
    from wsi_dino.pathology.embedding import EmbedOutcome


@dataclass(frozen=True)
class EmbedRequest:
    """Everything but the device.

    Attributes:
        run: the run folder.
        encoders: for each, the arguments of `load_encoder`, its name among them.
        spec: of the features.
        stain_reference: the image that `spec` names, or None.
        slides_folder: where slides lie that were moved.
        workers: threads of all processes together; 0 = one for each core.
    """

    run: Path
    encoders: tuple[Mapping[str, Any], ...]
    spec: EmbedSpec
    stain_reference: Path | None = None
    slides_folder: Path | None = None
    workers: int = 0


def embed_here(
    request: EmbedRequest,
    device: str,
    *,
    processes: int = 1,
    progress: Progress,
    notice: Callable[[str], None],
) -> EmbedOutcome:
    """Load the encoders on `device` and embed the run's slides in this process.

    Args:
        request: what to do.
        device: of `load_encoder`.
        processes: that share the threads of the request, this one among them.
        progress: told of tiles.
        notice: told what a reader should know before the work starts.
    """
    from wsi_dino.encoders.executors import sharing_processes
    from wsi_dino.encoders.loading import load_encoder
    from wsi_dino.pathology.embedding import embed_slides
    from wsi_dino.pathology.stain import StainReference

    processes = max(processes, sharing_processes())
    method, reference = request.spec.stain_method, request.stain_reference
    stain = None if method is None or reference is None else StainReference(method, reference)
    encoders = [
        load_encoder(**settings, device=device, workers=request.workers, processes=processes)
        for settings in request.encoders
    ]
    return embed_slides(
        RunFolder(request.run),
        encoders,
        request.spec,
        stain=stain,
        slides_folder=request.slides_folder,
        workers=_reading_threads(request.workers, processes),
        progress=progress,
        notice=notice,
    )


def _reading_threads(workers: int, processes: int) -> int:
    """Return this process's part of the threads; 0, for all cores, only to a process alone."""
    from wsi_dino.encoders.executors import available_cores

    return workers if processes == 1 else max(1, (workers or available_cores()) // processes)
