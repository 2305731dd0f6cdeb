"""Geometries: relaxation with ASE's optimisers until forces vanish, as harmonic analyses require.

Forces in eV/A, lengths in A. The input structures are not changed.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from mdrelax.analysis.trajectory import broken_bonds

__all__ = ["NotRelaxedError", "Relaxed", "bare", "largest_force", "relax", "what_broke"]

MOST_STEPS = 1000


class NotRelaxedError(RuntimeError):
    """A geometry whose forces did not become small."""


class Relaxed(NamedTuple):
    """A geometry with its calculator, and how it was obtained."""

    atoms: Atoms
    largest_force: float  # eV/A, of an atom
    steps: int  # of the optimiser; 0 if nothing was relaxed


def bare(atoms: Atoms) -> Atoms:
    """Elements, positions, cell, pbc and masses only: no constraints, labels or calculator."""
    copy = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    if atoms.has("masses"):
        copy.set_masses(atoms.get_masses())
    return copy


def largest_force(atoms: Atoms) -> float:
    """The length of the longest force on an atom, eV/A."""
    return float(np.linalg.norm(atoms.get_forces(), axis=1).max())


def relax(atoms: Atoms, calculator: Calculator, *, fmax: float, cell: bool = False, steps: int = MOST_STEPS) -> Relaxed:
    """Move a copy of the atoms, and with ``cell`` the lattice too, until no force is larger than ``fmax`` (eV/A).

    Raises ``ValueError`` unless ``fmax`` is positive and finite, ``NotRelaxedError`` if ``steps`` do not suffice.
    """
    if not 0 < fmax < math.inf:
        raise ValueError(f"`fmax` must be a force > 0 in eV/A, got {fmax}; 1e-4 suits vibrations and phonons.")
    own = bare(atoms)
    own.calc = calculator
    moving: Any = FrechetCellFilter(own) if cell else own
    optimiser = BFGS(moving, logfile=None)
    converged = optimiser.run(fmax=fmax, steps=steps)
    force = largest_force(own)
    if not converged:
        raise NotRelaxedError(
            f"The geometry did not relax: the largest force is {force:.2g} eV/A after {steps} steps, and `fmax` is "
            f"{fmax:g} eV/A. Start from a better geometry, or take a larger `--fmax`; `--no-relax` analyses the "
            "structure as it is."
        )
    return Relaxed(own, force, optimiser.nsteps)


def what_broke(relaxed: Atoms, start: Atoms) -> str:
    """A sentence about a bond of ``start`` that relaxation broke; empty if there is none."""
    broken = broken_bonds([relaxed], start)
    if broken is None:
        return ""
    first, second = (f"{start.symbols[k]}{k}" for k in broken.atoms)
    return (
        f"Relaxation broke the bond {first}-{second}: {broken.length:.2f} A, before {broken.reference_length:.2f} A. "
        "Was the model trained on structures like this one?"
    )
