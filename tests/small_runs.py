"""Runs that take seconds: labelled clusters and crystals from ASE's classical potentials, and a network to fit them.

The data is physics (energies with their exact forces and stress), so a network can learn it; only its chemistry is made
up. Everything is seeded.
"""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.morse import MorsePotential
from ase.io import write
from torch_geometric.data import Data

from mdrelax.datasets import load

NETWORK: dict[str, Any] = {
    "irreps": "8x0e+4x1o",
    "n_blocks": 1,
    "n_heads": 2,
    "n_features": 8,
    "expansion": 1,
    "nonlinear_messages": False,
    "radial_basis": "bessel",
    "n_basis": 4,
    "radial_hidden": 8,
}
CLUSTER_CUTOFF = 4.0  # Angstrom
CRYSTAL_CUTOFF = 3.5  # Angstrom: the first and no second neighbours of a copper crystal


def _labelled(atoms: Atoms, calculator: Calculator, labels: tuple[str, ...]) -> Atoms:
    atoms.calc = calculator
    copy = atoms.copy()
    copy.info["REF_energy"] = atoms.get_potential_energy()
    if "forces" in labels:
        copy.arrays["REF_forces"] = atoms.get_forces()
    if "stress" in labels:
        copy.info["REF_stress"] = atoms.get_stress(voigt=False)
    return copy


def clusters(n: int, *, seed: int = 0, labels: tuple[str, ...] = ("energy", "forces")) -> list[Atoms]:
    """``n`` rattled tetrahedra of an oxygen and three hydrogens, bound by a Morse potential."""
    rng = np.random.default_rng(seed)
    corners = 0.75 * np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    structures = [Atoms("OH3", corners + rng.normal(scale=0.1, size=(4, 3))) for _ in range(n)]
    return [_labelled(atoms, MorsePotential(epsilon=1.0, r0=2.0, rho0=3.0), labels) for atoms in structures]


def crystals(n: int, *, seed: int = 0) -> list[Atoms]:
    """``n`` strained and rattled cells of four copper atoms with the energy, forces and stress of ASE's EMT."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        atoms = bulk("Cu", cubic=True)
        strain = rng.normal(scale=0.02, size=(3, 3))
        atoms.set_cell(atoms.cell @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        atoms.positions += rng.normal(scale=0.08, size=(4, 3))
        found.append(_labelled(atoms, EMT(), ("energy", "forces", "stress")))
    return found


def write_frames(path: Path, frames: list[Atoms]) -> Path:
    """The frames as an extxyz."""
    write(path, frames, format="extxyz")
    return path


def data_of(path: Path, frames: list[Atoms]) -> list[Data]:
    """The frames as the package reads them, by way of a file."""
    return load(write_frames(path, frames))


def document(source: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """A config for the data in ``source``, as YAML would give it; each section's keys may be replaced or added to."""
    base: dict[str, Any] = {
        "data": {"source": str(source), "train": 20, "validation": 6, "test": 6},
        "potential": {"cutoff": CLUSTER_CUTOFF, "arguments": dict(NETWORK)},
        "relaxation": {"schedule": "triangle", "initial_std": 0.01},
        "training": {
            "steps": 24,
            "batch_size": 4,
            "warmup_steps": 4,
            "learning_rate": 0.01,
            "validate_every": 7,  # of 5 batches an epoch: checkpoints fall into the middle of epochs
            "ema": 0.9,
        },
    }
    for name, keys in sections.items():
        base[name] = {**base.get(name, {}), **keys}
    return base


def write_config(path: Path, content: dict[str, Any]) -> Path:
    """A config file."""
    path.write_text(yaml.safe_dump(content))
    return path
