"""Phonons: the force constants of a crystal, for phonopy.

    D_ab(q) = sum_l Phi_ab(0, l) exp(i q (r_l - r_0)) / sqrt(m m')         Phi: force constants, eV/A^2

``Phi`` is needed for the atoms of one primitive cell against all atoms of a supercell (phonopy calls this compact). It
comes from automatic differentiation of a force field, or from finite displacements with any ASE calculator. phonopy
(Togo, J. Phys. Soc. Jpn. 92, 012001 (2023)) does the rest, see ``phonon_properties``; it is the extra ``phonons`` and
imported on demand.
"""

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from ase import Atoms
from ase.calculators.calculator import Calculator

from mdrelax.engines.ase import MDRelaxCalculator

if TYPE_CHECKING:
    from phonopy import Phonopy

__all__ = [
    "drift",
    "exact_force_constants",
    "finite_force_constants",
    "make_phonopy",
    "moving_atom",
    "primitive_cell",
    "require_phonopy",
    "supercell_atoms",
    "supercell_size",
]

Array = npt.NDArray[np.float64]
Size = tuple[int, int, int]

REACH = 10.0  # Angstrom, the least width of a supercell


def require_phonopy() -> None:
    """Raise ``ImportError`` with the command that installs phonopy if it is missing."""
    try:
        import phonopy  # noqa: F401
    except ImportError as error:
        raise ImportError("Phonons need phonopy; install it with `pip install 'mdrelax[phonons]'`.") from error


# --- cells ---


def supercell_size(atoms: Atoms, cutoff: float) -> Size:
    """The fewest repetitions whose widths, face to face, are at least 10 A and twice the cut-off (A)."""
    volume = atoms.cell.volume
    faces = [np.linalg.norm(np.cross(atoms.cell[k - 2], atoms.cell[k - 1])) for k in range(3)]
    a, b, c = (math.ceil(max(REACH, 2 * cutoff) * face / volume - 1e-6) for face in faces)
    return a, b, c


def make_phonopy(atoms: Atoms, supercell: Size) -> "Phonopy":
    """A phonopy calculation of a crystal, with the primitive cell found by symmetry and the masses of the atoms."""
    require_phonopy()
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    cell = PhonopyAtoms(
        symbols=list(atoms.symbols), cell=atoms.cell.array, scaled_positions=atoms.get_scaled_positions(),
        masses=atoms.get_masses(),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # phonopy 4 reports that "auto" is its default
        return Phonopy(cell, supercell_matrix=np.diag(supercell), primitive_matrix="auto")


def supercell_atoms(phonon: "Phonopy") -> Atoms:
    """The supercell, atoms in phonopy's order."""
    return _to_ase(phonon.supercell)


def moving_atom(phonon: "Phonopy") -> Array:
    """The first of phonopy's displacements, (S, 3), with length 1: one atom each."""
    dataset: Any = phonon.dataset
    first, direction = dataset["first_atoms"][0], np.zeros((len(phonon.supercell), 3))
    direction[first["number"]] = np.asarray(first["displacement"]) / np.linalg.norm(first["displacement"])
    return direction


def primitive_cell(phonon: "Phonopy") -> Atoms:
    """The primitive cell, atoms in phonopy's order."""
    return _to_ase(phonon.primitive)


def _to_ase(cell: Any) -> Atoms:
    return Atoms(cell.symbols, scaled_positions=cell.scaled_positions, cell=cell.cell, pbc=True)


# --- force constants ---


def exact_force_constants(phonon: "Phonopy", calculator: MDRelaxCalculator) -> int:
    """Set the compact force constants (P, S, 3, 3) by automatic differentiation; returns the number of directions.

    phonopy provides the fewest displacements u whose forces give all by symmetry; these forces are exactly -H u.
    """
    phonon.generate_displacements(distance=1.0, is_plusminus=False)  # linear in u, so that its length is irrelevant
    atoms = supercell_atoms(phonon)
    dataset: Any = phonon.dataset
    directions = np.zeros((len(dataset["first_atoms"]), len(atoms), 3))
    for direction, each in zip(directions, dataset["first_atoms"], strict=True):
        direction[each["number"]] = each["displacement"]
    phonon.forces = -calculator.get_hessian_products(atoms, directions)
    phonon.produce_force_constants(calculate_full_force_constants=False, show_drift=False)
    return len(directions)


def finite_force_constants(phonon: "Phonopy", calculator: Calculator, *, delta: float = 0.01) -> int:
    """Set the compact force constants by the fewest displacements of ``delta`` (A); returns their number.

    Raises ``ValueError`` unless ``delta`` is positive and at most 0.5 A.
    """
    if not 0 < delta <= 0.5:
        raise ValueError(f"`delta` must be a displacement in A, > 0 and at most 0.5, got {delta}; 0.01 is usual.")
    phonon.generate_displacements(distance=delta)
    forces = []
    for cell in phonon.supercells_with_displacements or []:
        atoms = _to_ase(cell)
        atoms.calc = calculator
        forces.append(atoms.get_forces())
    phonon.forces = forces
    phonon.produce_force_constants(calculate_full_force_constants=False, show_drift=False)
    return len(forces)


def drift(phonon: "Phonopy") -> float:
    """The largest violation of the acoustic sum rule, |sum_l Phi(0, l)|, eV/A^2."""
    from phonopy.harmonic.force_constants import get_drift_force_constants

    if phonon.force_constants is None:
        raise ValueError("There are no force constants yet.")
    rows, columns, *_ = get_drift_force_constants(phonon.force_constants, primitive=phonon.primitive)
    return max(abs(float(rows)), abs(float(columns)))
