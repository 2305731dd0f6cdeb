"""The measure of equivariance: right on networks that keep the symmetries, and on networks that break one each."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from mdrelax.base.seeds import generator
from mdrelax.forces.forcefield import ForceField, Prediction
from mdrelax.forces.symmetry import equivariance_error
from mdrelax.method.certificate import LARGEST_ERROR_FLOAT32, LARGEST_ERROR_FLOAT64, EquivarianceError
from mdrelax.method.relaxation import relax_constraints
from mdrelax.structures.graph import Edges, Graph, edge_vectors
from mdrelax.structures.rotate import random_rotations
from molecules import batch_of, ethanol, graph_of, normal, rattled, tiny_equiformer, tiny_force_field, water

STRUCTURES = [*rattled(ethanol(), 2, seed=0), *rattled(water(), 1, seed=1)]


def relaxed_network(scale: float = 1.0) -> ForceField:
    """A network whose free maps break the rotations by some percent of the forces."""
    model = tiny_force_field(scale=scale)
    relax_constraints(model, initial_std=0.1, generator=torch.Generator().manual_seed(0))
    return model


# --- the rotations ---------------------------------------------------------------------------------------------------


def test_random_rotations_are_scipys_of_the_same_quaternions():
    """Normal deviates as quaternions (w, x, y, z), made into matrices by scipy."""
    found = random_rotations(50, torch.Generator().manual_seed(3))
    w, xyz = normal(50, 4, seed=3).split([1, 3], dim=1)
    np.testing.assert_allclose(found, Rotation.from_quat(torch.cat([xyz, w], 1).numpy()).as_matrix(), atol=1e-14)


def test_random_rotations_are_uniform():
    """Over SO(3) the mean of R is 0, of tr(R)^2 is 1; 20000 rotations scatter by 1/100, five times that is allowed."""
    matrices = random_rotations(20000, torch.Generator().manual_seed(0))
    assert matrices.mean(0).abs().max() < 0.05
    assert matrices.diagonal(dim1=1, dim2=2).sum(1).square().mean().item() == pytest.approx(1, abs=0.05)


# --- the measure -----------------------------------------------------------------------------------------------------


def by_hand(model: ForceField, sign: int, seed: int) -> float:
    """The error of one rotation (times the inversion for sign -1) a structure, molecule by molecule, with numpy."""
    stream = generator(seed, "operations")
    w, xyz = torch.randn(len(STRUCTURES), 4, dtype=torch.float64, generator=stream).split([1, 3], dim=1)
    matrices = sign * Rotation.from_quat(torch.cat([xyz, w], 1).numpy()).as_matrix()
    sums, energy_errors, force_errors = [], [], []
    for atoms, matrix in zip(STRUCTURES, matrices, strict=True):
        before = model(graph_of(atoms))
        after = model(graph_of(Atoms(atoms.numbers, atoms.positions @ matrix.T)))
        energies, of_atoms = terms(model, graph_of(atoms))
        sums += of_atoms
        energy_errors.append(abs((after.energy - before.energy).item()) / sum(map(abs, energies)))
        force_errors.append(np.abs(after.forces.numpy() - before.forces.numpy() @ matrix.T).max())
    return max(*energy_errors, *(error / np.sqrt(np.mean(np.square(sums))) for error in force_errors))


def terms(model: ForceField, graph: Graph) -> tuple[list[float], list[float]]:
    """The atoms' energies without references, and for each atom the sum of |dE/dr| over the edges that it ends."""
    vectors = edge_vectors(graph).requires_grad_()
    species = torch.searchsorted(torch.tensor(model.elements), graph.numbers)
    energies = model.scale * model.potential(species, Edges(graph.edge_index, vectors))
    (slopes,) = torch.autograd.grad(energies.sum(), vectors)
    ends = graph.edge_index.T.tolist()
    sizes = slopes.norm(dim=1).tolist()
    return energies.tolist(), [sum(s for s, e in zip(sizes, ends, strict=True) if k in e) for k in range(len(species))]


@pytest.mark.parametrize("seed", [0, 5])
def test_the_measure_is_what_scipys_rotations_give(seed: int):
    """One operation of each kind on a network that breaks rotations: the same numbers, to 1e-9 of them."""
    model = relaxed_network()
    error = equivariance_error(model, batch_of(*STRUCTURES), n_operations=1, seed=seed)
    assert error.rotation > 1e-3
    assert error.rotation == pytest.approx(by_hand(model, 1, seed), rel=1e-9)
    assert error.reflection == pytest.approx(by_hand(model, -1, seed), rel=1e-9)


def test_a_network_of_natural_parities_keeps_every_symmetry():
    """E(3): 1e-11 of what is summed in float64, and rounding of float32 only (not below 1e-8) in float32."""
    graph = batch_of(*STRUCTURES)
    assert equivariance_error(tiny_force_field(), graph).worst(reflections=True) < 1e-11
    single = equivariance_error(tiny_force_field(), graph, dtype=torch.float32).worst(reflections=True)
    assert 1e-8 < single < 1e-4


def test_a_network_of_even_irreps_keeps_all_but_reflections():
    """SE(3): mirror images differ, and `worst` leaves them out when asked."""
    error = equivariance_error(tiny_force_field("8x0e+4x1e+4x2e"), batch_of(*STRUCTURES))
    assert error.worst(reflections=False) < 1e-11
    assert error.worst(reflections=True) == error.reflection > 1e-3


def test_a_crystal_is_turned_with_its_cell():
    """Periodic structures keep the symmetries too: the lattice vectors are turned along."""
    (diamond,) = rattled(bulk("C", cubic=True), 1, seed=0)
    assert equivariance_error(tiny_force_field(cutoff=3.0), graph_of(diamond, 3.0)).worst(reflections=True) < 1e-11


def test_errors_are_relative():
    """A force field in other units (scale 1000) has the same errors; reference energies play no part."""
    graph = batch_of(*STRUCTURES)
    small, large = (equivariance_error(relaxed_network(scale), graph, n_operations=1) for scale in (1.0, 1000.0))
    assert large.rotation == pytest.approx(small.rotation, rel=1e-9)


def test_more_operations_find_no_smaller_error():
    """The largest error counts; the same seed draws the same operations."""
    model, graph = relaxed_network(), batch_of(*STRUCTURES)
    one, again, four = (equivariance_error(model, graph, n_operations=n, seed=1) for n in (1, 1, 4))
    assert one == again
    assert all(more >= fewer for more, fewer in zip(four, one, strict=True))
    assert four.rotation > one.rotation


def test_the_force_field_is_not_touched():
    """Its dtype, mode and weights are as before: the measure works on a copy."""
    model = tiny_force_field().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    equivariance_error(model, batch_of(*STRUCTURES), dtype=torch.float32, n_operations=1)
    assert model.training
    assert model.dtype == torch.float64
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# --- networks that break one symmetry each ---------------------------------------------------------------------------


class Broken(nn.Module):
    """A force field with a term added to the energy of each structure."""

    def __init__(self, term: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.sound, self.term = tiny_force_field(), term
        self.reference_energies, self.magnitudes = self.sound.reference_energies, self.sound.magnitudes

    def to_dtype(self, dtype: torch.dtype) -> "Broken":
        """Cast the sound part."""
        self.sound.to_dtype(dtype)
        return self

    def forward(self, graph: Graph) -> Prediction:
        """The sound prediction with 0.01 eV of the term added."""
        prediction = self.sound(graph)
        wrong = torch.stack([self.term(graph.positions[graph.batch == g]) for g in range(graph.n_graphs)])
        return prediction._replace(energy=prediction.energy + 0.01 * wrong)


def along_z(x: Tensor) -> Tensor:
    """The molecule's length along z."""
    return (x - x.mean(0))[:, 2].square().sum()


def handed(x: Tensor) -> Tensor:
    """A pseudoscalar of the third moments: it changes its sign under reflections and keeps its size otherwise."""
    y = x - x.mean(0)
    r = y.square().sum(1, keepdim=True)
    return torch.det(torch.stack([(r * y).sum(0), (r**2 * y).sum(0), (r**3 * y).sum(0)])) * 1e-3


def from_origin(x: Tensor) -> Tensor:
    """The distance of the centre from the origin."""
    return x.mean(0).norm()


def first_atom(x: Tensor) -> Tensor:
    """How far the first atom is from the centre."""
    return (x[0] - x.mean(0)).norm()


@pytest.mark.parametrize(
    ("term", "broken"),
    [
        (along_z, {"rotation", "reflection"}),
        (handed, {"reflection"}),
        (from_origin, {"translation"}),
        (first_atom, {"permutation"}),
    ],
)
def test_a_broken_symmetry_is_found_and_named(term: Callable[[Tensor], Tensor], broken: set[str]):
    """Each term keeps all symmetries but its own: those errors exceed 1e-4, the others stay rounding."""
    error = equivariance_error(Broken(term), batch_of(*STRUCTURES))._asdict()  # type: ignore[arg-type]
    assert {name for name, value in error.items() if value > 1e-4} == broken
    assert {name for name, value in error.items() if value < 1e-9} == set(error) - broken


class Windy(Broken):
    """Right energies, but forces with a wind along x."""

    def forward(self, graph: Graph) -> Prediction:
        """The sound prediction with forces 0.01 eV/A too large along x."""
        prediction = self.sound(graph)
        return prediction._replace(forces=prediction.forces + torch.tensor([0.01, 0, 0]))


def test_wrong_forces_are_found_behind_right_energies():
    """Both are compared."""
    error = equivariance_error(Windy(first_atom), batch_of(*STRUCTURES))  # type: ignore[arg-type]
    assert error.rotation > 1e-4
    assert error.translation < 1e-9


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_none_count_as_infinite_errors(bad: float):
    """A comparison with NaN is never true: without care, a network of NaN would have passed its certificate."""
    model = tiny_force_field()
    with torch.no_grad():
        model.potential.embedding[0, 0] = bad
    error = equivariance_error(model, batch_of(*STRUCTURES), n_operations=1)
    assert error == EquivarianceError(*[math.inf] * 4)
    assert error.worst(reflections=False) == math.inf


def test_an_overflow_in_one_orientation_is_infinite():
    """Infinite energies of the turned structure only: an infinite error, not the largest finite number."""
    model = Broken(lambda x: torch.full((), math.inf).double() if x[0, 0] > 5 else x.new_zeros(()))
    error = equivariance_error(model, batch_of(*STRUCTURES))  # type: ignore[arg-type]
    assert error.translation == math.inf
    assert error.worst(reflections=True) == math.inf


def test_all_electron_energies_do_not_blur_the_error():
    """Copper's 45,000 eV an atom are references, which no symmetry breaks: 108 atoms are measured to 1e-12."""
    model = tiny_force_field()
    model.reference_energies.fill_(-45_000.0)
    (crystal,) = rattled(bulk("C", "fcc", a=3.6, cubic=True) * (3, 3, 3), 1, seed=0, amplitude=0.05)
    assert equivariance_error(model, graph_of(crystal), n_operations=2).worst(reflections=True) < 1e-12


def test_forces_that_vanish_by_symmetry_are_no_false_alarm():
    """In perfect silicon every force is zero: rounding is measured against what adds up to zero, not against itself.

    The limits are those of a certificate, in both precisions.
    """
    model = ForceField(tiny_equiformer(), elements=(1, 6, 14)).to_dtype(torch.float64)
    graph = graph_of(bulk("Si", cubic=True) * (2, 2, 2))
    assert model(graph).forces.abs().max() < 1e-13
    assert equivariance_error(model, graph).worst(reflections=True) < LARGEST_ERROR_FLOAT64
    assert equivariance_error(model, graph, dtype=torch.float32).worst(reflections=True) < LARGEST_ERROR_FLOAT32
