"""What is in a data set, and what looks wrong in it: the tables behind ``mdrelax data stats`` and ``data check``."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from ase.data import chemical_symbols
from torch_geometric.data import Data

from mdrelax.datasets.frames import min_distance

__all__ = ["CheckLimits", "check_frames", "dataset_stats"]

SHOWN = 5  # frames that a sentence names


class CheckLimits(NamedTuple):
    """From where on ``check_frames`` calls a frame suspicious."""

    min_distance: float = 0.5  # Angstrom; H-H, the shortest bond, is 0.74
    net_force: float = 0.1  # eV/Angstrom, on a molecule; zero in exact calculations
    max_force: float = 50.0  # eV/Angstrom
    energy_widths: float = 3.0  # distance from the 5-95 % range of the energies of one composition, in its widths


class _Finding(NamedTuple):
    """What one check says: the frames it complains about, and the sentence if there are any."""

    frames: list[int]
    sentence: str


def dataset_stats(data: Sequence[Data]) -> pd.DataFrame:
    """One row a quantity with its unit: count, min, mean, max, std over the frames (or atoms) that have it."""
    columns = ["quantity", "unit", "count", "min", "mean", "max", "std"]
    rows = [_row(name, unit, np.array(values, dtype=float)) for name, unit, values in _quantities(data) if len(values)]
    return pd.DataFrame(rows, columns=columns)


def check_frames(data: Sequence[Data], *, limits: CheckLimits | None = None) -> pd.DataFrame:
    """One row a check: ``check``, ``passed``, ``frames`` (list of indices), ``message`` (a sentence when it failed)."""
    limits = CheckLimits() if limits is None else limits
    rows = []
    for name, check in CHECKS.items():
        finding = check(data, limits)
        message = f"{finding.sentence} {_named(finding.frames)}" if finding.frames else ""
        rows.append((name, not finding.frames, finding.frames, message))
    return pd.DataFrame(rows, columns=["check", "passed", "frames", "message"])


# --- statistics ---


def _row(name: str, unit: str, values: np.ndarray) -> tuple[str, str, int, float, float, float, float]:
    known = values[~np.isnan(values)]
    if not len(known):
        return name, unit, 0, *(float("nan"),) * 4
    return name, unit, len(known), known.min(), known.mean(), known.max(), known.std()


def _quantities(data: Sequence[Data]) -> list[tuple[str, str, list[float] | np.ndarray]]:
    """Name, unit and values of everything that the table shows."""
    energies = [float(frame.energy) for frame in data if "energy" in frame]
    per_atom = [float(frame.energy) / len(frame.z) for frame in data if "energy" in frame]
    forces = [frame.forces.reshape(-1) for frame in data if "forces" in frame]
    norms = [frame.forces.norm(dim=1) for frame in data if "forces" in frame]
    stresses = [frame.stress.reshape(-1) for frame in data if "stress" in frame]
    periodic = [frame for frame in data if bool(frame.pbc.all())]
    return [
        ("atoms per frame", "", [len(frame.z) for frame in data]),
        *((f"{symbol} atoms per frame", "", counts) for symbol, counts in _element_counts(data).items()),
        ("energy", "eV", energies),
        ("energy per atom", "eV", per_atom),
        ("force component", "eV/Angstrom", _flat(forces)),
        ("force norm", "eV/Angstrom", _flat(norms)),
        ("stress component", "eV/Angstrom^3", _flat(stresses)),
        ("volume", "Angstrom^3", [abs(float(torch.linalg.det(frame.cell[0]))) for frame in periodic]),
        ("shortest distance", "Angstrom", [min_distance(frame) for frame in data]),
    ]


def _element_counts(data: Sequence[Data]) -> dict[str, list[float]]:
    """For each element, how many atoms of it each frame has."""
    counters = [Counter(frame.z.tolist()) for frame in data]
    numbers = sorted(set().union(*counters)) if counters else []
    return {chemical_symbols[z]: [float(counter[z]) for counter in counters] for z in numbers}


def _flat(parts: list[torch.Tensor]) -> np.ndarray:
    return torch.cat(parts).numpy() if parts else np.empty(0)


# --- checks ---


def _named(frames: list[int]) -> str:
    more = f" and {len(frames) - SHOWN} more" if len(frames) > SHOWN else ""
    return f"Frames {', '.join(map(str, frames[:SHOWN]))}{more}." if len(frames) > 1 else f"Frame {frames[0]}."


def _where(data: Sequence[Data], suspicious: Callable[[Data], bool]) -> list[int]:
    return [index for index, frame in enumerate(data) if suspicious(frame)]


def _check_finite(data: Sequence[Data], limits: CheckLimits) -> _Finding:
    names = ("pos", "cell", "energy", "forces", "stress")
    frames = _where(data, lambda f: any(name in f and not bool(f[name].isfinite().all()) for name in names))
    return _Finding(frames, "Some numbers are NaN or infinite; remove these frames or label them again.")


def _check_labels(data: Sequence[Data], limits: CheckLimits) -> _Finding:
    """Every label is in all frames or in none."""
    partial = [n for n in ("energy", "forces", "stress") if 0 < sum(n in frame for frame in data) < len(data)]
    frames = _where(data, lambda frame: any(name not in frame for name in partial))
    return _Finding(frames, f"Labels that other frames have ({', '.join(partial)}) are missing.")


def _check_distances(data: Sequence[Data], limits: CheckLimits) -> _Finding:
    frames = _where(data, lambda frame: min_distance(frame) < limits.min_distance)
    return _Finding(
        frames, f"Two atoms are nearer than {limits.min_distance} Angstrom: a broken geometry or a wrong unit."
    )


def _check_duplicates(data: Sequence[Data], limits: CheckLimits) -> _Finding:
    """Frames whose geometry (to 1e-5 Angstrom) came before: they may stand in two parts of a split."""
    seen: set[bytes] = set()
    frames = []
    for index, frame in enumerate(data):
        key = _geometry_key(frame)
        if key in seen:
            frames.append(index)
        seen.add(key)
    return _Finding(frames, "The same geometry came before; a copy in the test set makes its error too good.")


def _geometry_key(frame: Data) -> bytes:
    digest = hashlib.sha256(frame.z.numpy().tobytes())
    for values in (frame.pos, frame.cell):
        digest.update((values.numpy().round(5) + 0.0).tobytes())  # + 0.0 turns -0.0 into 0.0
    return digest.digest()


def _check_net_force(data: Sequence[Data], limits: CheckLimits) -> _Finding:
    frames = _where(data, lambda f: "forces" in f and float(f.forces.sum(dim=0).norm()) > limits.net_force)
    return _Finding(
        frames,
        f"The forces add up to more than {limits.net_force} eV/Angstrom; a model without external field cannot learn "
        "that: (a) loose integration grids, (b) wrong forces key, or (c) an atom is missing.",
    )


def _check_forces(data: Sequence[Data], limits: CheckLimits) -> _Finding:
    frames = _where(data, lambda f: "forces" in f and float(f.forces.norm(dim=1).max()) > limits.max_force)
    return _Finding(
        frames,
        f"A force is above {limits.max_force} eV/Angstrom: a failed calculation, atoms too near, or a wrong unit.",
    )


def _check_energies(data: Sequence[Data], limits: CheckLimits) -> _Finding:
    """Energies far outside the range that 90 % of their composition have."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, frame in enumerate(data):
        if "energy" in frame:
            groups.setdefault(tuple(sorted(frame.z.tolist())), []).append(index)
    frames = []
    for indices in groups.values():
        energies = np.array([float(data[index].energy) for index in indices])
        frames += [indices[k] for k in _outliers(energies, limits.energy_widths)]
    return _Finding(
        sorted(frames),
        f"An energy is over {limits.energy_widths:g} times the width of its composition's 5-95 % range away from it: "
        "an unconverged calculation, another level of theory, or a broken geometry.",
    )


def _outliers(values: np.ndarray, widths: float) -> np.ndarray:
    """Indices of the values far outside the 5-95 % range; a range of fewer than 20 values means nothing."""
    if len(values) < 20 or not np.isfinite(values).all():
        return np.empty(0, dtype=int)
    low, high = np.quantile(values, [0.05, 0.95])
    return np.flatnonzero(np.maximum(low - values, values - high) > widths * max(high - low, 1e-6))


CHECKS: dict[str, Callable[[Sequence[Data], CheckLimits], _Finding]] = {
    "all numbers finite": _check_finite,
    "labels complete": _check_labels,
    "no atoms too near": _check_distances,
    "no duplicate geometry": _check_duplicates,
    "no net force": _check_net_force,
    "no extreme force": _check_forces,
    "no energy outlier": _check_energies,
}
