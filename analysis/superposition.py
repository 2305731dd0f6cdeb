"""Superposition of two geometries of one molecule, for any orientation and order of atoms.

    distance^2 = min over R, P of  sum_i m_i |x_i - y_P(i) R|^2 / sum_i m_i        R orthogonal, x, y from their centres

For a given order P the best R is Kabsch's (Acta Cryst. A 32, 922 (1976)), reflections allowed, since the mirror image
has the same energy. P is the given order, or one found from the principal axes by alternating assignment and
rotation; for a symmetric top with its atoms in another order it may be missed, which shows in the distance.
"""

import itertools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from ase import Atoms
from scipy.optimize import linear_sum_assignment

__all__ = ["Superposition", "superpose"]

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

MOST_TURNS = 20
FORBIDDEN = 1e6  # A^2, the cost of pairing two elements
BETTER = 1e-3  # A: another order of atoms is used if it is closer than the given one by this


class Superposition(NamedTuple):
    """``atoms.positions[order] @ rotation``, shifted, coincides with the other geometry."""

    order: Indices  # (N,)
    rotation: Array  # (3, 3) orthogonal
    distance: float  # A, root of the mass-weighted mean square
    largest: float  # A, of an atom


def superpose(onto: Atoms, atoms: Atoms) -> Superposition:
    """The best superposition of ``atoms`` onto ``onto``; raises ``ValueError`` if the elements differ."""
    if sorted(onto.numbers) != sorted(atoms.numbers):
        raise ValueError(f"{atoms.symbols} and {onto.symbols} are not the same molecule.")
    weights = onto.get_masses() / onto.get_masses().sum()
    x, y = (each.positions - each.get_center_of_mass() for each in (onto, atoms))
    found: list[Superposition] = []
    if np.array_equal(onto.numbers, atoms.numbers):
        found.append(_fit(x, y, np.arange(len(x)), weights))
    other_element = FORBIDDEN * (onto.numbers[:, None] != atoms.numbers)  # (N, N)
    own_axes, other_axes = _principal_axes(x, weights), _principal_axes(y, atoms.get_masses())
    for signs in itertools.product((1.0, -1.0), repeat=3):
        fit = _assign(x, y, other_axes.T @ np.diag(signs) @ own_axes, other_element, weights)
        if not found or fit.distance < found[-1].distance - BETTER:
            found.append(fit)
    return found[-1]


def _principal_axes(x: Array, masses: Array) -> Array:
    """Rows are the axes of inertia."""
    return np.linalg.eigh((x * masses[:, None]).T @ x)[1].T


def _assign(x: Array, y: Array, rotation: Array, other_element: Array, weights: Array) -> Superposition:
    """Alternately pair the nearest atoms and rotate, until the pairs do not change."""
    before, fit = np.full(len(x), -1), Superposition(np.arange(len(x)), rotation, np.inf, np.inf)
    for _ in range(MOST_TURNS):
        apart = ((x[:, None] - y @ fit.rotation) ** 2).sum(2)  # (N, N)
        order = linear_sum_assignment(apart + other_element)[1]
        if np.array_equal(order, before):
            break
        before, fit = order, _fit(x, y, order, weights)
    return fit


def _fit(x: Array, y: Array, order: Indices, weights: Array) -> Superposition:
    left, _, right = np.linalg.svd((weights[:, None] * y[order]).T @ x)
    rotation = left @ right
    apart = np.linalg.norm(y[order] @ rotation - x, axis=1)  # (N,)
    return Superposition(order, rotation, float(np.sqrt(weights @ apart**2)), float(apart.max()))
