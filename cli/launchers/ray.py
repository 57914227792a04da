"""`--launcher ray`: workers as tasks of a Ray cluster that runs already, or is started here (extra `ray`)."""

from __future__ import annotations

import os
from typing import Any

from pydantic import Field

from wsi_dino.cli.interrupts import ctrl_c_waits
from wsi_dino.cli.launchers.engine import Settings
from wsi_dino.cli.launchers.task import WorkerEnd, WorkerTask, run_worker
from wsi_dino.errors import ConfigError

_STORE_BYTES = 128 * 2**20
_GRACE_S = 15.0  # a worker is given ten to end
_START_S = 120  # Ray's own patience with its parts ends too early on a busy machine


class RaySettings(Settings):
    """See `Settings`.

    Attributes:
        address: of a running cluster, e.g. ``ray://head:10001`` or ``auto``; "" starts one on this machine.
        gpus: of each worker; -1: one where the cluster has any.
        cpus: cores of each worker.
        memory_gb: of each worker; 0: not asked for.
        resources: further resources of a worker by name, as in Ray.
        setup: shell lines before the command.
        container: words before the command.
    """

    address: str = ""
    gpus: float = -1
    cpus: float = 1
    memory_gb: float = 0.0
    resources: dict[str, float] = Field(default_factory=dict)
    setup: tuple[str, ...] = ()
    container: str = ""


class RayEngine:
    """A Ray task for each worker. Tasks that find no room wait: nodes that join the cluster take them up.

    A worker is a whole command and not an actor fed by readers: within it threads read while its GPU computes, so
    pixels never travel between machines.
    """

    def __init__(self, settings: RaySettings) -> None:
        self._ray, self._settings = _ray(), settings
        self._is_ours = not self._ray.is_initialized()
        if self._is_ours:
            self._connect()
        self._gpus = settings.gpus
        if self._gpus < 0:
            self._gpus = 1.0 if self._ray.cluster_resources().get("GPU", 0) else 0.0
        self._run: Any = self._ray.remote(run_worker)
        self._running: dict[Any, WorkerTask] = {}

    def _connect(self) -> None:
        s = self._settings
        here = {"include_dashboard": False, "object_store_memory": _STORE_BYTES}  # tasks hand over a few words
        where = {"address": s.address} if s.address else here
        os.environ.setdefault("RAY_agent_register_timeout_ms", str(1000 * _START_S))
        try:
            with ctrl_c_waits():  # interrupted half-way, Ray's library has crashed the process
                self._ray.init(**where, log_to_driver=False, configure_logging=False)
        except Exception as error:  # Ray raises many kinds, plain Exception among them
            raise ConfigError(
                f"--launcher ray: no cluster answers at {s.address or 'this machine'}: {error}"
            ) from error
        except KeyboardInterrupt:
            self._ray.shutdown()
            raise

    def n_workers(self) -> int:
        """As many as the cluster has room for now."""
        have = self._ray.cluster_resources()
        by_cpu = have.get("CPU", 1) // max(self._settings.cpus, 1e-9)
        by_gpu = have.get("GPU", 0) // self._gpus if self._gpus else by_cpu
        return max(1, int(min(by_cpu, by_gpu)))

    def start(self, task: WorkerTask) -> None:
        """As `Engine.start`. Ray starts a task anew whose process or node is lost."""
        s = self._settings
        asked: dict[str, Any] = {"num_cpus": s.cpus, "num_gpus": self._gpus, "max_retries": s.retries}
        if s.memory_gb:
            asked["memory"] = int(s.memory_gb * 2**30)
        if s.resources:
            asked["resources"] = s.resources
        reference = self._run.options(name=f"wsi-dino {task.name}", **asked).remote(task)
        self._running[reference] = task

    def flush(self) -> None:
        """Nothing waits."""

    def ended(self) -> list[tuple[WorkerTask, WorkerEnd]]:
        """As `Engine.ended`."""
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [(self._running.pop(reference), self._end_of(reference)) for reference in ready]

    def _end_of(self, reference: Any) -> WorkerEnd:
        try:
            end: WorkerEnd = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return WorkerEnd(code=3, stdout=str(error))
        return end

    def stop(self) -> None:
        """End what still runs, politely at first, and leave the cluster."""
        for is_forced in (False, True):
            for reference in self._running:
                self._ray.cancel(reference, force=is_forced)
            if self._running and not is_forced:
                self._ray.wait(list(self._running), num_returns=len(self._running), timeout=_GRACE_S)
        if self._is_ours:
            self._ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--launcher ray needs the package ray: install wsi_dino with the extra `ray`.") from error
    return ray
