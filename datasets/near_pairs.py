"""Near pairs: frames of the same atoms that differ little, and the work that forces and stress do between them.

For a small step from frame a to frame b the energy changes by the work of the labels of both, exactly if the
energy is quadratic (trapezoid rule):

    E_b - E_a = W + S,    W = -(F_a + F_b)/2 . dx,    S = V (sigma_a + sigma_b)/2 : strain

| symbol | meaning | unit |
| --- | --- | --- |
| dx | displacement of the atoms at fixed strain, (N, 3) | Angstrom |
| strain | h^-1 dh of the lattice vectors h (rows), symmetric part | - |
| V | mean volume of the two cells | Angstrom^3 |

Molecules are superposed first (Kabsch 1976, doi 10.1107/S0567739476001873; mirror images too, which have the
same energy); atoms in cells are followed through the periodic boundaries, without a common translation.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch_geometric.data import Data

__all__ = ["NearPairs", "near_pairs", "same_atoms"]

MOST_FRAMES = 1500  # of one kind; larger sets are thinned evenly
NEIGHBOURS = 4  # pairs that a frame makes with its nearest
MOST_DISTANCES = 2000  # of a molecule, for the search for similar frames
CUT = 0.35  # Angstrom, root mean square; frames that differ more are not near

Array = np.ndarray


class NearPairs(NamedTuple):
    """P pairs of frames (indices into one list), of one kind of atoms."""

    first: Array  # (P,)
    second: Array  # (P,)
    distance: Array  # (P,) Angstrom, root mean square displacement
    energy: Array  # (P,) eV, E_b - E_a
    work: Array  # (P,) eV, W
    strain_work: Array  # (P,) eV, S; 0 for a fixed cell, NaN if the cell changes and a stress is missing
    curvature: Array  # (P,) eV, -(F_b - F_a) . dx / 2: half of what the work could be wrong by
    mirrored: Array  # (P,) True if only a mirror image of one molecule fits the other


class _Kind(NamedTuple):
    """F frames of the same atoms as arrays."""

    indices: Array  # (F,) indices into the list
    positions: Array  # (F, N, 3)
    forces: Array  # (F, N, 3)
    energies: Array  # (F,)
    cells: Array  # (F, 3, 3)
    stress: Array  # (F, 3, 3), NaN where there is none
    pbc: Array  # (3,)


def same_atoms(data: Sequence[Data]) -> list[list[int]]:
    """Indices of frames with the same atomic numbers in the same order and the same periodic directions, by kind."""
    kinds: dict[tuple[bytes, bytes], list[int]] = {}
    for index, frame in enumerate(data):
        kinds.setdefault((frame.z.numpy().tobytes(), frame.pbc.numpy().tobytes()), []).append(index)
    return list(kinds.values())


def near_pairs(data: Sequence[Data]) -> list[NearPairs]:
    """The near pairs of each kind of frames; numbers that need a missing label are NaN. Kinds without any are left out.

    Positions and cells must be finite.
    """
    found = []
    for indices in same_atoms(data):
        if len(indices) < 2 or len(data[indices[0]].z) < 2:
            continue
        step = -(-len(indices) // MOST_FRAMES)
        pairs = _pairs(_kind(data, indices[::step]))
        if len(pairs.first):
            found.append(pairs)
    return found


def _kind(data: Sequence[Data], indices: list[int]) -> _Kind:
    frames = [data[k] for k in indices]

    def labels(name: str, missing: Array) -> Array:
        return np.stack([frame[name].numpy() if name in frame else missing for frame in frames])

    return _Kind(
        np.array(indices),
        np.stack([frame.pos.numpy() for frame in frames]),
        labels("forces", np.full((len(frames[0].z), 3), np.nan)),
        labels("energy", np.full(1, np.nan))[:, 0],
        np.stack([frame.cell[0].numpy() for frame in frames]),
        labels("stress", np.full((1, 3, 3), np.nan))[:, 0],
        frames[0].pbc[0].numpy(),
    )


def _pairs(kind: _Kind) -> NearPairs:
    shapes = _crystal_shapes(kind) if kind.pbc.any() else _molecule_shapes(kind)
    first, second = _nearest(shapes)
    steps = _crystal_steps(kind, first, second) if kind.pbc.any() else _molecule_steps(kind, first, second)
    dx, before, after, strain_work, mirrored = steps
    distance = np.sqrt((dx**2).sum(axis=2).mean(axis=1))  # (P,)
    near = distance < CUT
    work = -((before + after) / 2 * dx).sum(axis=(1, 2))
    curvature = -((after - before) * dx).sum(axis=(1, 2)) / 2
    energy = kind.energies[second] - kind.energies[first]
    columns = (kind.indices[first], kind.indices[second], distance, energy, work, strain_work, curvature, mirrored)
    return NearPairs(*(column[near] for column in columns))


def _nearest(shapes: Array) -> tuple[Array, Array]:
    """The pairs (a < b) of each frame with its nearest ones, by the Euclidean distance of their shapes (F, D)."""
    squares = (shapes**2).sum(axis=1)
    distances = squares[:, None] + squares - 2 * shapes @ shapes.T
    np.fill_diagonal(distances, np.inf)
    count = min(NEIGHBOURS, len(shapes) - 1)
    nearest = np.argpartition(distances, count - 1, axis=1)[:, :count]  # (F, count)
    pairs = np.stack([np.repeat(np.arange(len(shapes)), count), nearest.ravel()], axis=1)
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    return pairs[:, 0], pairs[:, 1]


# --- molecules ---


def _molecule_shapes(kind: _Kind) -> Array:
    """Interatomic distances (F, D), which no rotation changes."""
    i, j = np.triu_indices(kind.positions.shape[1], k=1)
    step = -(-len(i) // MOST_DISTANCES)
    i, j = i[::step], j[::step]
    shapes = np.linalg.norm(kind.positions[:, i] - kind.positions[:, j], axis=2)
    return shapes - shapes.mean(axis=0)


def _molecule_steps(kind: _Kind, first: Array, second: Array) -> tuple[Array, ...]:
    """Displacements and both forces (P, N, 3) with the second molecule superposed on the first; no strain."""
    centred = kind.positions - kind.positions.mean(axis=1, keepdims=True)
    a, b = centred[first], centred[second]
    u, sizes, vt = np.linalg.svd(np.swapaxes(b, 1, 2) @ a)
    rotation = u @ vt  # (P, 3, 3), b @ rotation coincides with a
    mirrored = (np.linalg.det(rotation) < 0) & (sizes[:, 2] > 1e-6 * sizes[:, 0])  # a flat molecule is its own image
    dx = b @ rotation - a
    return dx, kind.forces[first], kind.forces[second] @ rotation, np.zeros(len(first)), mirrored


# --- crystals and slabs ---


def _fractional(kind: _Kind) -> tuple[Array, Array]:
    """Complete cells (F, 3, 3) and fractional coordinates (F, N, 3); a missing lattice vector is a unit vector."""
    from ase.geometry.cell import complete_cell

    cells = np.stack([complete_cell(cell) for cell in kind.cells])
    return cells, np.einsum("fni,fij->fnj", kind.positions, np.linalg.inv(cells))


def _crystal_shapes(kind: _Kind) -> Array:
    """Displacements from the first frame at its cell, and lattice vectors weighted like all atoms' (F, D)."""
    cells, fractional = _fractional(kind)
    moved = fractional - fractional[:1]
    moved = moved - np.round(moved) * kind.pbc
    moved = (moved - moved.mean(axis=1, keepdims=True)) @ cells.mean(axis=0)
    weight = np.sqrt(moved.shape[1]) / 4
    shapes = np.concatenate([moved.reshape(len(moved), -1), weight * cells.reshape(len(cells), -1)], axis=1)
    return shapes - shapes.mean(axis=0)


def _crystal_steps(kind: _Kind, first: Array, second: Array) -> tuple[Array, ...]:
    """Displacements at fixed strain and both forces (P, N, 3), and the work of the strain (P,)."""
    cells, fractional = _fractional(kind)
    moved = fractional[second] - fractional[first]
    moved = moved - np.round(moved) * kind.pbc
    moved = moved - moved.mean(axis=1, keepdims=True)
    mean_cell = (cells[first] + cells[second]) / 2
    dx = np.einsum("pni,pij->pnj", moved, mean_cell)
    change = np.linalg.inv(mean_cell) @ (cells[second] - cells[first])
    strain = (change + np.swapaxes(change, 1, 2)) / 2
    stress = (kind.stress[first] + kind.stress[second]) / 2
    volume = abs(np.linalg.det(mean_cell))
    work = volume * (stress * strain).sum(axis=(1, 2))
    strained = abs(strain).max(axis=(1, 2)) > 1e-9
    return dx, kind.forces[first], kind.forces[second], np.where(strained, work, 0.0), np.zeros(len(first), bool)
