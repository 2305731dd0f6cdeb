"""Lennard-Jones in torch beside ASE's own: the outside truth of the calculator's tests, and its structures."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones
from torch import Tensor, nn

from mdrelax.engines.ase import MDRelaxCalculator
from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.potential import Potential
from mdrelax.structures.graph import Edges

SIGMA, EPSILON, CUTOFF, ONSET = 2.5, 0.3, 6.0, 4.0
SKEW = np.array([[0, 0.3, 0], [0, 0, 0.2], [0.1, 0, 0]])  # A
REFERENCE = {1: -1.0, 18: 2.0, 29: 0.5}  # eV an atom; ASE's Lennard-Jones knows none


class SmoothLennardJones(Potential):
    """ASE's ``LennardJones(smooth=True)``, written again in torch."""

    cutoff = CUTOFF

    def __init__(self) -> None:
        super().__init__()
        self.epsilon = nn.Parameter(torch.tensor(EPSILON, dtype=torch.float64))

    def forward(self, species: Tensor, edges: Edges) -> Tensor:
        """Half of each pair energy to the target atom, (N,)."""
        r2 = edges.vectors.square().sum(1)
        inner, outer = ONSET**2, CUTOFF**2
        fade = (outer - r2) ** 2 * (outer + 2 * r2 - 3 * inner) / (outer - inner) ** 3
        fade = torch.where(r2 < inner, torch.ones_like(r2), fade)
        attraction = (SIGMA**2 / r2) ** 3
        pair = 4 * self.epsilon * (attraction**2 - attraction) * fade
        return pair.new_zeros(species.shape[0]).index_add(0, edges.index[1], pair / 2)


def lj_force_field() -> ForceField:
    """Smooth Lennard-Jones for H, Ar and Cu with reference energies, float64."""
    energies = torch.tensor(list(REFERENCE.values()), dtype=torch.float64)
    return ForceField(SmoothLennardJones(), elements=tuple(REFERENCE), reference_energies=energies)


def lj_calculator(**options: object) -> MDRelaxCalculator:
    """Our calculator of the smooth Lennard-Jones potential."""
    return MDRelaxCalculator(lj_force_field(), **options)  # type: ignore[arg-type]


def with_ase(atoms: Atoms) -> Atoms:
    """The same structure with ASE's own calculator."""
    other = atoms.copy()
    other.calc = LennardJones(sigma=SIGMA, epsilon=EPSILON, rc=CUTOFF, ro=ONSET, smooth=True)
    return other


def _references(atoms: Atoms) -> float:
    return sum(REFERENCE[z] for z in atoms.numbers.tolist())


def crystal(seed: int = 0) -> Atoms:
    """Eight copper atoms, rattled, in a skew cell that is smaller than the cut-off."""
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.set_cell(atoms.cell[:] + SKEW, scale_atoms=True)
    atoms.rattle(0.1, seed=seed)
    return atoms


def cluster(seed: int = 0) -> Atoms:
    """Six atoms of three elements on a grid, the elements shuffled by the seed."""
    return Atoms("Ar4HCu", np.random.default_rng(seed).permutation(np.mgrid[0:2, 0:3, 0:1].reshape(3, -1).T) * 2.7)


def assert_like_ase(atoms: Atoms) -> None:
    """Energy and forces are those of ASE to rounding (1e-9: sums of some hundred terms of order 1 eV)."""
    other = with_ase(atoms)
    assert atoms.get_potential_energy() == pytest.approx(other.get_potential_energy() + _references(atoms), abs=1e-9)
    np.testing.assert_allclose(atoms.get_forces(), other.get_forces(), atol=1e-9)
    if atoms.pbc.all():
        np.testing.assert_allclose(atoms.get_stress(), other.get_stress(), atol=1e-10)
