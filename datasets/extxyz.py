"""Extended xyz: any file that ASE reads, periodic or not, of mixed sizes and elements, into eV and Angstrom.

Where each label is looked for, in this order, the same for the whole file:

1. the key that the caller names (``energy_key="my_energy"``; ``"none"`` leaves the label out);
2. ``REF_energy``, ``REF_forces``, ``REF_stress``;
3. ASE's calculator results, where ASE puts the plain keys ``energy``, ``forces``, ``stress``.

Frames with ``config_type=IsolatedAtom`` become reference energies. Stress is a 3x3 matrix, 9 numbers, or Voigt's 6
(xx, yy, zz, yz, xz, xy), in ASE's sign.
"""

from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms, io
from torch_geometric.data import Data

from mdrelax.base import units
from mdrelax.base.files import whole_file
from mdrelax.datasets.frames import Frames, LabelReport, make_frame, require_finite, summarize

__all__ = ["load_atoms", "load_extxyz", "read_atoms", "write_extxyz"]

ISOLATED = "IsolatedAtom"
NO_LABEL = "none"
LABEL_KEYS = {
    "energy": ("REF_energy", "energy"),
    "forces": ("REF_forces", "forces"),
    "stress": ("REF_stress", "stress"),
}
NO_LABELS_EVER = {"numbers", "positions", "momenta", "velocities", "initial_magmoms", "config_type", "provenance"}


class _Scale(NamedTuple):
    """Sizes of the file's units: energy in eV, length in Angstrom."""

    energy: float
    length: float


class _Place(NamedTuple):
    """Where a frame stands, for error messages."""

    source: str
    number: int

    def __str__(self) -> str:
        return f"frame {self.number} of `{self.source}`"


def load_extxyz(
    path: str | Path,
    *,
    energy_key: str | None = None,
    forces_key: str | None = None,
    stress_key: str | None = None,
    energy_unit: str | None = None,
    length_unit: str | None = None,
    labelled: bool = True,
) -> Frames:
    """Read an extxyz file (also ``.gz``) into frames in eV and Angstrom, isolated atoms apart.

    Units that are not named are taken for eV and Angstrom, and the report says so. Forces and stress come in the same
    units (energy/length, energy/length^3). ``labelled=False`` reads structures
    without labels too. Raises ``ValueError`` for an unknown unit (naming the nearest), a missing label (listing the
    keys found), NaN or infinite values (naming frame and atom), a flat periodic cell, and an empty file.
    """
    return load_atoms(
        read_atoms(path),
        source=Path(path).name,
        energy_key=energy_key,
        forces_key=forces_key,
        stress_key=stress_key,
        energy_unit=energy_unit,
        length_unit=length_unit,
        labelled=labelled,
    )


def load_atoms(
    structures: Sequence[Atoms],
    *,
    source: str = "memory",
    energy_key: str | None = None,
    forces_key: str | None = None,
    stress_key: str | None = None,
    energy_unit: str | None = None,
    length_unit: str | None = None,
    labelled: bool = True,
) -> Frames:
    """Labelled ASE atoms as frames, as ``load_extxyz`` takes them from a file; ``source`` is their name in messages."""
    energy_name, length_name = energy_unit or "eV", length_unit or "Angstrom"
    assumed = (energy_name,) * (energy_unit is None) + (length_name,) * (length_unit is None)
    scale = _Scale(units.energy_unit(energy_name), units.length_unit(length_name))
    frames = list(structures)
    if not frames:
        raise ValueError(f"`{source}` is empty: it holds no frames.")
    asked = {"energy": energy_key, "forces": forces_key, "stress": stress_key}
    keys = _choose_keys(frames, asked, labelled, source)
    isolated: dict[int, float] = {}
    data: list[Data] = []
    for index, atoms in enumerate(frames):
        if _config_type(atoms) == ISOLATED:
            _add_isolated(isolated, atoms, keys, scale, _Place(source, index))
        else:
            data.append(_frame(atoms, keys, scale, labelled, _Place(source, index)))
    if not data:
        raise ValueError(f"`{source}` holds {len(frames)} isolated atoms and nothing else; add frames to train on.")
    elements, energy_range, largest_force = summarize(data)
    unused = tuple(sorted(_keys_found(frames) - set(keys.values()) - NO_LABELS_EVER))
    report = LabelReport(
        source, keys, len(data), len(isolated), elements, energy_name, length_name, energy_range, largest_force,
        unused, assumed,
    )  # fmt: skip
    return Frames(data, isolated, report)


def read_atoms(path: str | Path) -> list[Atoms]:
    """All frames of an (ext)xyz file as ASE atoms; raises ``ValueError`` when it is empty or cannot be read."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file `{path}`.")
    try:
        frames = list(io.iread(path, index=":", format="extxyz")) if path.stat().st_size else []
    except Exception as error:  # ASE's reader lets out whatever a broken line provokes
        raise ValueError(
            f"`{path}` cannot be read as extxyz ({type(error).__name__}: {error}); it is cut off or another format."
        ) from error
    if not frames:
        raise ValueError(f"`{path}` is empty: it holds no frames.")
    return frames


# --- find the labels ---


def _config_type(atoms: Atoms) -> str:
    return str(atoms.info.get("config_type", "default"))


def _tables(atoms: Atoms) -> tuple[dict, ...]:
    """Where a label may be: the comment line, the columns, and what ASE moved into a calculator."""
    return atoms.info, atoms.arrays, atoms.calc.results if atoms.calc is not None else {}


def _value(atoms: Atoms, key: str | None) -> np.ndarray | None:
    for table in _tables(atoms):
        if key is not None and key in table:
            return np.asarray(table[key])
    return None


def _keys_found(frames: Iterable[Atoms]) -> set[str]:
    return {str(key) for atoms in frames for table in _tables(atoms) for key in table} - {"numbers", "positions"}


def _choose_keys(frames: list[Atoms], asked: dict[str, str | None], labelled: bool, source: str) -> dict[str, str]:
    """One key for each label that the file has; raises ``ValueError`` where a label is missing."""
    found = _keys_found(atoms for atoms in frames if _config_type(atoms) != ISOLATED) or _keys_found(frames)
    keys = {}
    for label, key in asked.items():
        if key == NO_LABEL:
            continue
        candidates = LABEL_KEYS[label] if key is None else (key,)
        present = [name for name in candidates if name in found]
        if present:
            keys[label] = present[0]
        elif labelled and (key is not None or _is_needed(label, frames)):
            raise ValueError(_missing_label(label, candidates, found, f"`{source}`"))
    return keys


def _is_needed(label: str, frames: list[Atoms]) -> bool:
    """Energies always; forces when a column could be forces under another name; stress never."""
    if label != "forces":
        return label == "energy"
    ignored = NO_LABELS_EVER | {"mdrelax_forces"}
    return any(array.ndim == 2 and key not in ignored for atoms in frames for key, array in atoms.arrays.items())


def _missing_label(label: str, candidates: Iterable[str], found: set[str], place: str | _Place) -> str:
    tried = " or ".join(f"`{key}`" for key in candidates)
    return (
        f"There is no {label} under {tried} in {place}; keys found: {', '.join(sorted(found)) or 'none'}. Name the "
        f"right one with `{label}_key`, or leave the label out with `{label}_key: {NO_LABEL}`."
    )


# --- read one frame ---


def _frame(atoms: Atoms, keys: dict[str, str], scale: _Scale, labelled: bool, place: _Place) -> Data:
    """One structure with its labels, checked and converted."""
    _check_structure(atoms, place)
    values = {label: _value(atoms, key) for label, key in keys.items()}
    for label, value in values.items():
        if value is None and labelled:
            raise ValueError(_missing_label(label, (keys[label],), _keys_found([atoms]), place))
    energy, forces, stress = (values.get(label) for label in ("energy", "forces", "stress"))
    return make_frame(
        atoms.numbers,
        atoms.positions * scale.length,
        energy=None if energy is None else _energy(energy, place) * scale.energy,
        forces=None if forces is None else _forces(forces, atoms, place) * scale.energy / scale.length,
        stress=None if stress is None else _stress(stress, place) * scale.energy / scale.length**3,
        cell=np.asarray(atoms.cell) * scale.length,
        pbc=atoms.pbc,
        config_type=_config_type(atoms),
    )


def _check_structure(atoms: Atoms, place: _Place) -> None:
    if len(atoms) == 0:
        raise ValueError(f"There are no atoms in {place}; remove it.")
    if (atoms.numbers < 1).any():
        raise ValueError(f"There is an atom of unknown element (`X`) in {place}; give each atom an element.")
    require_finite("positions", atoms.positions, source=place.source, frame=place.number)
    periodic = np.asarray(atoms.cell)[atoms.pbc]  # (number of periodic directions, 3)
    if len(periodic) and not np.linalg.matrix_rank(periodic) == len(periodic):
        raise ValueError(
            f"The cell of {place} is periodic along {''.join(np.array(list('abc'))[atoms.pbc])}, but these lattice "
            "vectors span no volume; write the cell, or set pbc to F."
        )


def _number(label: str, value: np.ndarray, place: _Place) -> np.ndarray:
    try:
        return value.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The {label} of {place} is not a number: {value!r:.80}.") from error


def _energy(value: np.ndarray, place: _Place) -> float:
    energy = _number("energy", value, place)
    if energy.size != 1:
        raise ValueError(f"The energy of {place} must be one number, got shape {energy.shape}.")
    require_finite("energy", energy.ravel()[0], source=place.source, frame=place.number)
    return float(energy.ravel()[0])


def _forces(value: np.ndarray, atoms: Atoms, place: _Place) -> np.ndarray:
    forces = _number("forces", value, place)
    if forces.shape != (len(atoms), 3):
        raise ValueError(f"The forces of {place} must have shape ({len(atoms)}, 3), got {forces.shape}.")
    require_finite("forces", forces, source=place.source, frame=place.number)
    return forces


def _stress(value: np.ndarray, place: _Place) -> np.ndarray:
    """A symmetric (3, 3) matrix from 3x3, 9 or Voigt's 6 numbers."""
    stress = _number("stress", value, place)
    if stress.size not in (6, 9):
        raise ValueError(f"The stress of {place} must have 6 (Voigt) or 9 numbers, got shape {stress.shape}.")
    require_finite("stress", stress, source=place.source, frame=place.number)
    if stress.size == 6:
        xx, yy, zz, yz, xz, xy = stress.ravel()
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    stress = stress.reshape(3, 3)
    asymmetry = float(abs(stress - stress.T).max())
    if asymmetry > 0.01 * float(abs(stress).max()):
        raise ValueError(f"The stress of {place} is not symmetric (by {asymmetry:.3g}); is it another quantity?")
    return (stress + stress.T) / 2


def _add_isolated(energies: dict[int, float], atoms: Atoms, keys: dict[str, str], scale: _Scale, place: _Place) -> None:
    """Enter an isolated atom's energy (eV); raises ``ValueError`` when it is no single atom or has two energies."""
    if len(atoms) != 1:
        raise ValueError(f"An {ISOLATED} must be one atom, but {place} has {len(atoms)}.")
    if "energy" not in keys:
        return
    value = _value(atoms, keys["energy"])
    if value is None:
        raise ValueError(_missing_label("energy", (keys["energy"],), _keys_found([atoms]), place))
    energy, number = _energy(value, place) * scale.energy, int(atoms.numbers[0])
    if abs(energies.setdefault(number, energy) - energy) > 1e-6:
        raise ValueError(
            f"`{place.source}` has two isolated {atoms.symbols[0]} atoms of different energy: {energies[number]} and "
            f"{energy} eV; keep one."
        )


def write_extxyz(path: Path, frames: Sequence[Atoms]) -> None:
    """Write frames as they are; the file replaces ``path`` only when it is whole."""
    with whole_file(path) as file:
        text = StringIO()
        io.write(text, frames, format="extxyz")
        file.write(text.getvalue().encode())
