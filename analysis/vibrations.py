"""Vibrations: the normal modes of a molecule, its translations and rotations, and thermochemistry.

    M^-1/2 H M^-1/2 u = omega^2 u         u: mass-weighted displacements, orthonormal

    symbol      here                 unit
    H           ``VibrationsData``   eV/A^2
    omega       ``wavenumbers``      1/cm, negative where omega^2 < 0 (an imaginary mode)
    u           ``vectors``          -

Translations and rotations span a space of 6 dimensions (5 for a linear molecule) determined by masses and positions.
H is diagonalised inside that space and in its complement separately, so the 3N - 6 vibrations are free of them even
if the geometry is not fully relaxed, and the wavenumbers of the 6 (zero at a minimum) can be inspected.
"""

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.io import jsonio, write
from ase.thermochemistry import HarmonicThermo
from ase.vibrations import Vibrations, VibrationsData

from mdrelax.base.files import write_atomically
from mdrelax.engines.ase import MDRelaxCalculator

__all__ = [
    "NormalModes",
    "describe_imaginary",
    "exact_vibrations",
    "finite_vibrations",
    "harmonic_thermochemistry",
    "mode_table",
    "normal_modes",
    "read_hessian",
    "write_hessian",
    "write_modes",
]

Array = npt.NDArray[np.float64]

HBAR_OMEGA = units._hbar * units.m / np.sqrt(units._e * units._amu)  # eV of omega^2 = 1 eV/(A^2 amu), as in ASE
THZ_OF_EV = units._e / units._hplanck * 1e-12
LINEAR = 1e-3  # a molecule is linear if its atoms are closer to the axis than this fraction of its length
MOVES_MOST = 0.5  # atoms that move at least this fraction of the largest displacement are named
SMALL_PER_CM = 30.0  # an imaginary mode below this may be noise of the geometry


class NormalModes(NamedTuple):
    """The 3N modes of a molecule: translations, rotations, then vibrations from the lowest to the highest."""

    atoms: Atoms
    kinds: list[str]  # (3N,) "translation", "rotation" or "vibration"
    wavenumbers: Array  # (3N,) 1/cm, negative for an imaginary mode
    vectors: Array  # (3N, N, 3) mass-weighted, orthonormal

    @property
    def vibrations(self) -> Array:
        """Wavenumbers of the vibrations, 1/cm."""
        return self.wavenumbers[self.is_vibration]

    @property
    def is_vibration(self) -> npt.NDArray[np.bool_]:
        """Which of the 3N modes are vibrations, (3N,)."""
        return np.array([kind == "vibration" for kind in self.kinds])

    @property
    def imaginary(self) -> list[int]:
        """The indices of the imaginary vibrations among the 3N modes."""
        return [k for k, w in enumerate(self.wavenumbers) if self.kinds[k] == "vibration" and w < 0]

    @property
    def zero_point_energy(self) -> float:
        """Half the sum of the real vibrations' quanta, eV."""
        real = self.vibrations[self.vibrations > 0]
        return float(0.5 * units.invcm * real.sum())

    def displacements(self, mode: int) -> Array:
        """The displacements of the atoms in a mode, (N, 3), the largest being 1."""
        moved = self.vectors[mode] / np.sqrt(self.atoms.get_masses())[:, None]
        return moved / np.linalg.norm(moved, axis=1).max()


def exact_vibrations(atoms: Atoms, calculator: MDRelaxCalculator) -> VibrationsData:
    """The Hessian by automatic differentiation."""
    return VibrationsData(atoms, calculator.get_hessian(atoms))


def finite_vibrations(
    atoms: Atoms, calculator: Calculator, *, delta: float = 0.01, cache: str | None = None
) -> VibrationsData:
    """The Hessian by central differences of any calculator's forces, each coordinate moved by ``delta`` (A) both ways.

    ``cache`` is a folder that stores the forces, so that an interrupted calculation resumes. Raises ``ValueError``
    unless ``delta`` is positive and at most 0.5 A.
    """
    if not 0 < delta <= 0.5:
        raise ValueError(f"`delta` must be a displacement in A, > 0 and at most 0.5, got {delta}; 0.01 is usual.")
    own = atoms.copy()
    own.calc = calculator
    with tempfile.TemporaryDirectory(prefix="mdrelax-") as folder:
        vibrations = Vibrations(own, name=cache or f"{folder}/forces", delta=delta)
        vibrations.run()
        return vibrations.get_vibrations()


def normal_modes(data: VibrationsData) -> NormalModes:
    """The modes of a Hessian; raises ``ValueError`` for a single atom and for periodic structures."""
    atoms = data.get_atoms()
    if len(atoms) < 2:
        raise ValueError(f"{atoms.get_chemical_formula()} has no vibrations: they need at least two atoms.")
    weights = np.repeat(atoms.get_masses() ** -0.5, 3)  # (3N,)
    weighted = weights * data.get_hessian_2d() * weights[:, None]
    translations, rotations = _translations(atoms), _rotations(atoms)
    rigid = np.concatenate([translations, rotations])  # (6, 3N), or (5, 3N)
    others = np.linalg.svd(rigid)[2][len(rigid) :]  # (3N - 6, 3N)
    blocks = {"translation": translations, "rotation": rotations, "vibration": others}
    kinds, wavenumbers, vectors = [], [], []
    for kind, basis in blocks.items():
        squares, mixing = np.linalg.eigh(basis @ weighted @ basis.T)
        kinds += [kind] * len(basis)
        wavenumbers.append(np.sign(squares) * HBAR_OMEGA * np.sqrt(np.abs(squares)) / units.invcm)
        vectors.append(mixing.T @ basis)
    return NormalModes(atoms, kinds, np.concatenate(wavenumbers), np.concatenate(vectors).reshape(-1, len(atoms), 3))


def _translations(atoms: Atoms) -> Array:
    """(3, 3N), mass-weighted and orthonormal."""
    masses = atoms.get_masses()
    return np.kron(np.sqrt(masses / masses.sum()), np.eye(3))


def _rotations(atoms: Atoms) -> Array:
    """(3, 3N), or (2, 3N) for a linear molecule, about the centre of mass, mass-weighted and orthonormal."""
    arms = atoms.positions - atoms.get_center_of_mass()
    turned = np.stack([np.cross(axis, arms) for axis in np.eye(3)])  # (3, N, 3)
    weighted = (turned * np.sqrt(atoms.get_masses())[:, None]).reshape(3, -1)
    _, sizes, basis = np.linalg.svd(weighted, full_matrices=False)
    return basis[sizes > LINEAR * sizes[0]]


def mode_table(modes: NormalModes) -> pd.DataFrame:
    """One row per mode, numbered from 1; imaginary ones have negative wavenumbers, frequencies and energies."""
    energies = modes.wavenumbers * units.invcm  # eV
    vibration = modes.is_vibration
    return pd.DataFrame(
        {
            "mode": np.arange(1, len(energies) + 1),
            "wavenumber_per_cm": modes.wavenumbers,
            "frequency_THz": energies * THZ_OF_EV,
            "energy_meV": 1000 * energies,
            "kind": modes.kinds,
            "imaginary": vibration & (modes.wavenumbers < 0),
        }
    )


def describe_imaginary(modes: NormalModes) -> list[str]:
    """A sentence for each imaginary vibration: its number, its size, and the atoms that move most."""
    sentences = []
    for mode in modes.imaginary:
        size = -modes.wavenumbers[mode]
        moved = np.linalg.norm(modes.displacements(mode), axis=1)
        order = [k for k in np.argsort(-moved) if moved[k] >= MOVES_MOST]
        names = ", ".join(f"{modes.atoms.symbols[k]}{k}" for k in order[:6])
        what = (
            "it is small, and may vanish with a tighter `--fmax`"
            if size < SMALL_PER_CM
            else "the geometry is not a minimum of this model; displace the atoms along it and relax again"
        )
        sentences.append(f"Mode {mode + 1} is imaginary, {size:.1f}i / cm (most moved: {names}): {what}.")
    return sentences


def harmonic_thermochemistry(modes: NormalModes, temperature: float) -> dict[str, float]:
    """Vibrational energy, entropy, heat capacity and free energy (eV, eV/K) at a temperature in K.

    Harmonic vibrations only, without translations and rotations; imaginary ones are left out. The energy and the free
    energy contain the zero-point energy. Raises ``ValueError`` for a temperature below zero or infinite.
    """
    if not 0 <= temperature < np.inf:
        raise ValueError(f"`temperature` must be >= 0 K and finite, got {temperature}.")
    energies = modes.vibrations[modes.vibrations > 0] * units.invcm  # eV
    found = {"temperature_K": temperature, "zero_point_energy_eV": modes.zero_point_energy}
    if temperature == 0 or not len(energies):
        values = (modes.zero_point_energy, 0.0, 0.0, modes.zero_point_energy)
    else:
        thermo = HarmonicThermo(energies.tolist())
        with np.errstate(over="ignore"):  # exp(energy / kT) of a cold vibration is infinite, and its term zero
            values = (
                thermo.get_internal_energy(temperature, verbose=False),
                thermo.get_entropy(temperature, verbose=False),
                _heat_capacity(energies, temperature),
                thermo.get_helmholtz_energy(temperature, verbose=False),
            )
    names = ("vibrational_energy_eV", "entropy_eV_per_K", "heat_capacity_eV_per_K", "free_energy_eV")
    return found | dict(zip(names, map(float, values), strict=True))


def _heat_capacity(energies: Array, temperature: float) -> float:
    """C_V = kB sum (x / 2 sinh(x/2))^2 with x = energy / kT, eV/K."""
    x = np.minimum(energies / (units.kB * temperature), 600.0)  # beyond, sinh overflows and the term is negligible
    return float(units.kB * ((x / (2 * np.sinh(x / 2))) ** 2).sum())


def write_hessian(data: VibrationsData, path: Path) -> None:
    """Write the JSON for ``VibrationsData.read`` of ASE, atomically."""
    write_atomically(path, jsonio.encode(data).encode())


def read_hessian(path: Path) -> VibrationsData:
    """Read a file of ``write_hessian`` or ASE; raises ``ValueError`` for anything else."""
    try:
        found = jsonio.read_json(path)
    except Exception as error:  # ASE's reader raises anything on a foreign JSON
        found = error
    if not isinstance(found, VibrationsData):
        raise ValueError(
            f"`{path}` contains no vibrations: neither those of `mdrelax vibrations` nor ASE's VibrationsData."
        )
    return found


def write_modes(modes: NormalModes, path: Path) -> None:
    """An extxyz with one frame per vibration, with displacements and positions: Jmol, OVITO and ASE read it."""
    frames = []
    for mode in np.flatnonzero(modes.is_vibration):
        frame = Atoms(modes.atoms.numbers, modes.atoms.positions)
        frame.arrays["mode"] = modes.displacements(int(mode))
        frame.info.update({"mode_number": int(mode) + 1, "wavenumber_per_cm": float(modes.wavenumbers[mode])})
        frames.append(frame)
    write(path, frames, format="extxyz")
