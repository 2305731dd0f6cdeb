"""The figure of the speed benchmark: the time of an MD step against the number of atoms."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mdrelax.analysis.benchmarks.implementations import NO_NETWORK
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
    log_scale,
    styled,
)

__all__ = ["scaling", "styles"]

# The first matching prefix determines the colour, one per network or package; ours are thicker.
COLOURS = {
    "equiformer-pytorch": SKY,
    "equiformer": BLUE,
    "segnn": BLACK,
    "mace": VERMILION,
    "nequip": GREEN,
    "torchmdnet": PURPLE,
    "tensornet": PURPLE,
    "painn": ORANGE,
}
OURS = ("equiformer", "segnn")
DASHES = ("-", "--", ":", "-.")
MARKERS = "osD^v"


@styled
def scaling(table: pd.DataFrame) -> Figure:
    """Milliseconds per MD step, and microseconds per atom, against the number of atoms, both log-log.

    One line per implementation, sorted by their last points. Raises ``NothingToDrawError`` without MD steps.
    """
    left_out = table.contestant.str.endswith(":projected") | (table.contestant == NO_NETWORK)
    steps = table[(table.kind == "md") & ~left_out].sort_values("n_atoms")
    if steps.empty:
        raise NothingToDrawError("`table` holds no MD step: there is nothing to draw.")
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    looks = styles(sorted(steps.contestant.unique()))
    for name, rows in steps.groupby("contestant"):
        left.plot(rows.n_atoms, rows.ms_median, label=name, **looks[str(name)])
        right.plot(rows.n_atoms, 1e3 * rows.ms_median / rows.n_atoms, label=name, **looks[str(name)])
    left.set(title="MD step", ylabel="milliseconds")
    right.set(title="MD step, per atom", ylabel="microseconds per atom")
    for ax in (left, right):
        _log_log(ax, sorted(steps.n_atoms.unique()))
    handles, labels = _slowest_first(right)
    figure.legend(handles, labels, loc="outside right center", handlelength=3.5)
    return figure


def styles(names: Sequence[str]) -> dict[str, dict[str, object]]:
    """Colour by network or package, dashes and markers by size or form."""
    looks: dict[str, dict[str, object]] = {}
    seen: dict[str, int] = {}
    for name in names:
        family = next((beginning for beginning in COLOURS if name.startswith(beginning)), "")
        number = seen[family] = seen.get(family, -1) + 1
        looks[name] = {
            "color": COLOURS.get(family, GREY),
            "linestyle": DASHES[number % len(DASHES)],
            "marker": MARKERS[number % len(MARKERS)],
            "markersize": 4.5,
            "linewidth": 2.2 if name.startswith(OURS) else 1.1,
        }
    return looks


def _log_log(ax: Axes, sizes: list[int]) -> None:
    log_scale(ax, "y")
    ax.set_xscale("log")
    ax.set_xticks(sizes, [f"{size}" for size in sizes])
    ax.minorticks_off()
    ax.set_xlabel("atoms (9 ethanol, 21 aspirin, then water)")


def _slowest_first(ax: Axes) -> tuple[list[Line2D], list[str]]:
    """The legend's entries in the order of their last points, from above."""
    lines = sorted(ax.lines, key=lambda line: float(np.asarray(line.get_ydata())[-1]), reverse=True)
    return lines, [str(line.get_label()) for line in lines]
