"""`--launcher slurm`: workers as a SLURM job array, through submitit (extra `slurm`)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from wsi_dino.cli.launchers.engine import Settings
from wsi_dino.cli.launchers.task import WorkerEnd, WorkerTask, run_worker
from wsi_dino.errors import ConfigError

_DEFAULT_WORKERS = 8
_GRACE_S, _TELL_EVERY_S = 15.0, 0.2
_ASK_EVERY_S = 15.0  # of the scheduler; it is shared by all users


class SlurmSettings(Settings):
    """See `Settings`.

    Attributes:
        partition: of the cluster.
        gpus: of each worker.
        cpus: cores of each worker.
        memory_gb: of each worker.
        hours: time limit of each worker.
        max_parallel: workers of the array that run at once; 0: all.
        setup: shell lines before the command, e.g. ``module load cuda/12.4``.
        container: words before the command, e.g. ``apptainer exec --nv wsi-dino.sif``.
        options: further options of sbatch, e.g. ``account: hospital`` or ``qos: long``.
        cluster: ``slurm``, or ``local`` to try the whole of it on this machine without SLURM.
    """

    partition: str = ""
    gpus: int = 0
    cpus: int = 4
    memory_gb: float = 32.0
    hours: float = 24.0
    max_parallel: int = 0
    setup: tuple[str, ...] = ()
    container: str = ""
    options: dict[str, Any] = Field(default_factory=dict)
    cluster: str = "slurm"


class RequeuedWorker:
    """A worker that SLURM may interrupt and start again: a claim lost on the way is taken by whoever comes next."""

    def __call__(self, task: WorkerTask) -> WorkerEnd:
        """Run it."""
        if os.environ.get("SUBMITIT_EXECUTOR") == "local":
            signal.signal(signal.SIGTERM, _interrupt)
        return run_worker(task)

    def checkpoint(self, task: WorkerTask) -> Any:
        """Return what is to be run when the job is started again: the same, since the run folder holds what is done."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, task)


class SlurmEngine:
    """One array for the workers; a job more for each that is started anew, and for the results."""

    def __init__(self, settings: SlurmSettings) -> None:
        self._submitit = _submitit()
        self._settings = settings
        self._waiting: list[WorkerTask] = []
        self._running: list[tuple[WorkerTask, Any]] = []
        self._asked_s = 0.0

    def n_workers(self) -> int:
        """As many as may run at once, or eight."""
        return self._settings.max_parallel or _DEFAULT_WORKERS

    def start(self, task: WorkerTask) -> None:
        """Keep it for the array that `flush` submits."""
        self._waiting.append(task)

    def flush(self) -> None:
        """Submit what waits as one array."""
        tasks, self._waiting = self._waiting, []
        if not tasks:
            return
        executor = self._executor(tasks)
        try:
            jobs = executor.map_array(RequeuedWorker(), tasks)
        except (FileNotFoundError, RuntimeError, self._submitit.core.utils.FailedJobError) as error:
            raise ConfigError(f"--launcher slurm: submitting {len(tasks)} workers failed: {error}") from error
        self._running += list(zip(tasks, jobs, strict=True))

    def _executor(self, tasks: list[WorkerTask]) -> Any:
        s = self._settings
        folder = Path(tasks[0].log).parent / "jobs"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            executor = self._submitit.AutoExecutor(folder=str(folder), cluster=s.cluster)
        except RuntimeError as error:
            raise ConfigError(
                f"--launcher slurm: {error} Run it where `sbatch` is; --launch cluster=local tries it without SLURM."
            ) from error
        executor.update_parameters(name="wsi-dino", timeout_min=max(1, round(60 * s.hours)), cpus_per_task=s.cpus,
                                   mem_gb=s.memory_gb)  # fmt: skip
        if s.cluster == "slurm":
            given = {"slurm_partition": s.partition, "gpus_per_node": s.gpus, "slurm_setup": list(s.setup) or None}
            executor.update_parameters(
                **{key: value for key, value in given.items() if value},
                slurm_array_parallelism=s.max_parallel or len(tasks), slurm_additional_parameters=dict(s.options),
            )  # fmt: skip
        return executor

    def ended(self) -> list[tuple[WorkerTask, WorkerEnd]]:
        """As `Engine.ended`; a job that failed as a job counts as a lost worker."""
        every_s = _ASK_EVERY_S if self._settings.cluster == "slurm" else 0.0
        if time.monotonic() - self._asked_s < every_s:
            return []
        self._asked_s = time.monotonic()
        found = [(task, _end_of(job)) for task, job in self._running if job.done(force_check=True)]
        names = {task.name for task, _ in found}
        self._running = [(task, job) for task, job in self._running if task.name not in names]
        return found

    def stop(self) -> None:
        """Cancel what still runs; a trial on this machine is waited for."""
        if self._settings.cluster == "local":
            _end_trial([job for _, job in self._running])
        else:
            for _, job in self._running:
                job.cancel(check=False)


def _interrupt(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # once
    raise KeyboardInterrupt


def _end_trial(jobs: Sequence[Any]) -> None:
    """End submitit's processes on this machine: its own way of it tells tracebacks, and kills after a second."""
    until = time.monotonic() + _GRACE_S
    while running := [job for job in jobs if not job.done(force_check=True)]:
        for job in running:
            # repeated, since a process that is not ready for it may lose it
            os.kill(int(job.job_id), signal.SIGTERM if time.monotonic() < until else signal.SIGKILL)
        time.sleep(_TELL_EVERY_S)


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise ConfigError(
            "--launcher slurm needs the package submitit: install wsi_dino with the extra `slurm`."
        ) from error
    return submitit


def _end_of(job: Any) -> WorkerEnd:
    error = job.exception()
    if error is None:
        end: WorkerEnd = job.result()
        return end
    return WorkerEnd(code=3, stdout=str(error), host=f"job {job.job_id}")
