"""Generate a set of plumes: simulated side by side on all cores, journaled task by task, written as one file.

Each finished task is a file in ``OUT.parts`` and a row of the journal there; a killed run resumes with the next task,
and its set is the same, bit for bit, as that of an uninterrupted run on the same machine.
"""

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from mdrelax.base.files import locked_file
from mdrelax.datasets.journal import Journal
from mdrelax.datasets.plume import PlumeInfo
from mdrelax.datasets.plume_files import write_plumes
from mdrelax.datasets.plume_recipes import PlumePlan, PlumeSettings, plans

__all__ = ["generate_plumes"]

Progress = Callable[[int, int], None]
Answers = queue.Queue[dict[str, Any]]

PACKAGES = {"phiflow": "phiflow", "phiml": "phiml", "jax": "jax"}
WORKER = (sys.executable, "-W", "ignore", "-m", "mdrelax.datasets.plume_worker")
ONE_CORE = {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def generate_plumes(
    out: str | Path,
    *,
    settings: PlumeSettings | None = None,
    jobs: int = 1,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Write the set of ``settings`` to ``out`` (npz), ``jobs`` tasks at a time; resumes earlier work.

    ``progress(done, total)`` is called after each task. Raises ``ImportError`` if the extra ``smoke`` is missing,
    ``ValueError`` on impossible settings, if an unfinished run with other settings is in the way and if a flow is
    unstable, and ``InUseError`` while another process generates ``out``.
    """
    settings = PlumeSettings() if settings is None else settings
    planned, out = plans(settings), Path(out)
    if out.suffix != ".npz":
        raise ValueError(f"A set of plumes is one npz file, got `{out.name}`; end its name with .npz.")
    if jobs < 1:
        raise ValueError(f"`jobs` must be at least 1, got {jobs}.")
    header = {"settings": settings._asdict(), "versions": _versions()}
    with locked_file(out):
        parts = out.with_name(out.name + ".parts")
        parts.mkdir(parents=True, exist_ok=True)
        journal = Journal(parts / "journal", header)
        done = {row["info"]["name"]: row["info"] for row in journal.rows("task")}
        waiting = [plan for plan in planned if plan.info.name not in done]
        for answer in _simulated(waiting, parts, settings.resolution, min(jobs, len(waiting))):
            journal.add({"kind": "task", "index": len(done), "info": answer})
            done[answer["name"]] = answer
            progress(len(done), len(planned))
        infos = [PlumeInfo.from_json(done[plan.info.name]) for plan in planned]
        write_plumes(out, infos, parts, first_step=planned[0].skip + 1, header=header)
        shutil.rmtree(parts)
    return out


def _versions() -> dict[str, str]:
    try:
        return {name: metadata.version(name) for name in PACKAGES}
    except metadata.PackageNotFoundError as error:
        raise ImportError("Smoke plumes are simulated with phiflow and jax; `pip install 'mdrelax[smoke]'`.") from error


def _simulated(plans: list[PlumePlan], folder: Path, resolution: float, jobs: int) -> Iterator[dict[str, Any]]:
    """The descriptions of the tasks as they are finished, each already a file in ``folder``."""
    waiting: queue.SimpleQueue[PlumePlan] = queue.SimpleQueue()
    for plan in plans:
        waiting.put(plan)
    answers: Answers = queue.Queue()
    with _workers(folder, jobs) as processes:
        for process in processes:
            threading.Thread(target=_feed, args=(process, waiting, answers, resolution), daemon=True).start()
        for _ in plans:
            answer = answers.get()
            if "error" in answer:
                kind = {"ImportError": ImportError, "OSError": OSError}.get(answer["type"], ValueError)
                raise kind(f"Plume `{answer['name']}`: {answer['error']}")
            yield answer["info"]


@contextmanager
def _workers(folder: Path, jobs: int) -> Iterator[list["subprocess.Popen[str]"]]:
    """Processes that are ended when the block ends, however it ends."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {ONE_THREAD}".strip()
    path = os.pathsep.join(entry for entry in sys.path if entry)  # wherever this package was found
    environment = {**os.environ, **ONE_CORE, "XLA_FLAGS": flags, "PYTHONPATH": path}
    processes: list[subprocess.Popen[str]] = []
    try:
        for _ in range(jobs):
            with (folder / "workers.log").open("ab") as log:
                command, pipe = [*WORKER, str(folder)], subprocess.PIPE
                process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=log, text=True)
            processes.append(process)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _feed(
    process: "subprocess.Popen[str]", waiting: "queue.SimpleQueue[PlumePlan]", answers: Answers, resolution: float
) -> None:
    """Hand tasks to one worker until none is left; a worker that dies is answered for."""
    while True:
        try:
            plan = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            answers.put(_ask(process, plan, resolution))
        except (OSError, ValueError):
            error = f"its process ended with exit code {process.wait()}; see workers.log next to the journal."
            answers.put({"name": plan.info.name, "type": "OSError", "error": error})
            return


def _ask(process: "subprocess.Popen[str]", plan: PlumePlan, resolution: float) -> dict[str, Any]:
    """The answer to one request; raises ``ValueError`` or ``OSError`` if the process has ended."""
    if process.stdin is None or process.stdout is None:
        raise OSError("the worker has no pipes")
    fields = {
        "info": plan.info._asdict(), "run": plan.run._asdict(), "counterpart": plan.counterpart._asdict(),
        "skip": plan.skip,
    }  # fmt: skip
    process.stdin.write(json.dumps({"plan": fields, "resolution": resolution}) + "\n")
    process.stdin.flush()
    answer: dict[str, Any] = json.loads(process.stdout.readline())
    return answer
