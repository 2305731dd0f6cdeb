"""Structure files of the user, read by ASE, with one-sentence errors; selection of a few structures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from ase import Atoms

Item = TypeVar("Item")


def read_structures(path: Path) -> "list[Atoms]":
    """Every structure of a file that ASE reads; raises ``ValueError`` with the reason otherwise."""
    from ase import Atoms, io

    from mdrelax.datasets.extxyz import refuse_absurd_counts

    if not path.is_file():
        raise FileNotFoundError(f"There is no file `{path}`.")
    refuse_absurd_counts(path)
    try:
        frames = io.read(path, ":")
    except Exception as error:  # ASE's readers raise anything on a broken line
        raise ValueError(f"`{path}` cannot be read as a structure ({type(error).__name__}: {error!s:.200}).") from error
    if not frames:
        raise ValueError(f"`{path}` holds no structures.")
    return [frame for frame in frames if isinstance(frame, Atoms)]


def spread(items: Sequence[Item], number: int) -> list[Item]:
    """A number of evenly spaced items, including the first and the last; all if there are fewer."""
    count = min(number, len(items))
    step = (len(items) - 1) / max(count - 1, 1)
    return [items[round(k * step)] for k in range(count)]
