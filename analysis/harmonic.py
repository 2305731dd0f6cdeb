"""Harmonic comparison: the vibrations of a model compared with those of a reference, mode by mode.

Each method is evaluated at its own minimum. The geometries are superposed (``superposition``), and modes are paired
so that the sum of squared overlaps is largest:

    O_mn = (u_m . R u_n)^2        u: mass-weighted modes, R: the rotation of the reference onto the model

A reference without modes (a table of wavenumbers), or of another conformer, is paired in order. Wavenumbers in 1/cm,
negative where imaginary.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.io import read, write
from scipy.optimize import linear_sum_assignment

from mdrelax.analysis.geometry import relax
from mdrelax.analysis.superposition import Superposition, superpose
from mdrelax.analysis.vibrations import NormalModes, finite_vibrations, normal_modes, read_hessian, write_hessian
from mdrelax.datasets.labelling import Labeller, make_labeller

__all__ = [
    "Comparison",
    "Level",
    "Reference",
    "compare",
    "errors",
    "level_of_theory",
    "read_reference",
    "relaxed_level",
]

Array = npt.NDArray[np.float64]

FMAX = 1e-3  # eV/A, of geometries at a level of theory: below it are the grids and SCF thresholds of DFT
DELTA = 0.01  # A
SAME_CONFORMER = 0.5  # A: if an atom is farther from its position in the other minimum, overlaps are meaningless
SAME_PER_CM = 0.5  # agreement at which a Hessian is taken to belong to a table of wavenumbers


class Reference(NamedTuple):
    """Vibrations to compare with, from the lowest to the highest."""

    name: str
    wavenumbers: Array  # (M,) 1/cm
    modes: NormalModes | None  # None if only wavenumbers are known


# --- references from files ---


def read_reference(path: Path, n_atoms: int) -> Reference:
    """The vibrations in a file: of ``mdrelax vibrations``, ASE's ``VibrationsData``, or a CSV with a column in 1/cm.

    The modes of a ``vibrations.json`` are read from ``hessian.json`` in its folder, if there is one. Raises
    ``ValueError`` for any other file.
    """
    wavenumbers = _from_table(path, n_atoms) if path.suffix == ".csv" else _from_summary(path)
    if wavenumbers is None:
        own = normal_modes(read_hessian(path))
        return Reference(path.name, own.vibrations, own)
    wavenumbers = np.sort(wavenumbers)
    beside = path.with_name("hessian.json")
    modes = normal_modes(read_hessian(beside)) if path.suffix == ".json" and beside.is_file() else None
    belongs = modes is not None and _agree(modes.vibrations, wavenumbers)
    return Reference(path.name, wavenumbers, modes if belongs else None)


def _from_summary(path: Path) -> Array | None:
    """The wavenumbers of a ``vibrations.json``; None for another JSON."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"`{path}` is neither JSON nor a CSV file ({error}).") from error
    found = content.get("wavenumbers_per_cm") if isinstance(content, dict) else None
    return None if found is None else np.array(found, dtype=float)


def _from_table(path: Path, n_atoms: int) -> Array:
    """The column in 1/cm; of 3N rows, the six nearest to zero are translations and rotations."""
    table = pd.read_csv(path)
    names = [name for name in table if re.search(r"cm", str(name), re.IGNORECASE)]
    if len(names) != 1:
        raise ValueError(
            f"`{path}` must have one column with cm in its name, such as `cm-1`, and has {list(map(str, table))}."
        )
    if "kind" in table:
        table = table[table["kind"] == "vibration"]
    found = pd.to_numeric(table[names[0]], errors="coerce").to_numpy(dtype=float)
    if not np.isfinite(found).all():
        raise ValueError(f"The column `{names[0]}` of `{path}` must hold numbers only; write 100i as -100.")
    return found[np.argsort(np.abs(found))[6:]] if len(found) == 3 * n_atoms else found


def _agree(one: Array, other: Array) -> bool:
    return one.shape == other.shape and bool(np.abs(one - other).max(initial=0.0) < SAME_PER_CM)


# --- references at a level of theory ---


class Level(Calculator):
    """A labeller as an ASE calculator; ``progress(n)`` is called at the n-th evaluation."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - ASE's interface

    def __init__(self, labeller: Labeller) -> None:
        super().__init__()
        self.labeller = labeller
        self.progress: Callable[[int], None] = lambda n: None
        self.evaluations = 0

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Energy and forces."""
        super().calculate(atoms, list(properties), list(system_changes))
        energy, forces = self.labeller(cast("Atoms", self.atoms))
        self.results = {"energy": energy, "forces": forces}
        self.evaluations += 1
        self.progress(self.evaluations)


def level_of_theory(method: str, atoms: Atoms) -> Level:
    """``GFN2-xTB`` or ``FUNCTIONAL/BASIS`` as a calculator; raises the errors of ``datasets.labelling``."""
    return Level(make_labeller(method, symbols=sorted(set(atoms.symbols))))


def relaxed_level(method: str, calculator: Calculator, start: Atoms, folder: Path) -> tuple[Reference, Path]:
    """The vibrations of ``start``'s minimum at a level of theory, stored as JSON in the folder (readable by ASE).

    A file of the same level and start is read instead; an interrupted calculation resumes. Also returns the file.
    """
    name = f"reference-{method.replace('/', '-')}-{_fingerprint(start)}"
    path, geometry, forces = folder / f"{name}.json", folder / f"{name}.xyz", folder / f"{name}-forces"
    if not path.is_file():
        if not geometry.is_file():
            relaxed = relax(start, calculator, fmax=FMAX).atoms
            write(geometry, Atoms(relaxed.numbers, relaxed.positions), format="extxyz")
        minimum: Any = read(geometry)
        minimum.set_masses(start.get_masses())
        for part in forces.glob("*.json"):
            if not part.stat().st_size:  # ASE's mark of an interrupted calculation
                part.unlink()
        write_hessian(finite_vibrations(minimum, calculator, delta=DELTA, cache=str(forces)), path)
        for part in (*forces.glob("*.json"), geometry):
            part.unlink()
        forces.rmdir()
    modes = normal_modes(read_hessian(path))
    return Reference(method, modes.vibrations, modes), path


def _fingerprint(atoms: Atoms) -> str:
    digest = hashlib.sha256(atoms.numbers.astype(np.int64).tobytes())
    digest.update(np.round(atoms.positions, 6).tobytes() + atoms.get_masses().tobytes())
    return digest.hexdigest()[:8]


# --- the comparison ---


class Comparison(NamedTuple):
    """One row per vibration of the reference, and the distance of the atoms of the two minima."""

    table: pd.DataFrame  # mode, reference_per_cm, model_per_cm, difference_per_cm, overlap (NaN where paired in order)
    distance: float | None  # A, the largest of all atoms; None if the reference has wavenumbers only


def compare(model: NormalModes, reference: Reference) -> Comparison:
    """Pair the vibrations: by overlap if both minima are the same conformer (each atom within 0.5 A), else in order.

    Raises ``ValueError`` if the reference has another number of vibrations, or other elements.
    """
    own, other = model.vibrations, reference.wavenumbers
    if len(own) != len(other):
        raise ValueError(
            f"The reference `{reference.name}` has {len(other)} vibrations and the model {len(own)}; they must be of "
            "the same molecule, without translations and rotations."
        )
    partner, overlap = np.arange(len(own)), np.full(len(own), np.nan)
    placed = None if reference.modes is None else superpose(model.atoms, reference.modes.atoms)
    if reference.modes is not None and placed is not None and placed.largest <= SAME_CONFORMER:
        partner, overlap = _pairs(model, reference.modes, placed)
    table = pd.DataFrame(
        {
            "mode": np.arange(1, len(other) + 1),
            "reference_per_cm": other,
            "model_per_cm": own[partner],
            "difference_per_cm": own[partner] - other,
            "overlap": overlap,
        }
    )
    return Comparison(table, None if placed is None else placed.largest)


def _pairs(model: NormalModes, reference: NormalModes, placed: Superposition) -> tuple[npt.NDArray[np.int64], Array]:
    """The vibration of the model for each of the reference, and their overlap |u . R v|."""
    own = model.vectors[model.is_vibration]  # (M, N, 3)
    other = reference.vectors[reference.is_vibration][:, placed.order] @ placed.rotation
    overlaps = np.abs(np.einsum("mnx,knx->km", own, other))
    _, partner = linear_sum_assignment(-(overlaps**2))
    return partner, overlaps[np.arange(len(partner)), partner]


def errors(comparison: Comparison) -> dict[str, Any]:
    """Mean absolute error, mean signed error and largest error (1/cm), with the reference's wavenumber of the worst."""
    table = comparison.table
    difference = table["difference_per_cm"]
    worst = int(difference.abs().to_numpy().argmax())
    overlap = table["overlap"]
    return {
        "n_vibrations": len(table),
        "mae_per_cm": float(difference.abs().mean()),
        "mean_error_per_cm": float(difference.mean()),
        "largest_error_per_cm": float(difference[worst]),
        "largest_error_at_per_cm": float(table["reference_per_cm"].to_numpy()[worst]),
        "paired_by": "order" if overlap.isna().any() else "overlap",
        "lowest_overlap": None if overlap.isna().any() else float(overlap.min()),
        "largest_distance_of_an_atom_A": comparison.distance,
    }
