"""Pictures of plumes: which flows are drawn, and which way up."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from mdrelax.analysis.plume_figures import draw_flow, plume_figure
from mdrelax.datasets.plume_files import open_plumes

PLUMES = open_plumes("sample:plume")


def test_y_points_up_and_arrows_follow_the_flow():
    """The row y = 0 is drawn at the bottom; an arrow has the direction of the velocity."""
    ax = Figure().add_subplot()
    velocity = np.zeros((2, 12, 12))
    velocity[1, 0] = 3.0  # upwards at the lower wall
    image = draw_flow(ax, velocity, fastest=3.0)
    assert ax.get_ylim()[0] < ax.get_ylim()[1]
    assert image.get_array()[0].max() == 3.0
    (arrows,) = ax.collections
    assert np.asarray(arrows.V)[:12].min() > 0
    assert not np.asarray(arrows.U).any()


def test_the_strongest_task_of_each_side_is_drawn():
    """One row per side, one column per time, in the order of the sides."""
    figure = plume_figure(PLUMES, frames=[4, 24])
    labels = [ax.get_ylabel().split("\n")[0] for ax in figure.axes if "task" in ax.get_ylabel()]
    assert labels == ["task 5_0: side 0", "task 6_1: side 1", "task 3_2: side 2", "task 4_3: side 3"]
    assert [ax.get_title(loc="left") for ax in figure.axes[:2]] == ["frame 4", "frame 24"]


def test_an_unknown_task_is_named():
    """With the nearest one."""
    with pytest.raises(ValueError, match="has no task `1_1`"):
        plume_figure(PLUMES, tasks=["1_1"])
