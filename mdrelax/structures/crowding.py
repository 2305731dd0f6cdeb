"""Crowding: how many neighbours a search would find, before it is made.

A cell a thousand times too small (lengths in nm or m, a scaled box) has so many images within the cut-off that a search
takes all memory. Each atom has, of its own images and of those of the others,

    n_T = w_k r^k / |h_T|      for a set T of k periodic directions that spans the length, area or volume |h_T|
    n   = N n_T prod_j min(1, 2 r / e_j)      for all periodic directions; e_j is the extent in an open direction

neighbours within r, where w = 2, pi, 4 pi / 3 are the unit balls of k = 1, 2, 3 dimensions. The estimate is the largest
of these; it is right to a factor of two or so for systems that fill their cell or their extent evenly.
"""

import math
from itertools import combinations

import numpy as np
import numpy.typing as npt

__all__ = ["MOST_NEIGHBOURS", "neighbours_expected", "refuse_crowds"]

Array = npt.NDArray[np.float64]
MOST_NEIGHBOURS = 5000  # per atom; within 6 Angstrom, diamond, the densest of solids, has 160
UNIT_BALLS = (1.0, 2.0, math.pi, 4 * math.pi / 3)


def neighbours_expected(positions: Array, cell: Array, pbc: npt.NDArray[np.bool_], radius: float) -> float:
    """The estimated number of neighbours per atom within ``radius`` (Angstrom), see above.

    Positions (N, 3) and cell (3, 3; rows are lattice vectors) in Angstrom, pbc (3,).
    """
    periodic = cell[pbc]  # (k, 3)
    images = [
        UNIT_BALLS[k] * radius**k / max(_content(periodic[list(chosen)]), np.finfo(float).tiny)
        for k in range(1, len(periodic) + 1)
        for chosen in combinations(range(len(periodic)), k)
    ]
    among_all = len(positions) * (images[-1] if images else 1.0) * _share(positions, periodic, radius)
    return float(max([among_all, *images]))


def refuse_crowds(positions: Array, cell: Array, pbc: npt.NDArray[np.bool_], radius: float) -> None:
    """Raise ``ValueError`` for a structure with more than ``MOST_NEIGHBOURS`` neighbours per atom; see above."""
    expected = neighbours_expected(positions, cell, pbc, radius)
    if expected > MOST_NEIGHBOURS:
        lengths = ", ".join(f"{length:.3g}" for length in np.linalg.norm(cell[pbc], axis=1))
        where = f"in a cell of lattice vectors {lengths} A" if pbc.any() else "without a cell"
        raise ValueError(
            f"{len(positions)} atoms {where} would have about {expected:.1e} neighbours each within {radius:.3g} A; at "
            f"most {MOST_NEIGHBOURS:,} are searched for. Lengths are in Angstrom: check the unit of cell and positions."
        )


def _content(vectors: Array) -> float:
    """Length, area or volume spanned by (k, 3) vectors."""
    return float(np.linalg.svd(vectors, compute_uv=False).prod())


def _share(positions: Array, periodic: Array, radius: float) -> float:
    """The share of the atoms that a ball reaches in the open directions, which are those normal to the lattice."""
    if len(periodic) == 3:
        return 1.0
    open_directions = np.linalg.svd(periodic.reshape(-1, 3), full_matrices=True)[2][len(periodic) :]  # (3 - k, 3)
    extents = np.ptp(positions @ open_directions.T, axis=0)
    return float(np.minimum(1.0, 2 * radius / np.maximum(extents, radius)).prod())
