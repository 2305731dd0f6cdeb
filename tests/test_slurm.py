"""Studies on a cluster: each run is a job of submitit's, whose executor on this machine stands for the queue here."""

import sys
from pathlib import Path
from typing import Any

import pytest

from command_line import mdrelax
from mdrelax.base.sections import ConfigError
from mdrelax.runs import jobs
from mdrelax.runs.jobs import PARENT, run_side_by_side
from small_runs import clusters, document, write_config, write_frames

submitit = pytest.importorskip("submitit")
slurm = pytest.importorskip("mdrelax.runs.slurm")

HERE = "cluster=local"
PROGRAM = """
import os, sys
name = os.path.basename(sys.argv[1])
print("threads", os.environ["OMP_NUM_THREADS"], flush=True)
if name == "bad":
    sys.exit(3)
open(sys.argv[1] + "/done", "w").close()
"""


def command(place: Path) -> list[str]:
    """A run that finishes, but for the one in the folder `bad`."""
    return [sys.executable, "-c", PROGRAM, str(place)]


def finished(place: Path) -> str | None:
    """A line about a run that has written its file."""
    return "done" if (place / "done").exists() else None


def test_runs_are_jobs_that_the_study_collects(tmp_path, monkeypatch):
    """Output in run.log, the threads that were asked for, and a job that fails is named; none is a child of ours."""
    monkeypatch.setenv(PARENT, "1")  # of a process elsewhere, which a job must not wait for
    said: list[str] = []
    start = slurm.SlurmJobs(tmp_path / "submitit", threads=3, options=[HERE, "partition=cpu", "time=5", "nice=10"])
    places = [tmp_path / "good", tmp_path / "bad"]
    with pytest.raises(RuntimeError, match=r"These runs failed: bad; see run\.log in their folders, then run again\."):
        run_side_by_side(places, command, finished=finished, jobs=10, start=start, tell=said.append)
    assert {line.partition(" ")[2] for line in said} == {"good: done", "bad: FAILED with exit code 1: threads 3"}
    assert (tmp_path / "good" / "run.log").read_text() == "threads 3\n"
    run_side_by_side(places[:1], command, finished=finished, jobs=1, start=None)  # finished: not started again


def test_the_options_stand_in_the_script_of_the_job(tmp_path, monkeypatch):
    """One task with the cores of all ranks; what submitit does not know is passed on."""
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 1))
    options = ["partition=cpu", "time=600", "gpus-per-node=2", "reservation=mine"]
    start = slurm.SlurmJobs(tmp_path, threads=2, ranks=4, options=options)
    script = start.executor._executor._make_submission_file_text("COMMAND", "uid")
    for line in ("cpus-per-task=8", "ntasks-per-node=1", "partition=cpu", "time=600", "gpus-per-node=2",
                 "reservation=mine"):  # fmt: skip
        assert f"#SBATCH --{line}\n" in script


class Fake:
    """A job in the queue."""

    def __init__(self) -> None:
        self.cancelled = False

    def done(self) -> bool:
        """Never."""
        return False

    def cancel(self) -> None:
        """Remember it."""
        self.cancelled = True


def test_an_interrupted_study_cancels_its_jobs(tmp_path, monkeypatch):
    """Ctrl-C while it waits: a job that went on would be in the way of the repeated study."""
    job = Fake()

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_side_by_side(
            [tmp_path], command, finished=finished, jobs=1,
            start=lambda words, place: slurm._Queued(job, seconds=0.0),
        )  # fmt: skip
    assert job.cancelled


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], '`--launcher slurm` cannot be used here: Could not detect "srun"'),
        (["partition"], "`--slurm` wants an option of sbatch as NAME=VALUE, such as partition=cpu, got `partition`."),
        (
            [HERE, "time=1-00"],
            "`--launcher slurm` cannot be used here: `--slurm time` is a number of minutes, got `1-00`.",
        ),
        (
            ["cluster=moon"],
            "`--launcher slurm` cannot be used here: AutoExecutor doesn't know any executor named moon.",
        ),
    ],
)
def test_what_cannot_be_queued_is_said_in_a_sentence(tmp_path, options, sentence):
    """Before anything is started."""
    with pytest.raises(ConfigError) as caught:
        slurm.SlurmJobs(tmp_path, options=options)
    assert str(caught.value).startswith(sentence)


def test_submitit_is_an_extra(tmp_path, monkeypatch):
    """The sentence names it."""
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"needs submitit: pip install 'mdrelax\[slurm\]'\."):
        slurm.SlurmJobs(tmp_path)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--launcher", "sge"), "`--launcher` must be local or slurm, got `sge`."),
        (("--slurm", "partition=cpu"), "`--slurm` has no effect on processes of this machine; add `--launcher slurm`."),
    ],
)
def test_options_of_a_study_fit_together(tmp_path, words, sentence):
    """Refused with the exit code of a config."""
    end = mdrelax("bench", "nbody", "--out", tmp_path, *words)
    assert (end.code, end.last_line) == (2, sentence)


@pytest.mark.slow
@pytest.mark.parametrize("words", [("--launcher", "slurm", "--slurm", HERE), ("--ranks", "2")])
def test_a_comparison_runs_as_jobs_and_on_ranks(tmp_path: Path, words: Any) -> None:
    """`mdrelax compare` from plan to report: one arm, one seed; it is collected as from processes."""
    source = write_frames(tmp_path / "c.extxyz", clusters(32))
    config = write_config(tmp_path / "c.yaml", document(source, training={"steps": 12}))
    place = tmp_path / "study"
    end = mdrelax("compare", config, "--arms", "standard", "--seeds", "0", "--out", place, *words)
    assert end.code == 0, end.err
    assert "[1/1] standard-0: validation force MAE" in end.out
    text = (place / "standard-0" / "results.json").read_text()
    assert f'"ranks": {2 if "--ranks" in words else 1},' in text
