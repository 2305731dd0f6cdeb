"""Another package's network, relaxed, trained and projected, as its own calculator sees it.

`foreign_acceptance.py mace 3`: a peer of ``mdrelax.peers`` and a number of training steps. The networks of MACE and
NequIP are those of the speed benchmark's workers (analysis/benchmarks has to be on PYTHONPATH), SevenNet's is in its
wheel. The last line that is printed is JSON, which test_foreign_environments.py judges.
"""

import json
import sys
from collections.abc import Callable

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_changes
from torch import nn

from foreign_peers import METHANOL, TASK, WARM_UP
from mdrelax.peers.peer import Peer, open_peer

N_STRUCTURES = 2


def mace() -> nn.Module:
    """MACE with 8 channels."""
    from peers.mace import build

    return build(8, TASK)


def nequip() -> nn.Module:
    """NequIP of four layers with 32 features."""
    from nequip.utils.global_state import set_global_state
    from peers.nequip import build

    set_global_state()
    return build("l2", TASK)


def sevenn() -> nn.Module:
    """SevenNet-0."""
    from mdrelax.peers.sevenn import load

    return load("7net-0")


def structures() -> list[Atoms]:
    """Rattled molecules of methanol."""
    stream = np.random.default_rng(0)
    base = np.array(METHANOL.positions)
    return [Atoms(METHANOL.numbers, base + 0.05 * stream.normal(size=base.shape)) for _ in range(N_STRUCTURES)]


def through_calculator(peer: Peer, model: nn.Module) -> list[float]:
    """Energies and forces by the package's own calculator."""
    calculator, found = peer.calculator(model), []
    for atoms in structures():
        for _ in range(WARM_UP):
            calculator.calculate(atoms, ["energy", "forces"], all_changes)
        found += [float(calculator.results["energy"]), *np.ravel(calculator.results["forces"]).tolist()]
    return found


def shape(model: nn.Module) -> tuple[list[str], list[str]]:
    """Keys of the state dict, and classes of the modules."""
    return list(model.state_dict()), [
        f"{type(module).__module__}.{type(module).__name__}" for module in model.modules()
    ]


def train(peer: Peer, model: nn.Module, n_steps: int) -> None:
    """The loop of docs/peers.md: forces of half the size, which no network of the package has."""
    import torch

    from mdrelax.method.penalty import penalty, record_inputs
    from mdrelax.method.relaxation import set_theta
    from mdrelax.method.schedule import Schedule

    schedule, optimizer = Schedule("triangle"), torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = peer.batch_of(model, structures())
    wanted = 0.5 * peer.predict(model.train(), batch).forces.detach()
    for step in range(n_steps):
        set_theta(model, schedule.at_step(step, n_steps=n_steps))
        with record_inputs(model) as inputs:
            found = peer.predict(model, batch)
        optimizer.zero_grad()
        ((found.forces - wanted).square().mean() + 0.01 * penalty(model, inputs)).backward()
        optimizer.step()


def accept(name: str, build: Callable[[], nn.Module], n_steps: int) -> dict[str, object]:
    """All that the acceptance of a peer asks for, as numbers."""
    import torch

    from mdrelax.method.projection import project
    from mdrelax.method.relaxation import relax_constraints, set_theta
    from mdrelax.peers.proof import symmetry_errors

    peer, model, generator = open_peer(name), build(), torch.Generator().manual_seed(0)
    plain, before = through_calculator(peer, model), shape(model)
    original = symmetry_errors(peer.calculator(model), structures())
    relax_constraints(model, initial_std=0.1, generator=generator)
    moved = through_calculator(peer, model)
    set_theta(model, 0.0)
    at_zero = through_calculator(peer, model)
    project(model)
    said: dict[str, object] = {
        "moved": max(abs(a - b) for a, b in zip(moved, plain, strict=True)), "same at theta = 0": at_zero == plain,
        "same when projected": through_calculator(peer, model) == plain,
    }  # fmt: skip
    placement = relax_constraints(model, initial_std=0.1, generator=generator, rank=8)
    relaxed = symmetry_errors(peer.calculator(model), structures())
    train(peer, model, n_steps)
    project(model, how="fold")
    model.eval()
    return {
        **said, "names": placement.names, "n_free": placement.n_free, "shape kept": shape(model) == before,
        "symmetry": peer.symmetry(model), "original": original._asdict(), "relaxed": relaxed._asdict(),
        "projected": symmetry_errors(peer.calculator(model), structures())._asdict(),
        "learnt": max(abs(a - b) for a, b in zip(through_calculator(peer, model), plain, strict=True)),
    }  # fmt: skip


if __name__ == "__main__":
    networks = {"mace": mace, "nequip": nequip, "sevenn": sevenn}
    print(json.dumps(accept(sys.argv[1], networks[sys.argv[1]], int(sys.argv[2]))))
