"""N-body figures show the simulated paths, and mark the frames that the task is about."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from mdrelax.analysis.drawing import BLUE, VERMILION, NothingToDrawError
from mdrelax.analysis.studies.nbody_trajectories import nbody_trajectories
from mdrelax.datasets.nbody import Trajectories, simulate

MARKS = {"o": (0, 2), "*": (5,), "|": (-1,)}  # frames of each marker, for input 2 and target 5


@pytest.fixture(scope="module")
def made() -> Trajectories:
    """Five systems of eight frames."""
    return simulate("charged", 5, generator=np.random.default_rng(0), n_steps=800)


@pytest.mark.parametrize("plane", ["xy", "zx"])
def test_paths_are_the_trajectories_in_the_plane(made, plane):
    """The three stretches of a particle's line hold all its positions, in the colour of its charge."""
    figure = nbody_trajectories(made, input_frame=2, target_frame=5, plane=plane)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["system 0", "system 1", "system 2"]
    columns = ["xyz".index(letter) for letter in plane]
    for number, ax in enumerate(figure.axes):
        lines = [line for line in ax.lines if len(line.get_xdata()) > 1]
        for particle, charge in enumerate(made.charges[number]):
            before, during, after = (line.get_xydata() for line in lines[3 * particle : 3 * particle + 3])
            np.testing.assert_array_equal(
                np.concatenate([before, during[1:], after[1:]]), made.positions[number, :, particle][:, columns]
            )
            assert to_rgba(lines[3 * particle].get_color()) == to_rgba(VERMILION if charge > 0 else BLUE)
        assert (ax.get_xlabel(), ax.get_aspect()) == (plane[0], 1.0)


def test_start_input_target_and_end_are_marked(made):
    """Circles at the first and the input frame, a star at the target, a bar at the end; the legend names them."""
    figure = nbody_trajectories(made, n_shown=1, input_frame=2, target_frame=5)
    (ax,) = figure.axes
    for marker, frames in MARKS.items():
        points = [
            line.get_xydata()[0] for line in ax.lines if line.get_marker() == marker and len(line.get_xdata()) == 1
        ]
        expected = made.positions[0][list(frames)].transpose(1, 0, 2)[..., :2].reshape(-1, 2)
        np.testing.assert_array_equal(points, expected)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["charge +1", "charge −1", "frame 0", "input, frame 2", "target, frame 5", "last frame"]


def test_masses_are_not_called_charges():
    """Gravity has one kind of particle."""
    figure = nbody_trajectories(simulate("gravity", 1, generator=np.random.default_rng(0)))
    assert "charge +1" not in [text.get_text() for text in figure.legends[0].get_texts()]


def test_what_cannot_be_drawn_is_an_error(made):
    """Frames beyond the trajectory, a plane that is none, and no system at all."""
    with pytest.raises(ValueError, match="both from 0 to 7, got 30 and 40"):
        nbody_trajectories(made)
    with pytest.raises(ValueError, match="two of x, y and z, such as xy, got `xx`"):
        nbody_trajectories(made, input_frame=2, target_frame=5, plane="xx")
    with pytest.raises(NothingToDrawError, match="holds no system"):
        nbody_trajectories(Trajectories(*(x[:0] for x in made)), input_frame=2, target_frame=5)
