"""Parallel runs: each is a job with its own folder, as many at a time as there are cores, or jobs on a Slurm cluster.

With one thread each, runs do not wait for each other's threads, and their measured costs are right. A run that has not
finished resumes when it is started again; the caller decides whether it has finished.

| start | a job is |
| --- | --- |
| ``Processes`` | a process on this machine |
| ``mdrelax.runs.slurm.SlurmJobs`` | a job of its own in the queue of a cluster |
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from mdrelax.base.words import last_sentence

__all__ = ["ELASTIC", "ONE_THREAD_EACH", "PARENT", "Job", "Processes", "Start", "cores", "end_with_parent",
           "job_environment", "on_ranks", "run_side_by_side", "start_process"]  # fmt: skip

POLL_SECONDS = 0.5
LONGEST_SENTENCE = 2000  # bytes at the end of a run's output
ENDING_SECONDS = 30.0
ELASTIC = "TORCHELASTIC_RUN_ID"  # environment variable of a rank that torchrun started
PARENT = "MDRELAX_PARENT"  # environment variable: the process that waits for this run


class Job(Protocol):
    """A started run; ``subprocess.Popen`` is one."""

    def poll(self) -> int | None:
        """The exit code, or None while it waits or runs."""

    def terminate(self) -> None:
        """End it."""

    def wait(self) -> int:
        """Return when it has ended."""


Start = Callable[[Sequence[str], Path], Job]  # of a command, whose output goes to run.log in a folder


class Processes:
    """Start each run as a process on this machine, with so many threads on each of its ranks."""

    def __init__(self, *, threads: int = 1, ranks: int = 1) -> None:
        self.threads, self.ranks = threads, ranks

    def __call__(self, command: Sequence[str], place: Path) -> "subprocess.Popen[bytes]":
        """Start a command; see ``Start``."""
        return start_process(on_ranks(command, self.ranks), place, environment=job_environment(self.threads))


def start_process(
    command: Sequence[str], place: Path, *, environment: Mapping[str, str], cwd: Path | None = None
) -> "subprocess.Popen[bytes]":
    """Start a process that says everything in run.log of ``place``, and may end when this one is gone (``PARENT``)."""
    place.mkdir(parents=True, exist_ok=True)
    with (place / "run.log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=cwd, env={**environment, PARENT: str(os.getpid())}, stdout=log, stderr=subprocess.STDOUT
        )


ONE_THREAD_EACH = Processes()


def run_side_by_side(
    places: Sequence[Path],
    command: Callable[[Path], Sequence[str]],
    *,
    finished: Callable[[Path], str | None],
    jobs: int,
    start: Start = ONE_THREAD_EACH,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Run the command of each folder that is not finished, ``jobs`` at a time; its output goes to run.log there.

    ``finished`` returns a line about the run in a folder, or None while it is not finished. After all runs have ended,
    raises ``RuntimeError`` with the folders whose runs failed and the last words of the first of them, or the exception
    that ``tell`` raised meanwhile.
    """
    waiting = [place for place in places if finished(place) is None]
    done = len(places) - len(waiting)
    failed: list[Path] = []
    running: dict[Path, Job] = {}
    untold: list[Exception] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                place = waiting.pop(0)
                running[place] = start(command(place), place)
            time.sleep(POLL_SECONDS)
            for place, code in [(p, code) for p, job in running.items() if (code := job.poll()) is not None]:
                del running[place]
                line = None if code else finished(place)
                done += 1
                failed += [place] if line is None else []
                line = line or f"FAILED with exit code {code}: {_last_words(place)}".removesuffix(": ")
                try:
                    tell(f"[{done}/{len(places)}] {place.name}: {line}")
                except Exception as error:
                    untold.append(error)
    finally:
        for job in running.values():
            job.terminate()
            job.wait()
    if failed:
        names, words = ", ".join(place.name for place in failed), _last_words(failed[0])
        said = f" `{failed[0].name}` ended with: {words}" if words else ""
        raise RuntimeError(f"These runs failed: {names}; see run.log in their folders, then run again.{said}")
    if untold:
        raise untold[0]


def _last_words(place: Path) -> str:
    """The last sentence in a run's log; empty if there is none."""
    try:
        with (place / "run.log").open("rb") as file:
            file.seek(-min(LONGEST_SENTENCE, file.seek(0, os.SEEK_END)), os.SEEK_END)
            return last_sentence(file.read().decode("utf-8", errors="replace"))
    except OSError:
        return ""


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def job_environment(threads: int) -> dict[str, str]:
    """The environment of a job with so many threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def on_ranks(command: Sequence[str], ranks: int) -> list[str]:
    """The command that runs a command on several ranks of one machine, as torchrun does."""
    return list(command) if ranks == 1 else [sys.executable, "-m", "mdrelax.runs.ranked", str(ranks), *command]


def end_with_parent() -> None:
    """Watch the process that started this one, if it is torchrun or requests it: when it is gone, end as if terminated.

    Otherwise the runs of a killed study or launcher would continue in the folders that the repeated command uses. A
    process that does not end (a rank in an exchange that nobody answers) is ended after half a minute.
    """
    parent = os.environ.get(PARENT, str(os.getppid()) if ELASTIC in os.environ else None)
    if parent is None:
        return

    def watch() -> None:
        while str(os.getppid()) == parent:
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ENDING_SECONDS)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
