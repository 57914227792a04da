"""`mil --target`, `--survival`, `--regression`: what is predicted, where the task does not say it by itself."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from typing import Annotated, Any

from wsi_dino.cli.options import panel_option
from wsi_dino.errors import ConfigError

_PANEL = "What is predicted"


class SurvivalHead(StrEnum):
    """How survival is modelled."""

    discrete = "discrete"
    cox = "cox"


_option = partial(panel_option, _PANEL)


TargetOption = Annotated[
    list[str] | None,
    _option(
        "--target",
        help="Column to predict; a task of that name unless --task is given too. Repeated: several yes-or-no labels "
        "by one model, in which labels of a slide may be missing.",
    ),
]
RegressionOption = Annotated[
    bool, _option("--regression", help="The column of --target holds numbers: predict the number.")
]
SurvivalOption = Annotated[
    tuple[str, str] | None,
    _option(
        "--survival", metavar="TIME EVENT",
        help="Predict survival from two columns: time above 0, and event (1, true, yes: seen; 0, false, no: censored).",
    ),
]  # fmt: skip
HeadOption = Annotated[
    SurvivalHead | None,
    _option(
        "--survival-head",
        help="discrete: a hazard for each of four intervals; cox: partial likelihood.  [default: discrete]",
    ),
]
HorizonOption = Annotated[
    float | None,
    _option("--horizon", help="Time at which predicted survival is checked.  [default: median time to an event]"),
]


def asked_target(given: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Return the column of one target, and what else the options say of the task.

    Raises:
        ConfigError: options that contradict each other.
    """
    targets, survival = list(given["target"] or []), given["survival"]
    if survival and (targets or given["regression"]):
        raise ConfigError("--survival TIME EVENT names both columns: leave out --target and --regression.")
    if given["regression"] and len(targets) > 1:
        raise ConfigError("--regression predicts one number: give one --target.")
    asked: dict[str, Any] = {}
    if survival:
        asked = {"kind": "survival", "time": survival[0], "event": survival[1]}
    elif given["regression"]:
        asked = {"kind": "regression"}
    elif len(targets) > 1:
        asked = {"targets": targets}
    asked |= {} if given["survival_head"] is None else {"survival_head": str(given["survival_head"])}
    asked |= {} if given["horizon"] is None else {"horizon": given["horizon"]}
    return (targets[0] if len(targets) == 1 else None), asked
