"""The force field: from per-atom energies to energies, forces and stress, by finite differences and simple physics."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from mdrelax.forces.forcefield import ForceField, Prediction, UnknownElementError, fit_reference_energies
from mdrelax.forces.potential import Potential
from mdrelax.structures.graph import Edges
from molecules import (
    ELEMENTS,
    REFERENCES,
    batch_of,
    crystal,
    ethanol,
    graph_of,
    rattled,
    tiny_equiformer,
    tiny_force_field,
    water,
)

STEP = 1e-5  # A or strain: central differences err by about 100 STEP^2 = 1e-8, and by 1e-14 / STEP = 1e-9 of rounding


def energy_of(model: ForceField, atoms: Atoms) -> float:
    """The energy in eV, with neighbours found anew."""
    return model(graph_of(atoms)).energy.item()


def strained(atoms: Atoms, strain: np.ndarray) -> Atoms:
    """The crystal under the homogeneous deformation x -> (1 + strain) x, ASE's way."""
    copy = atoms.copy()
    copy.set_cell(atoms.cell[:] @ (np.eye(3) + strain).T, scale_atoms=True)
    return copy


# --- derivatives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: rattled(ethanol(), 1, seed=0)[0], crystal], ids=["ethanol", "crystal"])
def test_forces_are_minus_the_gradient_of_the_energy(make: Callable[[], Atoms]):
    """Each component of three atoms by central differences of the energy, to 1e-7 eV/A."""
    model, atoms = tiny_force_field(), make()
    forces = model(graph_of(atoms)).forces
    for atom in (0, 1, len(atoms) - 1):
        for axis in range(3):
            energies = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.positions[atom, axis] += sign * STEP
                energies.append(energy_of(model, moved))
            slope = (energies[0] - energies[1]) / (2 * STEP)
            assert forces[atom, axis].item() == pytest.approx(-slope, abs=1e-7)


def test_stress_is_the_derivative_of_the_energy_by_strain():
    """All nine components by finite strains of the cell, over the volume, to 1e-7 eV/A^3; symmetric."""
    model, atoms = tiny_force_field(), crystal()
    stress = model(graph_of(atoms), stress=True).stress[0]
    assert stress.abs().max() > 1e-3
    for a in range(3):
        for b in range(3):
            strain = np.zeros((3, 3))
            strain[a, b] += STEP / 2
            strain[b, a] += STEP / 2
            difference = energy_of(model, strained(atoms, strain)) - energy_of(model, strained(atoms, -strain))
            expected = difference / (2 * STEP * atoms.get_volume())
            assert stress[a, b].item() == pytest.approx(expected, abs=1e-7)
    assert torch.equal(stress, stress.T)


class Spring(Potential):
    """Each bond stores (r - 1)^2 / 2 eV."""

    cutoff = 1.9

    def __init__(self) -> None:
        super().__init__()
        self.stiffness = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, species: torch.Tensor, edges: Edges) -> torch.Tensor:
        """Half of each bond's energy to the target atom, (N,)."""
        energy = self.stiffness * (edges.vectors.norm(dim=1) - 1) ** 2 / 4
        return energy.new_zeros(len(species)).index_add(0, edges.index[1], energy)


def test_a_stretched_crystal_is_under_tension():
    """ASE's sign: springs of length 1 in a simple cubic cell of 1.2 A pull with 0.2 eV/A over 1.44 A^2 each way."""
    model = ForceField(Spring(), elements=(1,))
    stress = model(graph_of(Atoms("H", cell=[1.2] * 3, pbc=True), 1.5), stress=True).stress[0]
    np.testing.assert_allclose(stress, 0.2 / 1.44 * np.eye(3), atol=1e-14)


def test_a_stretched_bond_pulls_its_atoms_together():
    """Two atoms 1.5 A apart, spring of length 1: forces of 0.5 eV/A towards each other."""
    forces = ForceField(Spring(), elements=(1,))(graph_of(Atoms("H2", [[0, 0, 0], [1.5, 0, 0]]), 1.9)).forces
    np.testing.assert_allclose(forces, [[0.5, 0, 0], [-0.5, 0, 0]], atol=1e-14)


@pytest.mark.parametrize("make", [lambda: batch_of(*rattled(ethanol(), 2, seed=0)), lambda: graph_of(crystal())])
def test_the_net_force_is_zero(make: Callable):
    """Newton's third law, structure by structure: rounding of some ten forces of order 1."""
    graph = make()
    forces = tiny_force_field()(graph).forces
    net = forces.new_zeros(graph.n_graphs, 3).index_add(0, graph.batch, forces)
    assert forces.abs().max() > 0.1
    assert net.abs().max() < 1e-12


def test_molecules_have_no_stress():
    """Zero, not a division by a volume of zero; the crystal beside them in the batch keeps its own."""
    model = tiny_force_field()
    stress = model(batch_of(ethanol(), crystal(), water()), stress=True).stress
    assert torch.equal(stress[[0, 2]], torch.zeros(2, 3, 3).double())
    torch.testing.assert_close(stress[1], model(graph_of(crystal()), stress=True).stress[0], atol=1e-12, rtol=0)
    assert model(graph_of(crystal())).stress is None


# --- energies --------------------------------------------------------------------------------------------------------


def test_atomic_energies_add_up():
    """The energy of a structure is the sum over its atoms."""
    prediction = tiny_force_field()(batch_of(ethanol(), water()))
    expected = torch.stack([prediction.energies[:9].sum(), prediction.energies[9:].sum()])
    torch.testing.assert_close(prediction.energy, expected, atol=1e-12, rtol=0)


def test_energies_are_references_plus_scale_times_the_network():
    """E_i = E_ref(Z_i) + scale e_i, with the network's own e_i."""
    graph, scale = graph_of(ethanol()), 0.37
    model = tiny_force_field(scale=scale)
    species = torch.tensor([ELEMENTS.index(z) for z in graph.numbers.tolist()])
    source, target = graph.edge_index
    raw = tiny_equiformer()(species, Edges(graph.edge_index, graph.positions[source] - graph.positions[target]))
    expected = torch.tensor(REFERENCES).double()[species] + scale * raw.detach()
    torch.testing.assert_close(model(graph).energies, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("atoms", [Atoms("O"), Atoms("CH", [[0, 0, 0], [0, 0, 9]])], ids=["alone", "far apart"])
def test_atoms_without_neighbours_have_energies_and_no_forces(atoms: Atoms):
    """Zero edges: finite energies, forces exactly zero, stress too."""
    prediction = tiny_force_field()(graph_of(atoms), stress=True)
    assert prediction.energies.isfinite().all()
    assert torch.equal(prediction.forces, torch.zeros(len(atoms), 3).double())
    assert torch.equal(prediction.stress, torch.zeros(1, 3, 3).double())


def test_distant_atoms_are_strangers():
    """Two molecules 20 A apart have the sum of their energies (1e-11: rounding of 12 energies of order 1)."""
    model, far = tiny_force_field(), water()
    far.positions += 20
    together = energy_of(model, ethanol() + far)
    assert together == pytest.approx(energy_of(model, ethanol()) + energy_of(model, water()), abs=1e-11)


# --- elements --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [7, 79, 0, -1])
def test_an_unknown_element_is_named(number: int):
    """In the gaps of the table (7), beyond it (79), and numbers that are no element at all."""
    graph = graph_of(water())
    wrong = graph._replace(numbers=torch.tensor([8, number, 1]))
    with pytest.raises(UnknownElementError, match=rf"Atomic numbers \[{number}\] .* trained on \[1, 6, 8\]"):
        tiny_force_field()(wrong)


@pytest.mark.parametrize("elements", [(), (6, 1), (1, 1), (0, 1), (1, 119), (-8,), (1, 10**9)])
def test_elements_come_in_rising_order(elements: tuple[int, ...]):
    """None, unsorted or twice the same: refused when the force field is made."""
    with pytest.raises(ValueError, match="distinct atomic numbers, 1 to 118, in rising order"):
        ForceField(tiny_equiformer(), elements=elements)


# --- precision, modes and training -----------------------------------------------------------------------------------


def test_float32_agrees_with_float64():
    """Forces to 1e-4 of the largest; results, reference energies and scale are float64 in both."""
    graph = batch_of(*rattled(ethanol(), 2, seed=0))
    double, single = tiny_force_field(scale=0.1)(graph), tiny_force_field(scale=0.1).to_dtype(torch.float32)
    prediction = single(graph, stress=True)
    assert single.dtype == torch.float32
    assert single.reference_energies.dtype == single.scale.dtype == torch.float64
    assert {value.dtype for value in prediction} == {torch.float64}
    error = (prediction.forces - double.forces).abs().max() / double.forces.abs().max()
    assert 1e-9 < error < 1e-4
    torch.testing.assert_close(prediction.energy, double.energy, atol=1e-4, rtol=0)


def test_predictions_work_under_no_grad():
    """Forces are a derivative, but the user's mode is the user's: the same numbers, and nothing tracks gradients."""
    model, graph = tiny_force_field(), graph_of(crystal())
    expected = model(graph, stress=True)
    with torch.no_grad():
        found = model(graph, stress=True)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
        assert not one.requires_grad
        assert not other.requires_grad


def test_the_loss_on_energies_forces_and_stress_is_differentiable():
    """With create_graph the gradient by a weight is that of central differences (to 1e-5 of it)."""
    model, graph = tiny_force_field(), batch_of(*rattled(ethanol(), 1, seed=0), crystal())
    weight = model.potential.blocks[0].feed_forward.up.weights[1]

    def loss(prediction: Prediction) -> torch.Tensor:
        assert prediction.stress is not None
        return sum(part.square().sum() for part in (prediction.energy, prediction.forces, 100 * prediction.stress))

    (gradient,) = torch.autograd.grad(loss(model(graph, stress=True, create_graph=True)), weight)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[0, 0] += sign * STEP
        values.append(loss(model(graph, stress=True)).item())
        with torch.no_grad():
            weight[0, 0] -= sign * STEP
    assert abs(gradient[0, 0]) > 1e-3
    assert gradient[0, 0].item() == pytest.approx((values[0] - values[1]) / (2 * STEP), rel=1e-5)


def test_predicting_leaves_no_gradients_behind():
    """Neither the weights nor the caller's positions are touched."""
    model, graph = tiny_force_field(), graph_of(ethanol())
    before = graph.positions.clone()
    model(graph)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(graph.positions, before)
    assert not graph.positions.requires_grad


# --- reference energies ----------------------------------------------------------------------------------------------


def test_reference_energies_are_found_exactly():
    """Totals made from known energies of H, C and O give them back, whatever their size (1e-9 eV of 2000)."""
    known = torch.tensor([-13.6, -1036.1, -2042.3], dtype=torch.float64)
    numbers = [torch.tensor(molecule(name).numbers) for name in ("CH4", "H2O", "CH3OH", "CO2", "C2H6")]
    totals = torch.stack([known[[ELEMENTS.index(z) for z in n.tolist()]].sum() for n in numbers])
    found = fit_reference_energies(numbers, totals, ELEMENTS)
    torch.testing.assert_close(found, known, atol=1e-9, rtol=0)


def test_one_composition_alone_is_still_fitted():
    """Only the sum is known then: the smallest energies that give it, which numpy's pseudoinverse finds too."""
    numbers = [torch.tensor(ethanol().numbers)] * 3
    found = fit_reference_energies(numbers, torch.tensor([-90.0, -91.0, -92.0]), ELEMENTS)
    counts = np.array([[6, 2, 1]] * 3)
    np.testing.assert_allclose(found, np.linalg.pinv(counts) @ [-90, -91, -92], atol=1e-10)
    assert float(counts[0] @ found.numpy()) == pytest.approx(-91)
