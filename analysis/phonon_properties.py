"""Properties of phonons: bands along a path, density of states, sound velocities, heat capacity, and imaginary modes.

All are computed from a phonopy calculation with its force constants (``phonons``). Wave vectors q are in units of the
primitive cell's reciprocal vectors; frequencies in THz, negative where imaginary.
"""

import itertools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from ase import units
from ase.cell import Cell
from ase.dft.kpoints import parse_path_string

from mdrelax.analysis.phonons import Size
from mdrelax.base.units import EV_PER_KJ_MOL

if TYPE_CHECKING:
    from phonopy import Phonopy

__all__ = [
    "NOISE_THZ",
    "Imaginary",
    "band_table",
    "check_path",
    "density_of_states",
    "describe_imaginary",
    "find_imaginary",
    "lowest_frequency",
    "mesh_size",
    "sample_mesh",
    "sound_velocities",
    "thermal_properties",
]

Array = npt.NDArray[np.float64]

MESH_LENGTH = 60.0  # Angstrom: the mesh has this many points per reciprocal vector of 1/A (without 2 pi)
POINTS_PER_INVERSE_ANGSTROM = 40  # of the band path (q with 2 pi)
NOISE_THZ = 0.05  # below zero by more than this is an imaginary mode: interpolation near Gamma gives less
PER_CM_OF_THZ = 1e10 / units._c  # 1e12 Hz / c, in 1/cm
SMALL_Q = 0.02  # 1/A, where the slope of the acoustic branches is computed


class Imaginary(NamedTuple):
    """The lowest imaginary mode at one wave vector."""

    q: tuple[float, float, float]
    label: str  # of a special point, else empty
    frequency_THz: float  # negative
    atoms: list[str]  # the most displaced atoms of the primitive cell


def check_path(phonon: "Phonopy", path: str | None) -> None:
    """Raise ``ValueError`` for a path with points that the lattice does not have, before anything is computed."""
    _segments(Cell(phonon.primitive.cell), path)


def band_table(phonon: "Phonopy", path: str | None = None) -> pd.DataFrame:
    """Frequencies along a path such as ``GXU,KGL`` (default: ASE's for the lattice), one row per wave vector.

    Columns: ``segment``, ``distance_per_A`` (2 pi included), ``label``, ``qa qb qc``, and for each branch
    ``branch_k_THz`` and ``branch_k_per_cm``. Raises ``ValueError`` for special points that the lattice does not have.
    """
    cell = Cell(phonon.primitive.cell)
    segments = _segments(cell, path)
    reciprocal = 2 * np.pi * np.asarray(cell.reciprocal())  # (3, 3)
    rows, start = [], 0.0
    for number, (labels, (first, last)) in enumerate(segments, 1):
        length = float(np.linalg.norm((last - first) @ reciprocal))
        count = max(2, math.ceil(length * POINTS_PER_INVERSE_ANGSTROM) + 1)
        for k, part in enumerate(np.linspace(0, 1, count)):
            label = labels[0] if k == 0 else labels[1] if k == count - 1 else ""
            rows.append((number, start + part * length, label, *(first + part * (last - first))))
        start += length
    table = pd.DataFrame(rows, columns=["segment", "distance_per_A", "label", "qa", "qb", "qc"])
    frequencies = _frequencies(phonon, table[["qa", "qb", "qc"]].to_numpy())
    names = [f"branch_{k}" for k in range(1, frequencies.shape[1] + 1)]
    in_thz = pd.DataFrame(frequencies, columns=[f"{name}_THz" for name in names])
    per_cm = pd.DataFrame(frequencies * PER_CM_OF_THZ, columns=[f"{name}_per_cm" for name in names])
    return pd.concat([table, in_thz, per_cm], axis=1)


def _segments(cell: Cell, path: str | None) -> list[tuple[tuple[str, str], tuple[Array, Array]]]:
    """The ends of each straight segment of a path: their labels and wave vectors."""
    known = cell.bandpath(npoints=0)
    points = {name: np.asarray(q, dtype=float) for name, q in known.special_points.items()}
    chains = parse_path_string(known.path if path is None else path)
    unknown = sorted({name for chain in chains for name in chain} - set(points))
    if unknown:
        raise ValueError(
            f"`--path` names {', '.join(unknown)}, and the lattice has {', '.join(sorted(points))}; "
            f"the usual path is {known.path}."
        )
    pairs = [pair for chain in chains for pair in itertools.pairwise(chain) if pair[0] != pair[1]]
    if not pairs:
        raise ValueError(f"`--path` must have two different points at least, got {path!r}; the usual is {known.path}.")
    return [((a, b), (points[a], points[b])) for a, b in pairs]


def _frequencies(phonon: "Phonopy", q: Array) -> Array:
    """(Q, 3 P) THz, from the lowest to the highest at each wave vector."""
    return np.asarray(phonon.run_qpoints(q).frequencies, dtype=float)


def mesh_size(phonon: "Phonopy") -> Size:
    """Points along each reciprocal vector, with a spacing of about 2 pi / 60 A."""
    lengths = np.linalg.norm(np.asarray(Cell(phonon.primitive.cell).reciprocal()), axis=1)
    a, b, c = (max(1, round(MESH_LENGTH * length)) for length in lengths)
    return a, b, c


def sample_mesh(phonon: "Phonopy", mesh: Size) -> None:
    """Compute the frequencies on a mesh of wave vectors around Gamma, for the functions below."""
    phonon.run_mesh(mesh, is_gamma_center=True)


def lowest_frequency(phonon: "Phonopy", bands: pd.DataFrame) -> float:
    """The lowest frequency of path and mesh, THz."""
    grid: Any = phonon.mesh
    return float(min(bands["branch_1_THz"].min(), grid.frequencies.min()))


def density_of_states(phonon: "Phonopy") -> pd.DataFrame:
    """Columns ``frequency_THz``, ``frequency_per_cm`` and ``dos_per_THz`` (states of a primitive cell)."""
    found: Any = phonon.run_total_dos()
    frequency = np.asarray(found.frequency_points)
    return pd.DataFrame(
        {"frequency_THz": frequency, "frequency_per_cm": frequency * PER_CM_OF_THZ, "dos_per_THz": found.dos}
    )


def thermal_properties(phonon: "Phonopy", temperatures: Array) -> pd.DataFrame:
    """Harmonic free energy, entropy and heat capacity of a primitive cell at each temperature (K).

    Imaginary modes are left out. Raises ``ValueError`` for temperatures below zero.
    """
    if len(temperatures) == 0 or not (np.isfinite(temperatures) & (temperatures >= 0)).all():
        raise ValueError(f"Temperatures must be >= 0 K and finite, got {temperatures.tolist()}.")
    found: Any = phonon.run_thermal_properties(temperatures=temperatures, cutoff_frequency=1e-3)
    return pd.DataFrame(
        {
            "temperature_K": found.temperatures,
            "free_energy_eV": np.asarray(found.free_energy) * EV_PER_KJ_MOL,
            "entropy_eV_per_K": np.asarray(found.entropy) * EV_PER_KJ_MOL / 1000,
            "heat_capacity_eV_per_K": np.asarray(found.heat_capacity) * EV_PER_KJ_MOL / 1000,
        }
    )


def sound_velocities(phonon: "Phonopy", bands: pd.DataFrame) -> pd.DataFrame:
    """Slopes of the three acoustic branches at Gamma (m/s) towards each special point next to it on the path.

    ``linearity`` is omega(q) / 2 omega(q/2) of the lowest branch at q = 0.02/A: 1 where the dispersion is a straight
    line, as it must be near Gamma.
    """
    reciprocal = 2 * np.pi * np.asarray(Cell(phonon.primitive.cell).reciprocal())
    rows = []
    for _, part in bands.groupby("segment"):
        ends = part.iloc[[0, -1]]
        if "G" not in ends.label.tolist() or len(set(ends.label)) == 1:
            continue
        other = ends[ends.label != "G"].iloc[0]
        direction = other[["qa", "qb", "qc"]].to_numpy(dtype=float)
        near = direction * SMALL_Q / np.linalg.norm(direction @ reciprocal)
        whole, half = _frequencies(phonon, np.stack([near, near / 2]))[:, :3]
        slopes = 2 * np.pi * whole / SMALL_Q * 100  # THz A -> m/s
        rows.append((other.label, *slopes, whole[0] / (2 * half[0]) if half[0] else math.nan))
    names = ["towards", "slowest_m_per_s", "middle_m_per_s", "fastest_m_per_s", "linearity"]
    return pd.DataFrame(rows, columns=names).drop_duplicates("towards").reset_index(drop=True)


# --- imaginary modes ---


def find_imaginary(phonon: "Phonopy", bands: pd.DataFrame) -> list[Imaginary]:
    """The imaginary modes at the special points of the path, and the lowest of path and mesh; lowest first.

    The mesh is that of ``sample_mesh``. Modes above -0.05 THz are not counted.
    """
    lowest, q = bands["branch_1_THz"].to_numpy(), bands[["qa", "qb", "qc"]].to_numpy()  # (Q,), (Q, 3)
    labels = bands["label"].to_numpy()
    places = {_triple(q[k]): str(labels[k]) for k in np.flatnonzero((labels != "") & (lowest < -NOISE_THZ))}
    grid: Any = phonon.mesh
    for place in (q[lowest.argmin()], grid.qpoints[grid.frequencies.min(axis=1).argmin()]):
        places.setdefault(_triple(place), "")
    found = [_lowest_mode(phonon, place, label) for place, label in places.items()]
    found = [mode for mode in found if mode.frequency_THz < -NOISE_THZ]
    return sorted(found, key=lambda mode: mode.frequency_THz)


def _triple(q: Array) -> tuple[float, float, float]:
    a, b, c = (float(value) for value in q)
    return a, b, c


def _lowest_mode(phonon: "Phonopy", q: tuple[float, float, float], label: str) -> Imaginary:
    result: Any = phonon.run_qpoints([q], with_eigenvectors=True)
    vector = np.asarray(result.eigenvectors)[0][:, 0].reshape(-1, 3)  # mass-weighted, of the lowest branch
    moved = np.linalg.norm(np.abs(vector), axis=1) / np.sqrt(phonon.primitive.masses)
    names = [f"{phonon.primitive.symbols[k]}{k}" for k in np.argsort(-moved) if moved[k] >= 0.5 * moved.max()]
    return Imaginary(q, label, float(result.frequencies[0].min()), names[:6])


def describe_imaginary(modes: list[Imaginary]) -> list[str]:
    """A sentence for each imaginary mode: its wave vector, its size, and the atoms that move most."""
    sentences = []
    for mode in modes:
        q = ", ".join(f"{value:.3g}" for value in mode.q)
        name = f"{mode.label.replace('G', 'Gamma')} = " if mode.label else ""
        sentences.append(
            f"Imaginary mode of {-mode.frequency_THz:.2f}i THz at q = {name}({q}), most moved: "
            f"{', '.join(mode.atoms)}: the structure is not a minimum of the model, or the supercell is too small."
        )
    return sentences
