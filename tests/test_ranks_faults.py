"""Faults of trainings on several ranks: one sentence from the rank that has it, nothing lost, and never a hang."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from command_line import ROOT, mdrelax
from mdrelax.base.files import locked_folder
from mdrelax.training.checkpoint import load_checkpoint
from small_runs import clusters, document, write_config, write_frames

LONGEST = 60  # seconds from a fault to the end of all ranks
STARTING = 180  # seconds for two ranks to start on a busy machine
LOST = "ends, because another rank ended or cannot be reached"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 labelled clusters."""
    return write_frames(tmp_path_factory.mktemp("data") / "clusters.extxyz", clusters(32))


@pytest.fixture
def config(tmp_path: Path, source: Path) -> Path:
    """A short run in float64, with checkpoints after steps 7, 14, ..."""
    return write_config(tmp_path / "c.yaml", document(source, training={"dtype": "float64"}))


def start(place: Path, *arguments: str | Path, fault: str = "none", rank: int = 1) -> "subprocess.Popen[str]":
    """`mdrelax` on two ranks, with a fault on one of them."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += [str(ROOT / "tests" / "ranks_fault.py"), fault, str(rank), *map(str, arguments)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with (place / "said").open("w") as said:
        return subprocess.Popen(words, stdout=said, stderr=said, env=environment, cwd=place, text=True)


def said(place: Path, process: "subprocess.Popen[str]") -> str:
    """What a process that fails has printed until it ended."""
    assert process.wait(timeout=STARTING + LONGEST) != 0
    return (place / "said").read_text()


def begun(folder: Path, process: "subprocess.Popen[str]") -> bool:
    """Wait for the first checkpoint of a run."""
    deadline = time.monotonic() + STARTING
    checkpoint = folder / "checkpoints" / "last.pt"
    while not checkpoint.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return checkpoint.is_file()


# --- launchers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"RANK": "1"}, "RANK is 1, but WORLD_SIZE and MASTER_ADDR and MASTER_PORT are not set, so that the ranks"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "9"}, "RANK is 0, but MASTER_ADDR is not set, so that"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "This is one of 4 processes that mpirun (Open MPI) started, each of which"),
        ({"PMI_SIZE": "2"}, "This is one of 2 processes that mpirun (MPICH) started, each of which"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "This is one of 8 processes that srun started, each of which"),
    ],
)
def test_an_unknown_launcher_is_refused(tmp_path, config, monkeypatch, variables, sentence):
    """Each process would train the same network and write the same files."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    end = mdrelax("train", config, "--out", tmp_path / "run")
    assert end.code == 2
    assert end.last_line.startswith(sentence)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [("compare",), ("bench", "nbody"), ("bench", "modelnet"), ("bench", "smoke")])
def test_a_study_on_several_ranks_is_refused(tmp_path, config, monkeypatch, command):
    """It would be planned and run once by every rank; each of its runs may have ranks."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "9"}.items():
        monkeypatch.setenv(name, value)
    end = mdrelax(*command, *([config] if command == ("compare",) else []), "--out", tmp_path / "study")
    assert end.code == 2
    assert "without torchrun; `--ranks N` trains each run on N processes." in end.last_line


# --- faults -----------------------------------------------------------------------------------------------------------


def test_a_rank_that_raises_ends_all_with_its_sentence(tmp_path, config):
    """The other one waits for it in an exchange; it ends too, and the checkpoint of step 7 is there."""
    process = start(tmp_path, "train", config, "--out", "run", fault="raise", rank=1)
    assert begun(tmp_path / "run", process)
    since = time.monotonic()
    text = said(tmp_path, process)
    assert time.monotonic() - since < LONGEST
    assert text.count("Rank 1 has a headache.") == 1
    assert text.count(LOST) == 1
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")["step"] == 7
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "rank", "sentence"),
    [
        ("nan", 1, "The gradient is nan at step 9: (a) lower `training.learning_rate`"),
        ("full", 0, "could not be written (No space left on device); an older one is unchanged."),
        ("config", 1, "training.learning_rate: 0.01 -> 0.02"),
        ("data", 1, "data.seed: 0 -> 3"),
    ],
)
def test_a_fault_on_one_rank_is_said_once(tmp_path, config, fault, rank, sentence):
    """By the rank that has it; the other refers to it."""
    text = said(tmp_path, start(tmp_path, "train", config, "--out", "run", fault=fault, rank=rank))
    assert text.count(sentence) == 1
    assert LOST in text or "Rank 1 ends with rank 0, which says why." in text
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_folder_in_use_is_refused_by_the_first_rank(tmp_path, config):
    """With the process that trains there; the other rank does not begin."""
    with locked_folder(tmp_path / "run"):
        text = said(tmp_path, start(tmp_path, "train", config, "--out", "run"))
    assert text.count(f"`run` is in use by process {os.getpid()}") == 1
    assert LOST in text


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_all_and_the_run_resumes(tmp_path, source, rank):
    """kill -9 of either; resumed on two ranks, and by one process, the run is the uninterrupted one."""
    config = write_config(tmp_path / "c.yaml", document(source, training={"steps": 70, "dtype": "float64"}))
    process = start(tmp_path, "train", config, "--out", "run")
    assert begun(tmp_path / "run", process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    since = time.monotonic()
    os.kill(int(children[rank]), signal.SIGKILL)
    text = said(tmp_path, process)
    assert time.monotonic() - since < LONGEST
    assert f"Rank {1 - rank} of 2 {LOST}" in text
    assert start(tmp_path, "train", config, "--out", "run", "--restart", "auto").wait(timeout=300) == 0
    assert "Resumed at step" in (tmp_path / "said").read_text()
    end = mdrelax("train", config, "--out", tmp_path / "alone")
    assert end.code == 0, end.err
    ours, theirs = (load_checkpoint(tmp_path / name / "checkpoints" / "last.pt")["model"] for name in ("run", "alone"))
    for name, tensor in theirs.items():  # rounding is 1e-16, and grows little in 70 steps
        torch.testing.assert_close(ours[name], tensor, rtol=1e-10, atol=1e-13)
    tables = [pd.read_csv(tmp_path / name / "metrics.csv")["val_forces_mae_meV_per_A"] for name in ("run", "alone")]
    pd.testing.assert_series_equal(*tables, rtol=1e-10)


@pytest.mark.slow
def test_a_killed_launcher_takes_its_ranks_with_it(tmp_path, source):
    """kill -9 of torchrun: the ranks end, and the run resumes; orphans finished it, and then waited for ever."""
    config = write_config(tmp_path / "c.yaml", document(source, training={"steps": 5000}))
    process = start(tmp_path, "train", config, "--out", "run")
    assert begun(tmp_path / "run", process)
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(ranks) == 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + LONGEST
    while any(Path(f"/proc/{rank}").exists() for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    step = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")["step"]
    assert 0 < step < 5000
    assert "resume with `mdrelax train" in (tmp_path / "said").read_text()
