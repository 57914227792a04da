"""`mil --model`, `--set` and `--search`: which models, with which hyper-parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsi_dino.cli import console
from wsi_dino.errors import ConfigError, nearest_name
from wsi_dino.mil.models import DEFAULT_MODEL, get_model, model_names

if TYPE_CHECKING:
    from wsi_dino.mil.search import SearchSpec
    from wsi_dino.mil.tasks import Task
    from wsi_dino.mil.training import TrainingSpec

_PANEL = "Model"
# option of the command line -> field of TrainingSpec; None leaves the field at its own default
FIELDS = {
    "epochs": "epochs", "min_epochs": "min_epochs", "patience": "patience", "lr": "learning_rate",
    "weight_decay": "weight_decay", "dropout": "dropout", "batch_slides": "batch_bags", "max_tiles": "max_tiles",
    "hidden_dim": "hidden_dim", "attention_dim": "attention_dim", "precision": "precision", "seed": "seed",
}  # fmt: skip
_OF_MODELS = ("hidden_dim", "attention_dim", "dropout")  # options that are hyper-parameters of some models

ModelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model", rich_help_panel=_PANEL, show_default=False,
        help=f"{', '.join(model_names())}; may be repeated.  [default: {DEFAULT_MODEL}]",
    ),
]  # fmt: skip
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", rich_help_panel=_PANEL, show_default=False,
        help="A hyper-parameter by its name in docs/mil-models.md; may be repeated. MODEL.KEY=VALUE for one of several "
        "models.",
    ),
]  # fmt: skip
SearchOption = Annotated[
    int | None,
    typer.Option(
        "--search", min=1, metavar="N", rich_help_panel=_PANEL, show_default=False,
        help="Try N sets of hyper-parameters in each fold and keep the one with the lowest validation loss; what is "
        "set by an option stays. Needs wsi_dino[search].",
    ),
]  # fmt: skip


def chosen_models(given: Mapping[str, Any], tasks: Sequence[Task]) -> list[str]:
    """Return the models asked for, each once; ABMIL when none is named.

    Raises:
        ConfigError: there is no model of a name, or it does not go with a task or ``--adapt``.
    """
    models = list(dict.fromkeys(given["model"] or [DEFAULT_MODEL]))
    for name in models:
        if name not in model_names():
            near = nearest_name(name, model_names())
            raise ConfigError(f"--model: there is no {name!r}.{near} Known: {', '.join(model_names())}.")
    if given["adapt"] and (models != [DEFAULT_MODEL] or given["search"]):
        raise ConfigError(
            f"--adapt learns the encoder with {DEFAULT_MODEL} as it stands: leave out --model and --search."
        )
    for task in tasks:
        for name in models:
            if task.kind != "classes" and get_model(name).needs_classes:
                raise ConfigError(
                    f"--model {name}: it learns one class a slide, and task {task.name} is of kind {task.kind}. "
                    "Leave it out; docs/mil-models.md says which models take every target."
                )
    return models


def training_specs(given: Mapping[str, Any], models: Sequence[str]) -> dict[str, TrainingSpec]:
    """Return the training of each model; a hyper-parameter goes to every model that has it.

    Raises:
        ConfigError: a value is not allowed, or no model has a hyper-parameter.
    """
    own: dict[str, dict[str, Any]] = {name: {} for name in models}
    for option in _OF_MODELS:
        if given[option] is not None:
            _give(own, f"--{option.replace('_', '-')}", option, given[option], models)
    for text in given["settings"] or []:
        key, is_set, value = text.partition("=")
        if not is_set:
            raise ConfigError(f"--set {text}: expected KEY=VALUE, as in k_sample=4.")
        only, _, name = key.strip().rpartition(".")
        if only and only not in models:
            raise ConfigError(f"--set {text}: --model does not name {only!r}. Models asked for: {', '.join(models)}.")
        _give(own, f"--set {text}", name, _value(value), [only] if only else models)
    shared = {field: given[option] for option, field in FIELDS.items() if option not in _OF_MODELS}
    shared = {field: value for field, value in shared.items() if value is not None}
    return {name: _training_spec({"model": name, **shared, **own[name]}) for name in models}


def search_spec(given: Mapping[str, Any], spec: TrainingSpec) -> SearchSpec | None:
    """Return how a model's hyper-parameters are searched: not those that an option sets.

    Raises:
        ConfigError: optuna is not installed.
    """
    if given["search"] is None:
        return None
    from wsi_dino.mil.search import SearchSpec, require_search, search_space

    require_search()
    by_option = [field for option, field in FIELDS.items() if given[option] is not None]
    by_set = [text.partition("=")[0].strip().rpartition(".") for text in given["settings"] or []]
    fixed = tuple(sorted({*by_option, *(name for only, _, name in by_set if only in ("", spec.model))}))
    if not search_space(spec, fixed):
        console.say(f"note: nothing is left to be searched for {spec.model}; it is trained as it stands.")
        return None
    return SearchSpec(n_trials=given["search"], fixed=fixed)


def of_model(given: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Return the options as if this model alone had been asked for."""
    kept = []
    for text in given["settings"] or []:
        only, _, rest = text.partition("=")[0].strip().rpartition(".")
        if only in ("", model) and (only or _has(model, rest)):
            kept.append(text)
    left_out = {option: None for option in _OF_MODELS if not _has(model, option)}
    return {**given, **left_out, "model": None if model == DEFAULT_MODEL else [model], "settings": kept}


def _give(own: dict[str, dict[str, Any]], said: str, name: str, value: Any, models: Sequence[str]) -> None:
    takers = [model for model in models if _has(model, name)]
    if not takers:
        known = sorted({each for model in models for each in _settable(model)})
        raise ConfigError(
            f"{said}: {' and '.join(models)} {'has' if len(models) == 1 else 'have'} no hyper-parameter {name!r}."
            f"{nearest_name(name, known)} Known: {', '.join(known)}."
        )
    for model in takers:
        own[model][name] = value


def _has(model: str, name: str) -> bool:
    return name in _settable(model)


def _settable(model: str) -> list[str]:
    """Return the hyper-parameters of a model and of its training."""
    from wsi_dino.mil.training import ABMIL_FIELDS, TrainingSpec

    apart = {*ABMIL_FIELDS, "model", "options", "seed"}
    recipe = [name for name in TrainingSpec.model_fields if name not in apart]
    return [*get_model(model).hyperparameters.model_fields, *recipe]


def _value(text: str) -> str | None:
    """Return the text, which the spec makes a number or a truth value of, or None for ``none``."""
    return None if text.strip().lower() in ("none", "null") else text.strip()


def _training_spec(values: dict[str, Any]) -> TrainingSpec:
    from pydantic import ValidationError

    from wsi_dino.mil.training import TrainingSpec

    try:
        return TrainingSpec(**values)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else ""
        option = next((name for name, told in FIELDS.items() if told == field), field)
        where = f"--{option.replace('_', '-')} {first['input']}" if field else "--model"
        raise ConfigError(f"{where}: {first['msg'].removeprefix('Value error, ')}.") from error
