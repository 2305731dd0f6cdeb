"""Figures of the smoke study: rollouts as pictures and as an animation, errors by step and against symmetry errors."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from mdrelax.analysis.drawing import (
    GREY,
    WIDTH,
    NothingToDrawError,
    fit_axes,
    panels,
    shared_legend,
    step_axis,
    styled,
)
from mdrelax.analysis.plume_figures import draw_flow
from mdrelax.analysis.studies.arm_figures import arm_style, in_order, seed_curves
from mdrelax.analysis.studies.measures import Measure
from mdrelax.analysis.studies.run_files import Done
from mdrelax.analysis.tables import read_optional

__all__ = ["Rollout", "animation", "errors_by_step", "errors_by_symmetry", "learnt_symmetry", "read_rollouts",
           "rollout_pictures"]  # fmt: skip

DRAWN_ARMS = ("equiv", "rsteer", "rsteer-relaxed")  # of rollouts, as far as they are there
N_FRAMES = 5  # of a picture
MILLISECONDS = 250  # of a frame of an animation
MOST_SETS = 2  # of errors by step

Array = npt.NDArray[np.float32]


class Rollout(NamedTuple):
    """One rollout of the Future test."""

    truth: Array  # (T, 2, H, W)
    prediction: Array  # (T, 2, H, W)


def read_rollouts(files: Mapping[str, Path]) -> dict[str, Rollout]:
    """The rollouts of the arms that are drawn; raises ``ValueError`` naming a file that cannot be read."""
    chosen = [arm for arm in DRAWN_ARMS if arm in files] or list(files)[: len(DRAWN_ARMS)]
    found = {arm: read_optional(files[arm], _read, remedy="Delete the run and train it again.") for arm in chosen}
    return {arm: rollout for arm, rollout in found.items() if rollout is not None}


def _read(path: Path) -> Rollout:
    with np.load(path, allow_pickle=False) as arrays:
        return Rollout(arrays["future_truth"], arrays["future_prediction"])


# --- rollouts ---


@styled
def rollout_pictures(rollouts: Mapping[str, Rollout]) -> Figure:
    """Truth, and prediction and error of each arm, at some frames of a rollout; arms began with the same frames."""
    if not rollouts:
        raise NothingToDrawError("No run has a rollout: there is nothing to draw.")
    truth = next(iter(rollouts.values())).truth
    times = np.unique(np.linspace(0, len(truth) - 1, N_FRAMES).round().astype(int))
    n_rows = 1 + 2 * len(rollouts)
    size = WIDTH / (len(times) + 0.6)
    figure = Figure(figsize=(WIDTH, size * n_rows + 0.4), layout="constrained")
    axes = figure.subplots(n_rows, len(times), squeeze=False)
    fastest, largest = _scales(rollouts)
    for column, time in enumerate(times):
        axes[0, column].set_title(f"frame {time + 1}")
        flow = draw_flow(axes[0, column], truth[time], fastest=fastest)
    axes[0, 0].set_ylabel("truth")
    for number, (arm, rollout) in enumerate(rollouts.items()):
        row, below = axes[2 * number + 1], axes[2 * number + 2]
        for column, time in enumerate(times):
            draw_flow(row[column], rollout.prediction[time], fastest=fastest)
            error = _draw_error(below[column], rollout, time, largest)
        row[0].set_ylabel(arm)
        below[0].set_ylabel(f"{arm}:\nerror")
    figure.colorbar(flow, ax=axes[: n_rows // 2 + 1], label="speed (cells per step)", shrink=0.7)
    figure.colorbar(error, ax=axes[n_rows // 2 + 1 :], label="error (cells per step)", shrink=0.7)
    return figure


def _scales(rollouts: Mapping[str, Rollout]) -> tuple[float, float]:
    """The largest speed and the largest error of the colours; a rollout that explodes does not count."""
    truth = next(iter(rollouts.values())).truth
    fastest = float(np.quantile(np.linalg.norm(truth, axis=1), 0.995))
    errors = [np.nan_to_num(np.linalg.norm(r.prediction - r.truth, axis=1), nan=fastest) for r in rollouts.values()]
    return max(fastest, 1e-12), max(float(min(np.quantile(np.stack(errors), 0.995), 2 * fastest)), 1e-12)


def _draw_error(ax: Axes, rollout: Rollout, time: int, largest: float) -> Any:
    error = np.linalg.norm(rollout.prediction[time] - rollout.truth[time], axis=0)
    image = ax.imshow(error, origin="lower", cmap="magma", vmin=0, vmax=largest)
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    return image


def animation(rollouts: Mapping[str, Rollout]) -> bytes:
    """A GIF of the rollouts: truth and predictions above, errors below, frame by frame."""
    images = []
    for time in range(len(next(iter(rollouts.values())).truth)):
        canvas = FigureCanvasAgg(_one_frame(rollouts, time))
        canvas.draw()
        images.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()).quantize(128))
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=MILLISECONDS, loop=0)
    return buffer.getvalue()


@styled
def _one_frame(rollouts: Mapping[str, Rollout], time: int) -> Figure:
    truth, n = next(iter(rollouts.values())).truth, 1 + len(rollouts)
    fastest, largest = _scales(rollouts)
    figure = Figure(figsize=(1.9 * n, 4.1), layout="constrained", dpi=80)
    axes = figure.subplots(2, n, squeeze=False)
    draw_flow(axes[0, 0], truth[time], fastest=fastest)
    axes[0, 0].set_title("truth")
    axes[1, 0].set_axis_off()
    axes[1, 0].text(0.5, 0.5, f"frame {time + 1}\nbelow: errors", ha="center", va="center")
    for column, (arm, rollout) in enumerate(rollouts.items(), start=1):
        draw_flow(axes[0, column], rollout.prediction[time], fastest=fastest)
        axes[0, column].set_title(arm)
        _draw_error(axes[1, column], rollout, time, largest)
    return figure


# --- errors ---


@styled
def errors_by_step(done: Sequence[Done]) -> Figure:
    """The RMSE of each frame of a rollout: seeds thin, their mean thick; one panel for each set and test."""
    sets = list(dict.fromkeys(each.run.factors["set"] for each in done))[:MOST_SETS]
    places = [(name, test) for name in sets for test in ("future", "domain")]
    figure, axes = panels(len(places), "no run has finished", height=3.6)
    arms = in_order(each.run.factors["arm"] for each in done)
    for ax, (name, test) in zip(axes, places, strict=True):
        for arm in arms:
            own = [each for each in done if each.run.factors["arm"] == arm and each.run.factors["set"] == name]
            errors = [np.asarray(each.results[f"{test}_by_step"], dtype=float) for each in own]
            curves = [pd.Series(e, index=range(1, len(e) + 1)) for e in errors if np.isfinite(e).all()]
            if curves:
                seed_curves(ax, curves, arm_style(arm, arms)[0], label=arm)
        ax.set(title=f"{name}: {test.capitalize()}", xlabel="predicted frame")
        step_axis(ax)
    axes[0].set_ylabel("RMSE (cells/step)")
    fit_axes(axes)
    shared_legend(figure)
    return figure


@styled
def learnt_symmetry(table: pd.DataFrame) -> Figure:
    """The symmetry error that each network has learnt against that of its data; exact networks lie at 0."""
    both = ["symmetry_error", "data_symmetry_error"]
    shown = table[table[both].notna().all(axis=1)]
    figure, (ax, *_) = panels(min(len(shown), 1), "no set says how symmetric its flows are", height=3.8)
    arms = in_order(shown["arm"])
    for arm in arms:
        colour, marker = arm_style(arm, arms)
        rows = shown[shown["arm"] == arm]
        means = rows.groupby("data_symmetry_error")["symmetry_error"].mean()
        ax.plot(rows["data_symmetry_error"], rows["symmetry_error"], marker, color=colour, markersize=5, label=arm)
        ax.plot(means.index, means, color=colour, linewidth=1)
    high = float(shown["data_symmetry_error"].max())
    ax.plot([0, high], [0, high], "--", color=GREY, linewidth=1, label="equal")
    ax.set(xlabel="symmetry error of the data", ylabel="learnt symmetry error")
    shared_legend(figure)
    return figure


@styled
def errors_by_symmetry(table: pd.DataFrame, measures: Sequence[Measure]) -> Figure:
    """RMSE against the symmetry error of the data, in a graded family: where does which network win?"""
    graded = table[(table["kind"] == "graded") & table["data_symmetry_error"].notna()]
    enough = graded["data_symmetry_error"].nunique() > 1
    figure, axes = panels(len(measures) * enough, "no two levels of a graded family have finished", height=3.8)
    arms = in_order(graded["arm"])
    for ax, measure in zip(axes, measures, strict=True):
        for arm in arms:
            colour, marker = arm_style(arm, arms)
            rows = graded[graded["arm"] == arm]
            means = rows.groupby("data_symmetry_error")[f"test_{measure.name}"].mean()
            ax.plot(rows["data_symmetry_error"], rows[f"test_{measure.name}"], ".", color=colour, markersize=4)
            ax.plot(means.index, means, marker=marker, color=colour, markersize=4.5, label=arm)
        ax.set(xlabel="symmetry error of the data", ylabel=measure.axis)
    shared_legend(figure)
    return figure
