"""Whether two folders of results are the same, bit for bit, but for what a clock measured.

Names of files have to be the same, so that nothing temporary may be left but what ``REMAINS`` names; contents are
compared by kind:

| files | what is compared |
| --- | --- |
| .safetensors, .npz, .yaml | every byte |
| .extxyz, .xyz | every byte, but for dates |
| .csv, .json, .restart, .pt | every number and word, but for keys and columns that a clock or a memory meter measured |
| .traj | positions, momenta, energies and forces of all frames |
| .png, .html, .log, .md | that they are there |
"""

import csv
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.io import read

__all__ = ["content_of", "differences"]

MEASURED = {
    "command", "cpu_minutes", "cpu_seconds", "date", "earlier_commands", "peak_MB", "seconds", "time_s",
}  # fmt: skip
ONLY_THERE = {".html", ".log", ".md", ".png"}
# A killed writer of a shared cache leaves a part, which the next one removes a day later; a lock file without its owner
# locks nothing.
REMAINS = re.compile(r"/\..*\.[0-9a-f]{8}\.part$|(^|/)\.([^/]*\.)?lock$")
DATE = re.compile(rb"\d{4}-\d\d-\d\d")


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Clauses on what differs between two results of ``content_of``; none if they are the same."""
    left = [f"`{name}` is left behind" for name in sorted(found.keys() - expected.keys()) if not REMAINS.search(name)]
    lost = [f"`{name}` is missing" for name in sorted(expected.keys() - found.keys())]
    return (
        left
        + lost
        + [f"`{name}` differs" for name in sorted(found.keys() & expected.keys()) if found[name] != expected[name]]
    )


def content_of(folder: Path) -> dict[str, str]:
    """Name (relative to ``folder``) -> hash of what is compared, for every file."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): _content(path) for path in paths}


def _content(path: Path) -> str:
    if path.suffix in ONLY_THERE:
        return ""
    if path.suffix == ".pt":
        return _hash(_plain(torch.load(path, weights_only=True)))
    if path.suffix in (".json", ".restart"):
        return _hash(_plain(json.loads(path.read_text())))
    if path.suffix == ".csv":
        return _hash(_plain(list(csv.DictReader(io.StringIO(path.read_text())))))
    if path.suffix == ".traj":
        return _hash([_frame(atoms) for atoms in read(path, ":")])
    return _hash(DATE.sub(b"", path.read_bytes()) if path.suffix in (".extxyz", ".xyz") else path.read_bytes())


def _plain(value: Any) -> Any:
    """A value in which arrays are hashes, without what was measured."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items() if key not in MEASURED}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, torch.Tensor):
        return [
            str(value.dtype),
            list(value.shape),
            _hash(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()),
        ]
    return value


def _frame(atoms: Any) -> list[str]:
    arrays = (atoms.positions, atoms.get_momenta(), np.array(atoms.get_potential_energy()), atoms.get_forces())
    return [_hash(array.tobytes()) for array in arrays]


def _hash(content: Any) -> str:
    data = content if isinstance(content, bytes) else json.dumps(content, default=repr).encode()
    return hashlib.sha256(data).hexdigest()
