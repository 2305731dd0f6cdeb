"""Locks: one process works in a folder; the second hears who does, and a killed one leaves nothing locked."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from command_line import mdrelax, shell
from lock_holder import held_by_another_process
from mdrelax.base.files import InUseError, locked_file, locked_folder
from small_runs import clusters, document, write_config, write_frames


def test_the_second_process_is_told_who_the_first_is(tmp_path: Path) -> None:
    """Process, host and start, and what can be done, in one sentence."""
    folder = tmp_path / "run"
    with held_by_another_process("folder", folder) as first:
        with pytest.raises(InUseError) as caught, locked_folder(folder):
            pass
        host = re.escape(socket.gethostname())
        start = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d"
        assert re.fullmatch(
            rf"`{re.escape(str(folder))}` is in use by process {first.pid} on host {host} since {start}; "
            "wait for it, end it, or choose another folder.",
            str(caught.value),
        )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_leaves_no_lock(tmp_path: Path, how: signal.Signals) -> None:
    """The system releases it; a lock file that stays says nothing."""
    with held_by_another_process("folder", tmp_path) as first:
        os.kill(first.pid, how)
        first.wait()
        with locked_folder(tmp_path):
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_a_lock_leaves_nothing_behind(tmp_path: Path) -> None:
    """Neither in the folder nor beside a file, also after an error inside."""
    with pytest.raises(KeyError), locked_folder(tmp_path), locked_file(tmp_path / "a.traj"):
        raise KeyError
    assert not list(tmp_path.iterdir())
    with locked_folder(tmp_path), locked_file(tmp_path / "a.traj"):
        pass


def test_a_thread_may_lock_again_what_it_has_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run inside a study's folder that is the same, by another path; another thread is refused like a process."""
    monkeypatch.chdir(tmp_path)
    refused: list[InUseError] = []

    def try_it() -> None:
        try:
            with locked_folder(tmp_path):
                pass
        except InUseError as error:
            refused.append(error)

    with locked_folder(tmp_path), locked_folder(Path()):
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
    assert f"process {os.getpid()}" in str(refused[0])


def test_of_many_processes_at_once_one_at_a_time_is_inside(tmp_path: Path) -> None:
    """Eight processes lock, work and release 30 times each, whoever comes; nobody meets another inside."""
    program = """
import os, sys, time
from pathlib import Path
from mdrelax.base.files import InUseError, locked_folder
folder, done = Path(sys.argv[1]), 0
while done < 30:
    try:
        with locked_folder(folder):
            os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
            time.sleep(0.0005)
            (folder / "inside").unlink()
            done += 1
    except InUseError:
        time.sleep(0.0003)
"""
    _, environment = shell()
    processes = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env=environment) for _ in range(8)]
    assert [process.wait(timeout=120) for process in processes] == [0] * 8


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A file where a folder should be: one sentence, and no traceback."""
    (tmp_path / "out").write_text("")
    with pytest.raises(OSError, match="a folder of this path is a file") as caught, locked_folder(tmp_path / "out"):
        pass
    assert (
        caught.value.strerror
        == f"`{tmp_path / 'out'}` cannot be written to (a folder of this path is a file); choose another folder."
    )
    with pytest.raises(OSError, match="choose another file"), locked_file(tmp_path / "out" / "md.csv"):
        pass


# --- what is locked ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="this system has no /proc")
def test_a_place_where_no_folder_can_be_is_named_at_once() -> None:
    """The lock waited for ever for a folder that another process might have removed."""
    with pytest.raises(OSError, match="cannot be written to") as caught, locked_file(Path("/proc/nothing/x.csv")):
        pass
    assert "choose another file." in str(caught.value)
    said = mdrelax("md", "m", "s", "--trajectory", "/proc/nothing/t.traj")
    assert said.err.startswith("`/proc/nothing/t.traj` cannot be written to (")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A small run."""
    return write_config(tmp_path / "c.yaml", document(write_frames(tmp_path / "c.extxyz", clusters(32))))


COMMANDS: dict[str, Callable[[Path, Path], list[str | Path]]] = {
    "train": lambda config, out: ["train", config, "--out", out],
    "compare": lambda config, out: ["compare", config, "--out", out],
    "bench nbody": lambda config, out: ["bench", "nbody", "--quick", "--out", out],
    "bench rmd17": lambda config, out: ["bench", "rmd17", "--out", out, "--molecules", "ethanol"],
    "bench smoothness": lambda config, out: ["bench", "smoothness", "--out", out],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_refuses_a_folder_in_use(tmp_path: Path, config: Path, name: str) -> None:
    """Nothing is written into it, and the exit code is 1."""
    out = tmp_path / "out"
    with held_by_another_process("folder", out) as first:
        said = mdrelax(*COMMANDS[name](config, out))
        assert said.code == 1
        assert said.last_line.startswith(f"`{out}` is in use by process {first.pid} on host ")
        assert [path.name for path in out.iterdir()] == [".lock"]


def test_a_data_set_is_generated_once_at_a_time(tmp_path: Path) -> None:
    """Two jobs that resumed one journal gave frames the labels of others."""
    pytest.importorskip("tblite")
    out = tmp_path / "water.extxyz"
    with held_by_another_process("file", out) as first:
        said = mdrelax("data", "generate", "H2O", out, "--frames", "2")
        assert said.code == 1
        assert said.last_line.startswith(f"`{out}` is in use by process {first.pid} on host ")
    assert not out.with_name("water.extxyz.journal").exists()


@pytest.mark.parametrize("name", ["md.traj", "md.csv"])
def test_two_simulations_do_not_share_a_file(tmp_path: Path, name: str) -> None:
    """Neither the trajectory nor the log, whoever calls."""
    from ase.build import molecule
    from ase.calculators.emt import EMT

    from mdrelax.engines.md import run_md

    atoms = molecule("CH3OH")
    atoms.calc = EMT()
    with held_by_another_process("file", tmp_path / name), pytest.raises(InUseError, match=f"{name}` is in use by"):
        run_md(
            atoms, temperature_K=300, duration_ps=0.01, trajectory=tmp_path / "md.traj", log=tmp_path / "md.csv"
        )  # fmt: skip
    assert not (tmp_path / "md.traj").exists()
    assert not (tmp_path / "md.csv").exists()
