"""The MIL models, one file each. A file in this folder is a model; its name is that of the file, with ``-`` for ``_``.

Listing them imports nothing; asking for a record imports that one file (and torch).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_dino.errors import ConfigError, nearest_name

if TYPE_CHECKING:
    from wsi_dino.mil.mil_model import ModelRecord

DEFAULT_MODEL = "abmil"


@cache
def model_names() -> tuple[str, ...]:
    """Return the names of all models, the default one first.

    Examples:
        >>> model_names()[0], "clam-sb" in model_names()
        ('abmil', True)
    """
    files = (file.stem for folder in __path__ for file in Path(folder).glob("[!_]*.py"))
    return DEFAULT_MODEL, *sorted({stem.replace("_", "-") for stem in files} - {DEFAULT_MODEL})


def model_source(name: str) -> str:
    """Return the text of a model's file."""
    return Path(str(sys.modules[get_model(name).build.__module__].__file__)).read_text(encoding="utf-8")


def get_model(name: str) -> ModelRecord:
    """Return the record of a model.

    Raises:
        ConfigError: there is no model of that name.
    """
    if name not in model_names():
        near = nearest_name(name, model_names())
        raise ConfigError(f"--model: there is no {name!r}.{near} Known: {', '.join(model_names())}.")
    record: ModelRecord = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").RECORD
    return record


def result_name(encoder: str, model: str) -> str:
    """Return the name of the results of an encoder under a model: the default one is not named.

    Examples:
        >>> result_name("dinov3-s", "abmil"), result_name("dinov3-s", "clam-sb")
        ('dinov3-s', 'dinov3-s+clam-sb')
    """
    return encoder if model == DEFAULT_MODEL else f"{encoder}+{model}"


def split_result_name(name: str) -> tuple[str, str]:
    """Return encoder and model of `result_name`.

    Examples:
        >>> split_result_name("dinov3-s+clam-sb"), split_result_name("dinov3-s+lora")
        (('dinov3-s', 'clam-sb'), ('dinov3-s+lora', 'abmil'))
    """
    encoder, _, model = name.rpartition("+")
    return (encoder, model) if encoder and model in model_names() else (name, DEFAULT_MODEL)


def complete_hyperparameters(record: ModelRecord, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all hyper-parameters of a model: those given, and its defaults for the others.

    Raises:
        ValueError: it has none of a name, or a value is not allowed; in one sentence.
    """
    from pydantic import ValidationError

    try:
        return record.hyperparameters(**given).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise ValueError(no_such_hyperparameter(record.name, name, record.hyperparameters.model_fields)) from error
        said = first["msg"].removeprefix("Value error, ")
        where = f"{name} = {first['input']}: " if name else ""
        raise ValueError(f"{record.name}: {where}{said}") from error


def no_such_hyperparameter(model: str, name: str, known: Iterable[str]) -> str:
    """Return the sentence that says so."""
    known = list(known)
    return f"{model} has no hyper-parameter {name!r}.{nearest_name(name, known)} It has {', '.join(known)}"
