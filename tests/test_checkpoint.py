"""Resume files: they come back bit for bit and never run code."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from mdrelax.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

STATE: dict[str, Any] = {"step": 3, "error": float("inf"), "weights": {"w": torch.arange(64.0)}, "rows": [{"a": 0.1}]}


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
    with pytest.raises(CheckpointError, match="truncated, damaged or not an mdrelax checkpoint"):
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
    with pytest.raises(CheckpointError, match="not a checkpoint of this mdrelax"):
        load_checkpoint(path)
    save_checkpoint(path, {"step": 3})
    with pytest.raises(CheckpointError, match="not a checkpoint of this mdrelax"):
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
