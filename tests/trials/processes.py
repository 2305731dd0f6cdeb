"""Processes of a trial: `mdrelax` started cold or warm, signals to it or to its group, and what survives it.

A cold start is a new interpreter, as a shell starts it. A warm one is a fork of this process, which has imported the
libraries already: the command does the same and takes a fraction of the time, most of it in the work itself. What a
command starts in turn is cold, and carries a mark in its environment by which survivors are found (on Linux).
"""

import contextlib
import importlib
import os
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mdrelax.cli import main

__all__ = ["Started", "ended", "start", "survivors", "warm_up"]

ROOT = Path(__file__).resolve().parents[2]
MARK = "MDRELAX_TRIAL"
IMPORTED = (
    "ase.io", "e3nn.o3", "matplotlib.pyplot", "mdrelax", "mdrelax.analysis.report", "mdrelax.datasets",
    "mdrelax.analysis.studies.forces_report", "mdrelax.analysis.studies.nbody", "mdrelax.engines.ase",
    "mdrelax.potentials", "pooch", "rich.progress", "torch_geometric",
)  # fmt: skip
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def warm_up() -> None:
    """Import in this process what commands import, before the first warm start."""
    for name in IMPORTED:
        importlib.import_module(name)


class Started:
    """A started command, which leads a process group of its own; its words go to a file."""

    def __init__(self, pid: int, said: Path, mark: str) -> None:
        self.pid, self.said, self.mark = pid, said, mark
        self.since = time.monotonic()
        self.code: int | None = None  # as the shell sees it; minus the signal that ended it

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def send(self, number: signal.Signals, *, group: bool) -> None:
        """Signal the process, or its whole group."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(self.pid, number)

    def text(self) -> str:
        """What it has said so far, on both streams."""
        return self.said.read_text(errors="replace")

    def last_line(self) -> str:
        """Its last words."""
        return (self.text().strip().splitlines() or [""])[-1]


def start(
    words: Sequence[str],
    folder: Path,
    said: Path,
    *,
    cold: bool,
    ranks: int = 1,
    environment: dict[str, str] | None = None,
    errors: Path | None = None,
    first: Callable[[], None] = lambda: None,
) -> Started:
    """Start `mdrelax WORDS` in ``folder``; on several ``ranks`` by torchrun, cold.

    What it says goes to ``said``, or on stderr to ``errors``; a warm one calls ``first``.
    """
    for path in (said, errors or said):
        path.touch()  # it may be killed before it has said a word
    mark = secrets.token_hex(8)
    own = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(environment or {}), MARK: mark}
    launch = [sys.executable, *(TORCHRUN if ranks > 1 else ()), "-m", "mdrelax", *words]
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            _enter(folder, said, errors or said)
            if cold or ranks > 1:
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_DFL)  # in the background of a script SIGINT would stay ignored
                os.execve(sys.executable, launch, own)
            first()
            _run(words, own)
        finally:
            os._exit(70)  # never reached: both end the process
    return Started(pid, said, mark)


def _enter(folder: Path, said: Path, errors: Path) -> None:
    """Lead a group, work in ``folder``, and speak into files."""
    os.setsid()
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for path, target in ((said, 1), (errors, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), target)


def _run(words: Sequence[str], environment: dict[str, str]) -> None:
    """The command in this process, through its real door, and the end of the process."""
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.argv = ["mdrelax", *words]
    code: object = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it has ended
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(bool(code)))


def ended(process: Started, *, patience: float) -> bool:
    """Wait for the end; False if it has not come after ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while process.poll() is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def survivors(process: Started, *, patience: float) -> list[int]:
    """The processes that a command has started and that are alive ``patience`` seconds after its end."""
    deadline = time.monotonic() + patience
    while (alive := list(_marked(process.mark, without=process.pid))) and time.monotonic() < deadline:
        time.sleep(0.1)
    return alive


def _marked(mark: str, *, without: int) -> Iterator[int]:
    """The processes whose environment has a mark, zombies left out."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(place.name) != without and f"{MARK}={mark}".encode() in (place / "environ").read_bytes():
                yield int(place.name)
