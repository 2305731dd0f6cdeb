"""Compiled training: the recorded graph has the network's numbers, its gradient and the derivatives of both."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.emt import EMT
from torch import Tensor, nn

from mdrelax.compiled import training
from mdrelax.compiled.recording import CompileError
from mdrelax.compiled.training import CompiledTrainingStep
from mdrelax.datasets import load_atoms
from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.forcematching import ForceMatching
from mdrelax.forces.loader import Batch, Loader, frames_from_data, join
from mdrelax.forces.loss import Targets
from mdrelax.forces.potential import Potential
from mdrelax.forces.settings import TrainingConfig
from mdrelax.method.controllers import Ace
from mdrelax.method.penalty import penalty, record_inputs
from mdrelax.method.relaxation import relax_constraints, relaxed_layers, set_theta
from mdrelax.structures.graph import Edges, Graph, edge_vectors
from molecules import ELEMENTS, batch_of, ethanol, graph_of, rattled, tiny_equiformer, tiny_segnn, water
from small_runs import CLUSTER_CUTOFF, CRYSTAL_CUTOFF, clusters, crystals, data_of

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "equiformer, linear messages": lambda: tiny_equiformer("8x0e+4x1o", nonlinear_messages=False),
    "equiformer, as published": lambda: tiny_equiformer("8x0e+4x1e+4x2e", radial_basis="expnormal", n_blocks=1),
    "segnn": tiny_segnn,
}
SMALLEST = partial(tiny_equiformer, "8x0e+4x1o", n_blocks=1)
RECORDED = "eager"  # the graph as it was recorded, without a compiler: seconds, and everything of ours is in it


def model_of(build: Callable[[], nn.Module], *, relaxed: bool) -> ForceField:
    """A force field in training mode, with free maps that count where it is relaxed."""
    model = ForceField(build(), elements=ELEMENTS)
    if relaxed:
        relax_constraints(model, initial_std=0.05, generator=torch.Generator().manual_seed(1))
        set_theta(model, 0.7)
    return model.train()


def everything(model: ForceField, graph: Graph, network: Potential | None = None) -> list[Tensor]:
    """Energy, forces, and the gradient of a loss of both, with the penalty where there is one."""
    model.zero_grad()
    with record_inputs(model) as inputs:
        prediction = (model if network is None else model.with_potential(network))(graph, create_graph=True)
    loss = prediction.energy.square().sum() + prediction.forces.square().sum()
    if any("feed_forward.weight" in name or name.endswith(".layer") for name, _ in model.named_modules()):
        loss = loss + penalty(model, inputs)
    loss.backward()
    leaves = [layer.theta for layer in relaxed_layers(model).values() if isinstance(layer.theta, Tensor)]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in (*model.parameters(), *leaves)]
    for leaf in leaves:
        leaf.grad = None
    return [prediction.energy.detach(), prediction.forces.detach(), *gradients]


def assert_alike(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Float64; what is summed in another order rounds otherwise."""
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("relaxed", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_the_recorded_graph_trains_as_the_network_does(build: Callable[[], nn.Module], relaxed: bool) -> None:
    """For any sizes: recorded on a molecule, used for a batch of others; free maps, theta and penalty included."""
    model = model_of(build, relaxed=relaxed)
    graph = CompiledTrainingStep(model.potential, backend=RECORDED)
    for structures in (rattled(ethanol(), 1, 0), [*rattled(ethanol(), 1, 1), water()]):
        batch = batch_of(*structures)
        assert_alike(everything(model, batch, graph), everything(model, batch))
        if relaxed:
            set_theta(model, 0.2)  # a new theta needs no new graph
    assert graph.compiled is not None


def test_sizes_that_a_network_has_too_are_no_constants() -> None:
    """Recorded on as many edges as the network has channels, the graph serves other numbers of edges."""
    model = model_of(SMALLEST, relaxed=False)
    batch = graph_of(ethanol())
    species, vectors = model.species_of(batch.numbers), edge_vectors(batch).to(model.dtype)
    graph = CompiledTrainingStep(model.potential, backend=RECORDED)
    for n_edges in (8, 20):
        edges = Edges(batch.edge_index[:, :n_edges], vectors[:n_edges])
        ours, theirs = (
            each.energies_and_gradient(species, edges, create_graph=True) for each in (graph, model.potential)
        )
        assert_alike(list(ours), list(theirs))


def test_the_recorded_graph_has_the_derivatives_by_gamma() -> None:
    """Under ACE every place has a gamma of its own; also after the controller has set them to 0 for good."""
    model = model_of(lambda: tiny_equiformer("8x0e+4x1o", n_blocks=2), relaxed=False)
    where = ["blocks.*.feed_forward"]
    relax_constraints(model, where=where, initial_std=0.05, generator=torch.Generator().manual_seed(1))
    ace = Ace(model, n_steps=10)
    graph, batch = CompiledTrainingStep(model.potential, backend=RECORDED), batch_of(*rattled(ethanol(), 1, 0))
    for step in (0, 1, 9):
        ace.begin_step(model, step=step)
        if step == 1:
            with torch.no_grad():
                ace.gammas[0].fill_(-0.4)
        ours, theirs = everything(model, batch, graph), everything(model, batch)
        assert_alike(ours, theirs)
        if step < 9:
            assert min(slope.abs().item() for slope in ours[-2:]) > 1e-6
    assert graph.compiled is not None


def test_fixed_edges_are_compiled_and_others_run_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """One connectivity is part of the graph; what has another one is right, too."""
    model = model_of(SMALLEST, relaxed=True)
    batch, other = (batch_of(*rattled(ethanol(), n, 0)) for n in (2, 3))
    graph = CompiledTrainingStep(model.potential, batch.edge_index, backend=RECORDED)
    assert_alike(everything(model, batch, graph), everything(model, batch))
    calls = []
    monkeypatch.setattr(graph, "compiled", lambda *inputs: calls.append(inputs))
    assert_alike(everything(model, other, graph), everything(model, other))
    assert not calls


def test_a_lone_atom_is_trained_uncompiled() -> None:
    """No edges: nothing to compile for, and no error."""
    model = model_of(SMALLEST, relaxed=False)
    graph = CompiledTrainingStep(model.potential, backend=RECORDED)
    lonely = graph_of(ethanol()[:1])
    assert_alike(everything(model, lonely, graph), everything(model, lonely))
    assert graph.compiled is None


def test_a_compiled_step_with_other_derivatives_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What autograd detaches when it saves a tensor would lose part of the second derivative, were it left in."""
    monkeypatch.setattr(training, "keep_second_derivatives", lambda graph: None)
    model = model_of(SMALLEST, relaxed=False)
    with pytest.raises(CompileError, match=r"derivatives .* differ"):
        CompiledTrainingStep(model.potential, backend=RECORDED).energies_and_gradient(
            *_arguments(model, graph_of(ethanol())), create_graph=True
        )


def _arguments(model: ForceField, graph: Graph) -> tuple[Tensor, Edges]:
    return model.species_of(graph.numbers), Edges(graph.edge_index, edge_vectors(graph))


def test_a_network_that_looks_at_its_data_is_not_recorded() -> None:
    """A branch on a number cannot be one graph."""

    class Branches(Potential):
        cutoff = 5.0

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, species: Tensor, edges: Edges) -> Tensor:
            size = edges.vectors.square().sum()
            return self.scale * (size if size > 1 else 2 * size).expand(species.shape[0])

    model = ForceField(Branches(), elements=ELEMENTS)
    with pytest.raises(CompileError, match="depends on the structure"):
        CompiledTrainingStep(model.potential, backend=RECORDED).energies_and_gradient(
            *_arguments(model.double(), graph_of(ethanol())), create_graph=True
        )


# --- in the training of force fields ---


def frames(tmp_path: Path, n: int) -> list[Batch]:
    """Small clusters with labels; all pairs are neighbours."""
    return frames_from_data(data_of(tmp_path / "frames.xyz", clusters(n)), cutoff=CLUSTER_CUTOFF)


def stretched(frame: Batch) -> Batch:
    """The same with its last atom out of the others' reach."""
    positions = frame.graph.positions.clone()
    positions[-1] += 2 * CLUSTER_CUTOFF
    near = ~(frame.graph.edge_index == len(positions) - 1).any(0)
    graph = frame.graph._replace(
        positions=positions, edge_index=frame.graph.edge_index[:, near], edge_shift=frame.graph.edge_shift[near]
    )
    return frame._replace(graph=graph)


def settings(**changes: Any) -> TrainingConfig:
    """Training in float64, whose sums in another order are equal to 1e-10 or so."""
    return TrainingConfig(steps=10, batch_size=4, dtype="float64", **changes)


def test_the_code_is_for_one_molecules_edges_where_all_frames_are_that(tmp_path: Path) -> None:
    """Frames of unequal connectivity share their edges. With frames of other sizes or batches by edges: any edges."""
    known = frames(tmp_path, 4)
    graph, targets, _ = known[0]
    known[0] = Batch(graph._replace(edge_index=graph.edge_index[:, 1:], edge_shift=graph.edge_shift[1:]), targets)
    model = model_of(lambda: SMALLEST(cutoff=CLUSTER_CUTOFF), relaxed=False)
    other = Batch(graph_of(water(), cutoff=CLUSTER_CUTOFF), targets._replace(forces=targets.forces[:3]))

    def prepared(loader: Loader) -> ForceMatching:
        task = ForceMatching(loader, known, settings(compile=True), compiler=CompiledTrainingStep)
        task._compile(CompiledTrainingStep, model, join(known))
        return task

    task = prepared(Loader(known, batch_size=4))
    assert task.edges is not None
    assert torch.equal(task.edges, graph.edge_index)
    assert isinstance(task.compiled.potential, CompiledTrainingStep)
    assert torch.equal(task.compiled.potential.edge_index, join([Batch(graph, targets)] * 4).graph.edge_index)
    assert prepared(Loader(known, batch_size=4, max_edges=6000)).edges is not None  # four never have so many
    for loader in (Loader([*known, other], batch_size=4), Loader(known, batch_size=4, max_edges=24)):
        task = prepared(loader)
        assert task.edges is None
        assert isinstance(task.compiled.potential, CompiledTrainingStep)
        assert task.compiled.potential.edge_index is None


def test_a_copy_of_the_trained_network_runs_uncompiled(tmp_path: Path) -> None:
    """The compiled code has the trained network's parameters; a copy with other ones has a loss of its own."""
    known = frames(tmp_path, 4)
    model = model_of(lambda: SMALLEST(cutoff=CLUSTER_CUTOFF), relaxed=False)
    compiler = partial(CompiledTrainingStep, backend=RECORDED)
    compiled = ForceMatching(Loader(known, batch_size=4), known, settings(compile=True), compiler=compiler)
    plain = ForceMatching(Loader(known, batch_size=4), known, settings())
    trained, _ = compiled.loss(model, join(known), step=0)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.1)
    (ours, _), (theirs, _) = (task.loss(twin, join(known), step=0) for task in (compiled, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    assert abs(trained / ours - 1) > 1e-3


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_micro_batches_have_the_gradient_of_the_whole_batch(tmp_path: Path, micro: int) -> None:
    """Loss, errors and gradient; also where labels are missing and sizes differ."""
    known = frames(tmp_path, 4)
    water_labels = Targets(
        torch.tensor([1.5]).double(), torch.full((3, 3), torch.nan).double(), known[0].targets.stress
    )
    mixed = [known[0], Batch(graph_of(water(), cutoff=CLUSTER_CUTOFF), water_labels), *known[1:3]]
    found = []
    for size in (None, micro):
        model = model_of(lambda: SMALLEST(cutoff=CLUSTER_CUTOFF), relaxed=False)
        task = ForceMatching(Loader(mixed, batch_size=4), known, settings(micro_batch_size=size))
        loss, numbers = task.loss(model, join(mixed), step=3)
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([loss.detach(), *numbers, *gradients])
    assert_alike(*found)


@pytest.mark.slow
def test_a_compiled_step_is_the_uncompiled_one(tmp_path: Path) -> None:
    """With torch's compiler, as `training.compile` does it, relaxed; rounding apart."""
    known = frames(tmp_path, 4)
    known[1] = stretched(known[1])
    found = []
    for compiled in (False, True):
        model = model_of(lambda: SMALLEST(cutoff=CLUSTER_CUTOFF), relaxed=True)
        task = ForceMatching(
            Loader(known, batch_size=4), known, settings(compile=compiled), compiler=CompiledTrainingStep
        )
        with record_inputs(model) as inputs:
            loss, numbers = task.loss(model, join(known), step=3)
        (loss + penalty(model, inputs)).backward()
        found.append([loss.detach(), *numbers, *(p.grad for p in model.parameters() if p.grad is not None)])
        assert (task.compiled is not None) == compiled
    assert_alike(*found)


def test_one_compilation_serves_frames_of_every_size_open_or_periodic() -> None:
    """Also where the first batch has 8 atoms and the network 8 channels: no size is taken for another.

    Bulk with stress and clusters without; each further compilation would take minutes.
    """
    compilations = []

    def backend(graph: Any, _: Any) -> Any:
        compilations.append(graph)
        return graph.forward

    data = load_atoms([*crystals(4), *(_copper(n, n) for n in (4, 7, 8, 9))]).data
    known = frames_from_data(data, cutoff=CRYSTAL_CUTOFF)
    network = tiny_equiformer("8x0e+4x1o", n_blocks=1, cutoff=CRYSTAL_CUTOFF)
    model = ForceField(network, elements=(29,))
    relax_constraints(model, initial_std=0.05, generator=torch.Generator().manual_seed(1))
    set_theta(model, 0.5)
    chosen = settings(compile=True, stress_weight=20.0)
    task = ForceMatching(
        Loader(known, batch_size=2, shuffle=False),
        known,
        chosen,
        compiler=partial(CompiledTrainingStep, backend=backend),
    )
    plain = ForceMatching(Loader(known, batch_size=2), known, settings(stress_weight=20.0))
    for step, batch in enumerate(task.batches(0, start=0)):
        (ours, _), (theirs, _) = (each.loss(model.train(), batch, step=step) for each in (task, plain))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
        ours.backward()
    assert len(compilations) == 1


def _copper(n: int, seed: int) -> Atoms:
    """An open cluster of ``n`` atoms with energy and forces."""
    positions = 2.3 * np.argwhere(np.ones((3, 3, 1)))[:n] + np.random.default_rng(seed).normal(scale=0.1, size=(n, 3))
    atoms = Atoms(f"Cu{n}", positions)
    atoms.calc = EMT()
    atoms.info["REF_energy"], atoms.arrays["REF_forces"] = atoms.get_potential_energy(), atoms.get_forces()
    atoms.calc = None
    return atoms
