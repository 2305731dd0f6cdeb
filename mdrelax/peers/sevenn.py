"""SevenNet (Park et al., J. Chem. Theory Comput. 20, 4857, 2024) as a peer; its wheel carries pretrained networks.

Its checkpoints are pickles in float32. Variants whose layers cuEquivariance, FlashTP or OpenEquivariance replace have
no e3nn layers: relax and project the plain network first, and convert the file afterwards.
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from sevenn.atom_graph_data import AtomGraphData
from sevenn.calculator import SevenNetCalculator
from sevenn.train.dataload import unlabeled_atoms_to_graph
from sevenn.util import load_checkpoint
from torch import Tensor, nn
from torch_geometric.data import Batch

from mdrelax.peers.peer import PeerPrediction

__all__ = ["PICKLED", "batch_of", "calculator", "load", "predict", "save", "shift_energies", "symmetry"]

PICKLED = True
VOIGT = [[0, 3, 5], [3, 1, 4], [5, 4, 2]]  # of its xx, yy, zz, xy, yz, zx


def load(source: str) -> nn.Module:
    """A name such as ``7net-0``, or a checkpoint; a pickle, read by sevenn's own loader."""
    return load_checkpoint(source).build_model()


def save(model: nn.Module, path: str, *, source: str) -> None:
    """A checkpoint with the settings of ``source`` and the weights of ``model``."""
    origin = load_checkpoint(source)
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    torch.save({"config": origin.config, "model_state_dict": state, "epoch": origin.epoch}, path)


def shift_energies(model: nn.Module, offsets: Mapping[int, float]) -> None:
    """Add to the network's shift of each element; raises ``ValueError`` if it has one shift for all of several."""
    rescale: Any = model.get_submodule("rescale_atomic_energy")
    shift, types = rescale.shift, _types(model)
    if shift.numel() == 1 and len(offsets) > 1:
        raise ValueError(
            "This network has one energy shift for all elements, so references cannot be fitted per element."
        )
    with torch.no_grad():
        for number, offset in offsets.items():
            shift.view(-1)[types[number] if shift.numel() > 1 else 0] += offset


def symmetry(model: nn.Module) -> str:
    """SevenNet-0 has even irreps only: rotations, not reflections."""
    irreps = (getattr(module, "irreps_out", ()) for module in model.modules())
    odd = any(getattr(part, "ir", None) is not None and part.ir.p == -1 for each in irreps for part in each)
    return "E(3)" if odd else "SE(3)"


def batch_of(model: nn.Module, structures: Sequence[Atoms]) -> Any:
    """One graph of all structures."""
    cutoff: Any = model.cutoff
    graphs = [AtomGraphData.from_numpy_dict(unlabeled_atoms_to_graph(atoms, cutoff)) for atoms in structures]
    return Batch.from_data_list(graphs).to(next(model.parameters()).device)


def predict(model: nn.Module, batch: Any) -> PeerPrediction:
    """Forces and stress are derivatives by edge vectors."""
    whole: Any = model
    whole.set_is_batch_data(True)
    with torch.enable_grad():
        found = whole(batch.clone())
    stress = found["inferred_stress"]
    return PeerPrediction(
        found["inferred_total_energy"], found["inferred_force"], None if stress is None else _full(stress)
    )


def calculator(model: nn.Module) -> Calculator:
    """``SevenNetCalculator`` on the processor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it would be faster with an accelerator
        twin: Any = copy.deepcopy(model).eval()
        return SevenNetCalculator(twin, file_type="model_instance", device="cpu")


def _types(model: nn.Module) -> dict[int, int]:
    """The place of each element by atomic number."""
    network: Any = model
    return network.type_map


def _full(stress: Tensor) -> Tensor:
    return -stress[:, VOIGT]
