"""Figures of the harmonic analyses: a molecule's vibrations as sticks, and the bands of a crystal."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from mdrelax.analysis.drawing import BLACK, BLUE, GREY, VERMILION, WIDTH, NothingToDrawError, styled

__all__ = ["bands_and_dos", "frequency_parity", "sticks"]

Array = npt.NDArray[np.float64]

BROADENING = 15.0  # 1/cm, standard deviation of the shaded density
SAME = 1.0  # 1/cm: sticks nearer than this are one, higher stick


@styled
def sticks(wavenumbers: Array, *, title: str = "vibrations") -> Figure:
    """A stick at each vibration (1/cm), its height the number of modes; imaginary ones left of zero in another colour.

    The shaded curve is the broadened number of vibrations per 1/cm; heights are not intensities.
    """
    if not len(wavenumbers):
        raise NothingToDrawError("There are no vibrations: there is nothing to draw.")
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    ax = figure.add_subplot()
    grid = np.linspace(min(0.0, wavenumbers.min() - 100), wavenumbers.max() * 1.05 + 50, 2000)
    density = np.exp(-(((grid[:, None] - wavenumbers) / BROADENING) ** 2) / 2).sum(1)
    ax.fill_between(grid, density, color=GREY, alpha=0.3, linewidth=0)
    groups = np.split(wavenumbers, np.flatnonzero(np.diff(wavenumbers) > SAME) + 1)
    for group in groups:
        ax.vlines(group.mean(), 0, len(group), color=VERMILION if group.mean() < 0 else BLUE, linewidth=1.4)
    if wavenumbers.min() < 0:
        ax.axvline(0, color=BLACK, linewidth=0.6)
        title += f"; {(wavenumbers < 0).sum()} imaginary, left of zero"
    ax.set(xlabel="wavenumber (cm⁻¹)", ylabel="number of modes", title=title, xlim=(grid[0], grid[-1]))
    highest = max(len(group) for group in groups)
    ax.set(ylim=(0, max(1.15 * highest, 1.05 * density.max())), yticks=range(highest + 1))
    return figure


@styled
def bands_and_dos(bands: pd.DataFrame, dos: pd.DataFrame, *, title: str = "phonons") -> Figure:
    """Bands along the path with labelled points, and the density of states on the same frequency axis."""
    figure = Figure(figsize=(WIDTH, 4.0), layout=ConstrainedLayoutEngine(wspace=0.06))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3.4, 1))
    names = list(bands.filter(like="_THz"))
    for _, part in bands.groupby("segment"):
        left.plot(part.distance_per_A, part[names], color=BLUE, linewidth=1.1)
    places = _ticks(bands)
    left.set_xticks(list(places), list(places.values()))
    left.set(title=title, ylabel="frequency (THz)", xlim=(0, bands.distance_per_A.max()))
    left.grid(visible=False, axis="y")
    for x in places:
        left.axvline(x, color="#BBBBBB", linewidth=0.6, zorder=0)
    right.fill_betweenx(dos.frequency_THz, dos.dos_per_THz, color=GREY, alpha=0.3, linewidth=0)
    right.plot(dos.dos_per_THz, dos.frequency_THz, color=BLUE, linewidth=1.0)
    right.set(title="density of states", xlabel="states per THz and cell")
    right.set_xlim(left=0)
    low, high = bands[names].to_numpy().min(), bands[names].to_numpy().max()
    for ax in (left, right):
        _mark_imaginary(ax, low)
    left.set_ylim(1.08 * low if low < -0.05 else 0, 1.06 * high)
    return figure


def _ticks(bands: pd.DataFrame) -> dict[float, str]:
    """Distances of the labelled points; where the path jumps, both labels: U|K."""
    places: dict[float, str] = {}
    named = bands[bands.label != ""]
    for distance, label in zip(named.distance_per_A.to_numpy(dtype=float), named.label, strict=True):
        x, name = round(float(distance), 9), "Γ" if label == "G" else str(label)
        before = places.get(x)
        places[x] = name if before in (None, name) else f"{before}|{name}"
    return places


def _mark_imaginary(ax: Axes, low: float) -> None:
    if low < -0.05:
        ax.axhspan(1.5 * low, 0, color=VERMILION, alpha=0.07, linewidth=0)
    ax.axhline(0, color=BLACK, linewidth=0.6)


@styled
def frequency_parity(table: pd.DataFrame, *, reference: str) -> Figure:
    """Wavenumbers of a model against those of a reference, and below, their differences against the reference."""
    if not len(table):
        raise NothingToDrawError("There are no vibrations to compare: there is nothing to draw.")
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    x, y = table.reference_per_cm.to_numpy(), table.model_per_cm.to_numpy()
    low, high = min(0.0, x.min(), y.min()), 1.04 * max(x.max(), y.max())
    left.plot([low, high], [low, high], color=GREY, linewidth=0.8)
    left.plot(x, y, "o", color=BLUE, markersize=4, alpha=0.8)
    left.set(xlim=(low, high), ylim=(low, high), xlabel=f"{reference} (cm⁻¹)", ylabel="model (cm⁻¹)", aspect="equal")
    left.set_title(f"vibrations, MAE {np.abs(y - x).mean():.1f} cm⁻¹")
    right.axhline(0, color=GREY, linewidth=0.8)
    right.vlines(x, 0, y - x, color=BLUE, linewidth=1.4)
    right.plot(x, y - x, "o", color=BLUE, markersize=3)
    right.set(xlim=(low, high), xlabel=f"{reference} (cm⁻¹)", ylabel="cm⁻¹", title="model minus reference")
    return figure
