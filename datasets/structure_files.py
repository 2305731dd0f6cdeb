"""Structure files of the user, with or without labels, and one-sentence errors; selection of a few structures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from ase import Atoms

Item = TypeVar("Item")


def read_structures(path: Path) -> "list[Atoms]":
    """Every structure of a file: an extxyz in any dialect, an npz as MD17's (Angstrom), or what ASE reads.

    Raises ``ValueError`` with the reason for any other file, ``FileNotFoundError`` if there is none.
    """
    from mdrelax.base.places import frame_name
    from mdrelax.datasets.dialects import require_known_cell
    from mdrelax.datasets.extxyz import read_ase, read_atoms
    from mdrelax.datasets.frames import to_atoms
    from mdrelax.datasets.md17 import load_md17

    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".npz") and path.is_file():
        return [to_atoms(frame) for frame in load_md17(path).data]
    if not name.endswith((".xyz", ".extxyz")):
        return read_ase(path)
    structures = read_atoms(path)
    for number, atoms in enumerate(structures):
        require_known_cell(atoms, frame_name(number, path.name))
    return structures


def last_structure(path: Path) -> "tuple[Atoms, int]":
    """The last structure of a file, and how many it has; raises ``ValueError`` for positions without a number."""
    import numpy as np

    from mdrelax.base.places import frame_name

    structures = read_structures(path)
    if not np.isfinite(structures[-1].positions).all():
        place = frame_name(len(structures) - 1, path.name)
        raise ValueError(f"Positions in {place} are NaN or infinite; take a structure from before that.")
    return structures[-1], len(structures)


def spread(items: Sequence[Item], number: int) -> list[Item]:
    """A number of evenly spaced items, including the first and the last; all if there are fewer."""
    count = min(number, len(items))
    step = (len(items) - 1) / max(count - 1, 1)
    return [items[round(k * step)] for k in range(count)]
