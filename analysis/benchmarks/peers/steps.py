"""The two kinds of steps that are timed, the same for every network: training with forces, and molecular dynamics."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.verlet import VelocityVerlet
from torch import Tensor, nn

from .protocol import Structure

__all__ = ["Step", "count_parameters", "fitting_step", "md_step", "to_atoms", "training_step"]

LEARNING_RATE = 1e-6  # the weights hardly change, so that every repeat does the same work
TIMESTEP = 0.5  # fs
TEMPERATURE = 300.0  # K


class Step(Protocol):
    """A training step; ``extra``, if given, is computed after the last part and added to its error."""

    def __call__(self, extra: Callable[[], Tensor] | None = None) -> None:
        """Take it."""


def training_step(
    parameters: Iterable[Tensor],
    *parts: Callable[[], tuple[Tensor, Tensor]],
) -> Step:
    """Energies and forces (differentiable) of a batch, squared errors against zero, backward and Adam.

    A batch may come in parts of equal size, whose gradients are added.
    """

    def error(predict: Callable[[], tuple[Tensor, Tensor]]) -> Tensor:
        energy, forces = predict()
        return (energy.square().mean() + forces.square().mean()) / len(parts)

    return fitting_step(parameters, [partial(error, predict) for predict in parts])


def fitting_step(parameters: Iterable[Tensor], errors: Sequence[Callable[[], Tensor]]) -> Step:
    """The errors of a batch's parts one after the other, with ``extra()`` added to the last, backward and Adam."""
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)

    def step(extra: Callable[[], Tensor] | None = None) -> None:
        optimizer.zero_grad(set_to_none=True)
        for number, error in enumerate(errors, 1):
            loss = error()
            if extra is not None and number == len(errors):
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
    """The number of trainable parameters."""
    return sum(p.numel() for p in model.parameters())
