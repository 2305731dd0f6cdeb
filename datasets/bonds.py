"""Bonds: the distances between neighbouring atoms, and the response of the forces to stretching.

A bond is a pair of atoms nearer than 1.25 times the sum of their covalent radii (Cordero et al. 2008, doi
10.1039/b801115j). Over the frames of the same atoms, its stiffness is the slope of the force that pulls both together
against its length r:

    K = -cov(f, r) / var(r),    f = (F_j - F_i) . (x_j - x_i) / (2 r)

K r^3 is of one order of magnitude for all strong bonds (the empirical rules of Badger 1934, doi 10.1063/1.1749433, and
of the UFF force field 1992, doi 10.1021/ja00051a040, have such a power law).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import vesin
from ase.data import covalent_radii
from torch_geometric.data import Data

from mdrelax.datasets.frames import volume
from mdrelax.datasets.near_pairs import same_atoms

__all__ = ["BOND", "Stiffness", "bonds_of", "stiffnesses"]

BOND = 1.25  # of the sum of covalent radii
BROKEN = 0.6  # of the sum of covalent radii: a shorter distance is a broken geometry, not a bond
EXTREME = 8.0  # times the median of the largest forces
MOST_FRAMES = 300  # of one kind; larger sets are thinned evenly
LASTING = 0.25  # share of the frames with a bond: of one that comes and goes only short lengths are seen
STRETCHED, PULLED = 1e-3, 1e-3  # Angstrom and eV/Angstrom; smaller changes are numerical noise
FEWEST_FRAMES = 5  # over which the length of a bond has to vary

Array = np.ndarray


class Stiffness(NamedTuple):
    """The response of the forces to bonds of two elements."""

    elements: tuple[int, int]
    length: float  # Angstrom, mean
    stiffness: float  # eV/Angstrom^2, K
    correlation: float  # of -f with r

    @property
    def scaled(self) -> float:
        """K r^3 in eV Angstrom."""
        return self.stiffness * self.length**3


def bonds_of(frame: Data, reach: float = BOND) -> tuple[Array, Array, Array]:
    """Pairs (P, 2), lattice shifts (P, 3) and vectors (P, 3; Angstrom) of the bonds of a frame, each bond once."""
    radii = covalent_radii[frame.z.numpy()]
    search = vesin.NeighborList(cutoff=float(2 * reach * radii.max()), full_list=False)
    i, j, shift, vectors = search.compute(
        frame.pos.numpy(), frame.cell[0].numpy(), frame.pbc[0].numpy(), "ijSD"
    )  # vectors from i to j
    near = np.linalg.norm(vectors, axis=1) < reach * (radii[i] + radii[j])
    return np.stack([i, j], axis=1)[near].astype(np.int64), shift[near], vectors[near]


def stiffnesses(data: Sequence[Data]) -> list[Stiffness]:
    """The stiffness of the bonds of each pair of elements, over all frames with forces."""
    moments: dict[tuple[int, int], list[Array]] = {}
    for indices in same_atoms(data):
        labelled = [k for k in indices if "forces" in data[k]]
        if len(labelled) >= FEWEST_FRAMES:
            frames = [data[k] for k in labelled[:: -(-len(labelled) // MOST_FRAMES)]]
            for elements, row in _moments(frames):
                moments.setdefault(elements, []).append(row)
    sums = {elements: np.sum(rows, axis=0) for elements, rows in sorted(moments.items())}
    return [_stiffness(elements, row) for elements, row in sums.items() if _is_moved(row)]


def _moments(frames: Sequence[Data]) -> list[tuple[tuple[int, int], Array]]:
    """For each bond of some frames of the same atoms its elements, and n, n r, var r, cov(f, r), var f."""
    keys, values = [], []
    size = np.mean([volume(frame) for frame in frames]) if bool(frames[0].pbc.all()) else 0.0
    for frame in _usual(frames):
        pairs, shift, vectors = bonds_of(frame)
        length = np.linalg.norm(vectors, axis=1)
        whole = length > BROKEN * covalent_radii[frame.z.numpy()[pairs]].sum(axis=1)
        pairs, shift, vectors, length = pairs[whole], shift[whole], vectors[whole], length[whole]
        forces = frame.forces.numpy()
        pull = ((forces[pairs[:, 1]] - forces[pairs[:, 0]]) * vectors).sum(axis=1) / (2 * np.maximum(length, 1e-9))
        if size:
            length = length * (size / volume(frame)) ** (1 / 3)  # an expanded cell stretches bonds without a force
        keys.append(np.concatenate([pairs, np.rint(shift).astype(np.int64)], axis=1))
        values.append(np.stack([length, pull], axis=1))
    bonds, where = np.unique(np.concatenate(keys), axis=0, return_inverse=True)
    table = np.concatenate(values)
    counts = np.bincount(where.ravel(), minlength=len(bonds))
    means = np.stack([np.bincount(where.ravel(), table[:, c]) for c in (0, 1)], axis=1) / np.maximum(counts, 1)[:, None]
    residual = table - means[where.ravel()]
    products = np.stack([residual[:, 0] ** 2, residual[:, 0] * residual[:, 1], residual[:, 1] ** 2], axis=1)
    sums = np.stack([np.bincount(where.ravel(), products[:, c]) for c in range(3)], axis=1)
    z = frames[0].z.numpy()
    found = []
    for bond, count, mean, row in zip(bonds, counts, means, sums, strict=True):
        if count >= max(FEWEST_FRAMES, LASTING * len(frames)):
            first, second = sorted((int(z[bond[0]]), int(z[bond[1]])))
            found.append(((first, second), np.array([count, count * mean[0], *row])))
    return found


def _is_moved(moments: Array) -> bool:
    """Whether bonds and the forces on them vary at all; in perfect crystals they do not, by symmetry."""
    count, _, square, _, force = moments
    return bool(np.sqrt(square / count) > STRETCHED and np.sqrt(force / count) > PULLED)


def _usual(frames: Sequence[Data]) -> list[Data]:
    """The frames without extreme forces: a failed calculation would outweigh all others."""
    largest = np.array([float(frame.forces.norm(dim=1).max()) for frame in frames])
    return [frame for frame, force in zip(frames, largest, strict=True) if force <= EXTREME * np.median(largest)]


def _stiffness(elements: tuple[int, int], moments: Array) -> Stiffness:
    count, length, square, product, force = moments
    return Stiffness(
        elements, length / count, -product / max(square, 1e-30), -product / max(np.sqrt(square * force), 1e-30)
    )
