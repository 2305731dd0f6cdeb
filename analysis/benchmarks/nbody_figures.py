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
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

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
    has_numbers,
    log_scale,
    panels,
    shared_legend,
    short_names,
    styled,
)

__all__ = ["ARM_STYLES", "RunTables", "arms_overview", "learning_curves", "lie_derivatives", "main_setting", "mse_against"]

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
WIDE = 5.0  # a ratio of largest to smallest error from which on a log axis has ticks enough to be read


class RunTables(NamedTuple):
    """The tables of one run: metrics.csv, and layers.csv where the network was relaxed."""

    arm: str
    seed: int
    metrics: pd.DataFrame
    layers: pd.DataFrame | None = None


def main_setting(table: pd.DataFrame) -> tuple[int, int]:
    """(n_layers, n_train) of most arms, then of most runs, then the largest; ``table`` has a row a run."""
    groups = table.groupby(["n_train", "n_layers"])
    counts = {key: (group["arm"].nunique(), len(group), *key) for key, group in groups}  # type: ignore[misc]
    n_train, n_layers = max(counts, key=counts.__getitem__)
    return int(n_layers), int(n_train)


@styled
def mse_against(table: pd.DataFrame, by: Literal["n_layers", "n_train"]) -> Figure:
    """Test error of every arm against depth or size of the training set (the paper's Figure 4), a row of ``table`` a run.

    Markers are means over seeds with the sample standard deviation, small dots the single seeds; arms stand a little
    beside each other. One panel for each value of the other variable at which ``by`` takes several values.
    """
    if by not in AXES:
        raise ValueError(f"`by` must be n_layers or n_train, got `{by}`.")
    other = "n_layers" if by == "n_train" else "n_train"
    groups = [(value, group) for value, group in table.groupby(other) if group[by].nunique() > 1]
    shown = sorted(groups, key=lambda pair: len(pair[1]))[-MOST_PANELS:]
    figure, axes = panels(len(shown), f"`table` holds no two values of {by} beside one of {other}", height=3.4)
    arms = _in_order(table["arm"])
    for ax, (value, group) in zip(axes, sorted(shown, key=lambda pair: pair[0]), strict=True):
        ticks = sorted(group[by].unique())
        for number, arm in enumerate(arms):
            _arm_against(ax, group[group["arm"] == arm], by, arm, _beside(number, len(arms), ticks, by == "n_train"))
        _value_axis(ax, ticks, log=by == "n_train")
        ax.set(title=f"{value:,} {_words(other, value)}", xlabel=AXES[by])
    axes[0].set_ylabel(f"test {MSE}")
    _same_errors(axes)
    shared_legend(figure)
    return figure


@styled
def learning_curves(runs: Sequence[RunTables]) -> Figure:
    """Validation error of the projected network against the optimiser step: seeds thin, their mean thick, theta filled."""
    shown = [run for run in runs if has_numbers(run.metrics, "val_mse")]
    figure, (ax,) = panels(1 if shown else 0, "no run has a validation error", height=3.8)
    _fill_theta_of(ax, shown)
    for arm in _in_order(run.arm for run in shown):
        colour, _ = ARM_STYLES[arm]
        curves = [1e3 * run.metrics.set_index("step")["val_mse"] for run in shown if run.arm == arm]
        for curve in curves if len(curves) > 1 else []:
            ax.plot(curve.index, curve, color=colour, linewidth=0.6, alpha=0.5)
        mean = pd.concat(curves, axis=1, join="inner").mean(axis=1)
        ax.plot(mean.index, mean, color=colour, label=f"{arm} ({_count(len(curves), 'seed')})")
    ax.set(xlabel="optimiser step", ylabel=f"validation {MSE}, projected network")
    _error_scale([ax], [1e3 * run.metrics["val_mse"] for run in shown])
    _step_axis(ax)
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
        _lie_lines(row[0], mean, "activation_lie", own, f"{arm}: at activations")
        _lie_lines(row[1], mean, "lie", own, f"{arm}: of the weights")
        _lie_at_peak(row[2], mean, _peak_step(own[0].metrics))
    for ax in grid[-1][:2]:
        ax.set_xlabel("optimiser step")
    grid[-1][2].set_xlabel("Lie derivative")
    shared_legend(figure)
    return figure


@styled
def arms_overview(
    table: pd.DataFrame,
    *,
    setting: tuple[int, int] | None = None,
    published: Mapping[str, float] | None = None,
) -> Figure:
    """Test errors of the arms at one setting (layers, training trajectories), that of most runs unless given.

    Every dot is a seed, a bar the mean, and beside the arm's name stand mean and sample standard deviation. ``published``
    are errors to compare with by name, dashed.
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
    ax.set_xlabel(f"test {MSE}: {n_layers} {_words('n_layers', n_layers)}, {n_train:,} {_words('n_train', n_train)}")
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
    spread = f" ± {1e3 * errors.std():.2g}" if len(errors) > 1 else ""
    return f"{1e3 * errors.mean():.3g}{spread} ({_count(len(errors), 'seed')})"


def _beside(number: int, count: int, ticks: Sequence[int], log: bool) -> Any:
    """The function that moves an arm's points a little to the side, so that bars do not cover each other."""
    where = np.log(ticks) if log else np.asarray(ticks, dtype=float)
    shift = 0.12 * float(np.diff(where).min()) * (number - (count - 1) / 2) / max(count - 1, 1)
    return lambda x: np.asarray(x, dtype=float) * np.exp(shift) if log else np.asarray(x, dtype=float) + shift


def _arm_against(ax: Axes, rows: pd.DataFrame, by: str, arm: str, beside: Any) -> None:
    """One arm: dots for the seeds, and means with bars joined by a line."""
    if not len(rows):
        return
    colour, marker = ARM_STYLES[arm]
    ax.plot(beside(rows[by]), 1e3 * rows["test_mse"], ".", color=colour, markersize=4, alpha=0.45)
    groups = 1e3 * rows.groupby(by)["test_mse"].agg(["mean", "std"])
    ax.errorbar(
        beside(groups.index), groups["mean"], yerr=groups["std"].fillna(0.0), color=colour, marker=marker,
        markersize=5, linewidth=1.2, elinewidth=1.2, capsize=3, label=arm,
    )  # fmt: skip


def _value_axis(ax: Axes, ticks: Sequence[int], *, log: bool) -> None:
    """Ticks where there are runs, and nowhere else."""
    if log:
        ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.margins(x=0.1)


def _same_errors(axes: Sequence[Axes]) -> None:
    """One error axis for all panels."""
    values = np.concatenate([line.get_ydata() for ax in axes for line in ax.lines]).astype(float)
    low, high = np.min([ax.get_ylim()[0] for ax in axes]), np.max([ax.get_ylim()[1] for ax in axes])
    _error_scale(axes, [pd.Series(values)])
    if axes[0].get_yscale() == "linear":
        for ax in axes:
            ax.set_ylim(low, high)


def _error_scale(axes: Sequence[Axes], errors: Iterable[pd.Series]) -> None:
    """A log axis where errors span much, with room above and below."""
    values = pd.concat(list(errors)).dropna()
    low, high = values.min(), values.max()
    if low > 0 and high / low >= WIDE:
        for ax in axes:
            log_scale(ax)
            ax.set_ylim(low / 1.15, high * 1.15)


def _step_axis(ax: Axes) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _fill_theta_of(ax: Axes, runs: Sequence[RunTables]) -> None:
    """theta of the first relaxed arm; arms with other schedules have their own."""
    relaxed = [run for run in runs if has_numbers(run.metrics, "theta") and run.metrics["theta"].any()]
    if relaxed:
        first = next(run for arm in _in_order(run.arm for run in relaxed) for run in relaxed if run.arm == arm)
        fill_theta(ax, first.metrics, label=f"θ of {first.arm} (right axis)")


def _layer_means(tables: Sequence[pd.DataFrame | None]) -> pd.DataFrame:
    """Means over the seeds of both Lie derivatives, a row a layer and step; layers stay in their order."""
    table = pd.concat([t for t in tables if t is not None])
    table = table.assign(activation_lie=np.sqrt(table["activation_lie_square"]))
    return table.groupby(["layer", "step"], sort=False)[["activation_lie", "lie"]].mean().reset_index()


def _layer_styles(names: Sequence[str]) -> list[tuple[Any, str]]:
    """Colour by depth, dash by the map within it: 0.update_1 and 0.update_2 share a colour."""
    depths = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    maps = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    colours = mpl.colormaps["cividis"](np.linspace(0.0, 0.8, max(len(depths), 2)))
    dashes = ("-", "--", ":", "-.")
    return [
        (colours[depths.index(head)], dashes[maps.index(tail) % len(dashes)])
        for head, _, tail in (name.rpartition(".") for name in names)
    ]


def _lie_lines(ax: Axes, mean: pd.DataFrame, column: str, runs: Sequence[RunTables], title: str) -> None:
    """One line a layer, theta behind."""
    _fill_theta_of(ax, runs)
    names = list(mean["layer"].unique())
    for name, (colour, dash) in zip(names, _layer_styles(names), strict=True):
        rows = mean[(mean["layer"] == name) & (mean[column] > 0)]
        ax.plot(rows["step"], rows[column], dash, color=colour, linewidth=1.3)
    ax.set_title(title)
    _error_scale([ax], [mean.loc[mean[column] > 0, column]])
    _step_axis(ax)


def _peak_step(metrics: pd.DataFrame) -> int:
    """The last validation at which theta is as large as ever; of a constant theta, the end."""
    return int(metrics.loc[metrics["theta"] == metrics["theta"].max(), "step"].max())


def _lie_at_peak(ax: Axes, mean: pd.DataFrame, step: int) -> None:
    """A row a layer: the dash of its lines, and the two values where theta was largest."""
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
    """Dashed lines with their names above the panel."""
    for name, error in published.items():
        ax.axvline(1e3 * error, color=GREY, linestyle="--", linewidth=1.0, zorder=0)
        ax.text(
            1e3 * error, 1.02, f"{name} {1e3 * error:g}", transform=ax.get_xaxis_transform(), rotation=25,
            rotation_mode="anchor", fontsize=8, color="#505050",
        )  # fmt: skip
