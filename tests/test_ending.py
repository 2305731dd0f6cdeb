"""How a command ends: signals through the real door, and output that nobody reads."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from command_line import shell
from mdrelax.cli import app
from mdrelax.cli.ending import REPEATED, resuming_command
from small_runs import clusters, document, write_config, write_frames
from untrained_models import saved

PATIENCE = 120.0  # seconds; the machine may be busy


def started(*arguments: str | Path, out: Path, **environment: str) -> "subprocess.Popen[str]":
    """The command in a process of its own; its output goes into a file.

    It listens to SIGINT even where these tests do not, in the background of a script.
    """
    command, own = shell(*arguments)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with out.open("w") as file:
            return subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, text=True, env={**own, **environment}
            )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)


def ended(process: "subprocess.Popen[str]", when: Callable[[], bool], how: signal.Signals) -> int:
    """The exit code after a signal that is sent when the work has begun."""
    deadline = time.monotonic() + PATIENCE
    while not when() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert when(), "the command never began its work"
    process.send_signal(how)
    try:
        return process.wait(timeout=PATIENCE)
    finally:
        process.kill()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A run of far more steps than a test waits for."""
    frames = write_frames(tmp_path / "c.extxyz", clusters(32))
    return write_config(tmp_path / "c.yaml", document(frames, training={"steps": 100_000, "validate_every": 5}))


@pytest.fixture
def proxy() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_ended_training_names_the_command_that_resumes_it(
    tmp_path: Path, config: Path, how: signal.Signals, code: int
) -> None:
    """The shell sees 130 or 143, so that `train && md` stops; the sentence is the last line."""
    out, said = tmp_path / "run", tmp_path / "said"
    process = started("train", config, "--out", out, out=said)
    assert ended(process, (out / "checkpoints" / "last.pt").exists, how) == code
    word = {130: "Interrupted (Ctrl-C)", 143: "Terminated (SIGTERM)"}[code]
    assert said.read_text().rstrip().splitlines()[-1] == (
        f"{word}; resume with `mdrelax train {config} --out {out} --restart auto`."
    )


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["compare", "bench nbody"])
def test_an_ended_study_takes_its_runs_with_it(tmp_path: Path, config: Path, verb: str) -> None:
    """Exit code 143, the command to repeat, and no process left that writes into its folders."""
    out, said = tmp_path / "study", tmp_path / "said"
    rest = {"compare": ["compare", config], "bench nbody": ["bench", "nbody", "--quick"]}[verb]
    process = started(*rest, "--out", out, "--jobs", "1", out=said)
    assert ended(process, lambda: any(out.glob("*/checkpoints/last.pt")), signal.SIGTERM) == 143
    last = said.read_text().rstrip().splitlines()[-1]
    assert last.startswith(f"Terminated (SIGTERM); resume with `mdrelax {verb}")
    states = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    time.sleep(2.0)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == states


def test_an_interrupted_download_says_that_it_resumes(tmp_path: Path, proxy: str) -> None:
    """Ctrl-C while a mirror does not answer."""
    cache, said = tmp_path / "cache", tmp_path / "said"
    process = started(
        "data", "fetch", "rmd17:ethanol", out=said, https_proxy=proxy, http_proxy=proxy, MDRELAX_CACHE=str(cache)
    )
    assert ended(process, cache.is_dir, signal.SIGINT) == 130
    last = said.read_text().rstrip().splitlines()[-1]
    assert last == "Interrupted (Ctrl-C); resume with `mdrelax data fetch rmd17:ethanol`."


@pytest.mark.slow
def test_an_interrupted_generation_says_that_it_resumes(tmp_path: Path) -> None:
    """Ctrl-C between two frames."""
    pytest.importorskip("tblite")
    out, said = tmp_path / "water.extxyz", tmp_path / "said"
    process = started("data", "generate", "H2O", out, "--frames", "100000", "--interval", "5", out=said)
    journal = out.with_name("water.extxyz.journal")
    assert ended(process, lambda: journal.is_file() and journal.stat().st_size > 2000, signal.SIGINT) == 130
    last = said.read_text().rstrip().splitlines()[-1]
    assert last.startswith(f"Interrupted (Ctrl-C); resume with `mdrelax data generate H2O {out}")


def test_an_interrupted_simulation_says_that_it_resumes(tmp_path: Path) -> None:
    """SIGTERM at a time limit of a batch system."""
    model, water = saved(tmp_path / "m.safetensors", 1, 8), tmp_path / "water.xyz"
    water.write_text("3\n\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n")
    log, said = tmp_path / "md.csv", tmp_path / "said"
    command = [
        "md",
        model,
        water,
        "--ps",
        "1000",
        "--temperature",
        "1",
        "--log",
        log,
        "--trajectory",
        tmp_path / "t.traj",
    ]
    process = started(*command, out=said)
    assert ended(process, lambda: log.is_file() and log.stat().st_size > 300, signal.SIGTERM) == 143
    last = said.read_text().rstrip().splitlines()[-1]
    assert last.startswith("Terminated (SIGTERM); resume with `mdrelax md ")
    assert last.endswith("--restart auto`.")


@pytest.mark.parametrize(
    ("given", "command", "resumes"),
    [
        ("train a.yaml --restart never --out r", "train a.yaml --out r --restart auto", True),
        ("train a.yaml --restart=auto", "train a.yaml --restart auto", True),
        ("compare a.yaml", "compare a.yaml", True),
        ("fine-tune m.safetensors d.extxyz", "fine-tune m.safetensors d.extxyz --restart auto", True),
        ("md m.safetensors a.xyz --overwrite", "md m.safetensors a.xyz --restart auto", True),
        ("bench nbody --out r", "bench nbody --out r", True),
        ("data generate H2O w.extxyz", "data generate H2O w.extxyz", True),
        ("data generate plume --out p.npz", "data generate plume --out p.npz", True),
        ("bench nbody-md m.safetensors", "bench nbody-md m.safetensors", False),
        ("bench", "bench", False),
        ("no-such-verb", "no-such-verb", False),
        ("bench speed", "bench speed", False),
        ("eval m.safetensors d.extxyz", "eval m.safetensors d.extxyz", False),
    ],
)
def test_the_command_that_resumes(given: str, command: str, resumes: bool) -> None:
    """The option `--restart auto` for what has it, without what replaces files; the same command for the rest."""
    assert resuming_command(app, given.split()) == (f"mdrelax {command}", resumes)


RESUMED = {
    "train", "fine-tune", "md", "compare", "data fetch", "data generate molecule", "data generate plume",
    "bench modelnet", "bench modelnet-run", "bench smoke", "bench smoke-run", "bench nbody", "bench nbody-run",
    "bench rmd17", "bench smoothness", "bench lammps-nve", "bench long-md", "bench long-md-run", "bench pretrain",
    "bench accuracy",
}  # fmt: skip
STARTED_AGAIN = {
    "vibrations", "phonons", "audit", "eval", "project", "export", "predict", "runs", "report", "info", "data stats",
    "data check", "data select", "data convert", "data split", "config template", "config validate", "config schema",
    "bench smoke-speed", "bench nbody-md", "bench speed", "bench operators", "bench backbones", "bench ranks",
    "bench hessians", "bench lammps", "bench lammps-paper", "bench torch-sim",
}  # fmt: skip


def commands(group: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every subcommand with its full name, hidden ones too."""
    for word, found in group.commands.items():
        if hasattr(found, "commands"):
            yield from commands(found, f"{name}{word} ")
        else:
            yield f"{name}{word}", found


def test_every_command_resumes_or_starts_again_as_its_help_says() -> None:
    """A new command has to be put into one of the two sets above, by what it really does.

    Studies resume: their finished runs are read, the others continue from their checkpoints.
    """
    found = dict(commands(typer.main.get_command(app)))
    assert found.keys() == RESUMED | STARTED_AGAIN
    for name, command in found.items():
        options = {parameter.name for parameter in command.params}
        resumes = resuming_command(app, name.split())[1]
        assert resumes == (name in RESUMED), name
        assert resumes == ("restart" in options or REPEATED in command.help), name
        assert resumes or "launcher" not in options, name


# --- output that nobody reads -----------------------------------------------------------------------------------------


def short_run(tmp_path: Path) -> Path:
    """A run of seconds."""
    frames = write_frames(tmp_path / "c.extxyz", clusters(32))
    settings = document(frames, training={"steps": 6, "validate_every": 1, "warmup_steps": 1})
    return write_config(tmp_path / "c.yaml", settings | {"md_picoseconds": 0.0})


def test_a_closed_pipe_ends_no_training(tmp_path: Path) -> None:
    """`mdrelax train ... 2>&1 | head -1`: the reader goes away, the run is finished and its report written."""
    command, environment = shell("train", short_run(tmp_path), "--out", tmp_path / "run")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=PATIENCE) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_the_output_is_reported_and_ends_nothing(tmp_path: Path) -> None:
    """`mdrelax config template > /dev/full`: one sentence on the other stream, no traceback."""
    command, environment = shell("config", "template")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, check=False, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, timeout=PATIENCE
        )
    assert done.returncode == 1
    assert done.stderr == "Some of the output could not be written (No space left on device).\n"


def test_a_closed_output_ends_nothing() -> None:
    """`mdrelax info >&-`: Python has no stream then."""
    command, environment = shell("info")
    program = "import os, sys; os.close(1); os.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, *command], check=False, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **environment}, timeout=PATIENCE,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
