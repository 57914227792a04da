"""`radiology chest-xray|ct --adapt lora`: its options, and the request that they make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from wsi_dino.cli import adapting, console
from wsi_dino.cli.adapting import AdaptMethod, EpochsOption, LayersOption, RankOption, RateOption
from wsi_dino.cli.options import panel_option
from wsi_dino.errors import ConfigError

if TYPE_CHECKING:
    from wsi_dino.cli.probe_options import ProbedEncoder
    from wsi_dino.radiology.adapt_request import AdaptRequest

__all__ = ["AdaptMethod", "AdaptOption", "EpochsOption", "LayersOption", "RankOption", "RateOption", "SlicesOption"]

AdaptOption = Annotated[
    AdaptMethod | None,
    panel_option(
        adapting.PANEL, "--adapt",
        help="lora: teach the encoder the labels, too, anew in each fold and from its training patients alone; judged "
        "beside the frozen encoder, as ENCODER+lora.",
    ),
]  # fmt: skip
SlicesOption = Annotated[
    int | None,
    panel_option(
        adapting.PANEL, "--adapt-slices", min=1,
        help="Slices of each volume and epoch, one of each of so many stretches of its height.  [default: 16]",
    ),
]  # fmt: skip


def check_adapt_options(given: Mapping[str, Any], *, adapter: list[str] | None, shard: str = "") -> None:
    """Refuse options that do not go together, before anything is imported or read.

    Args:
        given: ``adapt`` and the options that mean something with it alone.
        adapter: of ``--adapter``.
        shard: of ``--shard``.

    Raises:
        ConfigError: they do not.
    """
    if given["adapt"] is None:
        idle = next((name for name, value in given.items() if value is not None), None)
        if idle is not None:
            raise ConfigError(f"--{idle.replace('_', '-')} is for adapting the encoder: give --adapt lora too.")
        return
    if adapter:
        raise ConfigError("--adapt learns adapters, --adapter takes a finished one: give one of them.")
    if shard:
        raise ConfigError("--shard encodes with the frozen encoder alone: give it without --adapt, then --adapt after.")


def adapt_request(
    given: Mapping[str, Any],
    encoder: ProbedEncoder,
    side: int,
    *,
    device: str,
    workers: int,
    seed: int,
    batch_bags: int,
) -> AdaptRequest | None:  # fmt: skip
    """Return how `encoder` is adapted at one size, or None where that was not asked for.

    Raises:
        ConfigError: a value is out of range.
        EncoderError: the encoder has nothing to adapt.
        WeightsError: its weights are not to be had.
    """
    if given["adapt"] is None:
        return None
    from wsi_dino.encoders.base_encoder import BaseEncoder
    from wsi_dino.encoders.devices import resolve_device
    from wsi_dino.radiology.adapt_request import AdaptRequest
    from wsi_dino.radiology.adaptation import require_adaptable
    from wsi_dino.radiology.ct_adaptation import DEFAULT_SLICES

    settings = encoder.settings
    spec = adapting.adapt_spec({**given, "precision": settings["precision"], "seed": seed})
    spec = spec.model_copy(update={"batch_bags": batch_bags})
    base = BaseEncoder(
        encoder.record, settings["pooling"], side, settings["weights"], settings["weights_dir"],
        settings["random_weights"], resolve_device(device), settings["precision"], workers,
    )  # fmt: skip
    require_adaptable(base, spec)

    def bars(title: str, unit: str) -> Any:
        return console.progress(title, unit=unit)

    return AdaptRequest(base, spec, given.get("adapt_slices") or DEFAULT_SLICES, console.say, bars)
