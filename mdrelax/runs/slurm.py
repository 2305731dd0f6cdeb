"""Slurm: each run of a study is a job of its own in the queue of a cluster, by submitit (extra `slurm`).

A job that is requeued, because its time was up or others have priority, resumes from the run's last checkpoint. The
study waits for its jobs; if it is interrupted, it cancels them.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mdrelax.base.sections import ConfigError
from mdrelax.runs.jobs import PARENT, job_environment, on_ranks

__all__ = ["SlurmJobs"]

CLUSTER = "cluster"  # the option that names another cluster of submitit's than Slurm: `local` to try a study
DEFAULT_MINUTES = 24 * 60  # of a job, after which it is requeued
MOST_REQUEUES = 100
POLL_SECONDS = 10.0  # between two looks at a job in a cluster's queue


class _Work:
    """What a job runs; submitit calls it there, and ``checkpoint`` when the job has to end before the run has."""

    def __init__(self, command: Sequence[str], place: Path, *, threads: int) -> None:
        self.command, self.place, self.threads = command, place, threads

    def __call__(self) -> None:
        """Run the command, with its output in run.log; raises ``CalledProcessError`` if it fails."""
        self.place.mkdir(parents=True, exist_ok=True)
        with (self.place / "run.log").open("ab") as file:
            environment = {**job_environment(self.threads), PARENT: str(os.getpid())}
            subprocess.run(self.command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=True)

    def checkpoint(self) -> Any:
        """The same again in a new job: the run resumes."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class _Queued:
    """A job in the queue, as ``mdrelax.runs.jobs.Job``."""

    def __init__(self, job: Any, *, seconds: float) -> None:
        self.job, self.seconds, self.next_look = job, seconds, 0.0

    def poll(self) -> int | None:
        """0 or 1 when it has ended, None before."""
        if time.monotonic() < self.next_look:
            return None
        self.next_look = time.monotonic() + self.seconds
        if not self.job.done():
            return None
        return 0 if self.job.exception() is None else 1

    def terminate(self) -> None:
        """Cancel it."""
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            self.job.cancel()

    def wait(self) -> int:
        """Return at once: the queue sees to it."""
        return 1


class SlurmJobs:
    """Start each run as a job on a cluster.

    Args:
        folder: Where submitit keeps the scripts, pickles and messages of the jobs.
        threads: Threads of each rank.
        ranks: Ranks of each run, on one machine.
        options: ``name=value`` of sbatch, such as ``partition=cpu``, ``time=600`` (minutes) or ``gpus_per_node=1``.

    Raises ``ConfigError`` without submitit or without Slurm, for invalid options, and if the queue refuses a job.
    """

    def __init__(self, folder: Path, *, threads: int = 1, ranks: int = 1, options: Sequence[str] = ()) -> None:
        try:
            import submitit
        except ImportError as error:
            raise ConfigError("`--launcher slurm` needs submitit: pip install 'mdrelax[slurm]'.") from error
        self.threads, self.ranks = threads, ranks
        given = _options(options)
        cluster = given.pop(CLUSTER, "slurm")
        self.seconds = POLL_SECONDS if cluster == "slurm" else 0.0
        try:
            self.executor = submitit.AutoExecutor(
                folder=folder.resolve(), cluster=cluster, slurm_max_num_timeout=MOST_REQUEUES
            )
            self.executor.update_parameters(**_parameters(given, cpus=threads * ranks))
        except (AssertionError, NameError, RuntimeError, ValueError) as error:
            raise ConfigError(f"`--launcher slurm` cannot be used here: {str(error).rstrip('.?')}.") from error

    def __call__(self, command: Sequence[str], place: Path) -> _Queued:
        """Queue a command; see ``mdrelax.runs.jobs.Start``."""
        from submitit.core.utils import FailedSubmissionError

        self.executor.update_parameters(name=place.name)
        work = _Work(on_ranks(command, self.ranks), place.resolve(), threads=self.threads)
        try:
            return _Queued(self.executor.submit(work), seconds=self.seconds)
        except FailedSubmissionError as error:
            raise ConfigError(f"The queue refused the job `{place.name}`: {str(error).strip()}") from error


def _options(texts: Sequence[str]) -> dict[str, str]:
    """``name=value`` as a mapping."""
    pairs = [text.partition("=") for text in texts]
    wrong = next((name for name, equals, value in pairs if not (name and equals and value)), None)
    if wrong is not None:
        raise ConfigError(f"`--slurm` wants an option of sbatch as NAME=VALUE, such as partition=cpu, got `{wrong}`.")
    return {name.replace("-", "_"): value for name, _, value in pairs}


def _parameters(options: Mapping[str, str], *, cpus: int) -> dict[str, Any]:
    """submitit's parameters: those that it knows, and the rest as lines of the script."""
    from submitit.slurm.slurm import SlurmExecutor

    values: dict[str, Any] = {name: int(value) if value.isdigit() else value for name, value in options.items()}
    minutes = values.pop("time", DEFAULT_MINUTES)
    if not isinstance(minutes, int):
        raise ValueError(f"`--slurm time` is a number of minutes, got `{minutes}`")
    known = {name: value for name, value in values.items() if name in SlurmExecutor._valid_parameters()}
    others = {name: value for name, value in values.items() if name not in known}
    return {
        "timeout_min": minutes, "nodes": 1, "tasks_per_node": 1, "cpus_per_task": cpus, "stderr_to_stdout": True,
        "slurm_additional_parameters": others, **{f"slurm_{name}": value for name, value in known.items()},
    }  # fmt: skip
