"""The MIL models, one file each. A file in this folder is a model; its name is that of the file, with ``-`` for ``_``.

Listing them imports nothing; asking for a record imports that one file (and torch).
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

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
    files = (file.name for file in resources.files(__name__).iterdir())
    names = {name.removesuffix(".py").replace("_", "-") for name in files if name.endswith(".py") and name[0] != "_"}
    return DEFAULT_MODEL, *sorted(names - {DEFAULT_MODEL})


def model_file(name: str) -> str:
    """Return the file name of a model within this folder."""
    return f"{name.replace('-', '_')}.py"


def get_model(name: str) -> ModelRecord:
    """Return the record of a model.

    Raises:
        ConfigError: there is no model of that name.
    """
    if name not in model_names():
        near = nearest_name(name, model_names())
        raise ConfigError(f"--model: there is no {name!r}.{near} Known: {', '.join(model_names())}.")
    record: ModelRecord = importlib.import_module(f"{__name__}.{model_file(name).removesuffix('.py')}").RECORD
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
