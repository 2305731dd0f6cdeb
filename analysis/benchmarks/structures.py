"""The molecules and boxes of the speed benchmark; positions in Angstrom.

Water boxes are constructed, not equilibrated: molecules of the experimental geometry on a cubic lattice at the density
of the liquid at 298 K, turned at random from a fixed seed. They have a liquid's number of neighbours, which determines
the time.
"""

from importlib import resources

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.io import read
from scipy.spatial.transform import Rotation

from mdrelax.analysis.benchmarks.peers.protocol import Structure

__all__ = ["ELEMENTS", "MOLECULES", "shaken", "to_structure", "water_box"]

ELEMENTS = (1, 6, 8)
DENSITY = 0.997  # g/cm^3, water at 298 K (CRC Handbook)
SHAKE = 0.05  # Angstrom, standard deviation of the displacements in a training batch
ANGSTROM3 = 1e27 / units.kg  # volume of an atomic mass unit at 1 g/cm^3, in cubic Angstrom


def ethanol() -> Atoms:
    """Nine atoms, from ASE's collection."""
    return molecule("CH3CH2OH")


def aspirin() -> Atoms:
    """Twenty-one atoms; the file states the origin of the geometry."""
    with resources.as_file(resources.files(__package__) / "aspirin.xyz") as path:
        atoms = read(path, format="xyz")
    return atoms if isinstance(atoms, Atoms) else atoms[-1]


MOLECULES = {"ethanol": ethanol, "aspirin": aspirin}


def shaken(atoms: Atoms, copies: int, *, seed: int = 0) -> list[Atoms]:
    """Copies whose atoms are displaced at random."""
    rng, result = np.random.default_rng(seed), []
    for _ in range(copies):
        copy = atoms.copy()
        copy.positions += rng.normal(scale=SHAKE, size=copy.positions.shape)
        result.append(copy)
    return result


def water_box(side: int, *, seed: int = 0) -> Atoms:
    """A periodic cube of ``side``^3 water molecules on a lattice, each turned at random."""
    water = molecule("H2O")
    water.positions -= water.get_center_of_mass()
    spacing = (water.get_masses().sum() * ANGSTROM3 / DENSITY) ** (1 / 3)
    places = spacing * (np.indices((side,) * 3).reshape(3, -1).T + 0.5)
    turns = Rotation.from_quat(np.random.default_rng(seed).normal(size=(len(places), 4))).as_matrix()
    positions = places[:, None] + np.einsum("mij,aj->mai", turns, water.positions)
    return Atoms(list(water.numbers) * len(places), positions.reshape(-1, 3), cell=[side * spacing] * 3, pbc=True)


def to_structure(atoms: Atoms) -> Structure:
    """The form in which atoms are sent to a worker."""
    return Structure(atoms.numbers.tolist(), atoms.positions.tolist(), atoms.cell.array.tolist(), atoms.pbc.tolist())
