"""What every launcher is: a way to start workers and to hear how they ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from wsi_dino.cli.launchers.task import WorkerEnd, WorkerTask
from wsi_dino.errors import ConfigError, nearest_name


class Settings(BaseModel):
    """What can be said of an engine in ``wsi-dino.yaml`` or with ``--launch KEY=VALUE``.

    Attributes:
        workers: how many; 0: as many as the engine finds sensible.
        retries: how often a worker that was lost is started anew, all workers together a worker.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int = 0
    retries: int = 3


class Engine(Protocol):
    """Starts workers; made anew for each launch, and closed at its end."""

    def n_workers(self) -> int:
        """Return how many workers are sensible."""

    def start(self, task: WorkerTask) -> None:
        """Start a worker and return at once."""

    def flush(self) -> None:
        """All workers that are to be started together have been given to `start`."""

    def ended(self) -> list[tuple[WorkerTask, WorkerEnd]]:
        """Return the workers that have ended since the last call, without waiting for others."""

    def stop(self) -> None:
        """End what still runs."""


def checked(kind: type[Settings], name: str, given: Mapping[str, Any]) -> Any:
    """Return settings of an engine.

    Args:
        kind: of settings.
        name: of the engine, for messages.
        given: by key; texts are turned into what the key wants.

    Raises:
        ConfigError: a key is unknown or a value wrong.
    """
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"--launcher {name}: {key}: {first['msg']}, got {first['input']!r}.{nearest_name(key, kind.model_fields)} "
            f"Known: {', '.join(kind.model_fields)}."
        ) from error


MakeEngine = Callable[[Any], Engine]
