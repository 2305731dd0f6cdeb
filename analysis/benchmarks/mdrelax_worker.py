"""Our own networks as workers of the speed benchmark: `python -m mdrelax.analysis.benchmarks.mdrelax_worker NAME`.

A name is a network, or a network and its form: ``equiformer-md17``, ``equiformer-md17:relaxed``.

| form | difference |
| --- | --- |
| (none) | the standard network |
| plain | the same network in the ordinary e3nn way |
| relaxed | free maps at theta = 0.5, activation penalty at a few rows |
| relaxed-weight | the same with the weight penalty |
| projected | relaxed, then projected; without free maps |
| compiled | compiled ahead of time, for MD (minutes before the first step) |
| compiled-training | the training step compiled (minutes, too); also ``relaxed-compiled-training`` and so on |

``no-network`` measures an MD step apart from the network. ``segnn-nbody`` is the published N-body network; its forms
may end in ``compiled``, through torch.compile. Training is as in the trainer with ``micro_batch_size: 8``: a batch of
32 structures is evaluated in four parts whose gradients are added, in the memory of 8. Weights are random: the time
does not depend on them.
"""

import sys
from collections.abc import Callable
from functools import cache, partial
from typing import cast

import torch
from torch import Tensor, nn

from mdrelax.analysis.benchmarks.equiformer_e3nn import E3nnEquiformer
from mdrelax.analysis.benchmarks.implementations import NO_NETWORK
from mdrelax.analysis.benchmarks.peers.protocol import Task, Work, serve
from mdrelax.analysis.benchmarks.peers.steps import (
    Step,
    count_parameters,
    fitting_step,
    md_step,
    to_atoms,
    training_step,
)
from mdrelax.analysis.benchmarks.segnn_e3nn import E3nnNBodySEGNN
from mdrelax.analysis.benchmarks.structures import ELEMENTS
from mdrelax.base.allocator import keep_freed_memory
from mdrelax.compiled import compile_force_field
from mdrelax.compiled.training import CompiledTrainingStep
from mdrelax.engines.ase import MDRelaxCalculator
from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.potential import Potential
from mdrelax.method.penalty import PenaltyKind, penalty, record_inputs
from mdrelax.method.projection import project
from mdrelax.method.relaxation import relax_constraints, set_theta
from mdrelax.packs.nbody.networks import NBodySEGNN
from mdrelax.potentials import build_potential, preset
from mdrelax.potentials.equiformer import Equiformer
from mdrelax.structures.common_edges import common_edges, with_edges
from mdrelax.structures.graph import Edges, Graph, collate
from mdrelax.structures.neighbors import build_graph

__all__ = ["NBODY", "force_field", "prepare"]

PACKAGES = ("torch", "e3nn", "ase", "numpy", "vesin", "equiformer-pytorch")
NBODY = "segnn-nbody"
PENALTY_ROWS = 32
NBODY_PENALTY_ROWS = 64
AVERAGE_NEIGHBORS = 8.0
MICRO_BATCH = 8
BATCH, PARTICLES = 100, 5


def prepare(name: str, task: Task) -> Work:
    """The step of an implementation for a task."""
    network, _, form = name.partition(":")
    if task.kind == "nbody":
        return _nbody(form, getattr(torch, task.dtype))
    model = force_field(network, form, task.dtype, task.cutoff)
    n_parameters = count_parameters(model)
    if task.kind == "md":
        calculator = MDRelaxCalculator(_compiled(name, task.dtype, task.cutoff) if form == "compiled" else model)
        return Work(md_step(to_atoms(task.structures[0]), calculator), n_parameters)
    if form != "plain":  # which represents ordinary code
        keep_freed_memory()  # as the trainer does
    graphs = [build_graph(s.positions, s.numbers, s.cell, s.pbc, task.cutoff) for s in task.structures]
    parts = [collate(graphs[k : k + MICRO_BATCH]) for k in range(0, len(graphs), MICRO_BATCH)]
    predicts = model
    if form.endswith("compiled-training"):  # as ``ForceMatching`` does it
        edges = common_edges(graphs)
        parts = parts if edges is None else [with_edges(part, edges) for part in parts]
        step = CompiledTrainingStep(model.potential, None if edges is None else parts[0].edge_index)
        predicts = model.with_potential(step)

    def predict(part: Graph) -> tuple[Tensor, Tensor]:
        prediction = predicts(part, create_graph=True)
        return prediction.energy, prediction.forces

    predictions = [partial(predict, part) for part in parts]
    training = training_step(model.train().parameters(), *predictions)
    return Work(_penalised(training, model, form, PENALTY_ROWS), n_parameters)


@cache
def _compiled(name: str, dtype: str, cutoff: float) -> ForceField:
    """Compiled once for all cases."""
    network, _, form = name.partition(":")
    return compile_force_field(force_field(network, form, dtype, cutoff))


class NoNetwork(Potential):
    """Energies that are always zero, to time everything around a network."""

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff, self.zero = cutoff, nn.Parameter(torch.zeros(()))

    def forward(self, species: Tensor, edges: Edges) -> Tensor:
        """Energies (N,)."""
        return (self.zero * edges.vectors.sum()).expand(species.shape[0])


def force_field(network: str, form: str, dtype: str, cutoff: float) -> ForceField:
    """A potential of one of the presets in the given form."""
    if network == NO_NETWORK:
        return ForceField(NoNetwork(cutoff), elements=ELEMENTS).to_dtype(getattr(torch, dtype))
    potential, _, size = network.rpartition("-")
    arguments = {**preset(potential, size), "cutoff": cutoff, "average_neighbors": AVERAGE_NEIGHBORS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = build_potential(potential, len(ELEMENTS), arguments)
    if form == "plain":
        built = E3nnEquiformer(cast(Equiformer, built))
    model = ForceField(built, elements=ELEMENTS)
    _relax(model, form)
    return model.to_dtype(getattr(torch, dtype))


def _relax(model: nn.Module, form: str) -> None:
    """Add the free maps of a form to the model; for a projected one they are removed again."""
    if not form.startswith(("relaxed", "projected")):
        return
    relax_constraints(model, generator=torch.Generator().manual_seed(0))
    set_theta(model, 0.5)
    if form.startswith("projected"):
        project(model, how="fold")


def _penalised(step: Step, model: nn.Module, form: str, rows: int) -> Callable[[], None]:
    """The step, to which a relaxed model adds its penalty at the inputs of the same step."""
    if not form.startswith("relaxed"):
        return step
    kind: PenaltyKind = "weight" if form.startswith("relaxed-weight") else "activation"

    def penalised() -> None:
        with record_inputs(model) as inputs:
            step(lambda: 0.01 * penalty(model, inputs, kind=kind, rows=rows))

    return penalised


def _nbody(form: str, dtype: torch.dtype) -> Work:
    """Forward, mean squared error, backward and Adam at batch 100: 500 particles, 2,000 edges."""
    if form != "plain":
        keep_freed_memory()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fast = NBodySEGNN()
    model: nn.Module = E3nnNBodySEGNN.from_fast(fast) if form == "plain" else fast
    _relax(model, form)
    model.to(dtype).train()
    n_parameters = count_parameters(model)
    if form.endswith("compiled"):
        model.compile(dynamic=False)
    *inputs, target = _systems(dtype)
    step = fitting_step(
        model.parameters(),
        [lambda: (model(*inputs) - target).square().mean()],
    )
    return Work(_penalised(step, model, form, NBODY_PENALTY_ROWS), n_parameters)


def _systems(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions, velocities, charges and displacements of random systems."""
    generator = torch.Generator().manual_seed(0)
    x, v, d = (torch.randn(BATCH, PARTICLES, 3, generator=generator, dtype=dtype) for _ in range(3))
    return x, v, torch.randn(BATCH, PARTICLES, generator=generator, dtype=dtype).sign(), d


if __name__ == "__main__":
    serve(lambda task: prepare(sys.argv[1], task), PACKAGES)
