"""Figures of arms: training runs of several arms and seeds, and their free maps.

An arm has one colour and one marker everywhere. A figure without anything to show raises ``NothingToDrawError``.
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
    YELLOW,
    NothingToDrawError,
    fill_theta,
    fit_axes,
    has_numbers,
    panels,
    shared_legend,
    step_axis,
    styled,
)
from mdrelax.analysis.studies.measures import Factor, Measure, judged_by, main_setting
from mdrelax.analysis.tables import short_names

__all__ = [
    "ARM_STYLES",
    "RunTables",
    "arm_rows",
    "arm_style",
    "count",
    "errors_against",
    "errors_of_arms",
    "in_order",
    "learning_curves",
    "lie_derivatives",
    "seed_curves",
]

ARM_STYLES: dict[str, tuple[str, str]] = {  # colour and marker, in the order in which arms are listed
    "standard": (VERMILION, "s"),
    "relaxed": (BLUE, "o"),
    "relaxed-weight": (SKY, "D"),
    "relaxed-fold": (GREEN, "^"),
    "constant-drop": (PURPLE, "v"),
    "constant-fold": (ORANGE, "P"),
    "ace": (YELLOW, "p"),
    "ace-mlp": (GREY, "*"),
    "egnn": (BLACK, "X"),
    "mlp": (GREY, "d"),
    "conv": (BLACK, "p"),
    "equiv": (GREEN, "^"),
    "equiv-relaxed": (SKY, "D"),
    "equiv-ace": ("#999933", "<"),
    "equiv-keep": ("#117733", "v"),
    "rpp": (ORANGE, "h"),
    "lift": (PURPLE, ">"),
    "rsteer": (VERMILION, "s"),
    "rsteer-relaxed": (BLUE, "o"),
    "rsteer-ace": ("#882255", "H"),
}
OTHER_STYLES = [(GREEN, "<"), (PURPLE, ">"), (ORANGE, "h"), (SKY, "8"), (GREY, "d"), (BLACK, "H")]
MOST_PANELS = 3  # of errors against a factor, in a row; more would be too small to read
LIE_ARMS = ("relaxed", "relaxed-weight")  # the paper's penalty and that of the weights; others only without these


class RunTables(NamedTuple):
    """The tables of one run: metrics.csv, and layers.csv if the network was relaxed."""

    arm: str
    seed: int
    metrics: pd.DataFrame
    layers: pd.DataFrame | None = None
    panel: str = ""  # of the learning curves, by its title


@styled
def errors_of_arms(
    table: pd.DataFrame,
    measures: Sequence[Measure],
    factors: Mapping[str, Factor] | None = None,
    *,
    setting: Sequence[Any] | None = None,
    published: Mapping[str, float] | None = None,
) -> Figure:
    """The arms at one setting (default: that of most runs), one panel per measure; ``table`` has one row per run.

    Measures are those on test data, or on validation data if no run has test data. Every dot is a seed, dots
    of one seed are joined by a line, a bar is the arm's mean. ``published`` are values of the first measure to compare
    with, by name, dashed.
    """
    names = list(factors or {})
    rows = table
    if len(table) and names:
        setting = setting or main_setting(table, names)
        rows = table[(table[names] == list(setting)).all(axis=1)]
    part = judged_by(rows, measures)
    shown = [measure for measure in measures if has_numbers(rows, f"{part}_{measure.name}")]
    arms = in_order(rows["arm"]) if shown else []
    figure, axes = panels(len(shown), "no run has an error", height=1.5 + 0.45 * len(arms))
    where = [factor.words(value) for factor, value in zip((factors or {}).values(), setting or (), strict=True)]
    for ax, measure in zip(axes, shown, strict=True):
        values = measure.scale * rows[f"{part}_{measure.name}"]
        for _, pair in rows.groupby("seed"):
            ax.plot(values[pair.index], [arms.index(arm) for arm in pair["arm"]], color="#BBBBBB", lw=0.8, zorder=1)
        arm_rows(ax, {arm: values[rows["arm"] == arm] for arm in arms})
        better = ", higher is better" if measure.higher_is_better else ""
        ax.set_xlabel(", ".join([f"{part} {measure.axis}{better}", *where]))
    if published:
        _draw_published(axes[0], {name: measures[0].scale * value for name, value in published.items()})
    return figure


@styled
def errors_against(table: pd.DataFrame, by: str, measure: Measure, factors: Mapping[str, Factor]) -> Figure:
    """A measure on test data of arms at several values of a factor (the paper's Figure 4); ``table``: a row per run.

    Markers are means over seeds with the sample standard deviation, small dots the single seeds; arms are
    slightly shifted. One panel for each setting of the other factors at which ``by`` takes several values.
    """
    if by not in factors:
        raise ValueError(f"`by` must be {' or '.join(factors)}, got `{by}`.")
    others = {name: factor for name, factor in factors.items() if name != by}
    groups = [(key, rows) for key, rows in _curves(table, by, list(others)) if rows[by].nunique() > 1]
    shown = sorted(groups, key=lambda pair: len(pair[1]))[-MOST_PANELS:]
    figure, axes = panels(len(shown), f"`table` has no two values of {by} with the same other factors", height=3.4)
    arms = in_order(arm for _, rows in groups for arm in rows["arm"])
    for ax, (key, rows) in zip(axes, sorted(shown, key=lambda pair: pair[0]), strict=True):
        ticks = sorted(rows[by].unique())
        _value_axis(ax, ticks, log=factors[by].log)
        gap = 0.16 * float(np.diff(_scaled(ax, ticks)).min()) / max(len(arms) - 1, 1)
        values = rows.assign(value=measure.scale * rows[f"test_{measure.name}"], at=rows[by])
        for number, arm in enumerate(arms):
            _arm_against(ax, values[rows["arm"] == arm], arm, (number - (len(arms) - 1) / 2) * gap, gap)
        where = [factor.words(value) for factor, value in zip(others.values(), key, strict=True)]
        ax.set(title=", ".join(where), xlabel=factors[by].nouns[1])
    axes[0].set_ylabel(f"test {measure.axis}")
    fit_axes(axes)
    shared_legend(figure)
    return figure


@styled
def learning_curves(runs: Sequence[RunTables], column: str, label: str, *, scale: float = 1.0) -> Figure:
    """A column of metrics.csv against the step: seeds thin, their mean thick, theta filled; one scale for all panels.

    ``label`` gives the column and its unit after multiplication by ``scale``.
    """
    shown = [run for run in runs if has_numbers(run.metrics, column)]
    titles = list(dict.fromkeys(run.panel for run in shown))
    figure, axes = panels(len(titles), "no run has a validation error", height=3.8)
    figure.set_figwidth(WIDTH)
    arms = in_order(run.arm for run in shown)
    for ax, title in zip(axes, titles, strict=True):
        ax.set(title=title, xlabel="optimiser step")
        own = sorted((run for run in shown if run.panel == title), key=lambda run: arms.index(run.arm))
        relaxed = next((run for run in own if run.metrics["theta"].any()), None)
        if relaxed is not None:  # the first arm's: others may have other schedules
            fill_theta(ax, relaxed.metrics, label=f"θ of {relaxed.arm} (right axis)")
        for arm in in_order(run.arm for run in own):
            curves = [scale * run.metrics.set_index("step")[column] for run in own if run.arm == arm]
            seeds = f" ({count(len(curves), 'seed')})" if len(titles) == 1 else ""
            seed_curves(ax, curves, arm_style(arm, arms)[0], label=f"{arm}{seeds}")
        step_axis(ax)
    axes[0].set_ylabel(label)
    fit_axes(axes)
    shared_legend(figure)
    return figure


@styled
def lie_derivatives(runs: Sequence[RunTables]) -> Figure:
    """The Lie derivative of every relaxed layer during training (the paper's Figure 3), one row of panels per arm.

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
    """The arms that occur: those of ``ARM_STYLES`` in its order, then the others in order of appearance."""
    found = list(dict.fromkeys(arms))
    return [arm for arm in ARM_STYLES if arm in found] + [arm for arm in found if arm not in ARM_STYLES]


def arm_style(arm: str, arms: Sequence[str]) -> tuple[str, str]:
    """Colour and marker of one of the arms that a figure shows."""
    others = [name for name in arms if name not in ARM_STYLES]
    return ARM_STYLES[arm] if arm in ARM_STYLES else OTHER_STYLES[others.index(arm) % len(OTHER_STYLES)]


def count(number: int, noun: str) -> str:
    """A number with its noun: 1 seed, 3 seeds."""
    return f"{number} {noun}{'s' if number != 1 else ''}"


def seed_curves(ax: Axes, curves: "Sequence[pd.Series[float]]", colour: str, *, label: str, marker: str = "") -> None:
    """Curves of one arm against their index: seeds thin, their mean thick."""
    for curve in curves if len(curves) > 1 else []:
        ax.plot(curve.index, curve, color=colour, linewidth=0.6, alpha=0.5)
    mean = pd.concat(curves, axis=1, join="inner").mean(axis=1)
    ax.plot(mean.index, mean, color=colour, label=label, marker=marker, markersize=4)


def mean_text(errors: "pd.Series[float]") -> str:
    """Mean, standard deviation and number of seeds."""
    spread = f" ± {errors.std():.2f}" if len(errors) > 1 else ""
    return f"{errors.mean():.2f}{spread} ({count(len(errors), 'seed')})"


def arm_rows(ax: Axes, errors: "Mapping[str, pd.Series[float]]") -> None:
    """One row per arm, from the top: a dot per seed, a bar for the mean; ``mean_text`` is below the arm's name."""
    arms = list(errors)
    for place, (arm, values) in enumerate(errors.items()):
        colour, marker = arm_style(arm, arms)
        ax.plot(values, np.full(len(values), place), marker, color=colour, markersize=5, alpha=0.6, linestyle="none")
        ax.vlines(values.mean(), place - 0.3, place + 0.3, color=colour, linewidth=2.4)
    ax.set_yticks(range(len(arms)), [f"{arm}\n{mean_text(values)}" for arm, values in errors.items()])
    ax.set_ylim(len(arms) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)


def _draw_published(ax: Axes, published: Mapping[str, float]) -> None:
    """Dashed lines with their names above the panel, stacked so that no name or line covers another."""
    look: dict[str, Any] = {"color": GREY, "linestyle": "--", "linewidth": 1.0}
    for level, (name, error) in enumerate(sorted(published.items(), key=lambda item: -item[1])):
        ax.axvline(error, zorder=0, **look)
        ax.annotate(
            f" {name} {error:g}", (error, 1.0), xycoords=ax.get_xaxis_transform(),
            xytext=(0, 5 + 12 * level), textcoords="offset points", fontsize=8, color="#505050",
            arrowprops={"arrowstyle": "-", "relpos": (0, 0), "shrinkA": 0, "shrinkB": 0, **look},
        )  # fmt: skip


def _curves(table: pd.DataFrame, by: str, others: Sequence[str]) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
    """The rows at each setting of the other factors, of the arms with several values of ``by``."""
    if not len(table):
        return []
    several = table[table.groupby("arm")[by].transform("nunique") > 1]
    return list(several.groupby(list(others))) if others else [((), several)]


def _scaled(ax: Axes, values: Any) -> Any:
    """Positions of the values on the horizontal axis."""
    return np.log(values) if ax.get_xscale() == "log" else np.asarray(values, dtype=float)


def _moved(ax: Axes, values: Any, shift: float) -> Any:
    moved = _scaled(ax, values) + shift
    return np.exp(moved) if ax.get_xscale() == "log" else moved


def _arm_against(ax: Axes, rows: pd.DataFrame, arm: str, shift: float, gap: float) -> None:
    """One arm, shifted horizontally by ``shift``: means with bars joined by a line, and the seeds as dots."""
    if not len(rows):
        return
    colour, marker = arm_style(arm, [arm])
    groups = rows.groupby("at")["value"].agg(["mean", "std"])
    several = groups["std"].notna().any()
    ax.errorbar(
        _moved(ax, groups.index, shift), groups["mean"], yerr=groups["std"].fillna(0.0) if several else None,
        color=colour, marker=marker, markersize=4.5, linewidth=1.2, elinewidth=1.2, capsize=2.5, label=arm,
    )  # fmt: skip
    dots = _moved(ax, rows["at"], shift + 0.4 * gap * several)
    ax.plot(dots, rows["value"], ".", color=colour, markersize=4, alpha=0.6)


def _value_axis(ax: Axes, ticks: Sequence[Any], *, log: bool) -> None:
    """Ticks only at values with runs."""
    if log:
        ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.margins(x=0.1)


def _layer_means(tables: Sequence[pd.DataFrame | None]) -> pd.DataFrame:
    """Means over the seeds of both Lie derivatives, one row per layer and step; layers keep their order."""
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
    """One line per layer, with theta in the background."""
    fill_theta(ax, metrics, label="θ (right axis)")
    names = list(mean["layer"].unique())
    for name, (colour, dash) in zip(names, _layer_styles(names), strict=True):
        rows = mean[(mean["layer"] == name) & (mean[column] > 0)]
        ax.plot(rows["step"], rows[column], dash, color=colour, linewidth=1.3)
    step_axis(ax)


def _lie_at_peak(ax: Axes, mean: pd.DataFrame, metrics: pd.DataFrame) -> None:
    """One row per layer, in the style of its lines: the two values at the last validation with the largest theta."""
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
