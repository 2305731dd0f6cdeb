"""equiformer-pytorch as a potential: the library's network to rounding, without the library's faults.

The contract that all potentials keep is in ``test_potentials``; here is what is particular to this one.
"""

from typing import Any

import equiformer_pytorch.equiformer_pytorch as library
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from torch import Tensor

from mdrelax.engines.ase import MDRelaxCalculator
from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.symmetry import equivariance_error
from mdrelax.method.penalty import penalty, record_inputs
from mdrelax.method.projection import project
from mdrelax.method.relaxation import relax_constraints, relaxed_layers, set_theta
from mdrelax.method.sites import relaxable_sites
from mdrelax.potentials import build_potential
from mdrelax.potentials.alignment import axial_couplings
from mdrelax.potentials.equiformer_pytorch import EquiformerPytorch
from mdrelax.structures.graph import Edges, edge_vectors
from molecules import ELEMENTS, batch_of, crystal, ethanol, graph_of, normal, rattled, tiny_equiformer_pytorch, water


def _random(dim: tuple[int, ...] = (16, 8, 4), **arguments: Any) -> EquiformerPytorch:
    """Every parameter off its initial value: the library begins with outputs of zero."""
    potential = tiny_equiformer_pytorch(dim, **arguments)
    for k, parameter in enumerate(potential.parameters()):
        parameter.data += 0.1 * normal(*parameter.shape, seed=k)
    return potential


@pytest.fixture
def unmodified(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Builds the library's own network; its couplings are loaded with the state, so it need not write them to disk."""

    def couplings(degree: int) -> dict[str, Tensor]:
        pairs = [(i, o) for i in range(1, degree + 1) for o in range(1, degree + 1)]
        return {f"({i},{o})": torch.full_like(axial_couplings(i, o), torch.nan) for i, o in pairs}

    monkeypatch.setattr(library, "get_basis", couplings)

    def build(potential: EquiformerPytorch) -> Any:
        network = library.Equiformer(**potential.library_arguments).to(next(potential.parameters()).dtype)
        network.load_state_dict(potential.state_dict())
        return network

    return build


def _library_outputs(network: Any, potential: EquiformerPytorch, atoms: Atoms, positions: Tensor) -> tuple[Any, Any]:
    species = torch.searchsorted(torch.tensor(ELEMENTS), torch.from_numpy(atoms.numbers))
    distances = torch.cdist(positions, positions).detach() + torch.eye(len(atoms))
    edges = {}
    if potential.radial_basis is not None:
        n = len(atoms)
        edges["edges"] = potential.radial_basis(distances.flatten()).view(1, n, n, -1)
    found = network(species[None], positions[None], **edges)
    return found.type0.flatten(), found.type1[0]


def _ours(potential: EquiformerPytorch, atoms: Atoms) -> tuple[Tensor, Tensor]:
    graph = graph_of(atoms)
    species = torch.searchsorted(torch.tensor(ELEMENTS), graph.numbers)
    return potential.energies_and_forces(species, Edges(graph.edge_index, edge_vectors(graph)))


# The library adds 1e-6 to each difference of vectors in its distance attention; MLP attention is equal to rounding.
@pytest.mark.parametrize(("attention", "tolerance"), [("mlp", 1e-13), ("distance", 1e-5)])
@pytest.mark.parametrize("n_basis", [0, 6])
def test_without_its_envelope_it_is_the_librarys_network(
    unmodified: Any, attention: Any, tolerance: float, n_basis: int
) -> None:
    """The state loads into an unmodified Equiformer, and outputs of degree 0 and 1 agree on a molecule."""
    potential = _random(attention=attention, n_basis=n_basis, smooth=False)
    atoms = rattled(ethanol(), 1, seed=0)[0]
    expected = _library_outputs(unmodified(potential), potential, atoms, torch.from_numpy(atoms.positions))
    for ours, theirs in zip(_ours(potential, atoms), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_a_projected_network_goes_back_into_the_library(unmodified: Any) -> None:
    """Relaxed and folded, it has the library's parameters again, and the library gives its energies."""
    potential = _random(smooth=False)
    names = set(potential.state_dict())
    relax_constraints(potential, initial_std=0.1, generator=torch.Generator().manual_seed(0))
    assert set(potential.state_dict()) != names
    project(potential, how="fold")
    assert set(potential.state_dict()) == names
    atoms = rattled(ethanol(), 1, seed=1)[0]
    expected, _ = _library_outputs(unmodified(potential), potential, atoms, torch.from_numpy(atoms.positions))
    torch.testing.assert_close(_ours(potential, atoms)[0], expected, rtol=1e-13, atol=1e-13)


def test_the_librarys_own_forces_miss_the_angular_part(unmodified: Any) -> None:
    """What the adapter is for: the library's energy is ours, its gradient is not that of the energy.

    Ours agrees with a central difference of the library's energy to 1e-6; the library's is off by more than a hundredth
    with these small random weights (by more than its size with others).
    """
    potential = _random(smooth=False)
    network, atoms = unmodified(potential), rattled(ethanol(), 1, seed=0)[0]
    positions = torch.from_numpy(atoms.positions)
    direction, h = normal(9, 3, seed=1), 1e-5

    def energy(x: Tensor) -> Tensor:
        return _library_outputs(network, potential, atoms, x)[0].sum()

    ours = ForceField(potential, elements=ELEMENTS)(graph_of(atoms)).forces
    slope = (energy(positions + h * direction) - energy(positions - h * direction)).item() / (2 * h)
    assert -(ours * direction).sum().item() == pytest.approx(slope, rel=1e-6)
    moved = positions.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(energy(moved), moved)
    assert (gradient + ours).norm() > 0.01 * ours.norm()


def test_forces_are_right_where_edges_lie_on_the_poles() -> None:
    """Carbon dioxide along each axis, both ways, to 1e-6 of the largest force (central differences, h = 1e-5)."""
    model, h = ForceField(_random(), elements=ELEMENTS), 1e-5
    for axis in range(3):
        atoms = Atoms("OCO", [r * np.eye(3)[axis] for r in (-1.2, 0.0, 1.1)])
        forces = model(graph_of(atoms)).forces
        steps = h * torch.eye(9, dtype=torch.float64).view(9, 3, 3).numpy()
        ends = [Atoms("OCO", atoms.positions + sign * step) for step in steps for sign in (1, -1)]
        energies = model(batch_of(*ends)).energy.view(9, 2)
        slopes = ((energies[:, 0] - energies[:, 1]) / (2 * h)).view(3, 3)
        torch.testing.assert_close(forces, -slopes, rtol=0, atol=1e-6 * float(forces.abs().max()))


# --- relaxation ---


def test_every_linear_of_the_library_can_be_relaxed() -> None:
    """One site for each of the library's ``Linear``; the default is the feed-forward network of each block."""
    potential = tiny_equiformer_pytorch((16, 8, 4))
    linears = {name for name, module in potential.named_modules() if isinstance(module, library.Linear)}
    assert set(relaxable_sites(potential)) == linears
    chosen = relax_constraints(potential).names
    assert chosen == [f"layers.blocks.{k}.1.{name}" for k in (0, 1) for name in ("project_in", "project_out")]


def test_an_equivariant_free_map_is_folded_without_loss() -> None:
    """W = P(W): the network with theta = 1 and the folded one give the same energies, in all its linears."""
    potential, atoms = _random(), rattled(ethanol(), 1, seed=0)[0]
    relax_constraints(potential, where=list(relaxable_sites(potential)))
    for k, layer in enumerate(relaxed_layers(potential).values()):
        free = 0.1 * normal(*layer.free.weight.shape, seed=k)
        layer.free.weight.data.copy_(layer.free.output.average(free, layer.free.source))
    set_theta(potential, 1.0)
    before = _ours(potential, atoms)
    assert all(record.how == "folded" for record in project(potential, how="fold"))
    for old, new in zip(before, _ours(potential, atoms), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-12, atol=1e-12)


def test_the_relaxed_network_breaks_the_symmetry_and_theta_zero_keeps_it() -> None:
    """Rotations, with free maps of size 0.1; and the penalty reaches every free map."""
    model = ForceField(_random(), elements=ELEMENTS)
    relax_constraints(model, initial_std=0.1, generator=torch.Generator().manual_seed(0))
    graph = graph_of(rattled(ethanol(), 1, seed=0)[0])
    assert equivariance_error(model, graph, n_operations=1).rotation > 1e-3
    set_theta(model, 0.0)
    assert equivariance_error(model, graph, n_operations=1).rotation < 1e-11
    set_theta(model, 1.0)
    model.train()
    with record_inputs(model) as inputs:
        model(graph, create_graph=True)
    penalty(model, inputs).backward()
    assert all(
        layer.free.weight.grad is not None and layer.free.weight.grad.any() for layer in relaxed_layers(model).values()
    )


# --- direct forces ---


def _direct() -> ForceField:
    return ForceField(_random(forces="direct"), elements=ELEMENTS, scale=0.7)


def test_direct_forces_are_the_vector_output_and_turn_with_the_structure() -> None:
    """F = scale * type 1, exactly equivariant under rotations; differentiable for training."""
    model, graph = _direct(), batch_of(*rattled(ethanol(), 2, seed=0), crystal())
    prediction = model(graph, create_graph=True)
    species = torch.searchsorted(torch.tensor(ELEMENTS), graph.numbers)
    _, forces = model.potential.energies_and_forces(species, Edges(graph.edge_index, edge_vectors(graph)))
    torch.testing.assert_close(prediction.forces, 0.7 * forces)
    assert equivariance_error(model, graph, n_operations=2).worst(reflections=False) < 1e-11
    prediction.forces.square().sum().backward()
    assert model.potential.ff_out.weights[1].grad.any()


def test_direct_forces_have_no_stress() -> None:
    """A sentence that names the remedy, from the force field and from the calculator; a molecule's forces are there."""
    model, atoms = _direct(), crystal()
    with pytest.raises(ValueError, match="forces: gradient"):
        model(graph_of(atoms), stress=True)
    with pytest.warns(UserWarning, match="not the gradient of its energy"):
        atoms.calc = MDRelaxCalculator(model)
    assert atoms.get_forces().shape == (len(atoms), 3)  # a warning would be an error here: it is said once
    with pytest.raises(PropertyNotImplementedError, match="stress"):
        atoms.get_stress()


# --- arguments ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": []}, "one number per degree"),
        ({"dim": [16, 8], "dim_head": [4]}, "one number per degree"),
        ({"dim": [16, 0], "dim_head": 4}, r"`dim\[1\]` must be at least 1, got 0"),
        ({"dim": [16, 10**9], "dim_head": 4}, r"`dim\[1\]` must be at most 10,000, got 1,000,000,000"),
        ({"depth": 0}, "`depth` must be at least 1, got 0"),
        ({"attention": "dot"}, "must be mlp or distance, got 'dot'"),
        ({"forces": "both"}, "must be gradient or direct, got 'both'"),
        ({"forces": "direct", "dim": [16], "dim_head": 4}, "needs features of degree 1"),
        ({"n_basis": -1}, "`n_basis` must be at least 0, got -1"),
        ({"cutoff": 0.0}, "`cutoff` must be a finite number > 0, got 0.0"),
        ({"norm_eps": float("nan")}, "`norm_eps` must be a finite number > 0, got nan"),
        ({"heds": 4}, "cannot be built"),
    ],
)
def test_impossible_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    """Name, value and range."""
    with pytest.raises(ValueError, match=message):
        build_potential("equiformer-pytorch", 3, {"dim": [16, 8], "dim_head": 4, "depth": 1, **arguments})


def test_memory_is_linear_in_the_atoms() -> None:
    """A hundred waters far from each other: no tensor has more than a few thousand entries for each of 300 atoms."""
    model, largest = ForceField(tiny_equiformer_pytorch(), elements=ELEMENTS), 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max(largest, out.numel()) if isinstance(out, Tensor) else largest
            return out

    def entries(n: int) -> int:
        nonlocal largest
        graph = batch_of(*rattled(water(), n, seed=0))
        largest = 0
        with Watch():
            model(graph)
        return largest

    assert entries(100) == 10 * entries(10)
