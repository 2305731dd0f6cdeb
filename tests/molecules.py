"""Small molecules as graphs, and a small Equiformer: what many tests begin with. Everything is float64 and seeded.

Seeds are set inside ``torch.random.fork_rng()``, so that no builder touches the global generator.
"""

from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from torch import Tensor

from mdrelax.forces.forcefield import ForceField
from mdrelax.potentials.equiformer import Equiformer
from mdrelax.potentials.equiformer_pytorch import EquiformerPytorch
from mdrelax.potentials.segnn import SEGNNPotential
from mdrelax.structures.graph import Graph, collate
from mdrelax.structures.neighbors import build_graph

ELEMENTS = (1, 6, 8)
REFERENCES = (-1.0, -2.5, -4.0)  # eV an atom of ELEMENTS
CUTOFF = 5.0  # A
SKEW = np.array([[0, 0.3, 0], [0, 0, 0.2], [0.1, 0, 0]])  # A


def ethanol() -> Atoms:
    """Nine atoms, C2H6O, as ASE's table has it; it has a mirror plane, so rattle it where that matters."""
    return molecule("CH3CH2OH")


def water() -> Atoms:
    """Three atoms."""
    return molecule("H2O")


def crystal() -> Atoms:
    """Two CO in a skew, rattled cell smaller than the cut-off: many edges go through several images."""
    atoms = bulk("CO", "rocksalt", a=3.4, cubic=True)[:4]
    atoms.set_cell(atoms.cell[:] + SKEW, scale_atoms=True)
    atoms.rattle(0.1, seed=0)
    return atoms


def rattled(atoms: Atoms, n: int, seed: int, amplitude: float = 0.1) -> list[Atoms]:
    """``n`` copies with every coordinate moved by a normal deviate of ``amplitude`` Angstrom."""
    rng = np.random.default_rng(seed)
    copies = [atoms.copy() for _ in range(n)]
    for copy in copies:
        copy.positions += rng.normal(scale=amplitude, size=copy.positions.shape)
    return copies


def graph_of(atoms: Atoms, cutoff: float = CUTOFF) -> Graph:
    """The graph of one structure, periodic where the atoms are."""
    return build_graph(atoms.positions, atoms.numbers, atoms.cell[:], atoms.pbc, cutoff)


def batch_of(*structures: Atoms, cutoff: float = CUTOFF) -> Graph:
    """Several structures as one graph."""
    return collate([graph_of(atoms, cutoff) for atoms in structures])


def tiny_equiformer(irreps: str = "8x0e+4x1o+4x2e", seed: int = 0, **kwargs: Any) -> Equiformer:
    """An Equiformer of two blocks for the three elements; any of its arguments may be given."""
    arguments: dict[str, Any] = {
        "n_blocks": 2,
        "cutoff": CUTOFF,
        "n_features": 16,
        "expansion": 2,
        "radial_basis": "bessel",
        "n_basis": 6,
        "radial_hidden": 16,
        "average_neighbors": 8.0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Equiformer(len(ELEMENTS), irreps=irreps, **{**arguments, **kwargs}).double()


def tiny_segnn(lmax: int = 1, seed: int = 0, **kwargs: Any) -> SEGNNPotential:
    """A SEGNN of two layers for the three elements; any of its arguments may be given."""
    arguments: dict[str, Any] = {"channels": 8, "n_layers": 2, "cutoff": CUTOFF, "n_basis": 6, "average_neighbors": 8.0}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SEGNNPotential(len(ELEMENTS), lmax=lmax, **{**arguments, **kwargs}).double()


def tiny_equiformer_pytorch(dim: tuple[int, ...] = (16, 8), seed: int = 0, **kwargs: Any) -> EquiformerPytorch:
    """An equiformer-pytorch of two blocks for the three elements; any of its arguments may be given."""
    arguments: dict[str, Any] = {"depth": 2, "heads": 2, "dim_head": 4, "radial_hidden": 8, "cutoff": CUTOFF}
    arguments["average_neighbors"] = 8.0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return EquiformerPytorch(len(ELEMENTS), dim=dim, **{**arguments, **kwargs}).double()


def tiny_force_field(irreps: str = "8x0e+4x1o+4x2e", seed: int = 0, *, scale: float = 1.0, **kwargs: Any) -> ForceField:
    """The tiny Equiformer as a force field for H, C and O with reference energies; ``kwargs`` go to the network."""
    potential = tiny_equiformer(irreps, seed, **kwargs)
    references = torch.tensor(REFERENCES, dtype=torch.float64)
    return ForceField(potential, elements=ELEMENTS, reference_energies=references, scale=scale)


def normal(*shape: int, seed: int) -> Tensor:
    """Normal deviates of their own generator, float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
