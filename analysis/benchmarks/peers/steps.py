"""The two kinds of steps that are timed, the same for every network: training with forces, and molecular dynamics."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.verlet import VelocityVerlet
from torch import Tensor, nn

from .protocol import Structure

__all__ = ["count_parameters", "fitting_step", "md_step", "to_atoms", "training_step"]

LEARNING_RATE = 1e-6  # the weights hardly move: every repeat does the same work
TIMESTEP = 0.5  # fs
TEMPERATURE = 300.0  # K


def training_step(
    parameters: Iterable[Tensor],
    predict: Callable[[], tuple[Tensor, Tensor]],
    extra: Callable[[], Tensor] | None = None,
) -> Callable[[], None]:
    """Energies and forces of ``predict`` (differentiable), squared errors against zero, backward and Adam."""

    def loss() -> Tensor:
        energy, forces = predict()
        return energy.square().mean() + forces.square().mean()

    return fitting_step(parameters, loss, extra)


def fitting_step(
    parameters: Iterable[Tensor], error: Callable[[], Tensor], extra: Callable[[], Tensor] | None = None
) -> Callable[[], None]:
    """An error, with ``extra`` added, backward and Adam."""
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = error()
        if extra is not None:
            loss = loss + extra()
        loss.backward()
        optimizer.step()

    return step


def md_step(atoms: Atoms, calculator: Calculator) -> Callable[[], None]:
    """One step of velocity Verlet from 300 K, with the calculator's own neighbour list; the atoms move."""
    atoms.calc = calculator
    widths = np.sqrt(atoms.get_masses() * units.kB * TEMPERATURE)[:, None]  # of momenta, after Maxwell and Boltzmann
    atoms.set_momenta(widths * np.random.default_rng(0).normal(size=(len(atoms), 3)))
    dynamics = VelocityVerlet(atoms, TIMESTEP * units.fs)

    def step() -> None:
        dynamics.run(1)
        if not np.isfinite(atoms.positions).all():
            raise FloatingPointError("the trajectory exploded")

    return step


def to_atoms(structure: Structure) -> Atoms:
    """The structure as ASE's atoms."""
    return Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.pbc)


def count_parameters(model: nn.Module) -> int:
    """Numbers that training would change."""
    return sum(p.numel() for p in model.parameters())
