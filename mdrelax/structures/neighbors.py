"""Neighbours: every pair of atoms within the cut-off, through any mix of open and periodic directions.

    edge (j -> i, S)   exists where   |x_j - x_i + S h| < cutoff,   self-images included, S = 0 self-pairs not

Two atoms at one point have no direction between them, so they are an error, not an edge of length zero.

Candidates come from vesin (cell lists), or for small open molecules from the dense distance matrix; both are sorted in
the same order (target, source, shift) and pass the same filter. So a graph does not depend on how its candidates were
found: a ``VerletList`` returns the same graph as ``build_graph``, bit for bit. Lengths are in Angstrom, tensors come
back on the CPU.
"""

import math
from typing import NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import torch
import vesin
from torch import Tensor

from mdrelax.structures.crowding import refuse_crowds
from mdrelax.structures.graph import Graph

__all__ = ["VerletList", "build_graph"]

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Input = npt.ArrayLike | Tensor

DENSE_ATOMS = 100  # up to here the distance matrix is the faster search (measured: 0.28 against 0.36 ms at 100 atoms)
ROUNDING = 1e-9  # candidates are searched in a slightly larger radius, so that the filter alone decides
NEAREST = 1e-6  # Angstrom: atoms closer than this coincide, up to the rounding of lattice vectors
HEAVIEST = 118  # oganesson
LONGEST_CUTOFF = 1000.0  # Angstrom
FARTHEST = 1e6  # Angstrom from the origin: rounding there is 1e-10
LARGEST_CELL = 1e9  # Angstrom
FLATTEST = 1e-6  # smallest volume of the periodic vectors relative to the product of their lengths


class _System(NamedTuple):
    """One checked structure as numpy arrays."""

    positions: Array  # (N, 3)
    numbers: Indices  # (N,)
    cell: Array  # (3, 3) rows are lattice vectors
    pbc: npt.NDArray[np.bool_]  # (3,)


class _Candidates(NamedTuple):
    """Pairs that may be edges, sorted by target, source and shift."""

    pairs: Indices  # (2, P) source j, target i
    shift: Array | None  # (P, 3) S; None where nothing is periodic
    offset: Array | None  # (P, 3) S h


def build_graph(
    positions: Input, numbers: Input, cell: Input | None = None, pbc: Input | None = None, cutoff: float = math.nan
) -> Graph:
    """The graph of one structure: positions (N, 3) in Angstrom, numbers (N,), cell (3, 3), pbc (3,).

    ``cutoff`` (Angstrom) has no default: leaving it out is an error. Without ``pbc`` nothing is periodic; a direction
    that is not periodic needs no lattice vector (zero will do).
    Raises ``ValueError`` for a cut-off that is not positive, positions or cells that are not finite, shapes that do not
    fit, numbers that are not 1 to 118, periodic lattice vectors without volume, two atoms at one point, directly or a
    lattice vector apart, and a structure so dense that it must be in another unit (before anything is searched).
    """
    _check_cutoff(cutoff)
    system = _system(positions, numbers, cell, pbc)
    return _graph(system, _candidates(system, cutoff), cutoff)


class VerletList:
    """A neighbour list that is rebuilt only when an atom has moved more than half the skin.

    The search runs to ``cutoff + skin`` (Angstrom); each call filters it by the true cut-off, so that the graph is
    that of ``build_graph``, bit for bit. Changed cell, pbc or numbers lead to a new search.
    Method: Verlet, Phys. Rev. 159, 98 (1967).
    """

    def __init__(self, cutoff: float, skin: float = 0.5) -> None:
        _check_cutoff(cutoff)
        if not isinstance(skin, int | float) or not 0 <= skin < math.inf:
            raise ValueError(f"`skin` must be a length >= 0 in Angstrom, got {skin!r}; 0.5 suits molecular dynamics.")
        self.cutoff = cutoff
        self.skin = skin
        self.searches = 0  # how often the list was built
        self._searched: _System | None = None
        self._found = _Candidates(np.empty((2, 0), np.int64), None, None)

    def graph(self, positions: Input, numbers: Input, cell: Input | None = None, pbc: Input | None = None) -> Graph:
        """The graph of one structure; arguments and errors as in ``build_graph``."""
        system = _system(positions, numbers, cell, pbc)
        if not self._covers(system):
            self._found = _candidates(system, self.cutoff + self.skin)
            self._searched = _System(
                system.positions.copy(), system.numbers.copy(), system.cell.copy(), system.pbc.copy()
            )
            self.searches += 1
        return _graph(system, self._found, self.cutoff)

    def _covers(self, system: _System) -> bool:
        """True while the last search contains every pair within the cut-off."""
        old = self._searched
        if old is None or not np.array_equal(old.numbers, system.numbers):
            return False
        if not (np.array_equal(old.cell, system.cell) and np.array_equal(old.pbc, system.pbc)):
            return False
        moved = system.positions - old.positions
        return bool(_squares(moved).max(initial=0.0) <= (self.skin / 2) ** 2)


def _check_cutoff(cutoff: float) -> None:
    """Raise ``ValueError`` unless the cut-off is a positive length in Angstrom, and one that can be searched."""
    if not 0 < cutoff <= LONGEST_CUTOFF:
        raise ValueError(
            f"`cutoff` must be a length > 0 and at most {LONGEST_CUTOFF:g} Angstrom, got {cutoff}; 5.0 suits most "
            "molecules."
        )


# --- check the input ---


def _system(positions: Input, numbers: Input, cell: Input | None, pbc: Input | None) -> _System:
    xyz = _numpy(positions, np.float64)
    z = _atomic_numbers(numbers)
    if xyz.size != 3 * z.size or (xyz.size and xyz.shape != (z.size, 3)):
        raise ValueError(f"`positions` must have shape (N, 3) with N = {z.size} atomic numbers, got {xyz.shape}.")
    lattice = np.zeros((3, 3)) if cell is None else _numpy(cell, np.float64)
    if lattice.size != 9:
        raise ValueError(f"`cell` must have shape (3, 3), rows being lattice vectors in Angstrom, got {lattice.shape}.")
    given = np.zeros(3, np.bool_) if pbc is None else _numpy(pbc, np.bool_)
    if given.size not in (1, 3):
        raise ValueError(f"`pbc` must be one or three booleans, got shape {given.shape}.")
    periodic = np.zeros(3, np.bool_)
    periodic[:] = given.reshape(-1)  # np.broadcast_to would take ten times as long
    if xyz.size and not np.abs(xyz).max() <= FARTHEST:  # NaN included
        _refuse_far(xyz)
    if not np.abs(lattice).max() <= LARGEST_CELL:
        raise ValueError(
            f"`cell` must be finite, of lengths up to {LARGEST_CELL:g} A, got {lattice.reshape(3, 3).tolist()}."
        )
    return _System(xyz.reshape(-1, 3), z, lattice.reshape(3, 3), periodic)


def _refuse_far(xyz: Array) -> NoReturn:
    broken = np.flatnonzero(~np.isfinite(xyz).all(axis=1))
    if broken.size:
        raise ValueError(
            f"Positions of atoms {broken[:10].tolist()} (of {len(xyz)}) are NaN or infinite; did the run explode?"
        )
    far = np.flatnonzero((np.abs(xyz) > FARTHEST).any(axis=1))
    raise ValueError(
        f"Positions of atoms {far[:10].tolist()} (of {len(xyz)}) lie more than {FARTHEST:g} A from the origin; did the "
        "run explode, or is the unit of length another?"
    )


def _atomic_numbers(numbers: Input) -> Indices:
    given = _numpy(numbers, None).reshape(-1)
    if given.size == 0:
        return np.empty(0, np.int64)
    if given.dtype.kind not in "iuf" or not ((given >= 1) & (given <= HEAVIEST) & (given % 1 == 0)).all():
        raise ValueError(
            f"`numbers` must be atomic numbers, whole numbers from 1 to {HEAVIEST}, got {given.tolist()!s:.100}."
        )
    return given.astype(np.int64)


def _numpy(value: Input, dtype: type | None) -> npt.NDArray:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    return np.ascontiguousarray(value, dtype=dtype)


def _check_lattice(system: _System) -> None:
    """Periodic lattice vectors must span a length, an area or a volume."""
    vectors = system.cell[system.pbc]  # (k, 3)
    lengths = np.linalg.norm(vectors, axis=1)
    # The volume of k vectors is the product of the singular values.
    volume = float(np.linalg.svd(vectors, compute_uv=False).prod())
    if volume <= FLATTEST * lengths.prod():
        raise ValueError(
            f"The structure is periodic along {_directions(system.pbc)}, but the lattice vectors there, "
            f"{vectors.tolist()}, are zero or linearly dependent (a singular cell); set the cell, or set `pbc` to "
            "False where there is no lattice."
        )


def _directions(pbc: npt.NDArray[np.bool_]) -> str:
    return ", ".join(name for name, periodic in zip("abc", pbc, strict=True) if periodic)


def _check_apart(pairs: Indices, squares: Array) -> None:
    if squares.min(initial=math.inf) < NEAREST**2:
        first, second = sorted(pairs[:, squares.argmin()].tolist())
        raise ValueError(
            f"Atoms {first} and {second} lie at one point (or a lattice vector apart); move or remove one of them."
        )


# --- find the pairs ---


def _candidates(system: _System, radius: float) -> _Candidates:
    radius = radius * (1 + ROUNDING)
    if system.pbc.any():
        _check_lattice(system)
    elif len(system.numbers) <= DENSE_ATOMS:
        return _dense(system.positions, radius)
    refuse_crowds(system.positions, system.cell, system.pbc, radius)
    search = vesin.NeighborList(cutoff=radius, full_list=True)
    target, source, shift = search.compute(system.positions, system.cell, system.pbc, "ijS")
    order = np.lexsort((shift[:, 2], shift[:, 1], shift[:, 0], source, target))
    index = np.stack((source[order], target[order])).astype(np.int64)
    if not system.pbc.any():
        return _Candidates(index, None, None)
    shifts = shift[order].astype(np.float64)
    return _Candidates(index, shifts, shifts @ system.cell)


def _dense(positions: Array, radius: float) -> _Candidates:
    """All pairs of a small molecule without periodic directions; row-major order is the order by target."""
    vectors = positions[:, None] - positions
    near = np.einsum("ijk,ijk->ij", vectors, vectors) < radius**2
    np.fill_diagonal(near, False)
    target, source = near.nonzero()
    return _Candidates(np.stack((source, target)), None, None)


def _graph(system: _System, found: _Candidates, cutoff: float) -> Graph:
    """The candidates that lie within the cut-off, as tensors that share no memory with the caller's arrays."""
    vectors = system.positions.take(found.pairs[0], axis=0) - system.positions.take(found.pairs[1], axis=0)
    if found.offset is not None:
        vectors += found.offset
    squares = _squares(vectors)
    _check_apart(found.pairs, squares)
    near = squares < cutoff**2  # (P,)
    index = found.pairs.compress(near, axis=1)
    shift = np.zeros((index.shape[1], 3)) if found.shift is None else found.shift.compress(near, axis=0)
    return Graph(
        positions=torch.from_numpy(system.positions.copy()),
        numbers=torch.from_numpy(system.numbers.copy()),
        cell=torch.from_numpy(system.cell[None].copy()),
        edge_index=torch.from_numpy(index),
        edge_shift=torch.from_numpy(shift),
        batch=torch.from_numpy(np.zeros(len(system.numbers), np.int64)),  # on the CPU, whatever the default
    )


def _squares(vectors: Array) -> Array:
    """Squared lengths (P,) of vectors (P, 3)."""
    return np.einsum("ij,ij->i", vectors, vectors)
