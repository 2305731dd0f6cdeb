"""MACE (Batatia et al., NeurIPS 2022, arXiv 2206.07697) as a worker; the argument is the number of channels."""

import sys
from collections.abc import Sequence

import mace  # noqa: F401 (before e3nn: it lets torch >= 2.6 read the constants of its old e3nn)
import torch
from e3nn import o3
from mace import data, modules, tools
from mace.calculators import MACECalculator
from mace.tools import torch_geometric
from torch import Tensor, nn

from .protocol import Task, Work, serve
from .steps import count_parameters, md_step, to_atoms, training_step

ELEMENTS = [1, 6, 8]
PACKAGES = ("mace-torch", "torch", "e3nn", "ase", "numpy", "matscipy")


def build(
    channels: int,
    task: Task,
    *,
    elements: Sequence[int] = ELEMENTS,
    average_neighbors: float = 16.0,
    scale: float = 1.0,
    seed: int = 0,
) -> nn.Module:
    """Two layers, l up to 3 on the edges, body order 4, as in the paper and in the default of `mace_run_train`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = modules.ScaleShiftMACE(
            r_max=task.cutoff,
            num_bessel=8,
            num_polynomial_cutoff=5,
            max_ell=3,
            interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
            interaction_cls_first=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
            num_interactions=2,
            num_elements=len(elements),
            hidden_irreps=o3.Irreps(f"{channels}x0e+{channels}x1o"),
            MLP_irreps=o3.Irreps("16x0e"),
            atomic_energies=torch.zeros(len(elements)).numpy(),
            avg_num_neighbors=average_neighbors,
            atomic_numbers=list(elements),
            correlation=3,
            gate=torch.nn.functional.silu,
            atomic_inter_scale=scale,
            atomic_inter_shift=0.0,
        )
    return model.to(getattr(torch, task.dtype))


def batch_of(task: Task) -> dict[str, Tensor]:
    """All structures in one batch of MACE's own."""
    table = tools.AtomicNumberTable(ELEMENTS)
    configurations = [data.config_from_atoms(to_atoms(each)) for each in task.structures]
    graphs = [data.AtomicData.from_config(each, z_table=table, cutoff=task.cutoff) for each in configurations]
    loader = torch_geometric.dataloader.DataLoader(graphs, batch_size=len(graphs), shuffle=False)
    dtype = getattr(torch, task.dtype)
    tensors = next(iter(loader)).to_dict()
    return {name: value.to(dtype) if torch.is_floating_point(value) else value for name, value in tensors.items()}


def prepare(task: Task) -> Work:
    """Training with MACE's batches, MD with its ASE calculator."""
    model = build(int(sys.argv[1]), task)
    n_parameters = count_parameters(model)
    if task.kind == "md":
        calculator = MACECalculator(models=model, device="cpu", default_dtype=task.dtype)
        return Work(md_step(to_atoms(task.structures[0]), calculator), n_parameters)
    batch = batch_of(task)

    def predict() -> tuple[Tensor, Tensor]:
        result = model({**batch, "positions": batch["positions"].detach()}, training=True, compute_force=True)
        return result["energy"], result["forces"]

    return Work(training_step(model.parameters(), predict), n_parameters)


if __name__ == "__main__":
    serve(prepare, PACKAGES)
