"""Tables: names of rows that can be read, and what is kept: CSV, and JSON with machine, versions and command beside."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mdrelax.base.files import write_atomically
from mdrelax.base.provenance import environment

__all__ = ["short_names", "write_table", "write_texts"]


def write_table(
    table: pd.DataFrame, folder: Path, *, command: str, work: str, name: str, more: dict[str, Any] | None = None
) -> list[Path]:
    """Write {name}.csv and {name}.json; ``work`` says in words what the rows are of. Returns the paths."""
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
    """Write files by name, each whole or not at all; returns the paths."""
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())
    return [folder / name for name in texts]


def short_names(names: Sequence[str], separator: str = ".") -> list[str]:
    """The names without the beginning that they share, in whole words between separators."""
    parts = [name.split(separator) for name in names]
    shared = 0
    while all(len(part) > shared + 1 for part in parts) and len({part[shared] for part in parts}) == 1:
        shared += 1
    return [separator.join(part[shared:]) for part in parts]
