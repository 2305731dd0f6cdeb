"""A killed benchmark takes its runs with it: no process goes on writing into a folder that somebody starts again."""

import os
import signal
import subprocess
import sys
import time

CONTROLLER = """
import sys
from pathlib import Path
from mdrelax.analysis.studies.nbody import STUDY, recipe
from mdrelax.cli import stop_when_terminated

child = "import os, sys, time; open(sys.argv[1] + '/pid', 'w').write(str(os.getpid())); time.sleep(60)"
stop_when_terminated()
study = STUDY._replace(command=[sys.executable, "-c", child])
runs = study.plan(recipe(), arms=["standard"], seeds=[0], levels={"n_layers": [4], "n_train": [3000]})
study.run(runs, Path(sys.argv[1]), jobs=1)
"""


def test_runs_end_with_the_benchmark_that_was_terminated(tmp_path):
    """SIGTERM to the parent: the child that would sleep for a minute is gone with it."""
    parent = subprocess.Popen([sys.executable, "-c", CONTROLLER, str(tmp_path)], stderr=subprocess.DEVNULL)
    pid_file = tmp_path / "standard-layers4-train3000-seed0" / "pid"
    deadline = time.monotonic() + 60
    while not (pid_file.is_file() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    child = int(pid_file.read_text())
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(timeout=30) != 0
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_runs_end_with_a_benchmark_that_was_killed(tmp_path):
    """SIGKILL, which nobody can catch: a run watches the process that started it and ends by itself."""
    child = "import time; from mdrelax.runs.jobs import end_with_parent; end_with_parent(); time.sleep(60)"
    program = (
        "import sys\nfrom pathlib import Path\nfrom mdrelax.runs.jobs import run_side_by_side\n"
        f"command = lambda place: [sys.executable, '-c', {child!r}]\n"
        "run_side_by_side([Path(sys.argv[1])], command, finished=lambda place: None, jobs=1)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "run")])
    deadline = time.monotonic() + 60
    while not (children := _children(parent.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.0)  # until the child watches
    assert all(_alive(pid) for pid in children)
    parent.kill()
    parent.wait()
    while any(_alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_alive(pid) for pid in children)


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]
