"""The ends of commands: a killed benchmark takes its runs with it; Ctrl-C at the very beginning leaves no traceback."""

import os
import signal
import subprocess
import sys
import time

import pytest

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


LOADING = """
import os, signal, sys

class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == at:
            os.kill(os.getpid(), number)

at, number = sys.argv.pop(1), int(sys.argv.pop(1))
sys.meta_path.insert(0, Interrupted())
from mdrelax.__main__ import main
main()
"""


def loading(at: str, number: int, *words: str) -> "subprocess.CompletedProcess[str]":
    """A command that gets a signal when it looks for a module."""
    command = [sys.executable, "-c", LOADING, at, str(number), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_ctrl_c_while_the_commands_are_loaded_is_silent():
    """The shell sees the signal, which is 130 there; Python's own answer is a traceback of its imports."""
    ended = loading("typer", signal.SIGINT)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_torch_is_imported_ends_in_the_usual_sentence(number, code, tmp_path):
    """An exception in the middle of that import aborts the process: torch's C++ part calls back into Python."""
    ended = loading("torch.autograd.profiler", number, "train", "ethanol-tiny", "--out", str(tmp_path / "run"))
    assert ended.returncode == code
    assert ended.stderr.startswith(("Interrupted (Ctrl-C); resume with", "Terminated (SIGTERM); resume with"))
    assert len(ended.stderr.splitlines()) == 1


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
