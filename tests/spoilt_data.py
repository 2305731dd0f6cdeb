"""Data sets that are right, and the ways in which people's files are wrong."""

from collections.abc import Callable

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from torch_geometric.data import Data

from mdrelax.datasets import make_frame

Spoiler = Callable[[list[Data]], None]
BOHR, HARTREE, KCAL, KJ, GPA = 0.529177, 27.2114, 0.0433641, 0.0103643, 0.00624151


def rattled_cells(base: Atoms, calculator: Callable[[], Calculator], n: int = 40, seed: int = 0) -> list[Data]:
    """Strained and rattled cells with the energy, forces and stress of a calculator of ASE."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(n):
        atoms = base.copy()
        strain = rng.normal(scale=0.02, size=(3, 3))
        atoms.set_cell(atoms.cell @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        atoms.positions += rng.normal(scale=0.08, size=atoms.positions.shape)
        atoms.calc = calculator()
        frames.append(
            make_frame(
                atoms.numbers,
                atoms.positions,
                energy=atoms.get_potential_energy(),
                forces=atoms.get_forces(),
                stress=atoms.get_stress(voigt=False),
                cell=atoms.cell.array,
                pbc=atoms.pbc,
            )
        )
    return frames


def copper_aluminium() -> list[Data]:
    """Cells of copper, aluminium and one alloy (ASE's EMT), 40 of each."""
    alloy = bulk("Cu", cubic=True, a=3.8)
    alloy.symbols[:2] = "Al"
    cells = (bulk("Cu", cubic=True), bulk("Al", cubic=True), alloy)
    return [frame for k, cell in enumerate(cells) for frame in rattled_cells(cell, EMT, seed=k)]


def lennard_jones() -> list[Data]:
    """Cells of a metal that ASE's Lennard-Jones potential binds."""
    return rattled_cells(bulk("Cu", cubic=True), lambda: LennardJones(sigma=2.3, epsilon=0.3, rc=6.0))


def scaled(**factors: float) -> Spoiler:
    """Labels or lengths multiplied by a factor; ``pos`` takes the cell along."""

    def spoil(data: list[Data]) -> None:
        for frame in data:
            for name, factor in factors.items():
                for each in ("pos", "cell") if name == "pos" else (name,):
                    if each in frame:
                        frame[each] = frame[each] * factor

    return spoil


def per_atom(data: list[Data]) -> None:
    """Energies of one atom each, as some programs print them."""
    for frame in data:
        frame.energy = frame.energy / len(frame.z)


def shuffled(*names: str) -> Spoiler:
    """Labels of each kind of atoms in another order."""

    def spoil(data: list[Data]) -> None:
        rng = np.random.default_rng(5)
        kinds: dict[bytes, list[int]] = {}
        for k, frame in enumerate(data):
            kinds.setdefault(frame.z.numpy().tobytes(), []).append(k)
        for indices in kinds.values():
            order = rng.permutation(indices)
            labels = [{name: data[k][name] for name in names if name in data[k]} for k in order]
            for k, row in zip(indices, labels, strict=True):
                for name, value in row.items():
                    data[k][name] = value

    return spoil


def virials(data: list[Data]) -> None:
    """A virial read as a stress."""
    for frame in data:
        if "stress" in frame:
            frame.stress = -frame.stress * torch.linalg.det(frame.cell[0]).abs()


def copied(turned: bool, moved: bool = False) -> Spoiler:
    """Three frames a second time; turned as a whole, or moved."""

    def spoil(data: list[Data]) -> None:
        q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
        rotation = torch.tensor(q * np.sign(np.linalg.det(q))) if turned else torch.eye(3).double()
        for k in (3, 8, 11):
            copy = data[k].clone()
            copy.pos = copy.pos @ rotation + (0.7 if moved else 0.0)
            copy.forces = copy.forces @ rotation
            copy.cell = copy.cell @ rotation
            if "stress" in copy:
                copy.stress = rotation.T @ copy.stress @ rotation
            data.append(copy)

    return spoil


def lost_cell(every: int) -> Spoiler:
    """Every so many frames without cell, pbc and stress."""

    def spoil(data: list[Data]) -> None:
        for frame in data[::every]:
            frame.cell, frame.pbc = torch.zeros(1, 3, 3).double(), torch.zeros(1, 3).bool()
            if "stress" in frame:
                del frame.stress

    return spoil


def shifted(by: float, every: int, per_atom: bool = False) -> Spoiler:
    """Every so many frames with energies that count from another zero (eV)."""

    def spoil(data: list[Data]) -> None:
        for frame in data[::every]:
            frame.energy = frame.energy + by * (len(frame.z) if per_atom else 1)

    return spoil


def outlier(energy: float = 0.0, force: float = 0.0) -> Spoiler:
    """One energy (eV), or one component of one force (eV/Angstrom), that is wrong."""

    def spoil(data: list[Data]) -> None:
        data[7].energy = data[7].energy + energy
        data[7].forces = data[7].forces.clone()
        data[7].forces[0, 1] += force

    return spoil


def renumbered(change: Callable[[torch.Tensor], torch.Tensor], frames: slice = slice(None)) -> Spoiler:
    """Other atomic numbers in some frames."""

    def spoil(data: list[Data]) -> None:
        for frame in data[frames]:
            frame.z = change(frame.z.clone())

    return spoil


def exchange(a: int, b: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Two atoms with each other's element."""

    def change(z: torch.Tensor) -> torch.Tensor:
        z[[a, b]] = z[[b, a]]
        return z

    return change


def first_becomes(number: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The first atom is of another element."""

    def change(z: torch.Tensor) -> torch.Tensor:
        z[0] = number
        return z

    return change


def types(z: torch.Tensor) -> torch.Tensor:
    """Indices of types (1, 2, ...) in place of atomic numbers."""
    return torch.searchsorted(z.unique(), z) + 1


# way -> what is done, and the checks of which one must name it
ANY_DATA: dict[str, tuple[Spoiler, set[str]]] = {
    "energies in Hartree": (scaled(energy=1 / HARTREE), {"forces agree with energies"}),
    "energies in kcal/mol": (scaled(energy=1 / KCAL), {"forces agree with energies"}),
    "energies in kJ/mol": (scaled(energy=1 / KJ), {"forces agree with energies"}),
    "energies in Rydberg": (scaled(energy=2 / HARTREE), {"forces agree with energies"}),
    "energies and forces in Hartree": (scaled(energy=1 / HARTREE, forces=1 / HARTREE), {"forces fit the bonds"}),
    "energies and forces in kcal/mol": (scaled(energy=1 / KCAL, forces=1 / KCAL), {"forces fit the bonds"}),
    "lengths in Bohr": (scaled(pos=1 / BOHR), {"lengths fit the elements"}),
    "lengths in nm": (scaled(pos=0.1), {"lengths fit the elements"}),
    "lengths in pm": (scaled(pos=100.0), {"lengths fit the elements"}),
    "everything in atomic units": (
        scaled(energy=1 / HARTREE, pos=1 / BOHR, forces=BOHR / HARTREE, stress=BOHR**3 / HARTREE),
        {"lengths fit the elements"},
    ),
    "Angstrom taken for Bohr": (scaled(pos=BOHR, forces=1 / BOHR), {"lengths fit the elements"}),
    "forces in Hartree/Bohr": (scaled(forces=BOHR / HARTREE), {"forces agree with energies"}),
    "forces per Bohr": (scaled(forces=BOHR), {"forces agree with energies"}),
    "forces in kcal/mol/Angstrom": (scaled(forces=1 / KCAL), {"forces agree with energies"}),
    "energies per atom": (per_atom, {"forces agree with energies"}),
    "gradients": (scaled(forces=-1.0), {"forces agree with energies"}),
    "energies of the wrong sign": (scaled(energy=-1.0), {"forces agree with energies"}),
    "shuffled energies": (shuffled("energy"), {"forces agree with energies"}),
    "shuffled forces": (shuffled("forces"), {"forces agree with energies", "forces fit the bonds"}),
    "shuffled labels": (shuffled("energy", "forces", "stress"), {"forces fit the bonds"}),
    "duplicates": (copied(turned=False), {"no duplicate geometry"}),
    "moved duplicates": (copied(turned=False, moved=True), {"no duplicate geometry"}),
    "half the energies of another method": (shifted(10.0, 2), {"one reference for all energies"}),
    "a third of the energies of another reference": (
        shifted(-3.5, 3, per_atom=True),
        {"one reference for all energies"},
    ),
    "a tenth of the energies of another reference": (shifted(4.0, 10), {"one reference for all energies"}),
    "one energy too high": (outlier(energy=3.0), {"forces agree with energies", "no energy outlier"}),
    "one energy too low": (outlier(energy=-5.0), {"forces agree with energies", "no energy outlier"}),
    "one wrong force": (outlier(force=2.0), {"no net force"}),
    "types for atomic numbers": (renumbered(types), {"lengths fit the elements", "elements fit the bonds"}),
    "a wrong element in one frame": (
        renumbered(first_becomes(26), slice(7, 8)),
        {"elements fit the bonds", "no atoms too near"},
    ),
}  # fmt: skip
CRYSTALS: dict[str, tuple[Spoiler, set[str]]] = {
    "stress in GPa": (scaled(stress=1 / GPA), {"stress agrees with energies"}),
    "stress in kbar": (scaled(stress=10 / GPA), {"stress agrees with energies"}),
    "stress in Hartree/Bohr^3": (scaled(stress=BOHR**3 / HARTREE), {"stress agrees with energies"}),
    "stress of the other sign": (scaled(stress=-1.0), {"stress agrees with energies"}),
    "virials": (virials, {"stress agrees with energies"}),
    "shuffled stress": (shuffled("stress"), {"stress agrees with energies"}),
    "no cell at all": (lost_cell(1), {"no cell lost"}),
    "a cell lost in some frames": (lost_cell(7), {"no cell lost"}),
    "turned duplicates of crystals": (copied(turned=True), {"no duplicate geometry"}),
}  # fmt: skip
MOLECULES: dict[str, tuple[Spoiler, set[str]]] = {
    "turned duplicates": (copied(turned=True, moved=True), {"no duplicate geometry"}),
    "exchanged atoms in some frames": (renumbered(exchange(0, 2), slice(0, 60, 5)), {"elements fit the bonds"}),
    "oxygen and carbon exchanged": (renumbered(exchange(0, 2)), {"elements fit the bonds"}),
    "atomic numbers one too high": (renumbered(lambda z: z + 1), {"elements fit the bonds"}),
}  # fmt: skip
