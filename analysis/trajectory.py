"""Analysis of trajectories: broken bonds and temperatures.

Frames are ``ase.Atoms``; lengths in Angstrom, times in ps, temperatures in K. Figures are drawn elsewhere.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from ase import Atoms
from ase.data import covalent_radii
from ase.geometry import find_mic

from mdrelax.engines.md import degrees_of_freedom, energy_drift, kinetic_temperature
from mdrelax.structures.neighbors import build_graph

__all__ = ["BrokenBond", "bond_lengths", "bonds", "broken_bonds", "energy_drift", "temperatures"]

BOND_FACTOR = 1.2  # bonded if closer than this times the sum of the covalent radii (Cordero 2008, ASE's table)


class BrokenBond(NamedTuple):
    """The first frame in which a bond is longer than allowed; of several, the one stretched most."""

    frame: int  # counted from 0
    time_fs: float  # the frame's ``info["time_fs"]``, NaN without it
    atoms: tuple[int, int]
    length: float  # Angstrom
    reference_length: float  # Angstrom


def bonds(reference: Atoms) -> npt.NDArray[np.int64]:
    """Bonded pairs (B, 2), i < j, by covalent radii; a pair bonded through several cell images counts once."""
    radii = covalent_radii[reference.numbers]  # (N,)
    longest = 2 * BOND_FACTOR * float(radii.max(initial=0.1))
    graph = build_graph(reference.positions, reference.numbers, reference.cell, reference.pbc, longest)
    pairs = np.unique(graph.edge_index.numpy().T, axis=0)  # (P, 2)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    return pairs[bond_lengths(reference, pairs) < BOND_FACTOR * radii[pairs].sum(axis=1)]


def broken_bonds(frames: Iterable[Atoms], reference: Atoms, factor: float = 1.5) -> BrokenBond | None:
    """The first bond of ``reference`` that is longer than ``factor`` times its length there; ``None`` if all hold.

    Lengths are taken to the nearest image, so wrapped and unwrapped frames give the same answer. Raises ``ValueError``
    for a factor <= 1 and for frames with other atoms than the reference.
    """
    if not factor > 1:
        raise ValueError(f"`factor` must be > 1, got {factor}; 1.5 means one and a half times its length.")
    pairs = bonds(reference)
    before = bond_lengths(reference, pairs)
    for number, frame in enumerate(frames):
        if not np.array_equal(frame.numbers, reference.numbers):
            raise ValueError(f"Frame {number} contains other atoms than the reference; use frames of one trajectory.")
        stretch = bond_lengths(frame, pairs) / before
        # A length that is not a number is a broken bond too.
        if not (stretch <= factor).all():
            worst = int(np.argmax(np.nan_to_num(stretch, nan=np.inf)))
            i, j = pairs[worst].tolist()
            time_fs = float(frame.info.get("time_fs", np.nan))
            return BrokenBond(number, time_fs, (i, j), float(stretch[worst] * before[worst]), float(before[worst]))
    return None


def temperatures(frames: Iterable[Atoms], *, ensemble: str = "nve") -> npt.NDArray[np.float64]:
    """Kinetic temperature (K) of each frame with momenta, counting the degrees of freedom of ``ensemble``."""
    return np.array(
        [kinetic_temperature(float(f.get_kinetic_energy()), degrees_of_freedom(f, ensemble)) for f in frames]
    )


def bond_lengths(atoms: Atoms, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Distances (B,) in Angstrom between pairs (B, 2), to the nearest image."""
    vectors = atoms.positions[pairs[:, 1]] - atoms.positions[pairs[:, 0]]
    if atoms.pbc.any() and len(pairs):
        vectors, _ = find_mic(vectors, atoms.cell, atoms.pbc)
    return np.linalg.norm(vectors, axis=1)
