"""Files that are whole or not there at all."""

import errno
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdrelax.base.files import whole_file, write_atomically


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


def test_remains_of_shared_files_are_removed_a_day_later(tmp_path: Path) -> None:
    """Each killed writer of a cache left a file of another name, for ever; a younger one may be at work."""
    young, old = tmp_path / ".x.npz.0123abcd.part", tmp_path / ".x.npz.4567abcd.part"
    for part in (young, old):
        part.write_bytes(b"half")
    os.utime(old, (time.time() - 90_000,) * 2)
    with whole_file(tmp_path / "x.npz", shared=True) as file:
        file.write(b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [young.name, "x.npz"]
