"""Structures for testing the laws: of a model's own elements, with distances in proportion to its cut-off."""

from typing import NamedTuple

import numpy as np

from mdrelax.forces.forcefield import ForceField
from mdrelax.structures.graph import Graph
from mdrelax.structures.neighbors import build_graph

__all__ = ["Structure", "cell", "cluster", "numbers_of", "tetrahedron"]


class Structure(NamedTuple):
    """Atoms, lengths in Angstrom."""

    positions: np.ndarray  # (N, 3)
    numbers: np.ndarray  # (N,)
    cell: np.ndarray | None = None  # (3, 3), periodic in all directions; None: not periodic

    def graph(self, cutoff: float) -> Graph:
        """With its neighbour list."""
        return build_graph(self.positions, self.numbers, self.cell, self.cell is not None, cutoff)

    def moved(self, by: np.ndarray) -> "Structure":
        """Every atom moved by a row of ``by``, (N, 3) or (3,)."""
        return self._replace(positions=self.positions + by)

    def mapped(self, matrix: np.ndarray) -> "Structure":
        """Positions and cell multiplied by a matrix."""
        cell = None if self.cell is None else self.cell @ matrix.T
        return self._replace(positions=self.positions @ matrix.T, cell=cell)


def cluster(model: ForceField, seed: int = 0) -> Structure:
    """Nine atoms, neighbours about 0.3 cut-offs apart, without any symmetry."""
    rng = np.random.default_rng(seed)
    corners = np.stack(np.meshgrid(*[[-0.5, 0.5]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    grid = np.concatenate([corners, [[0.0, 0.1, 0.0]]]) + rng.uniform(-0.12, 0.12, (9, 3))
    return Structure(0.3 * model.cutoff * grid, numbers_of(model, 9))


def cell(model: ForceField) -> Structure:
    """Three atoms in a skewed cell so small that each sees several images of itself and of the others."""
    vectors = 0.2 * model.cutoff * np.array([[3.1, 0.0, 0.0], [0.7, 3.4, 0.0], [-0.4, 0.9, 3.9]])
    return Structure(np.array([[0, 0, 0], [0.45, 0.3, 0.4], [0.1, 0.8, 0.7]]) @ vectors, numbers_of(model, 3), vectors)


def tetrahedron(model: ForceField) -> Structure:
    """An atom amid four others: its own vectors vanish by symmetry."""
    corners = np.array([[1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]]) / np.sqrt(3)
    return Structure(0.22 * model.cutoff * np.concatenate([[[0, 0, 0]], corners]), numbers_of(model, 5, alike=4))


def numbers_of(model: ForceField, n: int, alike: int = 0) -> np.ndarray:
    """Elements of the model in turn; the last ``alike`` atoms have the first element."""
    numbers = np.resize(model.elements[::-1], n)
    numbers[n - alike :] = model.elements[0]
    return numbers
