"""The contract: what every potential keeps, whatever its architecture; ``potential_cases`` lists them.

The laws are those of ``mdrelax.testing``, which ship with the package; below them stands what only our own networks
claim. Everything is float64 unless a law says otherwise. Every parameter is moved off its initial value, so that no
bias of zero hides a fault.
"""

import copy

import pytest
import torch
from ase import Atoms
from ase.build import molecule
from torch import Tensor, nn

from mdrelax.forces.forcefield import ForceField, Prediction
from mdrelax.forces.potential import Potential
from mdrelax.forces.symmetry import equivariance_error
from mdrelax.potentials import POTENTIALS
from mdrelax.structures.graph import Edges, Graph
from mdrelax.testing import LAWS, ROTATION, BrokenLawError, check_potential
from molecules import ELEMENTS, batch_of, ethanol, graph_of, normal, rattled, water
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


def test_every_potential_is_under_contract() -> None:
    """Each registered name begins at least one case."""
    assert set(POTENTIALS) == {name.split()[0] for name in CASES}


@pytest.mark.parametrize("law", LAWS)
def test_every_potential_keeps(law: str, model: ForceField) -> None:
    """The law of that name, see ``mdrelax.testing``."""
    LAWS[law](model)


# --- the laws can fail ------------------------------------------------------------------------------------------------


class Toy(Potential):
    """Two rounds over smooth pairs, e_i = sum_j f(r_ij) rho_j with rho_j = sum_k f(r_jk); a fault breaks a law."""

    cutoff = 5.0
    symmetry = "E(3)"

    def __init__(self, fault: str | None = None) -> None:
        super().__init__()
        self.fault, self.n_rounds = fault, 1 if fault == "a halo that is too narrow" else 2
        self.strength = nn.Parameter(torch.tensor([0.7, -0.4, 0.9], dtype=torch.float64))

    def forward(self, species: Tensor, edges: Edges) -> Tensor:
        """See ``Potential``."""
        source, target = edges.index
        own, strength = edges.computed(species), self.strength
        if self.fault == "wrong gradient of a parameter":
            strength = 2 * strength - strength.detach()
        f = self._pairs(edges.vectors) * strength[species[source]]
        if self.fault == "edge numbers":
            f = f * (1 + 0.01 * (torch.arange(len(f)) % 2))
        density = f.new_zeros(len(own)).index_add(0, target, f)
        if self.fault == "ghosts are empty" and edges.exchange is not None:
            there = torch.cat([density, density.new_zeros(len(species) - len(own))])[source]
        else:
            there = edges.everywhere(density)[source]
        energies = strength[own] + density + density.new_zeros(len(own)).index_add(0, target, f * there)
        energies = self._faulty(energies, density, edges)
        return energies if self.fault == "ghosts have energies" else energies[: edges.n_local]

    def _pairs(self, vectors: Tensor) -> Tensor:
        """A Gaussian with an envelope, (E,)."""
        square = vectors.square().sum(1)
        if self.fault == "cancellation":
            square = (square + 1e6) - 1e6
        envelope = (1 - square / self.cutoff**2).clamp(min=0) ** 3
        if self.fault == "hard cut-off":
            envelope = torch.ones_like(envelope)
        if self.fault == "far neighbours are left out":
            envelope = torch.where(square > 9.0, 0.0, envelope)
        return torch.exp(-square / 4) * envelope

    def _faulty(self, energies: Tensor, density: Tensor, edges: Edges) -> Tensor:
        """Energies with what the fault adds."""
        zeros = edges.vectors.new_zeros(len(energies), 3)
        weighted = edges.vectors * self._pairs(edges.vectors)[:, None]
        if self.fault == "a direction in space":
            return energies.index_add(0, edges.index[1], 0.01 * weighted[:, 2])
        if self.fault == "place in the list":
            return energies * (1 + 0.01 * torch.arange(len(energies)))
        if self.fault == "mean over everything":
            return energies - energies.mean()
        if self.fault == "root of zero":
            return energies + (self.strength.square().sum() * density.square()).sqrt()
        if self.fault == "normalised vectors":
            total = zeros.index_add(0, edges.index[1], weighted)
            return energies + (total.square().sum(1) + 1e-8).sqrt()
        return energies

    def energies_and_gradient(
        self, species: Tensor, edges: Edges, *, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        """See ``Potential``."""
        energies, gradient = super().energies_and_gradient(species, edges, create_graph=create_graph)
        return energies, 1.01 * gradient if self.fault == "wrong forces" else gradient


BREAKS = {  # law: a fault that breaks it
    "forces_turn_with_the_structure": "a direction in space",
    "nothing_depends_on_place_or_order": "place in the list",
    "the_order_of_the_edges_does_not_matter": "edge numbers",
    "a_batch_is_its_structures_one_by_one": "mean over everything",
    "fragments_out_of_reach_do_not_know_of_each_other": "mean over everything",
    "atoms_without_neighbours_have_no_force": "root of zero",
    "every_pair_within_the_cutoff_counts": "far neighbours are left out",
    "ghosts_stand_for_their_owners": "ghosts are empty",
    "a_wide_halo_gives_the_local_atoms": "ghosts have energies",
    "energies_reach_no_further_than_stated": "a halo that is too narrow",
    "float32_is_close_to_float64": "cancellation",
    "the_gradient_of_the_force_loss_is_right": "wrong gradient of a parameter",
    "forces_are_minus_the_derivative_of_the_energy": "wrong forces",
    "stress_is_the_derivative_with_strain_over_the_volume": "wrong forces",
    "nothing_jumps_when_an_atom_crosses_the_cutoff": "hard cut-off",
    "force_constants_do_not_depend_on_a_small_displacement": "normalised vectors",
}


def test_a_sound_potential_keeps_all_laws() -> None:
    """Of thirty lines, by the one call that a user makes."""
    assert check_potential(ForceField(Toy(), elements=ELEMENTS)) == list(LAWS)


def test_every_law_can_be_broken() -> None:
    """There is a fault for each law."""
    assert BREAKS.keys() == LAWS.keys()


@pytest.mark.parametrize(("law", "fault"), BREAKS.items())
def test_a_fault_is_named(law: str, fault: str) -> None:
    """The message has the law and a sentence with the numbers."""
    with pytest.raises(BrokenLawError, match=rf"The potential breaks [\d]+ of {len(LAWS)} laws:[\s\S]*{law}: .*\."):
        check_potential(ForceField(Toy(fault), elements=ELEMENTS))


# --- what our networks claim beside these -----------------------------------------------------------------------------


def _ethanol() -> Atoms:
    return rattled(ethanol(), 1, seed=0)[0]  # without its mirror plane


def _small_cell() -> Atoms:
    """Three atoms in a skewed cell so small that each sees several images of itself and of the others."""
    cell = [[3.1, 0.0, 0.0], [0.7, 3.4, 0.0], [-0.4, 0.9, 3.9]]
    return Atoms("HCO", scaled_positions=[[0, 0, 0], [0.45, 0.3, 0.4], [0.1, 0.8, 0.7]], cell=cell, pbc=True)


def test_mirror_images_differ_where_only_rotations_are_claimed(model: ForceField, name: str) -> None:
    """Parity is really absent from the SE(3) networks; a claim of E(3) is a law above."""
    atoms = _ethanol()
    mirrored = Atoms(atoms.numbers, atoms.positions @ -ROTATION.T)
    difference = (model(graph_of(mirrored)).energies - model(graph_of(atoms)).energies).abs().max()
    assert (model.potential.symmetry == "E(3)") == CASES[name].reflections == bool(difference < 1e2 * ROUNDING)


def test_a_batch_has_the_stress_of_its_structures(model: ForceField) -> None:
    """Molecules, an atom without neighbours and a cell together give what each gives alone, stress included.

    All are rattled: where a vector vanishes by symmetry, norms with a small eps make rounding grow without bound.
    """
    methane = rattled(molecule("CH4"), 1, seed=5)[0]
    structures = [_ethanol(), Atoms("O"), *rattled(water(), 2, seed=3), _small_cell(), methane]
    together = model(batch_of(*structures), stress=True)
    alone = [model(graph_of(atoms), stress=True) for atoms in structures]
    for field in Prediction._fields:
        expected = torch.cat([getattr(prediction, field) for prediction in alone])
        torch.testing.assert_close(getattr(together, field), expected, rtol=ROUNDING, atol=ROUNDING)
    assert torch.equal(together.stress[1], torch.zeros(3, 3, dtype=torch.float64))


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
