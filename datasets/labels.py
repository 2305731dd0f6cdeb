"""Labels of ASE atoms: found, checked and converted into frames in eV and Angstrom.

Where each label is looked for, in this order, the same for the whole file:

1. the key that the caller names (``energy_key="my_energy"``; ``"none"`` leaves the label out);
2. ``REF_energy``, ``REF_forces``, ``REF_stress``;
3. ASE's calculator results, where ASE puts the plain keys ``energy``, ``forces``, ``stress``;
4. for the stress, ``REF_virial``, ``REF_virials``, ``virial`` and ``virials``.

Stress is a 3x3 matrix, 9 numbers, or Voigt's 6 (xx, yy, zz, yz, xz, xy), positive under tension as in ASE. A key with
``virial`` in its name holds an energy of the other sign, as in QUIP, GPUMD and MACE; one with ``grad`` holds gradients:

    stress = -virial / volume        forces = -gradient

A frame may lack a label that others have, but not all of them. Frames with ``config_type=IsolatedAtom`` (in any
spelling, such as QUIP's ``isolated_atom``) become reference energies.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypedDict, Unpack

import numpy as np
from ase import Atoms
from torch_geometric.data import Data

from mdrelax.base import units
from mdrelax.base.names import nearest_name
from mdrelax.base.places import frame_name
from mdrelax.datasets.dialects import require_known_cell, weight_of
from mdrelax.datasets.frames import Frames, check_structure, make_frame, report_on, require_finite, shortened, volume

__all__ = ["LabelOptions", "load_atoms"]

ISOLATED = "IsolatedAtom"
NO_LABEL = "none"
SIGNS = ("usual", "opposite")
LABEL_KEYS = {
    "energy": ("REF_energy", "energy"),
    "forces": ("REF_forces", "forces", "force"),
    "stress": ("REF_stress", "stress", "REF_virial", "REF_virials", "virial", "virials"),
}
NO_LABELS_EVER = {"numbers", "positions", "momenta", "velocities", "initial_magmoms", "config_type", "provenance"}
CHARGE_KEYS = ("charge", "total_charge", "tot_charge", "net_charge")
SPIN_KEYS = ("spin", "total_spin", "multiplicity", "spin_multiplicity", "mult")


class LabelOptions(TypedDict, total=False):
    """How to read the labels of a file; an omitted option or ``None`` has its default."""

    energy_key: str | None
    forces_key: str | None
    stress_key: str | None
    energy_unit: str | None  # default eV
    length_unit: str | None  # default Angstrom
    forces_unit: str | None  # default energy_unit/length_unit
    stress_unit: str | None  # default energy_unit/length_unit^3, of a virial energy_unit
    forces_sign: str | None  # "usual" or "opposite": -dE/dx or dE/dx
    stress_sign: str | None  # "usual" or "opposite": of a stress positive under tension, of a virial under compression


class _Scale(NamedTuple):
    """Conversion factors of the file's numbers: energy to eV, length to Angstrom, forces, stress (or virial)."""

    energy: float
    length: float
    forces: float
    stress: float


class _Place(NamedTuple):
    """The place of a frame in its file, for error messages."""

    source: str
    number: int

    def __str__(self) -> str:
        return frame_name(self.number, self.source)


def load_atoms(
    structures: Sequence[Atoms], *, source: str = "memory", labelled: bool = True, **options: Unpack[LabelOptions]
) -> Frames:
    """Labelled ASE atoms as frames, as ``load_extxyz`` takes them from a file; ``source`` is their name in messages.

    Units that are not named are taken for eV and Angstrom, and the report says so. ``labelled=False`` reads structures
    without labels too. Raises ``ValueError`` for an unknown unit or sign (naming the nearest), a label that no frame
    has, a frame without any label (listing the keys found), NaN or infinite values (naming frame and atom), coincident
    atoms, a flat periodic cell, a cell under a key that is not read, and no frames at all.
    """
    frames = list(structures)
    if not frames:
        raise ValueError(f"`{source}` is empty: it holds no frames.")
    keys = _choose_keys(frames, options, labelled, source)
    scale = _scale(options, keys)
    isolated: dict[int, float] = {}
    data: list[Data] = []
    for index, atoms in enumerate(frames):
        if _is_isolated(atoms):
            _add_isolated(isolated, atoms, keys, scale, _Place(source, index))
        else:
            data.append(_frame(atoms, keys, scale, labelled, _Place(source, index)))
    if not data:
        raise ValueError(f"`{source}` holds {len(frames)} isolated atoms and nothing else; add frames to train on.")
    if options.get("stress_key") not in (None, NO_LABEL) and labelled and not any("stress" in frame for frame in data):
        raise ValueError(
            f"`stress_key: {keys['stress']:.40}` needs a volume, but no frame of `{source}` has one; add the cells and "
            f"pbc, or leave the label out with `stress_key: {NO_LABEL}`."
        )
    energy_name, length_name = options.get("energy_unit") or "eV", options.get("length_unit") or "Angstrom"
    others = [unit for unit in (options.get("forces_unit"), options.get("stress_unit")) if unit]
    assumed = [energy_name] * (not options.get("energy_unit")) + [length_name] * (not options.get("length_unit"))
    report = report_on(
        data,
        source=source,
        keys=keys,
        n_isolated=len(isolated),
        units=(energy_name, length_name, *others),
        units_assumed=tuple(assumed),
        unused_keys=tuple(sorted(_keys_found(frames) - set(keys.values()) - NO_LABELS_EVER)),
        notes=tuple(_notes(frames, data, keys, options)),
    )
    return Frames(data, isolated, report)


# --- find the labels ---


def _config_type(atoms: Atoms) -> str:
    spelt = {str(key).lower(): value for key, value in atoms.info.items()}
    return str(spelt.get("config_type", "default"))


def _is_isolated(atoms: Atoms) -> bool:
    return re.sub("[^a-z]", "", _config_type(atoms).lower()).startswith(ISOLATED.lower())


def _tables(atoms: Atoms) -> tuple[dict, ...]:
    """All places of a label: the comment line, the columns, and results that ASE moved into a calculator."""
    return atoms.info, atoms.arrays, atoms.calc.results if atoms.calc is not None else {}


def _value(atoms: Atoms, key: str | None) -> np.ndarray | None:
    for table in _tables(atoms):
        if key is not None and table.get(key) is not None:
            return np.asarray(table[key])
    return None


def _keys_found(frames: Iterable[Atoms]) -> set[str]:
    return {str(key) for atoms in frames for table in _tables(atoms) for key in table} - {"numbers", "positions"}


def _choose_keys(frames: list[Atoms], options: LabelOptions, labelled: bool, source: str) -> dict[str, str]:
    """One key for each label that the file has; raises ``ValueError`` if a label is missing."""
    found = _keys_found(atoms for atoms in frames if not _is_isolated(atoms)) or _keys_found(frames)
    spelt = {name.lower(): name for name in found}  # GPUMD's `Energy` is its `energy`
    asked = {"energy": options.get("energy_key"), "forces": options.get("forces_key")}
    keys = {}
    for label, key in {**asked, "stress": options.get("stress_key")}.items():
        if key == NO_LABEL:
            continue
        candidates = LABEL_KEYS[label] if key is None else (key,)
        present = [name for name in candidates if name in found]
        present += [spelt[name.lower()] for name in candidates if key is None and name.lower() in spelt]
        if present:
            keys[label] = present[0]
        elif labelled and (key is not None or label == "energy" or (label == "forces" and _maybe_forces(frames))):
            raise ValueError(_bare_number(found, source) or _missing_label(label, candidates, found, f"`{source}`"))
    return keys


def _maybe_forces(frames: Iterable[Atoms]) -> bool:
    """Whether a column could be forces under another name."""
    ignored = NO_LABELS_EVER | {"mdrelax_forces"}
    return any(array.ndim == 2 and key not in ignored for atoms in frames for key, array in atoms.arrays.items())


def _missing_label(label: str, candidates: Iterable[str], found: set[str], place: str | _Place) -> str:
    tried = " or ".join(f"`{key:.40}`" for key in candidates)
    return (
        f"There is no {label} under {tried} in {place}; keys found: {shortened(sorted(found)) or 'none'}. Name the "
        f"right one with `{label}_key`, or leave the label out with `{label}_key: {NO_LABEL}`."
    )


def _bare_number(found: set[str], source: str) -> str | None:
    """A hint on comment lines with a bare number, which ASE takes for the name of a key."""
    numbers = sorted(name for name in found if re.fullmatch(r"[+-]?\d+(\.\d*)?([eEdD][+-]?\d+)?", name))
    if not numbers:
        return None
    return (
        f"The comment lines of `{source}` hold a bare number, such as `{numbers[0]:.40}`; if it is the energy, write "
        f"`energy={numbers[0]:.40}`."
    )


# --- convert ---


def _scale(options: LabelOptions, keys: dict[str, str]) -> _Scale:
    """Factors of the file's units and signs; raises ``ValueError`` for a name that is unknown."""
    energy = units.energy_unit(options.get("energy_unit") or "eV")
    length = units.length_unit(options.get("length_unit") or "Angstrom")
    forces_unit, stress_unit = options.get("forces_unit"), options.get("stress_unit")
    forces = units.force_unit(forces_unit) if forces_unit else energy / length
    if _is_virial(keys):
        stress = _virial_unit(stress_unit, keys["stress"]) if stress_unit else energy
    else:
        stress = units.stress_unit(stress_unit) if stress_unit else energy / length**3
    forces_sign = _sign("forces_sign", options.get("forces_sign")) * (-1 if _is_gradient(keys) else 1)
    return _Scale(energy, length, forces_sign * forces, _sign("stress_sign", options.get("stress_sign")) * stress)


def _is_virial(keys: dict[str, str]) -> bool:
    return "virial" in keys.get("stress", "").lower()


def _is_gradient(keys: dict[str, str]) -> bool:
    return "grad" in keys.get("forces", "").lower()


def _virial_unit(name: str, key: str) -> float:
    if not units.is_energy_unit(name):
        raise ValueError(
            f"`stress_unit: {name:.40}` is no energy unit, but `{key}` is a virial, -stress times volume, which is "
            "one; name a unit such as eV, or the key of a stress with `stress_key`."
        )
    return units.energy_unit(name)


def _sign(option: str, value: str | None) -> int:
    if value not in (None, *SIGNS):
        raise ValueError(f"Unknown `{option}: {value}`; {nearest_name(str(value), SIGNS)}")
    return -1 if value == "opposite" else 1


def _frame(atoms: Atoms, keys: dict[str, str], scale: _Scale, labelled: bool, place: _Place) -> Data:
    """One structure with its labels, checked and converted."""
    cell = np.asarray(atoms.cell) * scale.length
    require_known_cell(atoms, str(place))
    check_structure(atoms.numbers, atoms.positions, cell, atoms.pbc, source=place.source, number=place.number)
    values = {label: _value(atoms, key) for label, key in keys.items()}
    if labelled:
        _check_missing(atoms, values, keys, place)
    energy, forces, stress = (values.get(label) for label in ("energy", "forces", "stress"))
    frame = make_frame(
        atoms.numbers,
        atoms.positions * scale.length,
        energy=None if energy is None else _energy(energy, place) * scale.energy,
        forces=None if forces is None else _forces(forces, atoms, place) * scale.forces,
        cell=cell,
        pbc=atoms.pbc,
        stress=None if stress is None else _stress(stress, place) * scale.stress,
        config_type=_config_type(atoms),
        place=str(place),
    )
    if "stress" in frame and _is_virial(keys):
        frame.stress = -frame.stress / volume(frame)
    if (weight := weight_of(atoms, str(place))) is not None:
        frame.weight = weight
    for name, spellings in (("charge", CHARGE_KEYS), ("spin", SPIN_KEYS)):
        value = next((atoms.info[key] for key in spellings if key in atoms.info), None)
        if isinstance(value, int | float | np.number):
            frame[name] = float(value)
    return frame


def _check_missing(atoms: Atoms, values: dict[str, np.ndarray | None], keys: dict[str, str], place: _Place) -> None:
    """Refuse a frame without any label, and one whose label has another key than in the rest of the file."""
    found = _keys_found([atoms])
    if all(value is None for value in values.values()):
        tried = " or ".join(f"`{key}`" for key in keys.values())
        raise ValueError(
            f"There is no label{f' under {tried}' if tried else ''} in {place}; keys found: "
            f"{shortened(sorted(found)) or 'none'}. Remove the frame, or label it."
        )
    for label, value in values.items():
        elsewhere = keys[label] in LABEL_KEYS[label] and any(key in found for key in LABEL_KEYS[label])
        if value is None and (elsewhere or (label == "forces" and _maybe_forces([atoms]))):
            raise ValueError(_missing_label(label, (keys[label],), found, place))


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
    """Enter an isolated atom's energy (eV); raises ``ValueError`` if it is not a single atom or has two energies."""
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


# --- notes of the report ---


def _notes(frames: list[Atoms], data: list[Data], keys: dict[str, str], options: LabelOptions) -> list[str]:
    """Sentences about labels that were converted, left out, or are ambiguous."""
    notes = []
    if _is_virial(keys):
        notes.append(f"stress = -`{keys['stress']}` / volume.")
    if _is_gradient(keys):
        notes.append(f"forces = -`{keys['forces']}`.")
    notes += [f"The sign of the {x} is changed." for x in ("forces", "stress") if options.get(f"{x}_sign") == SIGNS[1]]
    if "stress" in keys:
        labelled = sum(_value(atoms, keys["stress"]) is not None for atoms in frames if not _is_isolated(atoms))
        dropped = labelled - sum("stress" in frame for frame in data)
        if dropped:
            notes.append(f"{dropped} frames without a volume have a stress, which is left out.")
    boxed = sum(atoms.cell.rank == 3 and not atoms.pbc.any() for atoms in frames if not _is_isolated(atoms))
    if boxed:
        notes.append(f"{boxed} frames have a cell but pbc F F F, so the cell is not used.")
    single = sum(len(frame.z) == 1 and not bool(frame.pbc.any()) for frame in data)
    if single:
        notes.append(f"{single} frames are single atoms without config_type={ISOLATED}: they give no reference energy.")
    return [*notes, *_note_of_free_energy(frames, keys), *_notes_of_states(data)]


def _note_of_free_energy(frames: list[Atoms], keys: dict[str, str]) -> list[str]:
    """With smeared occupations, as in VASP, forces are the gradient of the free energy, not of the energy at 0 K."""
    key = keys.get("energy", "free")
    if "free" in key.lower():
        return []
    free = re.sub("energy", "free_energy", key, flags=re.IGNORECASE)
    pairs = [(_value(atoms, key), _value(atoms, free)) for atoms in frames]
    both = [(a, b) for a, b in pairs if a is not None and b is not None and a.size == b.size == 1]
    largest = max((abs(float(a.item()) - float(b.item())) for a, b in both), default=0.0)
    if largest < 1e-6:
        return []
    return [
        f"`{free}` differs from `{key}` by up to {largest:.3g} (the file's unit): where occupations are smeared, as in "
        f"VASP, forces are the gradient of the free energy, which `energy_key: {free}` takes."
    ]


def _notes_of_states(data: list[Data]) -> list[str]:
    notes = []
    for name in ("charge", "spin"):
        values = sorted({frame[name] for frame in data if name in frame})
        if len(values) > 1:
            shown = shortened([f"{value:g}" for value in values])
            notes.append(f"{name.capitalize()} differs between frames ({shown}), but a network sees elements only.")
    return notes
