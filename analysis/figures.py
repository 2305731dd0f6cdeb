"""Figures: the pictures of a run, each a ``matplotlib.figure.Figure`` made from tables and records.

pyplot and its global state are not used: a figure belongs to the caller, who saves it with ``figure.savefig``. Colours
are those of Okabe and Ito (https://jfly.uni-koeln.de/color), which colour-blind readers can tell apart; heat maps use
cividis, made for the same readers. A figure without anything to show raises ``NothingToDrawError``, a ``ValueError``.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from mdrelax.analysis.drawing import (
    BLUE,
    GREEN,
    GREY,
    VERMILION,
    WIDTH,
    NothingToDrawError,
    decades,
    fill_theta,
    has_numbers,
    heat_map,
    log_scale,
    panels,
    scientific,
    shared_legend,
    styled,
)
from mdrelax.analysis.tables import short_names
from mdrelax.engines.md import energy_drift
from mdrelax.forces.metrics import Predictions, errors
from mdrelax.forces.spread import Calibration
from mdrelax.method.certificate import LARGEST_ERROR_FLOAT32, LARGEST_ERROR_FLOAT64, Certificate

__all__ = [
    "calibration_plot",
    "controller_plot",
    "equivariance_bars",
    "learning_curves",
    "md_energy",
    "parity",
    "schedule_plot",
    "symmetry_spectra",
]

Array = npt.NDArray[np.float64]

MANY_POINTS = 2000  # above this number points overlap and are counted in hexagons
VALIDATION = {
    "val_forces_mae_meV_per_A": "force MAE (meV/Å)",
    "val_energy_mae_meV_per_atom": "energy MAE (meV/atom)",
    "val_stress_mae_meV_per_A3": "stress MAE (meV/Å³)",
}
MOST_NAMED = 12  # places in a legend
STEERING = {"theta": "relaxation θ", "lr": "learning rate", "penalty": "penalty"}


@styled
def learning_curves(
    metrics: pd.DataFrame, standard: pd.DataFrame | None = None, *, best_step: int | None = None
) -> Figure:
    """Validation errors against the step on a log scale, one panel per quantity, with theta as a filled area.

    ``metrics`` and ``standard`` (the run that was never relaxed, dashed) are ``metrics.csv`` tables; a circle marks
    ``best_step``, the selected model. Raises ``NothingToDrawError`` if the table contains no validation error.
    """
    shown = {name: label for name, label in VALIDATION.items() if has_numbers(metrics, name)}
    figure, axes = panels(len(shown), "`metrics` holds no validation error")
    for ax, (name, label) in zip(axes, shown.items(), strict=True):
        fill_theta(ax, metrics)
        train = name.replace("val_", "train_")
        if has_numbers(metrics, train):
            ax.plot(metrics.step, metrics[train], color=GREY, linewidth=0.9, label="training")
        if standard is not None and has_numbers(standard, name):
            ax.plot(standard.step, standard[name], "--", color=VERMILION, label="standard arm, validation")
        ax.plot(metrics.step, metrics[name], color=BLUE, label="this run, validation (projected)")
        kept = metrics[metrics.step == best_step]
        if len(kept):
            ax.plot(kept.step, kept[name], "o", color=BLUE, markerfacecolor="white", label="model kept")
        ax.set(title=label, xlabel="optimiser step")
        log_scale(ax)
    shared_legend(figure)
    return figure


@styled
def schedule_plot(metrics: pd.DataFrame) -> Figure:
    """Theta, learning rate and penalty against the step, except those that were always zero."""
    shown = {name: label for name, label in STEERING.items() if has_numbers(metrics, name) and metrics[name].any()}
    figure, axes = panels(len(shown), "`metrics` holds no theta, learning rate or penalty", height=2.4)
    for ax, (name, label) in zip(axes, shown.items(), strict=True):
        ax.plot(metrics.step, metrics[name], color=BLUE)
        ax.set(title=label, xlabel="optimiser step")
        ax.set_ylim(bottom=0)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    return figure


@styled
def controller_plot(layers: pd.DataFrame) -> Figure:
    """gamma and the dual variable of each place under ACE against the step; ``layers`` is a layers.csv.

    Raises ``NothingToDrawError`` if theta followed a schedule.
    """
    shown = (
        {"theta": "gamma of each place", "dual": "dual variable of each place"} if has_numbers(layers, "dual") else {}
    )
    figure, axes = panels(len(shown), "`layers` holds no dual variables", height=2.8)
    names = list(dict.fromkeys(layers.layer))
    for ax, (column, title) in zip(axes, shown.items(), strict=True):
        for name, label in zip(names, short_names(names), strict=True):
            own = layers[layers.layer == name]
            ax.plot(own.step, own[column], linewidth=1.2, label=label)
        ax.axhline(0, color=GREY, linewidth=0.6)
        ax.set(title=title, xlabel="optimiser step")
    if len(names) <= MOST_NAMED:
        shared_legend(figure)
    return figure


@styled
def parity(predictions: Predictions) -> Figure:
    """Predicted against reference energies (relative to the mean reference), force and stress components.

    Energies are per atom if structures differ in size. The MAE is given in the titles. Raises
    ``NothingToDrawError`` if there are no labels.
    """
    table = errors(predictions)
    same_size = len(np.unique(predictions.n_atoms)) == 1
    unit, key = ("eV", "meV") if same_size else ("eV/atom", "meV_per_atom")
    sizes = 1 if same_size else predictions.n_atoms
    energies = (predictions.energy_true / sizes, predictions.energy_pred / sizes)
    centre = np.nanmean(energies[0]) if np.isfinite(energies[0]).any() else 0.0
    candidates = [
        (f"energy_mae_{key}", f"− mean ({unit})", energies[0] - centre, energies[1] - centre),
        ("forces_mae_meV_per_A", "component (eV/Å)", predictions.forces_true, predictions.forces_pred),
        ("stress_mae_meV_per_A3", "component (eV/Å³)", predictions.stress_true, predictions.stress_pred),
    ]
    shown = [(name, label, true, pred) for name, label, true, pred in candidates if name in table]
    figure, axes = panels(len(shown), "`predictions` holds no labels", height=4.3 if len(shown) < 3 else 3.0)
    for ax, (name, label, true, pred) in zip(axes, shown, strict=True):
        quantity, _, error_unit = name.partition("_mae_")
        _parity_panel(ax, np.asarray(true, dtype=float).ravel(), np.asarray(pred, dtype=float).ravel())
        readable = error_unit.replace("_per_", "/").replace("A3", "Å³").replace("/A", "/Å")
        ax.set(
            title=f"{quantity}: MAE {table[name]:.3g} {readable}",
            xlabel=f"reference {label}",
            ylabel=f"predicted {label}",
        )
    return figure


@styled
def calibration_plot(calibration: Calibration) -> Figure:
    """Observed against predicted force errors of a committee, bin by bin, with the line where both are equal.

    Raises ``NothingToDrawError`` if no atom has a label.
    """
    table = calibration.table
    figure, (ax,) = panels(int(len(table) > 0), "`calibration` holds no labelled atom", height=4.3)
    ends = [table.iloc[:, 1:].min().min(), table.iloc[:, 1:].max().max()]
    ax.plot(ends, ends, color=GREY, linewidth=0.9, label="error = spread")
    ax.plot(table.predicted_meV_per_A, table.observed_meV_per_A, "o-", color=BLUE, label="bins of equal number")
    factor = calibration.summary["factor"]
    ax.set(
        title=f"errors are {factor:.2f} times the spread",
        xlabel="spread of the force on an atom (meV/Å)",
        ylabel="error of the force (meV/Å)",
    )
    if ends[0] > 0:
        ax.set(xscale="log", yscale="log")
    ax.legend()
    return figure


@styled
def symmetry_spectra(certificate: Certificate) -> Figure:
    """Heat map of the free maps' ||W_J||^2, layer by J, log colour; J = 0 commutes with rotations, the others do not.

    Zeros are grey, and J that a layer cannot have are white. Raises ``NothingToDrawError`` if no
    layer has a spectrum.
    """
    layers = [layer for layer in certificate.layers if layer.spectrum]
    if not layers:
        raise NothingToDrawError(
            "The certificate holds no symmetry spectrum: nothing was relaxed, or the group is finite."
        )
    table = np.full((len(layers), max(len(layer.spectrum) for layer in layers)), np.nan)
    for row, layer in zip(table, layers, strict=True):
        row[: len(layer.spectrum)] = layer.spectrum
    figure = Figure(figsize=(min(WIDTH, 3.4 + 0.8 * table.shape[1]), 1.3 + 0.33 * len(layers)), layout="constrained")
    ax = figure.add_subplot()
    heat_map(figure, ax, table)
    ax.set(xlabel="J (0: equivariant)", title="symmetry spectrum of the free maps at projection")
    ax.set_yticks(range(len(layers)), short_names([layer.name for layer in layers]))
    ax.set_xticks(range(table.shape[1]))
    return figure


@styled
def equivariance_bars(certificate: Certificate) -> Figure:
    """The largest relative errors of a certificate on a log scale, with their limits.

    Symmetries that the network does not claim (reflections in SE(3)) are pale; an infinite error fills its row.
    """
    figure, axes = panels(2, "", height=2.3)
    claimed = [certificate.symmetry == "E(3)" or name != "reflection" for name in certificate.float64._fields]
    limits = (("float64", LARGEST_ERROR_FLOAT64), ("float32", LARGEST_ERROR_FLOAT32))
    for ax, (dtype, limit) in zip(axes, limits, strict=True):
        values = np.array(getattr(certificate, dtype), dtype=float)
        low, high = decades(np.append(values, [limit * 1e-3, limit]))
        lengths = np.clip(np.nan_to_num(values, nan=np.inf), low, high)
        colours = [GREEN if value < limit else VERMILION for value in values]
        bars = ax.barh(list(certificate.float64._fields), lengths - low, left=low, color=colours, height=0.6)
        for bar, own in zip(bars, claimed, strict=True):
            bar.set_alpha(1.0 if own else 0.3)
        ax.axvline(limit, color="black", linestyle="--", linewidth=1.2)
        ax.set(
            xscale="log",
            xlim=(low, high),
            title=f"{dtype} (limit {scientific(limit)}, dashed)",
            xlabel="relative error",
        )
        ax.bar_label(bars, [f" {scientific(value)}" for value in values], color="black")
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
    return figure


@styled
def md_energy(log: pd.DataFrame, *, n_atoms: int | None = None) -> Figure:
    """Total energy relative to its start, with drift (meV/atom, or meV without ``n_atoms``), and temperature (K).

    ``log`` has the columns of ``mdrelax.engines.md.LOG_COLUMNS``. Rows that are not finite are left
    out. Raises ``NothingToDrawError`` for fewer than two others.
    """
    log = log.loc[np.isfinite(log[["total_energy_eV", "temperature_K"]].to_numpy(dtype=float)).all(axis=1)]
    figure, axes = panels(2 if len(log) > 1 else 0, "`log` has fewer than two finite rows")
    unit = "meV/atom" if n_atoms else "meV"
    time = log.time_ps.to_numpy(dtype=float)
    energy = 1000 * (log.total_energy_eV.to_numpy(dtype=float) - log.total_energy_eV.iloc[0]) / (n_atoms or 1)
    drift = energy_drift(time, energy / 1000, 1)  # the energy is per atom already
    axes[0].plot(time, energy, color=BLUE, linewidth=0.9)
    axes[0].plot(time, energy.mean() + drift * (time - time.mean()), "--", color=VERMILION)
    axes[0].set(title=f"total energy: drift {drift:.2g} {unit}/ps (dashed)", ylabel=f"E − E(0) ({unit})")
    mean = log.temperature_K.mean()
    axes[1].plot(time, log.temperature_K, color=BLUE, linewidth=0.9)
    axes[1].axhline(mean, color=VERMILION, linestyle="--")
    axes[1].set(title=f"temperature: mean {mean:.0f} K (dashed)", ylabel="temperature (K)")
    for ax in axes:
        ax.set_xlabel("time (ps)")
        ax.ticklabel_format(axis="y", useOffset=False)
    return figure


# --- parts ---


def _parity_panel(ax: Axes, true: Array, pred: Array) -> None:
    """Points, or hexagons with counts if there are many, and the diagonal; only finite pairs are drawn."""
    finite = np.isfinite(true) & np.isfinite(pred)
    true, pred = true[finite], pred[finite]
    both = np.concatenate([true, pred, [0.0]])
    margin = 0.04 * max(float(np.ptp(both)), 1e-6)
    limits = (float(both.min()) - margin, float(both.max()) + margin)
    if len(true) > MANY_POINTS:
        hexagons = ax.hexbin(
            true, pred, gridsize=80, extent=limits * 2, bins="log", cmap="cividis", mincnt=1, linewidths=0.1
        )
        if ax.figure is not None:
            ax.figure.colorbar(hexagons, ax=ax, label="count", fraction=0.05, pad=0.02, shrink=0.8)
    else:
        ax.scatter(true, pred, s=14, color=BLUE, alpha=0.5, linewidths=0)
    ax.plot(limits, limits, color="black", linewidth=0.7, zorder=3)
    ax.set(xlim=limits, ylim=limits, aspect="equal")
