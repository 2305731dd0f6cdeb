"""Plume figures: pictures of flows in a box, as speed with arrows."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from mdrelax.analysis.drawing import WIDTH, NothingToDrawError, styled
from mdrelax.datasets.plume import PlumeSet

__all__ = ["draw_flow", "plume_figure"]

N_TASKS, N_FRAMES = 4, 5  # drawn unless named
ARROWS = 12  # along each side of the box


def draw_flow(ax: Axes, velocity: npt.NDArray[np.floating], *, fastest: float) -> AxesImage:
    """One flow (2, H, W) in the centres of its cells: the colour is the speed, up to ``fastest``; y points up."""
    speed = np.linalg.norm(velocity, axis=0)
    image = ax.imshow(speed, origin="lower", cmap="cividis", vmin=0, vmax=fastest)
    every = max(1, velocity.shape[-1] // ARROWS)
    at = slice(every // 2, None, every)
    rows, columns = (np.arange(size)[at] for size in velocity.shape[-2:])
    u, v = velocity[:, at, at] / max(fastest, 1e-12)
    ax.quiver(columns, rows, u, v, color="w", scale=8, width=0.006, alpha=0.85)
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    return image


@styled
def plume_figure(plumes: PlumeSet, *, tasks: Sequence[str] = (), frames: Sequence[int] = ()) -> Figure:
    """Some tasks (rows) at some frames (columns), all with one scale of speeds.

    Unless named, tasks are the strongest of each side (of the graded family: the sides of its highest level; of scales
    spread evenly), and frames are spread over the whole time. Raises ``ValueError`` for an unknown task, and
    ``NothingToDrawError`` for a set without tasks.
    """
    if not plumes.tasks:
        raise NothingToDrawError(f"`{plumes.source}` has no tasks: there is nothing to draw.")
    names = list(tasks) or _some_tasks(plumes)
    times = list(frames) or np.linspace(0, plumes.shape[0] - 1, N_FRAMES + 1).astype(int)[1:].tolist()
    flows = [plumes.tasks[plumes.index(name)].velocity[times] for name in names]
    fastest = float(np.quantile(np.linalg.norm(np.stack(flows), axis=2), 0.995))
    size = WIDTH / (len(times) + 0.6)
    figure = Figure(figsize=(WIDTH, size * len(names) + 0.4), layout="constrained")
    axes = figure.subplots(len(names), len(times), squeeze=False)
    for row, (name, flow) in enumerate(zip(names, flows, strict=True)):
        for column, time in enumerate(times):
            image = draw_flow(axes[row, column], flow[column], fastest=fastest)
            if row == 0:
                axes[row, column].set_title(f"frame {time}")
        axes[row, 0].set_ylabel(_caption(plumes, name))
    figure.colorbar(image, ax=axes, label="speed (cells per step)", shrink=0.8)
    return figure


def _some_tasks(plumes: PlumeSet) -> list[str]:
    """The strongest task of each side, or scales spread evenly."""
    if plumes.kind == "scale":
        places = np.unique(np.linspace(0, len(plumes.tasks) - 1, N_TASKS).astype(int))
        return [plumes.tasks[k].info.name for k in places]
    strongest = {}
    for info in sorted((task.info for task in plumes.tasks), key=lambda info: np.nan_to_num(info.buoyancy)):
        strongest[info.side] = info.name
    return [strongest[side] for side in sorted(strongest)]


def _caption(plumes: PlumeSet, name: str) -> str:
    info = plumes.tasks[plumes.index(name)].info
    if plumes.kind == "scale":
        return f"task {name}: scale {info.scale:.2f}"
    strength = "" if np.isnan(info.buoyancy) else f"\nbuoyancy {info.buoyancy:.3f}"
    return f"task {name}: side {info.side}{strength}"
