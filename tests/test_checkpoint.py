"""Files that are whole or not there at all, and resume files that never run code."""

import errno
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mdrelax.base.files import write_atomically
from mdrelax.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

STATE: dict[str, Any] = {"step": 3, "error": float("inf"), "weights": {"w": torch.arange(64.0)}, "rows": [{"a": 0.1}]}


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


def test_a_state_comes_back_as_it_was(tmp_path):
    """Tensors, numbers, infinities and nested containers, bit for bit."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    found = load_checkpoint(path, keys=STATE)
    assert torch.equal(found.pop("weights")["w"], STATE["weights"]["w"])
    assert found == {"step": 3, "error": float("inf"), "rows": [{"a": 0.1}]}


def test_a_missing_checkpoint_is_one_sentence(tmp_path):
    """The remedy is named."""
    with pytest.raises(CheckpointError, match="start without `--restart`"):
        load_checkpoint(tmp_path / "last.pt")


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.3, 0.7, 0.99])
def test_a_truncated_checkpoint_is_refused(tmp_path, fraction):
    """However much of it is left."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(CheckpointError, match="truncated or no checkpoint"):
        load_checkpoint(path)


def test_a_foreign_checkpoint_is_refused(tmp_path):
    """Random bytes, another zip file, a tensor, and a state with other keys."""
    path = tmp_path / "last.pt"
    path.write_bytes(bytes(range(256)) * 8)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello", "world")
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    torch.save(torch.zeros(3), path)
    with pytest.raises(CheckpointError, match="no checkpoint of this mdrelax"):
        load_checkpoint(path)
    save_checkpoint(path, {"step": 3})
    with pytest.raises(CheckpointError, match="no checkpoint of this mdrelax"):
        load_checkpoint(path, keys=STATE)


class Trap:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("write", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state))])
def test_loading_a_checkpoint_runs_no_code(tmp_path, write):
    """A resume file from elsewhere is data: what its pickle would call is not called."""
    path, sprung = tmp_path / "last.pt", tmp_path / "sprung"
    write({"step": Trap(sprung)}, path)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not sprung.exists()
