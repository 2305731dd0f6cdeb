"""The training task of a peer: energies, forces and (where labelled) stress, each structure turned at random.

    loss = w_E mean_g ((E_g - E_g*) / N_g)^2 + w_F mean (F - F*)^2 + w_S mean (S - S*)^2        eV, eV/A, eV/A^3

The order of structures follows from (seed, epoch), the rotations from (seed, step).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from ase import Atoms
from torch import Tensor, nn

from mdrelax.base.seeds import generator
from mdrelax.peers.peer import Peer, PeerPrediction
from mdrelax.peers.proof import turned
from mdrelax.structures.rotate import random_rotations

__all__ = ["Labelled", "PeerTask", "energy_offsets", "errors_of"]

Array = npt.NDArray[np.float64]


class Labelled(NamedTuple):
    """A structure with its labels."""

    atoms: Atoms
    energy: float  # eV
    forces: Array  # (n, 3), eV/A
    stress: Array | None  # (3, 3), eV/A^3

    def turned(self, matrix: Array) -> "Labelled":
        """Structure and labels in another pose."""
        stress = None if self.stress is None else matrix @ self.stress @ matrix.T
        return Labelled(turned(self.atoms, matrix), self.energy, self.forces @ matrix.T, stress)


class PeerTask:
    """A ``Task`` of the trainer; the best network has the smallest force error on the validation structures."""

    train_columns = ("train_forces_mae_meV_per_A",)
    validation_columns = ("val_energy_mae_meV_per_atom", "val_forces_mae_meV_per_A")
    selected = "val_forces_mae_meV_per_A"

    def __init__(
        self,
        peer: Peer,
        train: Sequence[Labelled],
        validation: Sequence[Labelled],
        *,
        batch_size: int,
        seed: int,
        rotate: bool = True,
        weights: tuple[float, float, float] = (1.0, 1.0, 0.0),
    ) -> None:
        self.peer, self.train, self.validation, self.weights = peer, train, validation, weights
        self.batch_size, self.seed, self.rotate = min(batch_size, len(train)), seed, rotate
        self.n_batches = len(train) // self.batch_size

    def batches(self, epoch: int, *, start: int) -> Iterable[list[Labelled]]:
        """The batches of an epoch from number ``start`` on; a last one that is not full is left out."""
        order = torch.randperm(len(self.train), generator=generator(self.seed, "order", epoch)).tolist()
        for k in range(start, self.n_batches):
            yield [self.train[i] for i in order[k * self.batch_size : (k + 1) * self.batch_size]]

    def n_steps(self, epochs: int) -> int:
        """The number of batches in a number of epochs."""
        return epochs * self.n_batches

    def loss(self, model: nn.Module, batch: Sequence[Labelled], *, step: int) -> tuple[Tensor, list[Tensor]]:
        """The weighted mean squares of a batch, and its force MAE."""
        if self.rotate:
            matrices = random_rotations(len(batch), generator(self.seed, "rotations", step)).numpy()
            batch = [each.turned(matrix) for each, matrix in zip(batch, matrices, strict=True)]
        found = self.peer.predict(model, self.peer.batch_of(model, [each.atoms for each in batch]))
        of_energy, of_forces, of_stress = self.weights
        sizes = found.energy.new_tensor([len(each.atoms) for each in batch])
        energies = found.energy.new_tensor([each.energy for each in batch])
        forces = found.forces.new_tensor(np.concatenate([each.forces for each in batch]))
        loss = of_energy * ((found.energy - energies) / sizes).square().mean()
        loss = loss + of_forces * (found.forces - forces).square().mean()
        if of_stress:
            loss = loss + of_stress * _stress_loss(found, batch)
        return loss, [1e3 * (found.forces - forces).detach().abs().mean()]

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Mean absolute errors on the validation structures."""
        energy, forces = errors_of(self.peer, model, self.validation)
        return {"val_energy_mae_meV_per_atom": energy, "val_forces_mae_meV_per_A": forces}


def errors_of(peer: Peer, model: nn.Module, structures: Sequence[Labelled]) -> tuple[float, float]:
    """MAE of energies (meV/atom) and force components (meV/A), one structure at a time."""
    energies, forces = [], []
    for each in structures:
        found = peer.predict(model, peer.batch_of(model, [each.atoms]))
        energies.append(abs(found.energy.item() - each.energy) / len(each.atoms))
        forces.append(np.abs(found.forces.detach().cpu().numpy() - each.forces).ravel())
    return 1e3 * float(np.mean(energies)), 1e3 * float(np.concatenate(forces).mean())


def energy_offsets(peer: Peer, model: nn.Module, structures: Sequence[Labelled]) -> dict[int, float]:
    """The energy of each element (eV) by which labels differ from the network, by least squares.

    Two levels of theory differ by a constant per atom, which a network should not have to learn.
    """
    numbers = sorted({int(number) for each in structures for number in each.atoms.numbers})
    counts = np.array(
        [[np.sum(each.atoms.numbers == number) for number in numbers] for each in structures], dtype=float
    )
    found = [peer.predict(model, peer.batch_of(model, [each.atoms])).energy.item() for each in structures]
    differences = np.array([each.energy for each in structures]) - np.array(found)
    offsets = np.linalg.lstsq(counts, differences, rcond=None)[0]
    return dict(zip(numbers, offsets.tolist(), strict=True))


def _stress_loss(found: PeerPrediction, batch: Sequence[Labelled]) -> Tensor:
    """The mean square over structures with a label, 0 without any."""
    pairs = [(k, each.stress) for k, each in enumerate(batch) if each.stress is not None]
    if found.stress is None or not pairs:
        return found.energy.new_zeros(())
    labels = found.stress.new_tensor(np.stack([stress for _, stress in pairs]))
    return (found.stress[[k for k, _ in pairs]] - labels).square().mean()
