"""A killed benchmark takes its runs with it: no process goes on writing into a folder that somebody starts again."""

import os
import signal
import subprocess
import sys
import time

CONTROLLER = """
import sys
from pathlib import Path
from mdrelax.analysis.studies.nbody_grid import Grid, plan, recipe, run_all
from mdrelax.cli import stop_when_terminated

child = "import os, sys, time; open(sys.argv[1] + '/pid', 'w').write(str(os.getpid())); time.sleep(60)"
stop_when_terminated()
runs = plan(Grid(arms=["standard"], seeds=[0]), base=recipe())
run_all(runs, Path(sys.argv[1]), jobs=1, command=[sys.executable, "-c", child])
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
