"""Our own contestants of the speed benchmark, as workers: `python -m mdrelax.analysis.benchmarks.own NAME`.

A name is a network, or a network and its form: ``equiformer-md17``, ``equiformer-md17:relaxed``.

| form | what differs |
| --- | --- |
| (none) | the standard network |
| plain | the same network in the ordinary e3nn way |
| relaxed | free maps at theta = 0.5, activation penalty at a few rows |
| relaxed-weight | the same with the weight penalty |
| projected | relaxed, then projected; nothing of the free maps is left |
| compiled | compiled ahead of time, for MD (minutes before the first step) |

``segnn-nbody`` is the published N-body network; its forms may end in ``compiled``, through torch.compile.
Weights are random: time does not depend on them.
"""

import sys
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from mdrelax.analysis.benchmarks.equiformer_e3nn import E3nnEquiformer
from mdrelax.analysis.benchmarks.peers.protocol import Task, Work, serve
from mdrelax.analysis.benchmarks.peers.steps import count_parameters, fitting_step, md_step, to_atoms, training_step
from mdrelax.analysis.benchmarks.segnn_e3nn import E3nnNBodySEGNN
from mdrelax.analysis.benchmarks.structures import ELEMENTS
from mdrelax.calculator import MDRelaxCalculator
from mdrelax.deploy import compile_force_field
from mdrelax.forcefield import ForceField
from mdrelax.graph import collate
from mdrelax.neighbors import build_graph
from mdrelax.potentials import build_potential, preset
from mdrelax.potentials.equiformer import Equiformer
from mdrelax.potentials.segnn import NBodySEGNN
from mdrelax.projection import project
from mdrelax.relaxation import PenaltyKind, penalty, relax_constraints, set_theta

__all__ = ["NBODY", "force_field", "prepare"]

PACKAGES = ("torch", "e3nn", "ase", "numpy", "vesin", "equiformer-pytorch")
NBODY = "segnn-nbody"
PENALTY_ROWS = 32
NBODY_PENALTY_ROWS = 64
AVERAGE_NEIGHBORS = 8.0
BATCH, PARTICLES = 100, 5


def prepare(name: str, task: Task) -> Work:
    """The step of a contestant for a task."""
    network, _, form = name.partition(":")
    if task.kind == "nbody":
        return _nbody(form, getattr(torch, task.dtype))
    model = force_field(network, form, task)
    n_parameters = count_parameters(model)
    if task.kind == "md":
        calculator = MDRelaxCalculator(compile_force_field(model) if form == "compiled" else model)
        return Work(md_step(to_atoms(task.structures[0]), calculator), n_parameters)
    frames = collate([build_graph(s.positions, s.numbers, s.cell, s.pbc, task.cutoff) for s in task.structures])

    def predict() -> tuple[Tensor, Tensor]:
        prediction = model(frames, create_graph=True)
        return prediction.energy, prediction.forces

    return Work(training_step(model.train().parameters(), predict, _penalty(model, form, PENALTY_ROWS)), n_parameters)


def force_field(network: str, form: str, task: Task) -> ForceField:
    """A potential of one of the presets in the wanted form."""
    potential, _, size = network.rpartition("-")
    arguments = {**preset(potential, size), "cutoff": task.cutoff, "average_neighbors": AVERAGE_NEIGHBORS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = build_potential(potential, len(ELEMENTS), arguments)
    if form == "plain":
        built = E3nnEquiformer(cast(Equiformer, built))
    model = ForceField(built, elements=ELEMENTS)
    _relax(model, form)
    return model.to_dtype(getattr(torch, task.dtype))


def _relax(model: nn.Module, form: str) -> None:
    """Give the model the free maps of its form; a projected one loses them again."""
    if not form.startswith(("relaxed", "projected")):
        return
    relax_constraints(model, generator=torch.Generator().manual_seed(0))
    set_theta(model, 0.5)
    if form.startswith("projected"):
        project(model, how="fold")


def _penalty(model: nn.Module, form: str, rows: int) -> Callable[[], Tensor] | None:
    """What is added to the loss of a relaxed model."""
    if not form.startswith("relaxed"):
        return None
    kind: PenaltyKind = "weight" if form.startswith("relaxed-weight") else "activation"
    return lambda: 0.01 * penalty(model, kind=kind, rows=rows)


def _nbody(form: str, dtype: torch.dtype) -> Work:
    """Forward, mean squared error, backward and Adam at batch 100: 500 particles, 2,000 edges."""
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
        lambda: (model(*inputs) - target).square().mean(),
        _penalty(model, form, NBODY_PENALTY_ROWS),
    )
    return Work(step, n_parameters)


def _systems(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions, velocities, charges and displacements of random systems."""
    generator = torch.Generator().manual_seed(0)
    x, v, d = (torch.randn(BATCH, PARTICLES, 3, generator=generator, dtype=dtype) for _ in range(3))
    return x, v, torch.randn(BATCH, PARTICLES, generator=generator, dtype=dtype).sign(), d


if __name__ == "__main__":
    serve(lambda task: prepare(sys.argv[1], task), PACKAGES)
