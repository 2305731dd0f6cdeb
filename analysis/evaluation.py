"""Evaluation: a model's errors on labelled structures, by kind of structure, and its worst structures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mdrelax.forces.metrics import Integers, Predictions, errors

__all__ = ["errors_by_config_type", "take", "worst_structures"]


def take(predictions: Predictions, structures: Integers) -> Predictions:
    """Select structures by index, in the given order."""
    ends = np.cumsum(predictions.n_atoms)
    ranges = [np.arange(ends[k] - predictions.n_atoms[k], ends[k]) for k in structures]
    atoms = np.concatenate(ranges) if ranges else np.empty(0, dtype=int)
    per_atom = ("numbers", "forces_true", "forces_pred")
    arrays: dict[str, Any] = {
        name: None if array is None else array[atoms if name in per_atom else structures]
        for name, array in predictions._asdict().items()
    }
    return Predictions(**arrays)


def errors_by_config_type(predictions: Predictions, config_types: Sequence[str]) -> pd.DataFrame:
    """One row per kind of structure: their number, and the errors of ``metrics.errors`` (MAE in meV and meV/A)."""
    kinds = np.array(config_types)
    rows = []
    for kind in dict.fromkeys(config_types):
        places = np.flatnonzero(kinds == kind)
        found = errors(take(predictions, places))
        shown = {key: value for key, value in found.items() if "kcal" not in key}
        rows.append({"config_type": kind, "n_structures": len(places), **shown})
    return pd.DataFrame(rows)


def worst_structures(predictions: Predictions, number: int) -> Integers:
    """Indices of the structures with the largest force errors (of one atom) or energy errors per atom, worst first.

    A prediction that is NaN is worse than any number; structures without labels come last.
    """
    if predictions.forces_true is not None and predictions.forces_pred is not None:
        lengths = np.linalg.norm(predictions.forces_pred - predictions.forces_true, axis=1)
        unknown = np.isnan(predictions.forces_true).any(axis=1)
        lengths = np.where(unknown, -np.inf, np.nan_to_num(lengths, nan=np.inf))
        sizes = np.array([part.max() for part in np.split(lengths, np.cumsum(predictions.n_atoms)[:-1])])
    else:
        per_atom = np.abs(predictions.energy_pred - predictions.energy_true) / predictions.n_atoms
        sizes = np.where(np.isnan(predictions.energy_true), -np.inf, np.nan_to_num(per_atom, nan=np.inf))
    return np.argsort(-sizes, kind="stable")[:number]
