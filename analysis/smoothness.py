"""Smoothness: whether a model is harmonic at the geometry of its force constants.

    k(0) = u . H u,      k(d) = -(F(x + d u) - F(x - d u)) . u / 2 d

are equal to a few percent for a smooth energy. A network that divides a feature by its own size is rough where symmetry
makes that feature vanish: k then grows without bound as d goes to zero, and force constants are meaningless
(eSEN, arXiv 2502.12147).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from ase import Atoms
from ase.calculators.calculator import Calculator

from mdrelax.engines.ase import MDRelaxCalculator

__all__ = ["Stiffness", "describe_roughness", "finite_product", "random_direction", "stiffness"]

Array = npt.NDArray[np.float64]

LARGEST_CHANGE = 0.1  # anharmonic bonds change by less than 1 % at the displacement below
DISPLACEMENT = 0.02  # A


class Stiffness(NamedTuple):
    """The curvature of the energy along one direction, eV/A^2."""

    at_zero: float
    displaced: float
    displacement: float  # A, of the atom that moves most


def random_direction(n_atoms: int, seed: int = 0) -> Array:
    """A direction (N, 3) in which all atoms move, at most by 1."""
    u = np.random.default_rng(seed).normal(size=(n_atoms, 3))
    return u / np.linalg.norm(u, axis=1).max()


def stiffness(
    atoms: Atoms, calculator: MDRelaxCalculator, direction: Array, displacement: float = DISPLACEMENT
) -> Stiffness:
    """The stiffness, exact and by differences, along a direction (N, 3) whose longest displacement is 1."""
    (product,) = calculator.get_hessian_products(atoms, direction[None])
    difference = finite_product(atoms, calculator, direction, displacement)
    return Stiffness(float((direction * product).sum()), float((direction * difference).sum()), displacement)


def finite_product(atoms: Atoms, calculator: Calculator, direction: Array, displacement: float) -> Array:
    """H u by central differences of the forces, (N, 3), for a direction u (N, 3) and its length ``displacement``."""
    forces = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions += sign * displacement * direction
        moved.calc = calculator
        forces.append(moved.get_forces())
    return (forces[1] - forces[0]) / (2 * displacement)


def describe_roughness(found: Stiffness) -> str:
    """A sentence if the two differ by more than 10 %; empty for a smooth model."""
    if abs(found.at_zero - found.displaced) <= LARGEST_CHANGE * max(abs(found.at_zero), abs(found.displaced)):
        return ""
    return (
        f"Warning: the model is not smooth here. Along one direction its stiffness is {found.at_zero:.4g} eV/A^2 at "
        f"this geometry and {found.displaced:.4g} over {found.displacement:g} A, so its frequencies depend on the "
        "displacement and are not meaningful."
    )
