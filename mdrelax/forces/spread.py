"""Spread of a committee's predictions, and its calibration: does it tell their error?

Atoms are sorted by spread and divided into bins of equal number; in each

    predicted = sqrt(mean spread^2)        observed = sqrt(mean |F_mean - F_reference|^2)

A calibrated spread has observed = predicted in every bin. ``factor`` is the ratio over all atoms, by which to multiply
a spread to get an error; ``spearman`` the rank correlation of spread and error, 1 if the order is right.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import spearmanr

from mdrelax.forces.metrics import Predictions

__all__ = ["Calibration", "calibration", "force_spread", "mean_of"]

BINS = 10
FEWEST = 3  # atoms of a rank correlation


class Calibration(NamedTuple):
    """Columns of ``table``: n_atoms, predicted_meV_per_A, observed_meV_per_A; one row per bin, rising spread."""

    table: pd.DataFrame
    summary: dict[str, Any]  # spread_rms_meV_per_A, error_rms_meV_per_A, factor, spearman


def force_spread(forces: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Standard deviations (N, 3) of M >= 2 members' forces (M, N, 3), and the spread (N,) of each atom's force."""
    deviations = forces.std(axis=0, ddof=1)
    return deviations, np.linalg.norm(deviations, axis=-1)


def mean_of(predictions: Sequence[Predictions]) -> tuple[Predictions, npt.NDArray[np.float64] | None]:
    """The mean of the members' predictions, and the spread (N,) of their forces in eV/A.

    The spread is None without forces, and of a single member.
    """
    first = predictions[0]
    fields = [name for name in ("energy_pred", "forces_pred", "stress_pred") if getattr(first, name) is not None]
    stacks = {name: np.stack([getattr(each, name) for each in predictions]) for name in fields}
    mean = first._replace(**{name: stack.mean(axis=0) for name, stack in stacks.items()})
    known = "forces_pred" in stacks and len(predictions) > 1
    return mean, force_spread(stacks["forces_pred"])[1] if known else None


def calibration(predictions: Predictions, spread: npt.NDArray[np.float64], *, bins: int = BINS) -> Calibration:
    """Compare the spread (N,) of the atoms' forces in eV/A with their errors; atoms without a label are left out.

    Raises ``ValueError`` for predictions without forces, or of another number of atoms.
    """
    if predictions.forces_true is None or predictions.forces_pred is None:
        raise ValueError("A calibration compares errors of forces, but these predictions have none.")
    if len(spread) != len(predictions.forces_true):
        raise ValueError(f"`spread` has {len(spread)} atoms, but the predictions have {len(predictions.forces_true)}.")
    errors = 1e3 * np.linalg.norm(predictions.forces_pred - predictions.forces_true, axis=1)
    known = ~np.isnan(errors)
    errors, sizes = errors[known], 1e3 * np.asarray(spread)[known]
    order = np.argsort(sizes, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, max(1, len(order)))) if len(part)]
    rows = [(len(part), _rms(sizes[part]), _rms(errors[part])) for part in parts]
    table = pd.DataFrame(rows, columns=["n_atoms", "predicted_meV_per_A", "observed_meV_per_A"])
    varied = len(order) >= FEWEST and np.ptp(sizes) > 0 and np.ptp(errors) > 0
    summary = {
        "spread_rms_meV_per_A": _rms(sizes),
        "error_rms_meV_per_A": _rms(errors),
        "factor": _rms(errors) / _rms(sizes) if _rms(sizes) > 0 else float("inf"),
        "spearman": float(spearmanr(sizes, errors).statistic) if varied else None,
    }
    return Calibration(table, summary)


def _rms(values: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else float("nan")
