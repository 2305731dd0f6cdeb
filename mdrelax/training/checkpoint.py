"""Checkpoint: everything a run needs to resume bit for bit.

Resume files contain tensors and primitives only and are read with ``weights_only=True``: loading one never runs code.
torch compares no checksums, so that a flipped bit would become another weight: the SHA-256 of the archive is its
comment (the last bytes of a zip file); in files of older versions, without one, each entry's own checksum is compared.
"""

import hashlib
import io
import math
import sys
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from mdrelax.base.files import write_atomically
from mdrelax.base.names import printable
from mdrelax.method.projection import LayerRecord

__all__ = ["CheckpointError", "load_checkpoint", "refuse_impossible", "save_checkpoint"]


class CheckpointError(RuntimeError):
    """A resume file that cannot be used."""

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))


HASH = b"mdrelax sha256 "  # followed by 64 hexadecimal digits


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and primitives (nested dicts and lists) atomically."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_atomically(path, _with_hash(buffer.getvalue()))


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
        content = path.read_bytes()
        _verify(content)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several unrelated types for a broken file
        raise CheckpointError(
            f"`{path}` is truncated, damaged or not an mdrelax checkpoint; delete it and restart."
        ) from error
    if isinstance(state, dict):
        state = {**defaults, **state}
    if not isinstance(state, dict) or (keys and set(state) != set(keys)):
        raise CheckpointError(f"`{path}` is not a checkpoint of this mdrelax; delete it and restart.")
    return state


def _with_hash(archive: bytes) -> bytes:
    """A zip archive with its SHA-256 as comment; its last two bytes are the length of the comment."""
    comment = HASH + hashlib.sha256(archive).hexdigest().encode()
    return archive[:-2] + len(comment).to_bytes(2, "little") + comment


def _verify(content: bytes) -> None:
    """Raise ``ValueError`` for an archive that has changed since it was written."""
    archive, mark, stated = content.rpartition(HASH)
    if mark:
        if hashlib.sha256(archive[:-2] + bytes(2)).hexdigest().encode() != stated:
            raise ValueError("its content does not match its hash")
        return
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        damaged = file.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} is wrong")


def refuse_impossible(state: dict[str, Any], path: Path, *, n_steps: int | None = None) -> None:
    """Raise ``CheckpointError`` for counters that no run (of ``n_steps``) can have, whoever wrote them."""
    most = sys.maxsize if n_steps is None else n_steps
    counts = {name: state[name] for name in ("step", "epoch", "batch", "reductions", "stale")}
    states = [state[name] for name in ("model", "optimizer", "ema", "controller")]
    rows = state["rows"]
    times = [state["seconds"], state["cpu_seconds"]]
    possible = (
        all(isinstance(each, dict) for each in states)
        and all(type(count) is int and 0 <= count <= most for count in counts.values())
        and all(isinstance(seconds, float | int) and 0 <= seconds < math.inf for seconds in times)
        and _is_table(rows) and rows != [] and rows[-1].get("step") == counts["step"]
        and _is_table(state["layer_rows"]) and _is_best(state["best"], counts["step"])
    )  # fmt: skip
    if not possible:
        run = "run" if n_steps is None else f"run of {n_steps} steps"
        raise CheckpointError(
            f"`{path}` has counters that a {run} cannot have ({counts!s:.150}, or its table); delete it and restart."
        )


def _is_table(rows: Any) -> bool:
    """True for rows of numbers and words, of which those of a layer have the same columns."""
    if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
        return False
    if not all(isinstance(value, int | float | str) for row in rows for value in row.values()):
        return False
    columns: dict[Any, set[Any]] = {}
    return all(columns.setdefault(row.get("layer"), set(row)) == set(row) for row in rows)


def _is_best(best: Any, step: int) -> bool:
    """True for what a trainer keeps of its best network up to a step."""
    return (
        isinstance(best, dict) and set(best) == {"step", "error", "state", "layers"}
        and type(best["step"]) is int and 0 <= best["step"] <= step and isinstance(best["error"], float | int)
        and isinstance(best["state"], dict) and all(isinstance(each, Tensor) for each in best["state"].values())
        and isinstance(best["layers"], list)
        and all(isinstance(each, dict) and set(each) == set(LayerRecord._fields) for each in best["layers"])
    )  # fmt: skip
