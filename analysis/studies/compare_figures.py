"""Figures of a comparison: errors of the arms, what projection costs at the end, and how the forces behave."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mdrelax.analysis.drawing import WIDTH, NothingToDrawError, fit_axes, has_numbers, panels, shared_legend, styled
from mdrelax.analysis.studies.arm_figures import arm_rows, arm_style, count, in_order
from mdrelax.analysis.studies.compare import judged_by

__all__ = ["errors_of_arms", "projection_gaps", "simulations"]

ERRORS = {"forces": "force MAE (meV/Å)", "energy": "energy MAE (meV)"}
GAPS = {"forces": "validation force MAE (meV/Å)", "energy": "validation energy MAE (meV)"}
BEHAVIOUR = {
    "nve_drift": "|NVE drift| (meV/atom/ps)",
    "net_force": "net force (meV/Å)",
    "net_torque": "net torque (meV)",
}


@styled
def errors_of_arms(table: pd.DataFrame) -> Figure:
    """A panel for force errors and one for energies; ``table`` has a row a run, as ``compare.collect`` gives it.

    They are those on test frames, or on validation frames where no run has any of the first.
    Every dot is a seed, dots of one seed are joined by a line, a bar is the arm's mean.
    """
    part = judged_by(table) if len(table) else "test"
    columns = {f"{part}_{name}": f"{part} {label}" for name, label in ERRORS.items()}
    shown = {name: label for name, label in columns.items() if has_numbers(table, name)}
    arms = in_order(table.arm) if len(table) else []
    figure, axes = panels(len(shown), "no run has an error", height=1.5 + 0.45 * len(arms))
    for ax, (name, label) in zip(axes, shown.items(), strict=True):
        for _, pair in table.groupby("seed"):
            ax.plot(pair[name], [arms.index(arm) for arm in pair.arm], color="#BBBBBB", linewidth=0.8, zorder=1)
        arm_rows(ax, {arm: table.loc[table.arm == arm, name] for arm in arms})
        ax.set_xlabel(label)
    return figure


@styled
def projection_gaps(gaps: Mapping[str, Sequence[pd.DataFrame]]) -> Figure:
    """Validation error of the last, unprojected networks against theta: each arm's runs thin, their mean thick.

    A table has the columns ``theta``, ``forces`` (meV/A) and ``energy`` (meV). At theta = 0 the network is equivariant.
    """
    known = {arm: tables for arm, tables in gaps.items() if tables}
    if not known:
        raise NothingToDrawError("No arm was relaxed: there is nothing to project.")
    figure, axes = panels(2, "")
    arms = in_order(known)
    for ax, (name, label) in zip(axes, GAPS.items(), strict=True):
        for arm in arms:
            colour, marker = arm_style(arm, arms)
            for table in known[arm] if len(known[arm]) > 1 else []:
                ax.plot(table.theta, table[name], color=colour, linewidth=0.6, alpha=0.5)
            mean = pd.concat(known[arm]).groupby("theta")[name].mean()
            text = f"{arm} ({count(len(known[arm]), 'seed')})"
            ax.plot(mean.index, mean, marker=marker, markersize=4, color=colour, label=text)
        ax.set(xlabel="θ of the last checkpoint, free maps kept", title=label, xlim=(1.02, -0.02))
        fit_axes([ax])
    shared_legend(figure)
    return figure


@styled
def simulations(table: pd.DataFrame) -> Figure:
    """Energy drift of the NVE runs, net force and net torque on test frames: every dot is a run."""
    shown = {name: label for name, label in BEHAVIOUR.items() if has_numbers(table, name)}
    arms = in_order(table.arm) if len(table) else []
    figure, axes = panels(len(shown), "no run has an NVE drift, net force or torque", height=1.4 + 0.4 * len(arms))
    figure.set_figwidth(WIDTH)
    for number, (ax, (name, label)) in enumerate(zip(axes, shown.items(), strict=True)):
        for place, arm in enumerate(arms):
            colour, marker = arm_style(arm, arms)
            values = table.loc[table.arm == arm, name].abs()
            ax.plot(values, np.full(len(values), place), marker, color=colour, markersize=5, linestyle="none")
        ax.set_yticks(range(len(arms)), arms if number == 0 else [""] * len(arms))
        ax.set_ylim(len(arms) - 0.5, -0.5)
        ax.set_xlim(0, 1.1 * (table[name].abs().max() or 1.0))
        ax.xaxis.set_major_locator(MaxNLocator(3))
        ax.grid(axis="y", visible=False)
        ax.set_xlabel(label)
    return figure
