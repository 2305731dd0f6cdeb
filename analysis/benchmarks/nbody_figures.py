"""Figures of an N-body study: errors against depth and data, training, and how far the free maps leave equivariance.

An arm has one colour and one marker everywhere. Errors are mean squared errors of positions in units of 1e-3, the
simulation having its own unit of length. A figure without anything to show raises ``NothingToDrawError``.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

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
    short_names,
    step_axis,
    styled,
)

__all__ = [
    "ARM_STYLES", "RunTables", "arms_overview", "learning_curves", "lie_derivatives", "main_setting", "mse_against",
]  # fmt: skip

ARM_STYLES: dict[str, tuple[str, str]] = {  # colour and marker, in the order in which arms are listed
    "standard": (VERMILION, "s"),
    "relaxed": (BLUE, "o"),
    "relaxed-weight": (SKY, "D"),
    "relaxed-fold": (GREEN, "^"),
    "constant-drop": (PURPLE, "v"),
    "constant-fold": (ORANGE, "P"),
    "egnn": (BLACK, "X"),
}
LIE_ARMS = ("relaxed", "relaxed-weight")  # the paper's penalty and the one of the weights; others only without these
AXES = {"n_layers": "layers", "n_train": "training trajectories"}
MSE = "MSE (10⁻³)"
MOST_PANELS = 3  # beside each other; more would be too small to read


class RunTables(NamedTuple):
    """The tables of one run: metrics.csv, and layers.csv where the network was relaxed."""

    arm: str
    seed: int
    metrics: pd.DataFrame
    layers: pd.DataFrame | None = None


def main_setting(table: pd.DataFrame) -> tuple[int, int]:
    """(n_layers, n_train) of most arms, then of most runs, then the largest; ``table`` has a row a run."""
    groups = table.groupby(["n_train", "n_layers"])
    counts = [(g["arm"].nunique(), len(g), int(g["n_train"].iloc[0]), int(g["n_layers"].iloc[0])) for _, g in groups]
    return max(counts)[:1:-1]


@styled
def mse_against(table: pd.DataFrame, by: Literal["n_layers", "n_train"]) -> Figure:
    """Test error of arms with several depths or training-set sizes (the paper's Figure 4); ``table``: a row a run.

    Markers are means over seeds with the sample standard deviation, small dots the single seeds; arms stand a little
    beside each other. One panel for each value of the other variable at which ``by`` takes several values.
    """
    if by not in AXES:
        raise ValueError(f"`by` must be n_layers or n_train, got `{by}`.")
    other = "n_layers" if by == "n_train" else "n_train"
    parts = table[table.groupby("arm")[by].transform("nunique") > 1].groupby(other) if len(table) else ()
    groups = [(int(group[other].iloc[0]), group) for _, group in parts if group[by].nunique() > 1]
    shown = sorted(groups, key=lambda pair: len(pair[1]))[-MOST_PANELS:]
    figure, axes = panels(len(shown), f"`table` holds no two values of {by} beside one of {other}", height=3.4)
    arms = _in_order(arm for _, group in groups for arm in group["arm"])
    for ax, (value, group) in zip(axes, sorted(shown, key=lambda pair: pair[0]), strict=True):
        ticks = sorted(group[by].unique())
        _value_axis(ax, ticks, log=by == "n_train")
        gap = 0.16 * float(np.diff(_scaled(ax, ticks)).min()) / max(len(arms) - 1, 1)
        for number, arm in enumerate(arms):
            _arm_against(ax, group[group["arm"] == arm], by, arm, (number - (len(arms) - 1) / 2) * gap, gap)
        ax.set(title=f"{value:,} {_words(other, value)}", xlabel=AXES[by])
    axes[0].set_ylabel(f"test {MSE}")
    fit_axes(axes)
    shared_legend(figure)
    return figure


@styled
def learning_curves(runs: Sequence[RunTables]) -> Figure:
    """Validation error of the projected network against the step: seeds thin, their mean thick, theta filled."""
    shown = [run for run in runs if has_numbers(run.metrics, "val_mse")]
    figure, (ax,) = panels(1 if shown else 0, "no run has a validation error", height=3.8)
    arms = _in_order(run.arm for run in shown)
    relaxed = [run for run in sorted(shown, key=lambda run: arms.index(run.arm)) if run.metrics["theta"].any()]
    if relaxed:  # the first arm's: others may have other schedules
        fill_theta(ax, relaxed[0].metrics, label=f"θ of {relaxed[0].arm} (right axis)")
    for arm in arms:
        colour, _ = ARM_STYLES[arm]
        curves = [1e3 * run.metrics.set_index("step")["val_mse"] for run in shown if run.arm == arm]
        for curve in curves if len(curves) > 1 else []:
            ax.plot(curve.index, curve, color=colour, linewidth=0.6, alpha=0.5)
        mean = pd.concat(curves, axis=1, join="inner").mean(axis=1)
        ax.plot(mean.index, mean, color=colour, label=f"{arm} ({_count(len(curves), 'seed')})")
    ax.set(xlabel="optimiser step", ylabel=f"validation {MSE}, projected network")
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
    arms = _in_order(run.arm for run in relaxed)
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


@styled
def arms_overview(
    table: pd.DataFrame, *, setting: tuple[int, int] | None = None, published: Mapping[str, float] | None = None
) -> Figure:
    """Test errors of the arms at one setting (layers, training trajectories), that of most runs unless given.

    Every dot is a seed, a bar the mean; below the arm's name stand mean and sample standard deviation. ``published``
    are errors to compare with, by name, dashed.
    """
    if not len(table):
        raise NothingToDrawError("`table` holds no run: there is nothing to draw.")
    n_layers, n_train = setting or main_setting(table)
    rows = table[(table["n_layers"] == n_layers) & (table["n_train"] == n_train)]
    arms = _in_order(rows["arm"])
    figure, (ax,) = panels(len(arms) and 1, "`table` holds no run of that setting", height=1.5 + 0.45 * len(arms))
    figure.set_figwidth(0.85 * WIDTH)
    for place, arm in enumerate(arms):
        errors, (colour, marker) = 1e3 * rows.loc[rows["arm"] == arm, "test_mse"], ARM_STYLES[arm]
        ax.plot(errors, np.full(len(errors), place), marker, color=colour, markersize=5, alpha=0.6, linestyle="none")
        ax.vlines(errors.mean(), place - 0.3, place + 0.3, color=colour, linewidth=2.4)
    labels = [f"{arm}\n{_mean_text(rows.loc[rows['arm'] == arm, 'test_mse'])}" for arm in arms]
    ax.set_yticks(range(len(arms)), labels)
    ax.set_ylim(len(arms) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"test {MSE}, {n_layers} {_words('n_layers', n_layers)}, {n_train:,} {_words('n_train', n_train)}")
    _draw_published(ax, published or {})
    return figure


# --- parts ---


def _in_order(arms: Iterable[str]) -> list[str]:
    """The arms that occur, in the order of ``ARM_STYLES``."""
    found = set(arms)
    return [arm for arm in ARM_STYLES if arm in found]


def _words(name: str, value: int) -> str:
    return AXES[name] if value != 1 else {"n_layers": "layer", "n_train": "training trajectory"}[name]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


def _mean_text(errors: pd.Series) -> str:
    spread = f" ± {1e3 * errors.std():.2f}" if len(errors) > 1 else ""
    return f"{1e3 * errors.mean():.2f}{spread} ({_count(len(errors), 'seed')})"


def _scaled(ax: Axes, values: Any) -> Any:
    """Values as they are spaced on the horizontal axis."""
    return np.log(values) if ax.get_xscale() == "log" else np.asarray(values, dtype=float)


def _moved(ax: Axes, values: Any, shift: float) -> Any:
    moved = _scaled(ax, values) + shift
    return np.exp(moved) if ax.get_xscale() == "log" else moved


def _arm_against(ax: Axes, rows: pd.DataFrame, by: str, arm: str, shift: float, gap: float) -> None:
    """One arm, moved to the side by ``shift``: means with bars joined by a line, and the seeds as dots beside them."""
    if not len(rows):
        return
    colour, marker = ARM_STYLES[arm]
    groups = 1e3 * rows.groupby(by)["test_mse"].agg(["mean", "std"])
    several = groups["std"].notna().any()
    ax.errorbar(
        _moved(ax, groups.index, shift), groups["mean"], yerr=groups["std"].fillna(0.0) if several else None,
        color=colour, marker=marker, markersize=4.5, linewidth=1.2, elinewidth=1.2, capsize=2.5, label=arm,
    )  # fmt: skip
    dots = _moved(ax, rows[by], shift + 0.4 * gap * several)
    ax.plot(dots, 1e3 * rows["test_mse"], ".", color=colour, markersize=4, alpha=0.6)


def _value_axis(ax: Axes, ticks: Sequence[int], *, log: bool) -> None:
    """Ticks where there are runs, and nowhere else."""
    if log:
        ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.margins(x=0.1)


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


def _draw_published(ax: Axes, published: Mapping[str, float]) -> None:
    """Dashed lines with their names above the panel, stacked so that no name or line covers another."""
    look: dict[str, Any] = {"color": GREY, "linestyle": "--", "linewidth": 1.0}
    for level, (name, error) in enumerate(sorted(published.items(), key=lambda item: -item[1])):
        ax.axvline(1e3 * error, zorder=0, **look)
        ax.annotate(
            f" {name} {1e3 * error:g}", (1e3 * error, 1.0), xycoords=ax.get_xaxis_transform(),
            xytext=(0, 5 + 12 * level), textcoords="offset points", fontsize=8, color="#505050",
            arrowprops={"arrowstyle": "-", "relpos": (0, 0), "shrinkA": 0, "shrinkB": 0, **look},
        )  # fmt: skip
