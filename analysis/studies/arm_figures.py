"""Figures of arms: training runs of several kinds with their seeds beside each other, and their free maps.

An arm has one colour and one marker everywhere. A figure without anything to show raises ``NothingToDrawError``.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mdrelax.analysis.drawing import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    WIDTH,
    NothingToDrawError,
    fill_theta,
    fit_axes,
    has_numbers,
    panels,
    shared_legend,
    step_axis,
    styled,
)
from mdrelax.analysis.tables import short_names

__all__ = [
    "ARM_STYLES",
    "RunTables",
    "arm_rows",
    "arm_style",
    "count",
    "in_order",
    "learning_curves",
    "lie_derivatives",
]

ARM_STYLES: dict[str, tuple[str, str]] = {  # colour and marker, in the order in which arms are listed
    "standard": (VERMILION, "s"),
    "relaxed": (BLUE, "o"),
    "relaxed-weight": (SKY, "D"),
    "relaxed-fold": (GREEN, "^"),
    "constant-drop": (PURPLE, "v"),
    "constant-fold": (ORANGE, "P"),
    "egnn": (BLACK, "X"),
}
OTHER_STYLES = [(GREEN, "<"), (PURPLE, ">"), (ORANGE, "h"), (SKY, "*"), (GREY, "d"), (BLACK, "p")]
LIE_ARMS = ("relaxed", "relaxed-weight")  # the paper's penalty and the one of the weights; others only without these


class RunTables(NamedTuple):
    """The tables of one run: metrics.csv, and layers.csv where the network was relaxed."""

    arm: str
    seed: int
    metrics: pd.DataFrame
    layers: pd.DataFrame | None = None


@styled
def learning_curves(runs: Sequence[RunTables], column: str, label: str, *, scale: float = 1.0) -> Figure:
    """A column of metrics.csv against the step: seeds thin, their mean thick, theta filled.

    ``label`` names the column and its unit after it was multiplied by ``scale``.
    """
    shown = [run for run in runs if has_numbers(run.metrics, column)]
    figure, (ax,) = panels(1 if shown else 0, "no run has a validation error", height=3.8)
    figure.set_figwidth(WIDTH)
    arms = in_order(run.arm for run in shown)
    relaxed = [run for run in sorted(shown, key=lambda run: arms.index(run.arm)) if run.metrics["theta"].any()]
    if relaxed:  # the first arm's: others may have other schedules
        fill_theta(ax, relaxed[0].metrics, label=f"θ of {relaxed[0].arm} (right axis)")
    for arm in arms:
        colour, _ = arm_style(arm, arms)
        curves = [scale * run.metrics.set_index("step")[column] for run in shown if run.arm == arm]
        for curve in curves if len(curves) > 1 else []:
            ax.plot(curve.index, curve, color=colour, linewidth=0.6, alpha=0.5)
        mean = pd.concat(curves, axis=1, join="inner").mean(axis=1)
        ax.plot(mean.index, mean, color=colour, label=f"{arm} ({count(len(curves), 'seed')})")
    ax.set(xlabel="optimiser step", ylabel=label)
    fit_axes([ax])
    step_axis(ax)
    shared_legend(figure)
    return figure


@styled
def lie_derivatives(runs: Sequence[RunTables]) -> Figure:
    """The Lie derivative of every relaxed layer while it is trained (the paper's Figure 3), a row of panels an arm.

    Left at activations, sqrt(mean over rows x of sum_A ||drho_out(A) W x - W drho_in(A) x||^2); in the middle of the
    weights, sqrt(LD(W)); right both where theta was largest. Lines are means over seeds.
    """
    relaxed = [run for run in runs if run.layers is not None and len(run.layers)]
    arms = in_order(run.arm for run in relaxed)
    arms = [arm for arm in arms if arm in LIE_ARMS] or arms[:1]
    if not arms:
        raise NothingToDrawError("No run has layers.csv, nothing was relaxed: there is nothing to draw.")
    means = {arm: _layer_means([run.layers for run in relaxed if run.arm == arm]) for arm in arms}
    n_layers = max(mean["layer"].nunique() for mean in means.values())
    height = len(arms) * max(2.8, 1.3 + 0.19 * n_layers)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.subplots(len(arms), 3, squeeze=False, sharex="col", width_ratios=(1.15, 1.15, 1.0))
    for row, (arm, mean) in zip(grid, means.items(), strict=True):
        own = [run for run in relaxed if run.arm == arm]
        _lie_lines(row[0], mean, "activation_lie", own[0].metrics)
        _lie_lines(row[1], mean, "lie", own[0].metrics)
        row[0].set(title=f"{arm}: at activations", ylabel="Lie derivative")
        row[1].set(title=f"{arm}: of the weights")
        _lie_at_peak(row[2], mean, own[0].metrics)
    ways: tuple[Literal["x", "y"], ...] = ("y", "y", "x")
    for column, which, label in zip(grid.T, ways, ("optimiser step", "optimiser step", "Lie derivative"), strict=True):
        fit_axes(list(column), which)
        column[-1].set_xlabel(label)
    shared_legend(figure)
    return figure


# --- parts ---


def in_order(arms: Iterable[str]) -> list[str]:
    """The arms that occur, each once: those of ``ARM_STYLES`` in its order, then the others in theirs."""
    found = list(dict.fromkeys(arms))
    return [arm for arm in ARM_STYLES if arm in found] + [arm for arm in found if arm not in ARM_STYLES]


def arm_style(arm: str, arms: Sequence[str]) -> tuple[str, str]:
    """Colour and marker of one of the arms that a figure shows."""
    others = [name for name in arms if name not in ARM_STYLES]
    return ARM_STYLES[arm] if arm in ARM_STYLES else OTHER_STYLES[others.index(arm) % len(OTHER_STYLES)]


def count(number: int, noun: str) -> str:
    """A number with its noun: 1 seed, 3 seeds."""
    return f"{number} {noun}{'s' if number != 1 else ''}"


def mean_text(errors: "pd.Series[float]") -> str:
    """Mean, standard deviation and number of seeds."""
    spread = f" ± {errors.std():.2f}" if len(errors) > 1 else ""
    return f"{errors.mean():.2f}{spread} ({count(len(errors), 'seed')})"


def arm_rows(ax: Axes, errors: "Mapping[str, pd.Series[float]]") -> None:
    """A row an arm, from above: every seed a dot, a bar the mean; below the arm's name stands ``mean_text``."""
    arms = list(errors)
    for place, (arm, values) in enumerate(errors.items()):
        colour, marker = arm_style(arm, arms)
        ax.plot(values, np.full(len(values), place), marker, color=colour, markersize=5, alpha=0.6, linestyle="none")
        ax.vlines(values.mean(), place - 0.3, place + 0.3, color=colour, linewidth=2.4)
    ax.set_yticks(range(len(arms)), [f"{arm}\n{mean_text(values)}" for arm, values in errors.items()])
    ax.set_ylim(len(arms) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)


def _layer_means(tables: Sequence[pd.DataFrame | None]) -> pd.DataFrame:
    """Means over the seeds of both Lie derivatives, a row a layer and step; layers stay in their order."""
    table = pd.concat([t for t in tables if t is not None])
    table = table.assign(activation_lie=np.sqrt(table["activation_lie_square"]))
    return table.groupby(["layer", "step"], sort=False)[["activation_lie", "lie"]].mean().reset_index()


def _layer_styles(names: Sequence[str]) -> list[tuple[Any, str]]:
    """Colour by depth, dash by the map within it: 0.update_1 and 0.update_2 share a colour."""
    depths = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    maps = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    colours = mpl.colormaps["viridis"](np.linspace(0.0, 0.75, max(len(depths), 2)))
    dashes = ("-", "--", ":", "-.")
    return [
        (colours[depths.index(head)], dashes[maps.index(tail) % len(dashes)])
        for head, _, tail in (name.rpartition(".") for name in names)
    ]


def _lie_lines(ax: Axes, mean: pd.DataFrame, column: str, metrics: pd.DataFrame) -> None:
    """One line a layer, theta behind."""
    fill_theta(ax, metrics, label="θ (right axis)")
    names = list(mean["layer"].unique())
    for name, (colour, dash) in zip(names, _layer_styles(names), strict=True):
        rows = mean[(mean["layer"] == name) & (mean[column] > 0)]
        ax.plot(rows["step"], rows[column], dash, color=colour, linewidth=1.3)
    step_axis(ax)


def _lie_at_peak(ax: Axes, mean: pd.DataFrame, metrics: pd.DataFrame) -> None:
    """A row a layer, drawn as its lines: the two values at the last validation at which theta was largest."""
    step = int(metrics.loc[metrics["theta"] == metrics["theta"].max(), "step"].max())
    rows = mean[mean["step"] == step]
    names = list(rows["layer"])
    for place, (_, row) in enumerate(rows.iterrows()):
        colour, dash = _layer_styles(names)[place]
        pair = (row["activation_lie"], row["lie"])
        ax.plot(pair, (place, place), dash, color=colour, linewidth=1.3)
        for value, marker, face in zip(pair, "oD", (colour, "white"), strict=True):
            ax.plot(value, place, marker, color=colour, markerfacecolor=face, markersize=5.5)
    none: list[float] = []
    ax.plot(none, none, "o", color=GREY, label="at activations (mean over rows)")
    ax.plot(none, none, "D", color=GREY, markerfacecolor="white", label="of the weights")
    ax.set_yticks(range(len(names)), short_names(names))
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_title(f"θ largest (step {step:,})")
