"""TensorNet (arXiv 2306.06482) and the Equivariant Transformer (arXiv 2202.02541) of TorchMD-Net as a worker.

The argument is the package's name of the network. Hyperparameters are those of its example for MD17 (Equivariant
Transformer) and rMD17 (TensorNet) with the common cut-off. TorchMD-Net's ASE calculator reads files only, so its
adapter for models in memory is used, with its neighbour list inside the model.
"""

import sys
from typing import Any

import torch
from ase.calculators.calculator import Calculator, all_changes
from torch import Tensor, nn
from torchmdnet.calculators import External
from torchmdnet.models.model import create_model

from .protocol import Task, Work, serve
from .steps import count_parameters, md_step, to_atoms, training_step

PACKAGES = ("torchmd-net", "torch", "ase", "numpy", "warp-lang")
SHARED = {
    "activation": "silu", "aggr": "add", "atom_filter": -1, "cutoff_lower": 0.0, "derivative": True,
    "max_num_neighbors": 128, "output_model": "Scalar", "prior_model": None, "reduce_op": "add",
}  # fmt: skip
NETWORKS: dict[str, dict[str, Any]] = {
    "tensornet": {
        "embedding_dimension": 128, "num_layers": 2, "num_rbf": 32, "rbf_type": "expnorm", "trainable_rbf": False,
        "max_z": 100, "equivariance_invariance_group": "O(3)",
    },
    "equivariant-transformer": {
        "embedding_dimension": 128, "num_layers": 6, "num_rbf": 32, "rbf_type": "expnorm", "trainable_rbf": False,
        "max_z": 100, "neighbor_embedding": True, "attn_activation": "silu", "num_heads": 8,
        "distance_influence": "both",
    },
}  # fmt: skip


class InMemory(Calculator):
    """Energy and forces of a model in memory through the package's adapter."""

    implemented_properties: list[str] = ["energy", "forces"]  # noqa: RUF012 (ASE's interface)

    def __init__(self, model: nn.Module, numbers: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.external = External(model, numbers.unsqueeze(0), dtype=dtype)

    def calculate(self, atoms: Any = None, properties: Any = (), system_changes: Any = all_changes) -> None:
        """Fills ``results``."""
        super().calculate(atoms, properties, system_changes)
        box = torch.from_numpy(atoms.cell.array) if atoms.pbc.all() else None
        energy, forces = self.external.calculate(torch.from_numpy(atoms.positions), box)
        self.results = {"energy": float(energy), "forces": forces[0].numpy()}


def build(name: str, task: Task, *, std: float = 1.0, seed: int = 0) -> nn.Module:
    """The network of that name; its energies have the factor ``std``."""
    precision = 64 if task.dtype == "float64" else 32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_model(
            {**SHARED, **NETWORKS[name], "model": name, "precision": precision, "cutoff_upper": task.cutoff},
            std=torch.tensor(std),
        )


def prepare(task: Task) -> Work:
    """Training on one batch, MD with the adapter."""
    model, dtype = build(sys.argv[1], task), getattr(torch, task.dtype)
    n_parameters = count_parameters(model)
    atoms = [to_atoms(each) for each in task.structures]
    numbers = torch.cat([torch.from_numpy(each.numbers) for each in atoms]).long()
    if task.kind == "md":
        calculator = InMemory(model.requires_grad_(False), numbers, dtype)
        return Work(md_step(atoms[0], calculator), n_parameters)
    positions = torch.cat([torch.from_numpy(each.positions) for each in atoms]).to(dtype)
    batch = torch.arange(len(atoms)).repeat_interleave(torch.tensor([len(each) for each in atoms]))

    def predict() -> tuple[Tensor, Tensor]:
        energy, forces = model(numbers, positions.detach(), batch)
        return energy, forces

    return Work(training_step(model.train().parameters(), predict), n_parameters)


if __name__ == "__main__":
    serve(prepare, PACKAGES)
