"""The launchers there are: one line each."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from importlib import import_module
from typing import Any

from wsi_dino.cli.launchers.engine import Engine, Settings, checked


class LauncherName(StrEnum):
    """Engines that start workers."""

    local = "local"
    slurm = "slurm"
    ray = "ray"


# module of this package, its settings, its engine
_ENGINES = {
    LauncherName.local: ("local", "LocalSettings", "LocalEngine"),
    LauncherName.slurm: ("slurm", "SlurmSettings", "SlurmEngine"),
    LauncherName.ray: ("ray", "RaySettings", "RayEngine"),
}


def read_settings(name: LauncherName, given: Mapping[str, Any]) -> Settings:
    """Return the settings of a launcher.

    Raises:
        ConfigError: a key is unknown or a value wrong.
    """
    module, kind, _ = _ENGINES[name]
    settings: Settings = checked(getattr(_module(module), kind), name, given)
    return settings


def make_engine(name: LauncherName, settings: Settings) -> Engine:
    """Return the engine, ready to start workers.

    Raises:
        ConfigError: its library is not installed, or no cluster answers.
    """
    module, _, kind = _ENGINES[name]
    engine: Engine = getattr(_module(module), kind)(settings)
    return engine


def _module(name: str) -> Any:
    return import_module(f"wsi_dino.cli.launchers.{name}")
