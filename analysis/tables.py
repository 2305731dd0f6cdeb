"""Tables that are kept: the rows as CSV, and as JSON with the machine, the versions and the command beside them."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from mdrelax.checkpoint import write_atomically
from mdrelax.provenance import environment

__all__ = ["write_table"]


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
    write_atomically(folder / f"{name}.csv", table.to_csv(index=False).encode())
    write_atomically(folder / f"{name}.json", json.dumps(record, indent=2).encode())
    return [folder / f"{name}.csv", folder / f"{name}.json"]
