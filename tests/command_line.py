"""The command `mdrelax` inside the test process: what it prints, and the code it exits with."""

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from mdrelax.cli import main

ROOT = Path(__file__).resolve().parents[1]


class Said(NamedTuple):
    """The end of a command."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        """What stands last on the user's screen when a command fails."""
        return self.err.strip().splitlines()[-1]


def mdrelax(*arguments: str | Path) -> Said:
    """Run the command line as the shell would."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["mdrelax", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
    return Said(code, out.getvalue(), err.getvalue())


def shell(*arguments: str | Path) -> tuple[list[str], dict[str, str]]:
    """The command and the environment that run the same in a process of its own, with one thread."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return [sys.executable, "-m", "mdrelax", *map(str, arguments)], environment
