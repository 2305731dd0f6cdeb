"""Drawing: colours, style, panels, scales, heat maps, and theta behind the curves, shared by all figures.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color), which colour-blind readers can tell apart; heat
maps use cividis, made for the same readers.
"""

import io
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from mdrelax.base.files import write_atomically

__all__ = [
    "BLACK",
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "PURPLE",
    "SKY",
    "THETA_FILL",
    "VERMILION",
    "WIDTH",
    "YELLOW",
    "NothingToDrawError",
    "decades",
    "fill_theta",
    "fit_axes",
    "has_numbers",
    "heat_map",
    "log_scale",
    "panels",
    "png",
    "save",
    "scientific",
    "shared_legend",
    "step_axis",
    "styled",
]

Arguments = ParamSpec("Arguments")

BLUE, VERMILION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7F7F7F"
SKY, PURPLE, ORANGE, BLACK, YELLOW = "#56B4E9", "#CC79A7", "#E69F00", "#000000", "#F0E442"
THETA_FILL = "#EFE3C2"  # pale, so that curves stay readable on it
WIDTH = 9.5  # inches; 950 pixels of a report, so 9 points are read as 12 pixels
DOTS_PER_INCH = 160
WIDE = 5.0  # ratio of largest to smallest value above which a log axis has enough ticks
LEGEND_HANDLE, LEGEND_LETTER = 0.62, 0.068  # inches of an entry: its sample of the line with the gaps, and a letter
STYLE: dict[Any, Any] = {  # matplotlib lists all its settings as one literal type
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


class NothingToDrawError(ValueError):
    """The table or record contains nothing that the figure shows."""


def styled(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Draw with our fonts and lines, and restore the user's settings afterwards."""

    @wraps(draw)
    def inner(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return inner


def panels(count: int, problem: str, *, height: float = 3.3) -> tuple[Figure, list[Axes]]:
    """A figure with a row of ``count`` panels; raises ``NothingToDrawError`` with the problem if there are none."""
    if not count:
        raise NothingToDrawError(f"{problem}: there is nothing to draw.")
    width = WIDTH if count > 1 else 0.6 * WIDTH
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def log_scale(ax: Axes, which: Literal["x", "y"] = "y") -> None:
    """A log axis with plain numbers, readable over one decade and over five."""
    ax.set(**{f"{which}scale": "log"})
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if which == "y" else (1, 3)))  # to make room for adjacent numbers
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def fit_axes(axes: Sequence[Axes], which: Literal["x", "y"] = "y") -> None:
    """One axis for all panels that covers all their lines with a margin; logarithmic if they span a wide range."""
    lines = [line for ax in axes for line in ax.lines]
    points = np.concatenate([np.ravel(line.get_data()[which == "y"]) for line in lines]).astype(float)
    points = points[np.isfinite(points)]
    if not len(points):
        return
    low, high = points.min(), points.max()
    wide = low > 0 and high / low >= WIDE
    room = 0.06 * (np.log(high / low) if wide else (high - low) or abs(high) or 1.0)
    limits = (low * np.exp(-room), high * np.exp(room)) if wide else (low - room, high + room)
    for ax in axes:
        if wide:
            log_scale(ax, which)
        ax.set(**{f"{which}lim": limits})


def step_axis(ax: Axes) -> None:
    """Few ticks at round whole numbers, with thousands set apart."""
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def shared_legend(figure: Figure) -> None:
    """One legend above all panels, each label once, in as many rows as needed."""
    entries: dict[str, Artist] = {}
    for ax in figure.axes:
        handles, labels = ax.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    widths = [LEGEND_HANDLE + LEGEND_LETTER * len(label) for label in entries]
    fitting = len(entries) if sum(widths) <= figure.get_figwidth() else int(figure.get_figwidth() // max(widths))
    figure.legend(list(entries.values()), list(entries), loc="outside upper left", ncols=max(1, fitting))


def has_numbers(table: pd.DataFrame, name: str) -> bool:
    """Whether the table has the column, and the column is not empty."""
    return name in table and bool(table[name].notna().any())


def fill_theta(ax: Axes, metrics: pd.DataFrame, *, label: str = "relaxation θ (right axis)") -> None:
    """theta as a pale area behind the curves, with its own axis on the right; nothing for a standard run."""
    if not has_numbers(metrics, "theta") or not metrics.theta.any():
        return
    twin = ax.twinx()
    twin.fill_between(metrics.step, metrics.theta, color=THETA_FILL, linewidth=0, label=label)
    twin.set(ylim=(0, 1.05), yticks=(0, 0.5, 1))
    twin.grid(visible=False)
    twin.tick_params(axis="y", colors=GREY, length=2)
    ax.set_zorder(twin.get_zorder() + 1)
    ax.patch.set_visible(False)


def png(figure: Figure) -> bytes:
    """The figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    return buffer.getvalue()


def save(path: Path, draw: Callable[[], Figure]) -> bytes | None:
    """Draw into a PNG file and return its content; None if there is nothing to draw, and an older file is removed."""
    try:
        content = png(draw())
    except NothingToDrawError:
        path.unlink(missing_ok=True)
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return content


def heat_map(figure: Figure, ax: Axes, table: npt.NDArray[np.float64], *, label: str = "$||W_J||^2$") -> None:
    """Cells with their numbers; the colour spans at most eight decades below the largest entry."""
    positive = table[table > 0]
    high = float(positive.max()) if positive.size else 1.0
    low = float(np.clip(positive.min(initial=high), 1e-8 * high, 0.1 * high))
    norm = LogNorm(low, high)
    colours = mpl.colormaps["cividis"].with_extremes(under="#DDDDDD", bad="white")
    shown = np.ma.masked_invalid(np.where(table == 0, 1e-300, table))
    image = ax.imshow(shown, norm=norm, cmap=colours, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        if np.isfinite(value):
            dark = low <= value < np.sqrt(low * high)
            ax.text(
                column,
                row,
                f"{value:.1g}",
                ha="center",
                va="center",
                fontsize=8,
                color="w" if dark else "k",
            )
    figure.colorbar(image, ax=ax, label=label)
    ax.grid(visible=False)


def decades(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Whole powers of ten around the finite positive values, with room for a label."""
    finite = values[np.isfinite(values) & (values > 0)]
    return float(10 ** (np.floor(np.log10(finite.min())) - 1)), float(10 ** (np.ceil(np.log10(finite.max())) + 2))


def scientific(value: float) -> str:
    """Two digits and the exponent without padding: 3.0e-14, 1e-9; plain 0 and words for what is not finite."""
    if not np.isfinite(value) or value == 0:
        return "NaN" if np.isnan(value) else "infinite" if value else "0"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"
