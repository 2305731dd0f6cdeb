"""PaiNN (Schuett et al., ICML 2021, arXiv 2102.03150) of SchNetPack as a worker: 128 channels, three interactions."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import dataloader

if not hasattr(dataloader, "T_co"):  # SchNetPack imports this name, which torch 2.13 no longer has
    dataloader.T_co = TypeVar("T_co", covariant=True)  # type: ignore[attr-defined]

from schnetpack import atomistic, properties, representation
from schnetpack.data.loader import _atoms_collate_fn as atoms_collate
from schnetpack.interfaces.ase_interface import AtomsConverter, SpkCalculator
from schnetpack.model import NeuralNetworkPotential
from schnetpack.nn import CosineCutoff, GaussianRBF
from schnetpack.transform import MatScipyNeighborList

from .protocol import Task, Work, serve
from .steps import count_parameters, md_step, to_atoms, training_step

__all__ = ["PACKAGES", "AtomsConverter", "MatScipyNeighborList", "atoms_collate", "build", "properties"]

CHANNELS = 128
PACKAGES = ("schnetpack", "torch", "ase", "numpy", "matscipy")


class InMemory(SpkCalculator):
    """SchNetPack's calculator for a model in memory."""

    def _load_model(self, model_file: Any) -> nn.Module:
        return model_file.eval().requires_grad_(False)


def build(task: Task, *, seed: int = 0) -> nn.Module:
    """PaiNN with energy and forces."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NeuralNetworkPotential(
            representation=representation.PaiNN(
                n_atom_basis=CHANNELS,
                n_interactions=3,
                radial_basis=GaussianRBF(n_rbf=20, cutoff=task.cutoff),
                cutoff_fn=CosineCutoff(task.cutoff),
            ),
            input_modules=[atomistic.PairwiseDistances()],
            output_modules=[atomistic.Atomwise(n_in=CHANNELS, output_key="energy"), atomistic.Forces()],
        )
    return model.to(getattr(torch, task.dtype))


def prepare(task: Task) -> Work:
    """Training with SchNetPack's batches, MD with its ASE calculator."""
    model, dtype = build(task), getattr(torch, task.dtype)
    n_parameters = count_parameters(model)
    neighbors = MatScipyNeighborList(cutoff=task.cutoff)
    if task.kind == "md":
        calculator = InMemory(model, neighbors, energy_unit="eV", dtype=dtype)
        return Work(md_step(to_atoms(task.structures[0]), calculator), n_parameters)
    batch = AtomsConverter(neighbors, dtype=dtype)([to_atoms(each) for each in task.structures])

    def predict() -> tuple[Tensor, Tensor]:
        result = model({**batch, properties.R: batch[properties.R].detach()})
        return result["energy"], result["forces"]

    return Work(training_step(model.train().parameters(), predict), n_parameters)


if __name__ == "__main__":
    serve(prepare, PACKAGES)
