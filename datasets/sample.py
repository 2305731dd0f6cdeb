"""Samples: the data sets that the package ships, and the provenance written in them."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from mdrelax.base.names import nearest_name
from mdrelax.datasets.extxyz import read_atoms

__all__ = ["PLUME_SAMPLES", "SAMPLES", "provenance", "sample_path"]

SAMPLES = {"ethanol": "ethanol_pbe.extxyz"}  # frames of atoms
PLUME_SAMPLES = {"plume": "plume.npz"}  # small flows of smoke


def sample_path(name: str) -> Path:
    """The path of a shipped data set; raises ``ValueError`` for an unknown name, ``FileNotFoundError`` if missing."""
    known = SAMPLES | PLUME_SAMPLES
    if name not in known:
        raise ValueError(f"There is no sample `{name}`; {nearest_name(name, known)}")
    path = Path(str(resources.files("mdrelax.datasets") / "samples" / known[name]))
    if not path.is_file():
        raise FileNotFoundError(
            f"The sample file `{known[name]}` is missing from this installation; install mdrelax again."
        )
    return path


def provenance(path: str | Path) -> dict[str, Any]:
    """The provenance of a file made with ``mdrelax data generate`` (method, settings, versions); empty for others."""
    value = read_atoms(path)[0].info.get("provenance")
    if isinstance(value, str):  # ASE already parses some JSON
        value = json.loads(value)
    return dict(value) if value else {}
