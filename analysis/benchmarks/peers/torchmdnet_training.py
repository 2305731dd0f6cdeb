"""TensorNet trained as TorchMD-Net's example for rMD17 does: `python -m peers.torchmdnet_training FOLDER`.

The example smooths the energy's loss over steps with a factor of 0.01, which multiplies its gradient: energies count
0.5 * 0.01, forces 0.5. The rate falls evenly by a factor of 100 instead of on plateaus.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmdnet.loss import mse_loss

from .protocol import Task
from .torchmdnet import PACKAGES, build
from .training import Frames, Molecule, Recipe, Setup, main

CUTOFF = 4.5  # A
RECIPE = Recipe(
    network="tensornet, 128 channels, two layers, 32 radial functions, cut-off 4.5 A",
    batch_size=8,
    rates=(1e-3, 1e-5),
    optimizer="AdamW without weight decay",
    loss="mean squares of energy and of forces, weights 0.005 and 0.5",
    source="examples/TensorNet-rMD17.yaml of torchmd-net 2",
    warmup_steps=500,
    gradient_clip=40.0,
)


def prepare(molecule: Molecule, seed: int) -> Setup:
    """TensorNet; energies are standardised."""
    numbers = torch.from_numpy(molecule.numbers).long()
    std = float(np.std(molecule.train.energies))
    model = build("tensornet", Task("training", cutoff=CUTOFF), std=std, seed=seed)

    def frames(part: Frames) -> list[Any]:
        return [tuple(torch.tensor(array, dtype=torch.float32) for array in each) for each in zip(*part, strict=True)]

    def collate(chosen: Sequence[Any]) -> Any:
        positions, energies, forces = (torch.stack(each) for each in zip(*chosen, strict=True))
        n = len(chosen)
        batch = torch.arange(n).repeat_interleave(len(numbers))
        return numbers.repeat(n), positions.flatten(0, 1), batch, energies, forces.flatten(0, 1)

    def predict(batch: Any) -> tuple[Tensor, Tensor]:
        z, positions, index, _, _ = batch
        energies, forces = model(z, positions.clone(), index)
        return energies.flatten(), forces

    def loss(batch: Any, stage: int) -> Tensor:
        energies, forces = predict(batch)
        return 0.005 * mse_loss(energies, batch[3]) + 0.5 * mse_loss(forces, batch[4])

    optimizer = torch.optim.AdamW(model.parameters(), lr=RECIPE.rates[0], weight_decay=0.0)
    return Setup(RECIPE, model, optimizer, frames, collate, loss, predict)


if __name__ == "__main__":
    main(prepare, PACKAGES)
