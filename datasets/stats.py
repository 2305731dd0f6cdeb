"""The content of a data set: the table of ``mdrelax data stats``."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from ase.data import chemical_symbols
from torch_geometric.data import Data

from mdrelax.datasets.frames import min_distance

__all__ = ["dataset_stats"]


def dataset_stats(data: Sequence[Data]) -> pd.DataFrame:
    """One row per quantity with its unit: count, min, mean, max, std over the frames (or atoms) that have it."""
    columns = ["quantity", "unit", "count", "min", "mean", "max", "std"]
    rows = [_row(name, unit, np.array(values, dtype=float)) for name, unit, values in _quantities(data) if len(values)]
    return pd.DataFrame(rows, columns=columns)


def _row(name: str, unit: str, values: np.ndarray) -> tuple[str, str, int, float, float, float, float]:
    known = values[~np.isnan(values)]
    if not len(known):
        return name, unit, 0, *(float("nan"),) * 4
    return name, unit, len(known), known.min(), known.mean(), known.max(), known.std()


def _quantities(data: Sequence[Data]) -> list[tuple[str, str, list[float] | np.ndarray]]:
    """Name, unit and values of all rows of the table."""
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
    """For each element, the number of its atoms in each frame."""
    counters = [Counter(frame.z.tolist()) for frame in data]
    numbers = sorted(set().union(*counters)) if counters else []
    return {chemical_symbols[z]: [float(counter[z]) for counter in counters] for z in numbers}


def _flat(parts: list[torch.Tensor]) -> np.ndarray:
    return torch.cat(parts).numpy() if parts else np.empty(0)
