"""Dialects: the spellings of cell, periodicity and columns in the comment lines of extended xyz files.

An extxyz names its cell ``Lattice``, its columns ``Properties`` and its periodicity ``pbc``. GPUMD's lower case and a
plain ``cell`` or ``box`` (9 numbers, rows being lattice vectors; 3 lengths; or 3 lengths and 3 angles) are read as
that; a cell in any other form is refused, since leaving it out would turn a crystal into a cluster.

A frame's weight in the loss is its ``config_weight``.
"""

import re

import numpy as np
from ase import Atoms
from ase.cell import Cell

__all__ = ["CELL_KEYS", "require_known_cell", "standard_comment", "weight_of"]

WEIGHT_KEY = "config_weight"  # as in MACE

CELL_KEYS = ("lattice", "cell", "box", "unit_cell", "unitcell", "lattice_vectors", "cell_vectors", "cell_matrix")
KEY = re.compile(
    r"(?<![\w\"'{\[])(?P<key>\w+)\s*=\s*(?P<value>\"(?:[^\"\\]|\\.)*\"|'[^']*'|\{[^}]*\}|\[\[.*?\]\]|\[[^\]]*\]|\S+)"
)
TRUE_FALSE = {**dict.fromkeys(("t", "true", "1", "yes"), "T"), **dict.fromkeys(("f", "false", "0", "no"), "F")}


def standard_comment(comment: str) -> str:
    """A comment line with the keys ``Properties``, ``Lattice`` and ``pbc`` in the spelling that ASE reads."""
    keys = {match["key"] for match in KEY.finditer(comment)}

    def replaced(match: re.Match[str]) -> str:
        key, value = match["key"].lower(), match["value"].strip("\"'{}[]")
        if key == "properties":
            return f"Properties={value}"
        if key == "pbc":
            return f'pbc="{_standard_pbc(value)}"'
        lattice = _standard_cell(value) if key in CELL_KEYS and "Lattice" not in keys else None
        return match[0] if lattice is None else f'Lattice="{lattice}"' if lattice else ""

    return KEY.sub(replaced, comment)


def _standard_pbc(value: str) -> str:
    words = value.replace(",", " ").split()
    words = list(words[0]) if len(words) == 1 and len(words[0]) == 3 else words * 3 if len(words) == 1 else words
    return " ".join(TRUE_FALSE.get(word.lower().strip("."), word) for word in words)


def _standard_cell(value: str) -> str | None:
    """Nine numbers, rows being lattice vectors, from 9 numbers, 3 lengths, or 3 lengths and 3 angles.

    Empty text for zeros, which stand for no cell; None for anything else.
    """
    try:
        numbers = np.array(re.sub(r"[\[\],;]", " ", value).split(), dtype=np.float64)
    except ValueError:
        return None
    if numbers.size not in (3, 6, 9):
        return None
    if not numbers.any():
        return ""
    return " ".join(repr(float(x)) for x in Cell.new(numbers.reshape(3, 3) if numbers.size == 9 else numbers).ravel())


def require_known_cell(atoms: Atoms, place: str) -> None:
    """Raise ``ValueError`` for atoms without a cell that carry one under a key that is not read."""
    named = [key for key in atoms.info if str(key).lower() in CELL_KEYS]
    if named and not atoms.cell.any():
        raise ValueError(
            f"`{named[0]}` of {place} is no cell that can be read; write the lattice vectors as "
            '`Lattice="ax ay az bx by bz cx cy cz"`, and pbc.'
        )


def weight_of(atoms: Atoms, place: str) -> float | None:
    """The frame's weight in the loss, where it has one; raises ``ValueError`` unless it is a number of at least 0."""
    value = next((value for key, value in atoms.info.items() if str(key).lower() == WEIGHT_KEY), None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value < np.inf:
        raise ValueError(f"The `{WEIGHT_KEY}` of {place} must be a number of at least 0, got {value!r:.40}.")
    return float(value)
