"""The method on networks of other packages, in their own environments: `foreign_peers.py mace` or `nequip`.

The networks are those of the speed benchmark's workers: analysis/benchmarks has to be on PYTHONPATH. The
last line that it prints is JSON, which test_foreign_environments.py judges.
"""

import json
import sys
from collections.abc import Callable

import torch
from peers.protocol import Structure, Task
from torch import Tensor, nn

METHANOL = Structure(  # angstrom; no symmetry is left
    [6, 8, 1, 1, 1, 1],
    [[0.0, 0.1, 0.0], [1.4, 0.0, 0.1], [-0.4, 1.1, 0.1], [-0.4, -0.5, 0.9], [-0.3, -0.5, -0.9], [1.7, 0.8, -0.3]],
    [[0.0] * 3] * 3,
    [False] * 3,
)
WARM_UP = 4  # evaluations: TorchScript optimises at the second, and rounds differently from then on
TASK = Task("training", [METHANOL], "float64", cutoff=5.0)


def mace() -> tuple[nn.Module, Callable[[], Tensor]]:
    """MACE with 8 channels, and its energy and forces."""
    from peers.mace import batch_of, build

    model, batch = build(8, TASK), batch_of(TASK)

    def output() -> Tensor:
        found = model({**batch, "positions": batch["positions"].detach()}, training=False, compute_force=True)
        return torch.cat([found["energy"], found["forces"].flatten()]).detach()

    return model, output


def nequip() -> tuple[nn.Module, Callable[[], Tensor]]:
    """NequIP of four layers with 32 features, and its energy and forces."""
    from nequip.data import AtomicDataDict, from_ase
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
    from nequip.utils.global_state import set_global_state
    from peers.nequip import ELEMENTS, build
    from peers.steps import to_atoms

    set_global_state()
    model, frame = build("l2", TASK), from_ase(to_atoms(METHANOL))
    for transform in (ChemicalSpeciesToAtomTypeMapper(model_type_names=ELEMENTS), NeighborListTransform(TASK.cutoff)):
        frame = transform(frame)
    batch = AtomicDataDict.batched_from_list([frame])

    def output() -> Tensor:
        found = model(dict(batch))
        return torch.cat([found[key].flatten() for key in ("total_energy", "forces")]).detach()

    return model, output


def relax_each_place(model: nn.Module, output: Callable[[], Tensor]) -> dict[str, dict[str, object]]:
    """For each place: how far theta = 1 moves the output, the penalty, and whether all is as before afterwards."""
    from mdrelax.method.penalty import penalty, record_inputs
    from mdrelax.method.projection import project
    from mdrelax.method.relaxation import relax_constraints, set_theta
    from mdrelax.method.sites import relaxable_sites

    said: dict[str, dict[str, object]] = {}
    plain = [output() for _ in range(WARM_UP)][-1]
    for name in relaxable_sites(model):
        relax_constraints(model, where=[name], initial_std=0.1, generator=torch.Generator().manual_seed(0))
        with record_inputs(model) as inputs:
            moved = (output() - plain).abs().max().item()
        value = penalty(model, inputs).item() if inputs[name] else 0.0
        set_theta(model, 0.0)
        same = torch.equal(output(), plain)
        project(model)
        said[name] = {"moved": moved, "penalty": value, "same": same and torch.equal(output(), plain)}
    return said


if __name__ == "__main__":
    print(json.dumps(relax_each_place(*{"mace": mace, "nequip": nequip}[sys.argv[1]]())))
