"""Tables and documents: short names of rows, and files written with their provenance."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import pandas as pd

from mdrelax.base.files import write_atomically
from mdrelax.base.provenance import environment

__all__ = ["read_json", "read_optional", "short_names", "write_table", "write_texts"]


def write_table(
    table: pd.DataFrame, folder: Path, *, command: str, work: str, name: str, more: dict[str, Any] | None = None
) -> list[Path]:
    """Write {name}.csv and {name}.json; ``work`` describes the rows. Returns the paths."""
    record = {
        "command": command,
        "work": work,
        "environment": environment(device="cpu", seed=0),
        **(more or {}),
        "rows": json.loads(table.to_json(orient="records")),
    }
    texts = {f"{name}.csv": table.to_csv(index=False), f"{name}.json": json.dumps(record, indent=2)}
    return write_texts(folder, texts)


def write_texts(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    """Write files by name, each atomically; returns the paths."""
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())
    return [folder / name for name in texts]


def read_optional(path: Path, reader: Callable[[Path], Any], default: Any = None, *, remedy: str) -> Any:
    """The result of a reader for a file, or the default without it; raises ``ValueError`` naming the file."""
    if not path.is_file():
        return default
    try:
        return reader(path)
    except (ValueError, KeyError, TypeError, OSError, EOFError, BadZipFile) as error:
        raise ValueError(f"`{path}` cannot be read: {error!r}. {remedy}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises ``ValueError`` for anything else."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, got {type(content).__name__}")
    return content


def short_names(names: Sequence[str], separator: str = ".") -> list[str]:
    """The names without their common prefix, in whole words between separators."""
    parts = [name.split(separator) for name in names]
    shared = 0
    while all(len(part) > shared + 1 for part in parts) and len({part[shared] for part in parts}) == 1:
        shared += 1
    return [separator.join(part[shared:]) for part in parts]
