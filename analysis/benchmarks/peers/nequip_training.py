"""NequIP trained as its tutorial does: `python -m peers.nequip_training FOLDER`.

The network has l up to 2 ("more accurate but slower" than the tutorial's l = 1), as in the speed benchmark. Not taken:
the repulsion of the tutorial's pair potential (no atoms are that close here) and torch.compile (for GPUs). The rate
falls evenly by a factor of 100 instead of on plateaus.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from nequip.data import AtomicDataDict, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.train import EnergyForceLoss
from nequip.utils.global_state import set_global_state
from torch import Tensor

from .nequip import PACKAGES, build
from .protocol import Task
from .training import Frames, Molecule, Recipe, Setup, labelled_atoms, main

CUTOFF = 5.0  # A
RECIPE = Recipe(
    network="l up to 2, 32 features of either parity, four layers, cut-off 5 A",
    batch_size=5,
    rates=(1e-2, 1e-4),
    optimizer="Adam",
    loss="mean squares of energy per atom and of forces, weights 1 and 1 (eV, eV/A)",
    source="configs/tutorial.yaml of nequip 0.19",
    ema=0.999,
)


def prepare(molecule: Molecule, seed: int) -> Setup:
    """NequIP with its own statistics and loss."""
    set_global_state()
    numbers = molecule.numbers
    elements = sorted({chemical_symbols[z] for z in numbers.tolist()})
    transforms = [ChemicalSpeciesToAtomTypeMapper(model_type_names=elements), NeighborListTransform(CUTOFF)]

    def frames(part: Frames) -> list[Any]:
        found = []
        for atoms in labelled_atoms(molecule, part):
            frame = from_ase(atoms)
            frame[AtomicDataDict.TOTAL_ENERGY_KEY] = torch.tensor([[atoms.info["REF_energy"]]])
            frame[AtomicDataDict.FORCE_KEY] = torch.from_numpy(atoms.arrays["REF_forces"])
            for transform in transforms:
                frame = transform(frame)
            found.append(frame)
        return found

    forces, symbols = molecule.train.forces, np.array(chemical_symbols)[numbers]
    neighbours = [f[AtomicDataDict.EDGE_INDEX_KEY].shape[1] / len(numbers) for f in frames(molecule.train)]
    scales = {each: float(np.sqrt(np.square(forces[:, symbols == each]).mean())) for each in elements}
    model = build(
        "l2", Task("training", cutoff=CUTOFF), elements=elements, average_neighbors=float(np.mean(neighbours)),
        scales=scales, seed=seed,
    )  # fmt: skip
    metrics = EnergyForceLoss()
    labels = (AtomicDataDict.TOTAL_ENERGY_KEY, AtomicDataDict.FORCE_KEY)

    def output(batch: Any) -> Any:
        return model({name: value for name, value in batch.items() if name not in labels})

    def loss(batch: Any, stage: int) -> Tensor:
        return metrics(output(batch), batch)["weighted_sum"]

    def predict(batch: Any) -> tuple[Tensor, Tensor]:
        found = output(batch)
        return found[AtomicDataDict.TOTAL_ENERGY_KEY], found[AtomicDataDict.FORCE_KEY]

    def collate(chosen: Sequence[Any]) -> Any:
        return AtomicDataDict.batched_from_list(list(chosen))

    optimizer = torch.optim.Adam(model.parameters(), lr=RECIPE.rates[0])
    return Setup(RECIPE, model, optimizer, frames, collate, loss, predict)


if __name__ == "__main__":
    main(prepare, PACKAGES)
