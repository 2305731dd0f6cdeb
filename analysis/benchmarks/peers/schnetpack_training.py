"""PaiNN trained as SchNetPack's experiment `rmd17` does: `python -m peers.schnetpack_training FOLDER`.

Energies are in kcal/mol, as there. The rate falls evenly by a factor of 100 instead of on plateaus (a factor of 0.5
after 75 epochs without improvement).
"""

from collections.abc import Sequence
from typing import Any

import torch
from ase import Atoms, units
from torch import Tensor

from .protocol import Task
from .schnetpack import PACKAGES, AtomsConverter, MatScipyNeighborList, atoms_collate, build, properties
from .training import Frames, Molecule, Recipe, Setup, labelled_atoms, main

CUTOFF = 5.0  # A
UNIT = units.kcal / units.mol  # eV
RECIPE = Recipe(
    network="painn, 128 channels, three interactions, 20 radial functions, cut-off 5 A",
    batch_size=10,
    rates=(1e-3, 1e-5),
    optimizer="AdamW without weight decay",
    loss="mean squares of energy and of forces, weights 0.01 and 0.99 (kcal/mol, kcal/mol/A)",
    source="configs/experiment/rmd17.yaml of schnetpack 2, and its trained model of rMD17 ethanol",
    ema=0.995,
)


def prepare(molecule: Molecule, seed: int) -> Setup:
    """PaiNN with SchNetPack's batches."""
    model = build(Task("training", cutoff=CUTOFF), seed=seed)
    convert = AtomsConverter(MatScipyNeighborList(cutoff=CUTOFF), dtype=torch.float32)

    def frames(part: Frames) -> list[Any]:
        return [(convert(each), *_labels(each)) for each in labelled_atoms(molecule, part)]

    def collate(chosen: Sequence[Any]) -> Any:
        inputs, energies, forces = zip(*chosen, strict=True)
        return atoms_collate(inputs), (torch.stack(energies), torch.cat(forces))

    def predict(batch: Any) -> tuple[Tensor, Tensor]:
        inputs = batch[0]
        found = model({**inputs, properties.R: inputs[properties.R].detach()})
        return found["energy"], found["forces"]

    def loss(batch: Any, stage: int) -> Tensor:
        mse = torch.nn.functional.mse_loss
        (energies, forces), (energy, force) = batch[1], predict(batch)
        return 0.01 * mse(energy, energies) + 0.99 * mse(force, forces)

    optimizer = torch.optim.AdamW(model.parameters(), lr=RECIPE.rates[0], weight_decay=0.0)
    return Setup(RECIPE, model, optimizer, frames, collate, loss, predict, unit=UNIT)


def _labels(atoms: Atoms) -> tuple[Tensor, Tensor]:
    """Energy in kcal/mol and forces in kcal/mol/A."""
    energy = torch.tensor(atoms.info["REF_energy"] / UNIT, dtype=torch.float32)
    return energy, torch.tensor(atoms.arrays["REF_forces"] / UNIT, dtype=torch.float32)


if __name__ == "__main__":
    main(prepare, PACKAGES)
