"""N-body figures: the paths of a few simulated systems, with the input and target frames of the learning task."""

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mdrelax.analysis.drawing import BLUE, GREY, VERMILION, panels, shared_legend, styled
from mdrelax.datasets.nbody_simulator import Trajectories

__all__ = ["nbody_trajectories"]

Array = npt.NDArray[np.float64]

AXES = "xyz"
MOST_PANELS = 4  # in a row; more would be too small to read


@styled
def nbody_trajectories(
    trajectories: Trajectories,
    *,
    n_shown: int = 3,
    input_frame: int = 30,
    target_frame: int = 40,
    plane: str = "xy",
) -> Figure:
    """The paths of the first ``n_shown`` systems, projected on a plane, one panel each, coloured by charge.

    The stretch from the input frame (filled circle) to the target frame (star) is thick; the path before is known,
    the path after (dotted) is not part of the task. Open circles are the first recorded frame, bars the last. Raises
    ``NothingToDrawError`` without trajectories, ``ValueError`` for frames or a plane that do not exist.
    """
    n_frames = trajectories.positions.shape[1]
    _check(n_frames, input_frame, target_frame, plane)
    count = min(n_shown, MOST_PANELS, len(trajectories.positions))
    figure, axes = panels(count, "`trajectories` holds no system", height=3.9)
    columns = [AXES.index(letter) for letter in plane]
    for number, ax in enumerate(axes):
        paths = trajectories.positions[number][..., columns].transpose(1, 2, 0)  # (n, 2, T)
        for path, charge in zip(paths, trajectories.charges[number], strict=True):
            _draw_path(ax, path, VERMILION if charge > 0 else BLUE, input_frame, target_frame)
        ax.set(title=f"system {number}", xlabel=plane[0], ylabel=plane[1] if number == 0 else "")
        ax.set_aspect("equal", adjustable="datalim")
        ax.margins(0.08)
    _explain(axes[0], trajectories.charges[:count], input_frame, target_frame)
    shared_legend(figure)
    return figure


def _check(n_frames: int, input_frame: int, target_frame: int, plane: str) -> None:
    if not 0 <= input_frame < target_frame < n_frames:
        raise ValueError(
            f"`input_frame` must be before `target_frame`, and both from 0 to {n_frames - 1}, got {input_frame} and "
            f"{target_frame}."
        )
    if len(set(plane)) != 2 or not set(plane) <= set(AXES):
        raise ValueError(f"`plane` must name two of x, y and z, such as xy, got `{plane}`.")


def _draw_path(ax: Axes, path: Array, colour: str, start: int, end: int) -> None:
    """One particle: before, during and after the segment of the task, and its four marks; ``path`` is (2, T)."""
    ax.plot(*path[:, : start + 1], color=colour, linewidth=0.9, alpha=0.55)
    ax.plot(*path[:, start : end + 1], color=colour, linewidth=2.6, solid_capstyle="round")
    ax.plot(*path[:, end:], ":", color=colour, linewidth=1.0, alpha=0.8)
    marks = ((0, "o", 4.0, "white"), (start, "o", 5.0, colour), (end, "*", 11.0, colour), (-1, "|", 6.0, colour))
    for frame, marker, size, face in marks:
        edge = "white" if marker in "*" else colour
        ax.plot(*path[:, frame], marker, markersize=size, color=colour, markerfacecolor=face, markeredgecolor=edge)


def _explain(ax: Axes, charges: Array, start: int, end: int) -> None:
    """Entries of the legend, drawn without points, so that the panels do not change."""
    none: list[float] = []
    if (charges < 0).any():
        ax.plot(none, none, color=VERMILION, linewidth=2.6, label="charge +1")
        ax.plot(none, none, color=BLUE, linewidth=2.6, label="charge −1")
    ax.plot(none, none, "o", color=GREY, markersize=4, markerfacecolor="white", label="frame 0")
    ax.plot(none, none, "o", color=GREY, markersize=5, label=f"input, frame {start}")
    ax.plot(none, none, "*", color=GREY, markersize=10, label=f"target, frame {end}")
    ax.plot(none, none, "|", color=GREY, markersize=6, label="last frame")
