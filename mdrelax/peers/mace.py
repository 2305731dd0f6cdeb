"""MACE (Batatia et al., NeurIPS 2022, arXiv 2206.07697) as a peer; a model file is a pickled network.

mace-torch needs e3nn 0.4.4, so it has an environment of its own: put a checkout of mdrelax on its ``PYTHONPATH``.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import mace  # noqa: F401 (before e3nn: it lets torch >= 2.6 read the constants of its old e3nn)
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from mace import data, tools
from mace.calculators import MACECalculator
from mace.tools import torch_geometric
from torch import nn

from mdrelax.peers.peer import PeerPrediction

__all__ = ["PICKLED", "batch_of", "calculator", "load", "predict", "save", "shift_energies", "symmetry"]

PICKLED = True


def load(source: str) -> nn.Module:
    """A model file, a pickle, read by MACE's own calculator."""
    (model,) = MACECalculator(model_paths=source, device="cpu").models
    return model.requires_grad_(True)


def save(model: nn.Module, path: str, *, source: str) -> None:
    """A model file: the pickled network; the settings of ``source`` are those of ``model`` itself."""
    torch.save(model, path)


def shift_energies(model: nn.Module, offsets: Mapping[int, float]) -> None:
    """Add to the table of isolated atoms."""
    network: Any = model
    with torch.no_grad():
        for k, number in enumerate(network.atomic_numbers.tolist()):
            network.atomic_energies_fn.atomic_energies[..., k] += offsets.get(number, 0.0)


def symmetry(model: nn.Module) -> str:
    """Its irreps have parities."""
    return "E(3)"


def batch_of(model: nn.Module, structures: Sequence[Atoms]) -> dict[str, Any]:
    """One graph of all structures."""
    network: Any = model
    table = tools.AtomicNumberTable([int(number) for number in network.atomic_numbers])
    configurations = [data.config_from_atoms(atoms) for atoms in structures]
    graphs = [data.AtomicData.from_config(each, z_table=table, cutoff=float(network.r_max)) for each in configurations]
    loader = torch_geometric.dataloader.DataLoader(graphs, batch_size=len(graphs), shuffle=False)
    like = next(model.parameters())
    tensors = next(iter(loader)).to_dict()
    return {name: value.to(like) if torch.is_floating_point(value) else value for name, value in tensors.items()}


def predict(model: nn.Module, batch: Any) -> PeerPrediction:
    """Forces and stress are derivatives by positions and strain."""
    inputs = {**batch, "positions": batch["positions"].detach()}
    found = model(inputs, training=model.training, compute_force=True, compute_stress=True)
    return PeerPrediction(found["energy"], found["forces"], found["stress"])


def calculator(model: nn.Module) -> Calculator:
    """``MACECalculator`` on the processor; it freezes the weights of the model that it is given, so it gets a copy."""
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return MACECalculator(models=copy.deepcopy(model).eval(), device="cpu", default_dtype=dtype)
