"""Figures of an N-body study: errors against depth, data and arm.

An arm has one colour and one marker everywhere. Errors are mean squared errors of positions in units of 1e-3, the
simulation having its own unit of length. A figure without anything to show raises ``NothingToDrawError``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mdrelax.analysis.drawing import GREY, WIDTH, NothingToDrawError, fit_axes, panels, shared_legend, styled
from mdrelax.analysis.studies.arm_figures import arm_rows, arm_style, in_order

__all__ = ["arms_overview", "main_setting", "mse_against"]

AXES = {"n_layers": "layers", "n_train": "training trajectories"}
MSE = "MSE (10⁻³)"
MOST_PANELS = 3  # beside each other; more would be too small to read


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
    arms = in_order(arm for _, group in groups for arm in group["arm"])
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
    arms = in_order(rows["arm"])
    figure, (ax,) = panels(len(arms) and 1, "`table` holds no run of that setting", height=1.5 + 0.45 * len(arms))
    figure.set_figwidth(0.85 * WIDTH)
    arm_rows(ax, {arm: 1e3 * rows.loc[rows["arm"] == arm, "test_mse"] for arm in arms})
    ax.set_xlabel(f"test {MSE}, {n_layers} {_words('n_layers', n_layers)}, {n_train:,} {_words('n_train', n_train)}")
    _draw_published(ax, published or {})
    return figure


# --- parts ---


def _words(name: str, value: int) -> str:
    return AXES[name] if value != 1 else {"n_layers": "layer", "n_train": "training trajectory"}[name]


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
    colour, marker = arm_style(arm, [arm])
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
