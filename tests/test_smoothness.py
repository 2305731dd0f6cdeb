"""Rough models are told from smooth ones by the stiffness at a symmetric site."""

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from torch import Tensor, nn

from lennard_jones import crystal, lj_calculator
from mdrelax.analysis.smoothness import describe_roughness, random_direction, stiffness
from mdrelax.engines.ase import MDRelaxCalculator
from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.potential import Potential
from mdrelax.structures.graph import Edges


class NormalisedVector(Potential):
    """The fault itself: the sum of an atom's edge vectors, divided by its own size, which symmetry makes vanish."""

    cutoff = 3.0

    def __init__(self) -> None:
        super().__init__()
        self.eps = nn.Parameter(torch.tensor(1e-4, dtype=torch.float64))

    def forward(self, species: Tensor, edges: Edges) -> Tensor:
        """sqrt(|sum r|^2 + eps^2) for each atom, (N,)."""
        envelope = (1 - edges.vectors.square().sum(1) / 9.0).clamp(min=0) ** 3
        total = edges.vectors.new_zeros(len(species), 3).index_add(0, edges.index[1], edges.vectors * envelope[:, None])
        return (total.square().sum(1) + self.eps**2).sqrt()


def test_a_smooth_model_has_one_stiffness() -> None:
    """Lennard-Jones, exact and over 0.02 A: equal to 2 %, in a rattled cell and for one atom of a perfect crystal."""
    perfect = bulk("Cu", cubic=True) * (2, 2, 2)
    alone = np.zeros((32, 3))
    alone[0, 0] = 1.0
    for atoms, direction in ((crystal(), random_direction(8)), (perfect, alone)):
        found = stiffness(atoms, lj_calculator(), direction)
        assert found.displaced == pytest.approx(found.at_zero, rel=0.02)
        assert describe_roughness(found) == ""


def test_a_rough_model_is_named_at_a_symmetric_site() -> None:
    """A normalised vector is stiff without bound where it vanishes: in a perfect crystal, not in a bent molecule."""
    calculator = MDRelaxCalculator(ForceField(NormalisedVector(), elements=(1, 8, 29)))
    perfect = bulk("Cu", cubic=True) * (2, 2, 2)
    found = stiffness(perfect, calculator, random_direction(32))
    assert found.at_zero > 10 * found.displaced > 0
    assert describe_roughness(found).startswith("Warning: the model is not smooth here.")
    assert describe_roughness(stiffness(molecule("H2O"), calculator, random_direction(3))) == ""


def test_a_random_direction_moves_every_atom() -> None:
    """The longest displacement is 1, and the same seed gives the same direction."""
    lengths = np.linalg.norm(random_direction(5), axis=1)
    assert lengths.max() == pytest.approx(1.0)
    assert lengths.min() > 0
    np.testing.assert_array_equal(random_direction(5), random_direction(5))
