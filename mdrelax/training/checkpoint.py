"""Checkpoint: what a run needs to go on bit for bit, in files that are whole or not there at all.

A file is written beside its place, synced to the disk and moved over the old one, which stays until then. Resume files
hold tensors and primitives only and are read with ``weights_only=True``: loading one never runs code.
"""

import contextlib
import io
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["CheckpointError", "load_checkpoint", "save_checkpoint", "write_atomically"]


class CheckpointError(RuntimeError):
    """A resume file that cannot be used."""


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``; on any failure (a full disk) the old file stays and ``OSError`` says why.

    The error's sentence is its ``strerror``.
    """
    part = path.with_name(f".{path.name}.part")  # always the same name: what a killed run leaves is overwritten
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise OSError(
                error.errno, f"`{path}` could not be written ({reason}); an older one is untouched."
            ) from error
        raise


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and primitives (nested dicts and lists) atomically."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path, *, keys: Collection[str] = ()) -> dict[str, Any]:
    """Read a resume file onto the CPU; raises ``CheckpointError`` when it is missing, truncated or foreign.

    A file without exactly the ``keys`` is foreign, where some are given.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint `{path}`; start without `--restart`.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several unrelated types for a broken file
        raise CheckpointError(f"`{path}` is truncated or no checkpoint of mdrelax; delete it and restart.") from error
    if not isinstance(state, dict) or (keys and set(state) != set(keys)):
        raise CheckpointError(f"`{path}` is no checkpoint of this mdrelax; delete it and restart.")
    return state
