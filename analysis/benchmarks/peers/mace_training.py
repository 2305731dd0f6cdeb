"""MACE trained as its README recommends: `python -m peers.mace_training FOLDER`.

`mace_run_train --hidden_irreps='128x0e + 128x1o' --r_max=5.0 --batch_size=10 --max_num_epochs=1500 --stage_two
--start_stage_two=1200 --ema --ema_decay=0.99 --amsgrad`, and the defaults of that command. Differences: float32 ("a
significant speed-up"), and the rate of the first stage falls evenly to that of the second instead of on plateaus.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mace import data, modules, tools
from mace.tools import build_default_arg_parser, torch_geometric
from mace.tools.scripts_utils import get_optimizer, get_params_options
from torch import Tensor

from .mace import PACKAGES, build
from .protocol import Task
from .training import Frames, Molecule, Recipe, Setup, labelled_atoms, main

CUTOFF = 5.0  # A
KEYS = data.KeySpecification(info_keys={"energy": "REF_energy"}, arrays_keys={"forces": "REF_forces"})
RECIPE = Recipe(
    network="128x0e + 128x1o, two layers, cut-off 5 A",
    batch_size=10,
    rates=(1e-2, 1e-3),
    optimizer="Adam with AMSGrad, weight decay 5e-7",
    loss="weighted, energy 1, forces 100; stage two (the last fifth): energy 1000",
    source="README and defaults of mace_run_train, mace-torch 0.3.16",
    ema=0.99,
    gradient_clip=10.0,
    stage_two=0.8,
)


def prepare(molecule: Molecule, seed: int) -> Setup:
    """MACE with its own statistics, loss and optimiser."""
    elements = sorted(set(molecule.numbers.tolist()))
    table = tools.AtomicNumberTable(elements)

    def frames(part: Frames) -> list[Any]:
        return [
            data.AtomicData.from_config(data.config_from_atoms(each, KEYS), z_table=table, cutoff=CUTOFF)
            for each in labelled_atoms(molecule, part)
        ]

    def collate(chosen: Sequence[Any]) -> Any:
        return torch_geometric.Batch.from_data_list(list(chosen))

    neighbours = np.mean([each.edge_index.shape[1] / len(molecule.numbers) for each in frames(molecule.train)])
    model = build(
        128, Task("training", cutoff=CUTOFF), elements=elements, average_neighbors=float(neighbours),
        scale=float(np.sqrt(np.square(molecule.train.forces).mean())), seed=seed,
    )  # fmt: skip
    settings = build_default_arg_parser().parse_args(["--name=peer", "--amsgrad"])
    losses = [modules.WeightedEnergyForcesLoss(energy_weight=w, forces_weight=100.0) for w in (1.0, 1000.0)]

    def output(batch: Any) -> dict[str, Tensor]:
        return model(batch.to_dict(), training=model.training, compute_force=True)

    def predict(batch: Any) -> tuple[Tensor, Tensor]:
        found = output(batch)
        return found["energy"], found["forces"]

    return Setup(
        RECIPE, model, get_optimizer(settings, get_params_options(settings, model)), frames, collate,
        lambda batch, stage: losses[stage - 1](batch, output(batch)), predict,
    )  # fmt: skip


if __name__ == "__main__":
    main(prepare, PACKAGES)
