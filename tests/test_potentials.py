"""The contract: what every potential keeps, whatever its architecture; ``potential_cases`` lists them.

Everything is float64 unless a law says otherwise. Rounding, where a tolerance is called that, is 1e-10 of the largest
force or energy: about 1e-16 a sum, times the gains of a few layers. Every parameter is moved off its initial value, so
that no bias of zero hides a fault.
"""

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from scipy.spatial.transform import Rotation
from torch import Tensor

from mdrelax.forces.forcefield import ForceField, Prediction
from mdrelax.forces.symmetry import equivariance_error
from mdrelax.potentials import POTENTIALS
from mdrelax.structures.graph import Edges, Graph, edge_vectors
from molecules import CUTOFF, ELEMENTS, batch_of, ethanol, graph_of, normal, rattled, water
from potential_cases import CASES, force_field_of

ROUNDING = 1e-10


@pytest.fixture(params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    """The case under test."""
    return request.param


@pytest.fixture
def model(name: str) -> ForceField:
    """Its network as a force field, made once; no test changes it."""
    return force_field_of(name)


def _ethanol() -> Atoms:
    return rattled(ethanol(), 1, seed=0)[0]  # without its mirror plane


def _small_cell() -> Atoms:
    """Three atoms in a skewed cell so small that each sees several images of itself and of the others."""
    cell = [[3.1, 0.0, 0.0], [0.7, 3.4, 0.0], [-0.4, 0.9, 3.9]]
    return Atoms("HCO", scaled_positions=[[0, 0, 0], [0.45, 0.3, 0.4], [0.1, 0.8, 0.7]], cell=cell, pbc=True)


def _moved(atoms: Atoms, by: Tensor) -> Atoms:
    return Atoms(atoms.numbers, atoms.positions + by.numpy(), cell=atoms.cell, pbc=atoms.pbc)


def _assert_same(found: Prediction, expected: Prediction) -> None:
    largest = float(expected.forces.abs().max())
    torch.testing.assert_close(found.energies, expected.energies, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=ROUNDING * max(1, largest))


def test_every_potential_is_under_contract() -> None:
    """Each registered name begins at least one case."""
    assert set(POTENTIALS) == {name.split()[0] for name in CASES}


@pytest.mark.parametrize("atoms", [_ethanol(), _small_cell()], ids=["molecule", "cell"])
def test_forces_turn_and_reflect_with_the_structure(model: ForceField, name: str, atoms: Atoms) -> None:
    """F(Q x) = Q F(x), E(Q x) = E(x); for reflections only where E(3) is claimed, else they must differ."""
    before = model(graph_of(atoms))
    rotation = Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix()
    for matrix in (rotation, -rotation):
        turned = atoms.copy()
        turned.positions, turned.cell = atoms.positions @ matrix.T, atoms.cell[:] @ matrix.T
        after = model(graph_of(turned))
        expected = before._replace(forces=before.forces @ torch.from_numpy(matrix).T)
        if matrix is rotation or CASES[name].reflections:
            _assert_same(after, expected)
        else:
            assert (after.energies - before.energies).abs().max() > 1e2 * ROUNDING  # parity is really absent


def test_energies_and_forces_follow_their_atoms(model: ForceField) -> None:
    """Moved as a whole nothing changes; atoms in another order give the same numbers in that order."""
    atoms, order = _ethanol(), np.random.default_rng(0).permutation(9)
    before, shifted = model(graph_of(atoms)), model(graph_of(_moved(atoms, torch.tensor([30.0, -7.0, 11.0]))))
    _assert_same(shifted, before)
    permuted = before._replace(energies=before.energies[order], forces=before.forces[order])
    _assert_same(model(graph_of(atoms[order])), permuted)


def _slopes(model: ForceField, displaced: Callable[[Tensor], Atoms], directions: Tensor, h: float = 3e-6) -> Tensor:
    """Central differences of the energy along each direction; their errors, h^2 and rounding / h, are 1e-8 or less."""
    energy = model(batch_of(*(displaced(sign * h * d) for d in directions for sign in (1, -1)))).energy.view(-1, 2)
    return (energy[:, 0] - energy[:, 1]) / (2 * h)


@pytest.mark.parametrize("atoms", [_ethanol(), _small_cell()], ids=["molecule", "cell"])
def test_forces_are_minus_the_derivative_of_the_energy(model: ForceField, atoms: Atoms) -> None:
    """Along six random directions of all atoms, to 1e-6 of the largest slope."""
    directions = normal(6, len(atoms), 3, seed=1)
    expected = _slopes(model, partial(_moved, atoms), directions)
    found = -(directions * model(graph_of(atoms)).forces).sum((1, 2))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def test_stress_is_the_derivative_with_strain_over_the_volume(model: ForceField) -> None:
    """Along six random symmetric strains of the whole cell, in ASE's sign, to 1e-6 of the largest slope."""
    atoms, strains = _small_cell(), normal(6, 3, 3, seed=2)
    strains = (strains + strains.transpose(1, 2)) / 2

    def strained(strain: Tensor) -> Atoms:
        copied = atoms.copy()
        copied.set_cell(atoms.cell[:] @ (np.eye(3) + strain.numpy()), scale_atoms=True)
        return copied

    expected = _slopes(model, strained, strains) / atoms.get_volume()
    found = (strains * model(graph_of(atoms), stress=True).stress).sum((1, 2))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def _derivatives(model: ForceField, atoms: Atoms, direction: Tensor) -> list[Tensor]:
    """Energy, its gradient, and its second derivatives along a direction of all atoms."""
    graph = graph_of(atoms)
    positions = graph.positions.clone().requires_grad_()
    species = torch.searchsorted(torch.tensor(ELEMENTS), graph.numbers)
    vectors = edge_vectors(graph._replace(positions=positions))
    energy = model.potential(species, Edges(graph.edge_index, vectors)).sum() + 0 * positions.sum()
    (gradient,) = torch.autograd.grad(energy, positions, create_graph=True)
    (second,) = torch.autograd.grad((gradient * direction).sum() + 0 * positions.sum(), positions)
    return [energy.detach(), gradient.detach(), second]


@pytest.mark.parametrize("others", [_ethanol(), Atoms("C")], ids=["one of many neighbours", "the only neighbour"])
def test_nothing_jumps_when_an_atom_crosses_the_cutoff(model: ForceField, others: Atoms) -> None:
    """Energy, gradient and second derivatives are continuous (C2).

    From 1e-7 A on one side to 1e-7 A on the other they change by the next derivative times 2e-7 A: less than 5e-5 of
    their size inside, even where the third derivatives are 250 times (1/A) the second.
    """
    unit = torch.tensor([0.6, 0.48, 0.64], dtype=torch.float64)
    direction = torch.zeros(len(others) + 1, 3, dtype=torch.float64)
    direction[-1] = unit

    def at(distance: float) -> list[Tensor]:
        return _derivatives(model, others + Atoms("O", others.positions[:1] + distance * unit.numpy()), direction)

    inside, before, after = [at(r) for r in (3.0, 3.5, 4.0, 4.5)], at(CUTOFF - 1e-7), at(CUTOFF + 1e-7)
    for k in range(3):
        size = max(float(values[k].abs().max()) for values in inside)
        assert size > 1e-3  # there is something to be continuous
        assert float((before[k] - after[k]).abs().max()) < 5e-5 * size, f"derivative {k} jumps"


def test_a_batch_is_its_structures_one_by_one(model: ForceField) -> None:
    """Molecules, an atom without neighbours and a cell together give what each gives alone, stress included.

    All are rattled: where a vector vanishes by symmetry, norms with a small eps make rounding grow without bound.
    """
    methane = rattled(molecule("CH4"), 1, seed=5)[0]
    structures = [_ethanol(), Atoms("O"), *rattled(water(), 2, seed=3), _small_cell(), methane]
    together = model(batch_of(*structures), stress=True)
    alone = [model(graph_of(atoms), stress=True) for atoms in structures]
    for name in Prediction._fields:
        expected = torch.cat([getattr(prediction, name) for prediction in alone])
        torch.testing.assert_close(getattr(together, name), expected, rtol=ROUNDING, atol=ROUNDING)


def test_fragments_out_of_reach_do_not_know_of_each_other(model: ForceField) -> None:
    """Two molecules 50 A apart in one structure have the energies and forces of each alone."""
    near, far = _ethanol(), _moved(rattled(water(), 1, seed=4)[0], torch.tensor([50.0, 0.0, 0.0]))
    _assert_same(model(graph_of(near + far)), model(batch_of(near, far)))


def test_atoms_without_neighbours_have_an_energy_and_no_force(model: ForceField) -> None:
    """Zero edges: the energy depends on the element only, forces and stress are exactly zero, training runs."""
    graph = batch_of(Atoms("H"), Atoms("C"), Atoms("H", [[1.0, 2.0, 3.0]]))
    prediction = model(graph, stress=True, create_graph=True)
    assert graph.edge_index.shape == (2, 0)
    first, other, like_first = prediction.energy.tolist()
    assert first == pytest.approx(like_first, rel=ROUNDING)
    assert first != pytest.approx(other, rel=1e-3)
    assert not prediction.forces.any()
    assert torch.equal(prediction.stress, torch.zeros(3, 3, 3, dtype=torch.float64))
    gradients = torch.autograd.grad(prediction.energy.sum(), list(model.parameters()), allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in gradients)


def test_the_order_of_the_edges_does_not_matter(model: ForceField) -> None:
    """Edges shuffled, no more sorted by target."""
    graph = graph_of(_ethanol())
    order = torch.from_numpy(np.random.default_rng(0).permutation(graph.edge_index.shape[1]))
    shuffled = graph._replace(edge_index=graph.edge_index[:, order], edge_shift=graph.edge_shift[order])
    _assert_same(model(shuffled), model(graph))


def test_every_pair_within_the_cutoff_counts(model: ForceField) -> None:
    """In a cluster of 40 atoms, each with 39 neighbours, the energy depends on every single edge: none is capped."""
    graph = graph_of(Atoms("H10C20O10", np.random.default_rng(5).uniform(0, 2.8, (40, 3))))  # a cube of diagonal 4.8 A
    assert graph.edge_index.shape[1] == 40 * 39
    vectors = edge_vectors(graph).requires_grad_()
    energies = model.potential(model.species_of(graph.numbers), Edges(graph.edge_index, vectors))
    (gradient,) = torch.autograd.grad(energies.sum(), vectors)
    assert gradient.norm(dim=1).min() > 0


def test_float32_is_close_to_float64(model: ForceField) -> None:
    """Single precision keeps forces to 1e-4 of their root mean square: 1e-7 a sum, times the gains of the layers."""
    graph = batch_of(_ethanol(), _small_cell())
    exact, single = model(graph), copy.deepcopy(model).to_dtype(torch.float32)(graph)
    assert single.forces.dtype == single.energy.dtype == torch.float64
    assert (single.forces - exact.forces).abs().max() < 1e-4 * exact.forces.square().mean().sqrt()


def test_casting_down_and_up_keeps_the_symmetry(model: ForceField, name: str) -> None:
    """float64 -> float32 -> float64 rounds the weights, never a constant that the symmetry hangs on."""
    cast = copy.deepcopy(model).to_dtype(torch.float32).to_dtype(torch.float64)
    error = equivariance_error(cast, graph_of(_ethanol()), n_operations=2)
    assert error.worst(reflections=CASES[name].reflections) < 1e-12


def _loss(model: ForceField, graph: Graph) -> Tensor:
    """A training loss: energies and forces against arbitrary labels."""
    prediction = model(graph, create_graph=True)
    targets = normal(*prediction.forces.shape, seed=6)
    return (prediction.forces - targets).square().mean() + prediction.energy.square().mean()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.unused is not None])
def test_training_reaches_every_parameter(model: ForceField, name: str) -> None:
    """The gradient of a loss on energies and forces is finite, and zero only for what the architecture leaves out."""
    parameters = dict(model.potential.named_parameters())
    loss = _loss(model, batch_of(_ethanol(), water()))
    gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    assert all(gradient.isfinite().all() for gradient in gradients)
    unmoved = {key for key, gradient in zip(parameters, gradients, strict=True) if not gradient.any()}
    assert unmoved == CASES[name].unused(model.potential)


@pytest.mark.parametrize("structures", [(_ethanol(), water()), (_small_cell(),)], ids=["molecules", "cell"])
def test_the_gradient_of_the_force_loss_is_right(model: ForceField, structures: tuple[Atoms, ...]) -> None:
    """Against a central difference along a random direction of all weights, to 1e-6: h^2 times third derivatives."""
    moved, graph, h = copy.deepcopy(model), batch_of(*structures), 1e-5
    directions = [normal(*parameter.shape, seed=k) for k, parameter in enumerate(moved.parameters())]

    def loss_at(step: float) -> Tensor:
        for p, start, direction in zip(moved.parameters(), model.parameters(), directions, strict=True):
            p.data.copy_(start.data + step * direction)
        return _loss(moved, graph)

    gradients = torch.autograd.grad(loss_at(0), list(moved.parameters()), materialize_grads=True)
    parts = torch.cat([(g * d).flatten() for g, d in zip(gradients, directions, strict=True)])
    expected = (loss_at(h) - loss_at(-h)).detach() / (2 * h)
    assert abs(parts.sum() - expected) < 1e-6 * parts.norm()
