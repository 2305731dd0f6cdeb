"""NequIP (Batzner et al., Nature Communications 13, 2453, 2022, arXiv 2101.03164) as a worker.

The argument is ``l2`` (l up to 2, 32 features of either parity: 64 for each l, four layers), or ``M``, the preset of
the package's own foundation models.
"""

import sys
from collections.abc import Sequence

from nequip.data import AtomicDataDict, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.integrations.ase import NequIPCalculator
from nequip.model import NequIPGNNModel, PresetNequIPGNNModel
from nequip.utils.global_state import set_global_state
from torch import Tensor, nn

from .protocol import Task, Work, serve
from .steps import count_parameters, md_step, to_atoms, training_step

ELEMENTS = ["H", "C", "O"]
PACKAGES = ("nequip", "torch", "e3nn", "ase", "numpy", "matscipy")


def build(
    name: str,
    task: Task,
    *,
    elements: Sequence[str] = ELEMENTS,
    average_neighbors: float = 16.0,
    scales: float | dict[str, float] = 1.0,
    seed: int = 0,
) -> nn.Module:
    """The network of that name."""
    shared = {
        "seed": seed,
        "model_dtype": task.dtype,
        "type_names": list(elements),
        "r_max": task.cutoff,
        "avg_num_neighbors": average_neighbors,
        "per_type_energy_scales": scales,
        "per_type_energy_shifts": 0.0,
    }
    if name == "l2":
        return NequIPGNNModel(num_layers=4, l_max=2, num_features=32, **shared)
    return PresetNequIPGNNModel(preset=name, **shared)


def prepare(task: Task) -> Work:
    """Training with NequIP's batches, MD with its ASE calculator."""
    set_global_state()
    model = build(sys.argv[1], task)
    n_parameters = count_parameters(model)
    transforms = [ChemicalSpeciesToAtomTypeMapper(model_type_names=ELEMENTS), NeighborListTransform(task.cutoff)]
    if task.kind == "md":
        calculator = NequIPCalculator(model.eval().requires_grad_(False), "cpu", transforms=transforms)
        return Work(md_step(to_atoms(task.structures[0]), calculator), n_parameters)
    frames = []
    for structure in task.structures:
        frame = from_ase(to_atoms(structure))
        for transform in transforms:
            frame = transform(frame)
        frames.append(frame)
    batch = AtomicDataDict.batched_from_list(frames)

    def predict() -> tuple[Tensor, Tensor]:
        result = model(batch)
        return result[AtomicDataDict.TOTAL_ENERGY_KEY], result[AtomicDataDict.FORCE_KEY]

    return Work(training_step(model.train().parameters(), predict), n_parameters)


if __name__ == "__main__":
    serve(prepare, PACKAGES)
