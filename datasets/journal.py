"""Journal: an append-only file of JSON lines, so that an interrupted job resumes where it stopped.

Each line holds the SHA-256 of its content: a flipped bit in a number would be another label. Journals of older versions
have no hashes, and are continued without.
"""

import base64
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from mdrelax.base.sealed import SEAL, seal, unseal

__all__ = ["Journal", "packed", "unpacked"]


class Journal:
    """Rows of a job, each safe on disk before the next begins; an incomplete last line of a killed process is cut.

    The first row is the header: the settings that determine the content. Opening a journal with another header raises
    ``ValueError``, because its rows would not belong together.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path = path
        first = {"kind": "header", **json.loads(json.dumps(header))}
        self.lines, self.sealed = _whole_lines(path)
        if not self.lines:
            self.add(first)
        elif self.lines[0] != first:
            raise ValueError(
                f"`{path}` was made with other settings or another start; use the same ones to resume, or delete it."
            )

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """The rows of one kind, in order; raises ``ValueError`` if their numbers are not 0, 1, 2, ..."""
        rows = [line for line in self.lines if line.get("kind") == kind]
        if any(row.get("index") != place for place, row in enumerate(rows)):
            raise ValueError(
                f"`{self.path}` was not written by one process of this version: its rows `{kind}` are not numbered 0 "
                f"to {len(rows) - 1}, so labels could be those of other frames; delete it to begin again."
            )
        return rows

    def add(self, row: dict[str, Any]) -> None:
        """Append a row and force it to disk; raises an ``OSError`` whose ``strerror`` is a sentence."""
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(seal(row) if self.sealed else row) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(
                error.errno,
                f"`{self.path}` could not be written ({error.strerror}); make room and repeat the command.",
            ) from error
        self.lines.append(row)


def packed(array: np.ndarray) -> str:
    """An array of numbers as text for a row, in float64 with all its digits; half as long as decimal numbers."""
    return base64.b64encode(np.ascontiguousarray(array, dtype="<f8").tobytes()).decode("ascii")


def unpacked(text: str, *shape: int) -> np.ndarray:
    """The array that was ``packed``, in the given shape, of which one entry may be -1."""
    return np.frombuffer(base64.b64decode(text), dtype="<f8").reshape(shape).astype(np.float64)


def _whole_lines(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The complete rows of a journal, and whether they are sealed; an incomplete last one is cut off the file."""
    if not path.exists():
        return [], True
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"`{path}` is not a journal of mdrelax, or was edited ({error!s:.200}); delete it to start again."
        ) from error
    if not all(isinstance(line, dict) for line in lines):
        raise ValueError(f"`{path}` is not a journal of mdrelax: a line is no object; delete it to start again.")
    sealed = not lines or any(SEAL in line for line in lines)
    return ([_opened(path, number, line) for number, line in enumerate(lines, start=1)] if sealed else lines), sealed


def _opened(path: Path, number: int, line: dict[str, Any]) -> dict[str, Any]:
    """The row in a sealed line."""
    try:
        return unseal(line)
    except ValueError as error:
        raise ValueError(
            f"Line {number} of `{path}` has changed since it was written ({error}); delete the journal to start again."
        ) from error
