"""Search for hyper-parameters on the validation part of a fold; what is tested is never seen.

optuna's TPE sampler proposes, `train_fold` answers with its best validation loss. Finished trials are kept in one small
file; a search that was killed goes on from it and proposes what it would have proposed, since the sampler of a trial
is seeded by the number of trials before it and told of them all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from wsi_dino.errors import ConfigError, DivergedError
from wsi_dino.mil.bags import BagStore
from wsi_dino.mil.models import get_model
from wsi_dino.mil.objective import Objective
from wsi_dino.mil.search_range import Between, OneOf, SearchRange
from wsi_dino.mil.training import TrainingSpec, train_fold
from wsi_dino.provenance import fingerprint, write_json_atomically

_RECIPE: dict[str, SearchRange] = {
    "learning_rate": Between(1e-5, 3e-3, log=True),
    "weight_decay": Between(1e-6, 1e-2, log=True),
}


class SearchSpec(BaseModel):
    """How hyper-parameters are searched.

    Attributes:
        n_trials: trainings of each fold; the first is with what stands in the training's own spec.
        fixed: names that the user has set and that stay as they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_trials: int = Field(ge=1)
    fixed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One training of a search: what was tried, and its best validation loss (None = it came to no finite number)."""

    values: dict[str, Any]
    val_loss: float | None


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        trials: all, in order.
        best: number of the one with the lowest validation loss, the first of equals.
    """

    trials: tuple[Trial, ...]
    best: int

    @property
    def values(self) -> dict[str, Any]:
        """Hyper-parameters of the best trial."""
        return self.trials[self.best].values

    def to_record(self) -> dict[str, Any]:
        """Return what metrics.json tells."""
        best, first = self.trials[self.best], self.trials[0]
        tried = {"n_trials": len(self.trials), "best_trial": self.best}
        return {**tried, "chosen": best.values, "val_loss": best.val_loss, "val_loss_without": first.val_loss}


@dataclass(frozen=True)
class SearchGround:
    """What a search may look at: the training and validation slides of a fold, and nothing of its test slides.

    Attributes:
        spec: with the seed of the fold.
        bags: features.
        truth: of the training and validation slides alone.
        train_ids, val_ids: those slides.
        objective: of training.
        device, threads: see `train_fold`.
    """

    spec: TrainingSpec
    bags: BagStore
    truth: Mapping[str, Sequence[float]]
    train_ids: Sequence[str]
    val_ids: Sequence[str]
    objective: Objective
    device: str
    threads: int | None

    def val_loss(self, values: Mapping[str, Any], on_epoch: Callable[[dict[str, float]], None]) -> float | None:
        """Train with some values and return the loss at the epoch that is kept; None where it is never finite."""
        try:
            trained = train_fold(
                with_values(self.spec, values), self.bags, self.truth, self.train_ids, self.val_ids, self.objective,
                device=self.device, threads=self.threads, on_epoch=on_epoch,
            )  # fmt: skip
        except DivergedError:
            return None
        return float(trained.history[trained.best_epoch]["val_loss"])


def search_space(spec: TrainingSpec, fixed: Sequence[str] = ()) -> dict[str, SearchRange]:
    """Return what may be searched of a model and its training: ranges by name, without those the user has set.

    Examples:
        >>> sorted(search_space(TrainingSpec(model="mean-pool"), fixed=["dropout"]))
        ['hidden_dim', 'learning_rate', 'weight_decay']
    """
    record = get_model(spec.model)
    own = {
        name: each
        for name, field in record.hyperparameters.model_fields.items()
        for each in field.metadata
        if isinstance(each, Between | OneOf)
    }
    space = own if record.is_convex else own | _RECIPE
    return {name: each for name, each in space.items() if name not in fixed}


def with_values(spec: TrainingSpec, values: Mapping[str, Any]) -> TrainingSpec:
    """Return `spec` with some hyper-parameters of the model or its training changed."""
    given = spec.model_dump()
    given["options"] = {**given.get("options", {}), **{n: v for n, v in values.items() if n in spec.options}}
    given |= {name: value for name, value in values.items() if name not in spec.options}
    return TrainingSpec(**{name: value for name, value in given.items() if name != "options" or value})


def require_search() -> Any:
    """Return optuna, quiet.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("--search: optuna is not installed. `pip install 'wsi_dino[search]'` adds it.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def search_fold(
    ground: SearchGround, search: SearchSpec, key: str, path: Path,
    on_epoch: Callable[[dict[str, float]], None] = lambda row: None,
) -> Found:  # fmt: skip
    """Search on one fold, going on from the trials that `path` holds.

    Args:
        ground: what may be looked at.
        search: how.
        key: changes with all that can change a trial; trials of another key are not used.
        path: JSON file of the finished trials, written after each.
        on_epoch: called with each row of each training's history.

    Raises:
        ConfigError: optuna is not installed, or no trial came to a finite loss.
    """
    optuna = require_search()
    space = search_space(ground.spec, search.fixed)
    distributions = {name: _distribution(optuna, each) for name, each in space.items()}
    trials = _read_trials(path, key)[: search.n_trials]
    while len(trials) < search.n_trials:
        values = _propose(optuna, distributions, trials, ground.spec)
        trials.append(Trial(values, ground.val_loss(values, on_epoch)))
        write_json_atomically(path, {"key": key, "trials": [asdict(trial) for trial in trials]})
    losses = [math.inf if trial.val_loss is None else trial.val_loss for trial in trials]
    if not math.isfinite(min(losses)):
        raise ConfigError(
            f"Searching hyper-parameters of {ground.spec.model}: none of {len(trials)} trials came to a finite "
            "validation loss. Lower --lr."
        )
    return Found(tuple(trials), losses.index(min(losses)))


def _propose(optuna: Any, distributions: dict[str, Any], trials: Sequence[Trial], spec: TrainingSpec) -> dict[str, Any]:
    """Return the values of the next trial; they depend on the seed and on the trials before."""
    if not trials:
        now = spec.model_dump() | spec.hyperparameters
        return {name: now[name] for name in distributions}
    seed = int(fingerprint("search", spec.seed, len(trials))[:8], 16)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    states = optuna.trial.TrialState
    for trial in trials:
        inside = all(distributions[name]._contains(value) for name, value in trial.values.items())
        if inside:  # what the user's spec holds may lie outside the ranges
            state = states.FAIL if trial.val_loss is None else states.COMPLETE
            study.add_trial(
                optuna.trial.create_trial(
                    params=trial.values, distributions=distributions, value=trial.val_loss, state=state
                )
            )
    return dict(study.ask(distributions).params)


def _distribution(optuna: Any, each: SearchRange) -> Any:
    if isinstance(each, OneOf):
        return optuna.distributions.CategoricalDistribution(each.values)
    return optuna.distributions.FloatDistribution(each.low, each.high, log=each.log)


def _read_trials(path: Path, key: str) -> list[Trial]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [Trial(**trial) for trial in content["trials"]] if content["key"] == key else []
    except (OSError, ValueError, KeyError, TypeError):
        return []
