"""Spectra of a simulation: its bond lengths compared with those of reference structures, and its vibrations.

    velocity spectrum   S(w) = sum_i m_i |FT v_i|^2, Welch's average over windows (scipy), in wavenumbers

Trajectories are ``ase.Atoms`` with momenta at a constant interval; lengths in Angstrom, times in fs.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from ase import Atoms, units
from matplotlib.figure import Figure
from scipy import signal, stats

from mdrelax.analysis.drawing import BLUE, GREY, WIDTH, NothingToDrawError, styled
from mdrelax.analysis.trajectory import bonds

__all__ = ["bond_lengths", "bond_table", "draw_bonds", "draw_spectrum", "spectrum_distance", "velocity_spectrum"]

PER_CM = 1.0 / (units._c * 1e2 * 1e-15)  # wavenumber (1/cm) of a frequency of 1/fs
WINDOW_FS = 2000.0  # resolution of about 20 / cm
SHOWN_UP_TO = 4000.0  # 1/cm; no molecule vibrates faster

Array = npt.NDArray[np.float64]


def bond_lengths(frames: Sequence[Atoms], reference: Atoms) -> dict[str, Array]:
    """The lengths of the bonds of ``reference`` in all frames, by kind: ``C-H`` -> (frames times bonds of it,)."""
    pairs = bonds(reference)
    found: dict[str, list[Array]] = {}
    for i, j in pairs:
        name = "-".join(sorted((reference.symbols[int(i)], reference.symbols[int(j)])))
        lengths = [frame.get_distance(int(i), int(j), mic=bool(frame.pbc.any())) for frame in frames]
        found.setdefault(name, []).append(np.array(lengths))
    return {name: np.concatenate(arrays) for name, arrays in sorted(found.items())}


def bond_table(simulated: dict[str, Array], reference: dict[str, Array]) -> pd.DataFrame:
    """One row per kind of bond: mean and standard deviation of both sets, and their Wasserstein distance (Angstrom)."""
    rows = [
        {
            "bond": name, "mean_A": own.mean(), "std_A": own.std(),
            "reference_mean_A": reference[name].mean(), "reference_std_A": reference[name].std(),
            "distance_A": float(stats.wasserstein_distance(own, reference[name])),
        }
        for name, own in simulated.items() if name in reference
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["bond", "mean_A", "std_A", "reference_mean_A", "reference_std_A", "distance_A"])


def velocity_spectrum(frames: Sequence[Atoms], interval_fs: float) -> pd.DataFrame:
    """Columns ``wavenumber_per_cm`` and ``intensity`` (its sum is 1) up to the fastest vibration of any molecule.

    Raises ``ValueError`` for fewer than 16 frames, and for an interval that is too long to see a C-H stretch.
    """
    if len(frames) < 16 or not 0 < interval_fs <= 5.0:
        raise ValueError(
            f"A velocity spectrum needs at least 16 frames, at most 5 fs apart; got {len(frames)} frames and "
            f"{interval_fs} fs."
        )
    velocities = np.stack([frame.get_velocities() for frame in frames])  # (T, N, 3)
    window = min(len(frames), round(WINDOW_FS / interval_fs))
    frequencies, power = signal.welch(velocities, fs=1.0 / interval_fs, nperseg=window, axis=0, detrend="constant")
    intensity = np.einsum("fnx,n->f", power, frames[0].get_masses())
    wavenumbers = frequencies * PER_CM
    kept = wavenumbers <= SHOWN_UP_TO
    return pd.DataFrame({"wavenumber_per_cm": wavenumbers[kept], "intensity": intensity[kept] / intensity[kept].sum()})


def spectrum_distance(one: pd.DataFrame, other: pd.DataFrame) -> float:
    """The Wasserstein distance (1/cm) of two velocity spectra: how far, on average, vibrations are shifted."""
    columns = ("wavenumber_per_cm", "intensity")
    (x, p), (y, q) = ([table[name].to_numpy() for name in columns] for table in (one, other))
    return float(stats.wasserstein_distance(x, y, p, q))


@styled
def draw_bonds(simulated: dict[str, Array], reference: dict[str, Array]) -> Figure:
    """Histograms of the bond lengths, one panel per kind: simulation filled, reference as a line."""
    names = [name for name in simulated if name in reference]
    if not names:
        raise NothingToDrawError("No bond is in both sets of structures: there is nothing to draw.")
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(WIDTH if columns > 2 else 0.6 * WIDTH, 2.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, name in zip(axes, names, strict=False):
        both = np.concatenate([simulated[name], reference[name]])
        bins = np.linspace(both.min(), both.max(), 50)
        ax.hist(simulated[name], bins, density=True, color=BLUE, alpha=0.45, label="simulation")
        ax.hist(reference[name], bins, density=True, histtype="step", color="black", label="reference data")
        ax.set(title=name, xlabel="length (Å)")
        ax.set_yticks([])
    for ax in axes[len(names) :]:
        ax.set_axis_off()
    axes[0].legend(fontsize=8)
    return figure


@styled
def draw_spectrum(spectrum: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """The velocity spectrum against the wavenumber, that of a reference trajectory as a black line."""
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    ax = figure.add_subplot()
    ax.fill_between(spectrum.wavenumber_per_cm, spectrum.intensity, color=GREY, alpha=0.3, linewidth=0)
    ax.plot(spectrum.wavenumber_per_cm, spectrum.intensity, color=BLUE, linewidth=1.0, label="simulation")
    if reference is not None:
        ax.plot(reference.wavenumber_per_cm, reference.intensity, "k--", linewidth=0.8, label="reference trajectory")
        ax.legend(fontsize=8)
    ax.set(xlabel="wavenumber (cm⁻¹)", ylabel="intensity", title="velocity spectrum", xlim=(0, SHOWN_UP_TO))
    ax.set_ylim(bottom=0)
    ax.set_yticks([])
    return figure
