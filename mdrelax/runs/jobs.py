"""Parallel runs: each is a process with one thread and its own folder, as many at a time as there are cores.

With one thread each, runs do not wait for each other's threads, and their measured costs are right. A run that has not
finished resumes when it is started again; the caller decides whether it has finished.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["PARENT", "cores", "end_with_parent", "run_side_by_side"]

POLL_SECONDS = 0.5
PARENT = "MDRELAX_PARENT"  # environment variable: the process that waits for this run


def run_side_by_side(
    places: Sequence[Path],
    command: Callable[[Path], Sequence[str]],
    *,
    finished: Callable[[Path], str | None],
    jobs: int,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Run the command of each folder that is not finished, ``jobs`` at a time; its output goes to run.log there.

    ``finished`` returns a line about the run in a folder, or None while it is not finished. After all runs have ended,
    raises ``RuntimeError`` naming the folders whose runs failed, or the exception that ``tell`` raised meanwhile.
    """
    waiting = [place for place in places if finished(place) is None]
    done, failed = len(places) - len(waiting), []
    running: dict[Path, subprocess.Popen[bytes]] = {}
    untold: list[Exception] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                place = waiting.pop(0)
                running[place] = _start(command(place), place)
            time.sleep(POLL_SECONDS)
            for place in [p for p, process in running.items() if process.poll() is not None]:
                code = running.pop(place).returncode
                line = None if code else finished(place)
                done += 1
                failed += [place.name] if line is None else []
                line = f"[{done}/{len(places)}] {place.name}: {line or f'FAILED with exit code {code}'}"
                try:
                    tell(line)
                except Exception as error:
                    untold.append(error)
    finally:
        for process in running.values():
            process.terminate()
            process.wait()
    if failed:
        raise RuntimeError(f"These runs failed: {', '.join(failed)}; see run.log in their folders, then run again.")
    if untold:
        raise untold[0]


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """Watch the process that started this one, if requested by it: when it is gone, end as if terminated.

    Otherwise the runs of a killed study would continue in the folders that the repeated study uses.
    """
    parent = os.environ.get(PARENT)
    if parent is None:
        return

    def watch() -> None:
        while str(os.getppid()) == parent:
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _start(command: Sequence[str], place: Path) -> "subprocess.Popen[bytes]":
    place.mkdir(parents=True, exist_ok=True)
    with (place / "run.log").open("ab") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", PARENT: str(os.getpid())}
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
