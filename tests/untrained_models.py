"""Model files of networks that were never trained: right in form, quick to make."""

from pathlib import Path
from typing import Any

import torch
from ase import Atoms

from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.physics import LEARNT_ALONE, Physics
from mdrelax.forces.symmetry import certify
from mdrelax.modelfile import save_model
from mdrelax.potentials import build_potential
from molecules import batch_of, rattled

ARGUMENTS: dict[str, Any] = {
    "irreps": "4x0e+2x1o", "n_blocks": 1, "cutoff": 4.0, "n_heads": 2, "n_features": 4, "expansion": 1,
    "nonlinear_messages": False, "radial_basis": "bessel", "n_basis": 4, "radial_hidden": 4, "average_neighbors": 5.0,
}  # fmt: skip


def saved(
    path: Path,
    *elements: int,
    potential: str = "equiformer",
    arguments: dict[str, Any] = ARGUMENTS,
    binding: float = 0.0,
    physics: Physics = LEARNT_ALONE,
) -> Path:
    """A model file of a seeded network that knows the elements."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_potential(potential, len(elements), arguments)
    model = ForceField(network, elements=elements, binding=binding, physics=physics).eval()
    chain = Atoms([elements[0]] * 4, [[0, 0, 0], [1.5, 0, 0], [2, 1.4, 0], [2.2, 1.9, 1.3]])
    certificate = certify(model, batch_of(*rattled(chain, 2, 0), cutoff=4.0), n_operations=1)
    return save_model(path, model, potential=potential, arguments=arguments, certificate=certificate)
