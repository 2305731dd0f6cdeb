"""Speed of the potentials on ethanol: a training step and an MD step of every preset, timed in turns.

A training step is energies and forces of a batch, their squared errors, backward and Adam; once standard, once with the
constraint relaxed (theta = 0.5, activation penalty at 32 rows). An MD step is one of ASE's velocity Verlet with the
calculator, neighbour list included. Weights are random: time does not depend on them.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from ase import Atoms
from ase.build import molecule
from ase.md.verlet import VelocityVerlet
from ase.units import fs

from mdrelax.analysis.benchmarks.speed import time_in_turns
from mdrelax.calculator import MDRelaxCalculator
from mdrelax.forcefield import ForceField
from mdrelax.graph import Graph, collate
from mdrelax.neighbors import build_graph
from mdrelax.potentials import PRESETS, build_potential, preset
from mdrelax.relaxation import penalty, relax_constraints, set_theta

__all__ = ["backbone_times"]

CUTOFF = 5.0  # A
ELEMENTS = (1, 6, 8)
PENALTY_ROWS = 32
SIZES = ("tiny", "small")


def backbone_times(
    *,
    batch_size: int = 5,
    repeats: int = 15,
    sizes: Sequence[str] = SIZES,
    tell: Callable[[str], None] = lambda name: None,
) -> pd.DataFrame:
    """Median milliseconds with quartiles, a row for each potential, preset and kind of step; parameters beside."""
    frames = _frames(batch_size)
    steps: dict[str, Callable[[], None]] = {}
    n_parameters: dict[str, int] = {}
    for potential in PRESETS:
        for size in sizes:
            for kind in ("training", "training, relaxed", "MD"):
                name, force_field = f"{potential} {size}: {kind}", _force_field(potential, size)
                n_parameters[name] = sum(p.numel() for p in force_field.parameters())
                if kind == "MD":
                    steps[name] = _md_step(force_field)
                else:
                    steps[name] = _training_step(force_field, frames, relaxed=kind == "training, relaxed")
    table = time_in_turns(steps, repeats=repeats, tell=tell)
    return table.assign(n_parameters=pd.Series(n_parameters)).rename_axis("step")


def _force_field(potential: str, size: str) -> ForceField:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        arguments = {**preset(potential, size), "cutoff": CUTOFF, "average_neighbors": 8.0}
        return ForceField(build_potential(potential, len(ELEMENTS), arguments), elements=ELEMENTS)


def _ethanol() -> Atoms:
    return molecule("CH3CH2OH")


def _frames(n: int) -> Graph:
    rng, graphs = np.random.default_rng(0), []
    for _ in range(n):
        atoms = _ethanol()
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
        graphs.append(build_graph(atoms.positions, atoms.numbers, atoms.cell[:], atoms.pbc, CUTOFF))
    return collate(graphs)


def _training_step(force_field: ForceField, frames: Graph, *, relaxed: bool) -> Callable[[], None]:
    if relaxed:
        relax_constraints(force_field, generator=torch.Generator().manual_seed(0))
        set_theta(force_field, 0.5)
    force_field.train()
    optimizer = torch.optim.Adam(force_field.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        prediction = force_field(frames, create_graph=True)
        loss = prediction.energy.square().mean() + prediction.forces.square().mean()
        if relaxed:
            loss = loss + 0.01 * penalty(force_field, rows=PENALTY_ROWS)
        loss.backward()
        optimizer.step()

    return step


def _md_step(force_field: ForceField) -> Callable[[], None]:
    atoms = _ethanol()
    atoms.calc = MDRelaxCalculator(force_field)
    dynamics = VelocityVerlet(atoms, 0.1 * fs)

    def step() -> None:
        dynamics.run(1)

    return step
