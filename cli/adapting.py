"""`mil --adapt lora`: its options, and the request that they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from wsi_dino.cli import console
from wsi_dino.cli.options import panel_option
from wsi_dino.cli.run_pictures import RunPictures
from wsi_dino.errors import ConfigError

if TYPE_CHECKING:
    from wsi_dino.encoders.adapt import AdaptSpec
    from wsi_dino.mil.adaptation import Adaptation
    from wsi_dino.mil.material import Material
    from wsi_dino.mil.run import MilOutcome, MilRequest
    from wsi_dino.mil.tasks import Task
    from wsi_dino.run_folder import RunFolder

PANEL = "Adapting the encoder"


class AdaptMethod(StrEnum):
    """How an encoder may be adapted."""

    lora = "lora"


class AdaptLayers(StrEnum):
    """Which layers of each block an adapter changes."""

    attention = "attention"
    mlp = "mlp"
    both = "both"


_option = partial(panel_option, PANEL)


AdaptOption = Annotated[
    AdaptMethod | None,
    _option(
        "--adapt",
        help="lora: teach the encoder the task, too, anew in each fold and from its training patients alone. "
        "Reads slides; takes no features. Results are in RUN/mil/TASK/ENCODER+lora.",
    ),
]
TilesOption = Annotated[
    int | None, _option("--adapt-tiles", min=1, help="Tiles drawn of each slide and epoch.  [default: 32]")
]
EpochsOption = Annotated[int | None, _option("--adapt-epochs", min=1, help="At most.  [default: 10]")]
RateOption = Annotated[float | None, _option("--adapt-lr", help="Learning rate of the adapter.  [default: 5e-4]")]
RankOption = Annotated[int | None, _option("--adapt-rank", min=1, help="Rank of the adapter.  [default: 8]")]
LayersOption = Annotated[
    AdaptLayers | None,
    _option("--adapt-layers", help="Linear layers of each block that it changes.  [default: attention]"),
]
PoolingOption = Annotated[
    str | None, _option("--pooling", help="How tokens become one vector.  [default: the encoder's]")
]
WeightsOption = Annotated[Path | None, _option("--weights", help="Checkpoint file of the encoder to adapt.")]
WeightsDirOption = Annotated[
    Path | None, _option("--weights-dir", help="Folder of checkpoints, looked at before cache and hub.")
]
RandomWeightsOption = Annotated[
    int | None,
    _option("--random-weights", help="Seed of an untrained encoder; needs --allow-random-weights."),
]
SlidesOption = Annotated[
    Path | None, _option("--slides", help="Folder where the slides lie now, if not where `tile` found them.")
]
# Options that mean something with --adapt alone; those of wsi-dino.yaml that other verbs share are not among them.
_ONLY_WITH_ADAPT = (
    "adapt_tiles", "adapt_epochs", "adapt_lr", "adapt_rank", "adapt_layers", "pooling", "weights", "weights_dir",
    "random_weights",
)  # fmt: skip
# option of the command line -> field of AdaptSpec; None leaves the field at its own default
FIELDS = {"adapt_epochs": "epochs", "adapt_lr": "learning_rate", "precision": "precision", "seed": "seed"}


def check_adapt_options(given: Mapping[str, Any]) -> None:
    """Refuse options that do not go together, before anything is imported or read.

    Raises:
        ConfigError: an option of adapting without --adapt, no --encoder, or random weights that were not allowed.
    """
    if given["adapt"] is None:
        idle = [name for name in _ONLY_WITH_ADAPT if given[name] is not None]
        if idle:
            raise ConfigError(f"--{idle[0].replace('_', '-')} is for adapting the encoder: give --adapt lora too.")
        return
    if not given["encoder"]:
        raise ConfigError("--adapt lora: which encoder? Give --encoder NAME; `wsi-dino encoders` lists them.")
    if given["random_weights"] is not None and not given["allow_random_weights"]:
        raise ConfigError(
            "--random-weights: an untrained encoder says nothing about the slides. Leave it out, or add "
            "--allow-random-weights to measure speed."
        )


def adapt_spec(given: Mapping[str, Any]) -> AdaptSpec:
    """Return the recipe that the options ask for.

    Raises:
        ConfigError: a value is out of range.
    """
    from pydantic import ValidationError

    from wsi_dino.encoders.adapt import AdaptSpec
    from wsi_dino.encoders.adapter import AdapterSpec

    layers = given["adapt_layers"] or AdaptLayers.attention
    targets = ("attention", "mlp") if layers == AdaptLayers.both else (str(layers),)
    rank = given["adapt_rank"] or AdapterSpec().rank
    chosen = {field: given[option] for option, field in FIELDS.items() if given[option] is not None}
    try:
        # the factor alpha / rank stays 2, so that a rank can be changed without another learning rate
        return AdaptSpec(adapter=AdapterSpec(rank=rank, alpha=2.0 * rank, targets=targets), **chosen)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        option = next((name for name, field in FIELDS.items() if field in first["loc"]), "adapt")
        raise ConfigError(f"--{option.replace('_', '-')} {first['input']}: {first['msg']}.") from error


def make_adaptation(given: Mapping[str, Any], encoder: str, request: MilRequest) -> Adaptation:
    """Return how `encoder` is to be adapted.

    Raises:
        ConfigError, EncoderError: an option is wrong.
    """
    from wsi_dino.encoders.base_encoder import BaseEncoder
    from wsi_dino.encoders.devices import resolve_device
    from wsi_dino.encoders.loading import check_choices
    from wsi_dino.encoders.registry import get_record
    from wsi_dino.mil.adaptation import Adaptation

    spec, pooling = adapt_spec(given), given["pooling"]
    record = get_record(encoder, near=[path for path in (given["weights"], given["weights_dir"]) if path is not None])
    check_choices(record, pooling)
    base = BaseEncoder(
        record, pooling, None, given["weights"], given["weights_dir"], given["random_weights"],
        resolve_device(str(given["device"])), spec.precision, given["workers"],
    )  # fmt: skip
    tiles = {} if given["adapt_tiles"] is None else {"n_tiles": given["adapt_tiles"]}
    return Adaptation(base, spec, request.learning.spec, **tiles)


@dataclass(frozen=True)
class Adapted:
    """What came of one adapted encoder, and how many slides could not be read in this command."""

    material: Material
    outcome: MilOutcome
    n_unread: int


def run_adapted_task(
    run: RunFolder, task: Task, labels: Path, given: Mapping[str, Any], encoder: str, request: MilRequest,
    bars: Callable[[str, str], AbstractContextManager[Callable[..., None]]],
) -> Adapted:  # fmt: skip
    """Adapt `encoder` to each fold of a task and cross-validate it.

    Raises:
        WsiDinoError: see `mil.adapted_run.run_adapted`.
    """
    from wsi_dino.cli.slide_tiles import RunTiles
    from wsi_dino.mil.adapted_run import FAILED, plan_adapted_task, run_adapted
    from wsi_dino.pathology.embed_spec import EmbedSpec

    adaptation = make_adaptation(given, encoder, request)
    spec = EmbedSpec(precision=adaptation.base.tile_precision)
    tiles = RunTiles(run, spec, given["slides"], bars, given["workers"])
    planned = plan_adapted_task(run, task, labels, request, adaptation, tiles, bars)
    material, outcome = run_adapted(
        planned, pictures=RunPictures(run), bars=bars, say=console.say,
        allow_random_weights=given["allow_random_weights"],
    )  # fmt: skip
    tiled = {slide_id for slide_id, row in tiles.rows().items() if row.get("status") == "done"}
    unread = [one for one in material.exclusions if one.reason == FAILED and one.slide_id in tiled]
    return Adapted(material, outcome, len(unread))
