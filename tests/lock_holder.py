"""A lock that another process holds."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from command_line import shell

HOLD = """
import sys
from pathlib import Path
from mdrelax.base.files import locked_file, locked_folder
with (locked_folder if sys.argv[1] == "folder" else locked_file)(Path(sys.argv[2])):
    print("locked", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def held_by_another_process(kind: str, path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the lock of a place until it is told to end."""
    _, environment = shell()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, kind, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline() == "locked\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
