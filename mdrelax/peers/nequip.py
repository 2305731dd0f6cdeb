"""NequIP (Batzner et al., Nature Communications 13, 2453, 2022, arXiv 2101.03164) as a peer.

Its files are written by its own trainer and packager, so a network is handed in and its state dict handed back.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from nequip.data import AtomicDataDict, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.integrations.ase import NequIPCalculator
from torch import nn

from mdrelax.peers.peer import PeerPrediction

__all__ = ["batch_of", "calculator", "predict", "symmetry"]


def symmetry(model: nn.Module) -> str:
    """Its irreps have parities."""
    return "E(3)"


def batch_of(model: nn.Module, structures: Sequence[Atoms]) -> dict[str, Any]:
    """One graph of all structures."""
    frames = []
    for atoms in structures:
        frame = from_ase(atoms)
        for transform in _transforms(model):
            frame = transform(frame)
        frames.append(frame)
    return AtomicDataDict.batched_from_list(frames)


def predict(model: nn.Module, batch: Any) -> PeerPrediction:
    """NequIP's forces are the gradient, with a graph of its own in training mode."""
    found = model(dict(batch))
    stress = found.get(AtomicDataDict.STRESS_KEY)
    return PeerPrediction(found[AtomicDataDict.TOTAL_ENERGY_KEY].flatten(), found[AtomicDataDict.FORCE_KEY], stress)


def calculator(model: nn.Module) -> Calculator:
    """``NequIPCalculator`` on the processor."""
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    return NequIPCalculator(twin, torch.device("cpu"), transforms=_transforms(model))


def _transforms(model: nn.Module) -> list[Any]:
    network: Any = model
    return [
        ChemicalSpeciesToAtomTypeMapper(model_type_names=list(network.type_names)),
        NeighborListTransform(float(network.metadata["r_max"])),
    ]
