"""Checkpoint: everything a run needs to resume bit for bit.

Resume files contain tensors and primitives only and are read with ``weights_only=True``: loading one never runs code.
"""

import io
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from mdrelax.base.files import write_atomically

__all__ = ["CheckpointError", "load_checkpoint", "save_checkpoint"]


class CheckpointError(RuntimeError):
    """A resume file that cannot be used."""


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and primitives (nested dicts and lists) atomically."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(
    path: Path, *, keys: Collection[str] = (), defaults: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Read a resume file onto the CPU; raises ``CheckpointError`` if it is missing, truncated or foreign.

    If ``keys`` are given, a file that does not have exactly these is foreign; ``defaults`` are the values of those that
    older versions did not write.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint `{path}`; start without `--restart`.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several unrelated types for a broken file
        raise CheckpointError(f"`{path}` is truncated or not an mdrelax checkpoint; delete it and restart.") from error
    if isinstance(state, dict):
        state = {**defaults, **state}
    if not isinstance(state, dict) or (keys and set(state) != set(keys)):
        raise CheckpointError(f"`{path}` is not a checkpoint of this mdrelax; delete it and restart.")
    return state
