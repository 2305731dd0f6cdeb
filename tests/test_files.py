"""Files that are whole or not there at all, and folders that one process at a time works in."""

import errno
import io
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdrelax.base.files import LOCK, FolderInUseError, locked, whole_file, write_atomically

# Holds a folder until its standard input is closed, and says so.
HOLDER = """
import sys
from pathlib import Path
from mdrelax.base.files import locked
with locked(Path(sys.argv[1]), output=sys.argv[2] or None):
    print("locked", flush=True)
    sys.stdin.read()
"""


class FullDisk(io.BytesIO):
    """A file on a disk without space: what is written is lost in the buffer, and `write` says so."""

    def write(self, content: Any) -> int:
        """Refuse."""
        raise no_space()


def no_space(*arguments: Any) -> Any:
    """What the system says when the disk is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(params=["write", "fsync", "replace"])
def fill_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and the disk turns out to be full at one of three moments."""

    def fill() -> None:
        if request.param == "write":
            monkeypatch.setattr(Path, "open", lambda path, mode: path.touch() or FullDisk())
        else:
            monkeypatch.setattr(os, request.param, no_space)

    return fill


def test_a_file_is_replaced_by_the_new_content(tmp_path):
    """Missing folders are made, and nothing else is left beside the file."""
    path = tmp_path / "a" / "b" / "file"
    for content in (b"old", b"new content"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_full_disk_keeps_the_old_file_and_says_so(tmp_path, fill_disk):
    """The old file stays, no temporary file is left, and the error is a sentence with the path and the reason."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    fill_disk()
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomically(path, b"new")
    assert {p.name: os.stat(p).st_size for p in tmp_path.iterdir()} == {"file": 3}
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.strerror.startswith(f"`{path}` could not be written")


def test_an_interrupt_while_writing_keeps_the_old_file(tmp_path, monkeypatch):
    """Ctrl-C in the middle of a write leaves the old file and no temporary one."""

    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    write_atomically(tmp_path / "file", b"old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"file": b"old"}


def test_what_a_killed_writer_leaves_is_overwritten(tmp_path):
    """kill -9 cannot clean up: its leavings have one name, so that they do not pile up."""
    (tmp_path / ".file.part").write_bytes(b"half")
    write_atomically(tmp_path / "file", b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"file": b"new"}


def test_a_file_that_several_processes_write_has_a_part_of_its_own_for_each(tmp_path):
    """Two that write at once do not meet: the last one to finish wins, with a whole file."""
    with whole_file(tmp_path / "a.npz", shared=True) as first, whole_file(tmp_path / "a.npz", shared=True) as second:
        np.savez(first, x=np.zeros(3))
        np.savez(second, x=np.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert archive["x"].tolist() == [0, 0, 0]  # the outer block ends last


# --- folders ---------------------------------------------------------------------------------------------------------


@contextmanager
def holder(folder: Path, output: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another process that has locked the folder."""
    command = [sys.executable, "-c", HOLDER, str(folder), output]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "locked\n"
        try:
            yield process
        finally:
            process.stdin.close()


def test_the_second_process_is_told_who_works_in_the_folder(tmp_path: Path) -> None:
    """One sentence with folder, process, host and start; when the first has finished, the folder is free and clean."""
    folder = tmp_path / "run"
    with holder(folder) as process, pytest.raises(FolderInUseError) as caught, locked(folder):
        pass
    start = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d"
    host = re.escape(socket.gethostname())
    sentence = rf"`{re.escape(str(folder))}` is in use by process {process.pid} on {host}, started {start}; .*\."
    assert re.fullmatch(sentence, str(caught.value))
    with locked(folder):
        assert [path.name for path in folder.iterdir()] == [f".{LOCK}"]
    assert list(folder.iterdir()) == []


def test_a_killed_process_leaves_its_folder_free(tmp_path: Path) -> None:
    """kill -9 cannot clean up; the system releases the lock, and the file that stays is taken over."""
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / f".{LOCK}").is_file()
    with locked(tmp_path):
        assert f'"pid": {os.getpid()}' in (tmp_path / f".{LOCK}").read_text()
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_block_frees_the_folder(tmp_path: Path) -> None:
    """What goes wrong in a run is the run's affair."""
    with pytest.raises(ValueError, match="broken"), locked(tmp_path):
        raise ValueError("broken")
    with holder(tmp_path):
        pass


def test_a_process_may_lock_its_folder_twice(tmp_path: Path) -> None:
    """A run locks its folder within a verb that holds it for longer: the inner end does not free it."""
    with locked(tmp_path):
        with locked(tmp_path / ".." / tmp_path.name):
            pass
        command = [sys.executable, "-c", HOLDER, str(tmp_path), ""]
        other = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert f"is in use by process {os.getpid()}" in other.stderr


def test_outputs_of_one_folder_are_locked_one_by_one(tmp_path: Path) -> None:
    """Two molecules may be labelled in one folder at a time, one molecule not twice."""
    other = "water.extxyz"
    with holder(tmp_path, other):
        with locked(tmp_path, output="ethanol.extxyz"):
            pass
        with (
            pytest.raises(FolderInUseError, match=r"water\.extxyz` is in use"),
            locked(tmp_path, output="water.extxyz"),
        ):
            pass
    assert list(tmp_path.iterdir()) == []


def _increase(folder: Path, times: int) -> None:
    for _ in range(times):
        while True:
            try:
                with locked(folder):
                    number = int((folder / "number").read_text())
                    (folder / "number").write_text(str(number + 1))
                break
            except FolderInUseError:
                pass


def test_no_two_processes_are_ever_in_a_folder_together(tmp_path: Path) -> None:
    """Three that come and go add up correctly, although each removes the lock file when it leaves."""
    (tmp_path / "number").write_text("0")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_increase, args=(tmp_path, 40)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (tmp_path / "number").read_text() == "120"
