"""Smoke plumes: where velocities are, how a quarter turn acts on them, windows, splits, and the shipped sample."""

import re

import numpy as np
import pytest

from mdrelax.datasets.plume import (
    PlumeInfo,
    PlumeSet,
    PlumeSplit,
    PlumeTask,
    at_centres,
    read_windows,
    turned,
    windows,
)
from mdrelax.datasets.plume_checks import check_plumes, divergence, plume_stats
from mdrelax.datasets.plume_files import is_plumes, open_plumes
from mdrelax.datasets.plume_simulator import resample, velocity_of

SAMPLE = "sample:plume"


def stream(n: int, n_frames: int = 1, seed: int = 0) -> np.ndarray:
    """A random stream function on the nodes of a closed box."""
    inner = np.random.default_rng(seed).normal(size=(n_frames, n - 1, n - 1))
    return np.pad(inner, ((0, 0), (1, 1), (1, 1)))


def flows(*arrays: np.ndarray, kind="graded", names=(), **infos) -> PlumeSet:
    """A set of the flows whose faces are given."""
    names = names or [f"0_{k % 4}_0" for k in range(len(arrays))]
    tasks = [
        PlumeTask(PlumeInfo(name, side=k % 4, **infos), lambda array=array: array, "faces")
        for k, (name, array) in enumerate(zip(names, arrays, strict=True))
    ]
    return PlumeSet(kind, tuple(tasks), arrays[0].shape, "here", first_step=11)


def verdicts(plumes: PlumeSet, **options) -> dict[str, str]:
    """The messages of the checks that failed."""
    table = check_plumes(plumes, **options)
    return {row["check"]: row["message"] for _, row in table[~table.passed].iterrows()}


# --- where the velocities are ---


def test_component_0_is_along_the_last_axis():
    """A stream function that grows with y alone is a flow along x."""
    y = np.arange(5.0)
    u, v = velocity_of(np.tile(y[:, None], 5))
    assert (u == 1).all()
    assert (v == 0).all()


def test_the_velocity_of_a_stream_function_has_no_divergence():
    """What flows into a cell flows out of it, at the walls too; a shifted velocity does not do so."""
    faces = velocity_of(stream(7))
    assert np.abs(divergence(faces)).max() < 1e-14  # rounding of numbers of order 1
    assert np.abs(divergence(np.roll(faces, 1, axis=-1))).max() > 0.1


def test_centres_are_the_means_of_opposite_faces():
    """Right faces are the left ones of the next cell, and walls have none."""
    faces = velocity_of(stream(4))[0]
    centres = at_centres(faces)
    assert centres[0, 2, 1] == pytest.approx((faces[0, 2, 1] + faces[0, 2, 2]) / 2)
    assert centres[0, 2, 3] == pytest.approx(faces[0, 2, 3] / 2)
    assert centres[1, 3, 1] == pytest.approx(faces[1, 3, 1] / 2)


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_turning_moves_points_and_rotates_vectors(quarter_turns):
    """The velocity at the turned place is the turned velocity, by the rotation matrix, cell by cell."""
    n = 5
    field = at_centres(velocity_of(stream(n)))[0]
    made = turned(field, quarter_turns)
    matrix = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), quarter_turns)  # counterclockwise in (x, y)
    for row in range(n):
        for column in range(n):
            x, y = matrix @ (column - 2, row - 2) + 2
            np.testing.assert_array_equal(made[:, y, x], matrix @ field[:, row, column])


@pytest.mark.parametrize("quarter_turns", [1, 2, 3, 4])
def test_turning_faces_is_turning_centres(quarter_turns):
    """Turned faces have no divergence, and their centres are the turned centres."""
    faces = velocity_of(stream(6, n_frames=2))
    made = turned(faces, quarter_turns, "faces")
    assert np.abs(divergence(made)).max() < 1e-14
    np.testing.assert_allclose(at_centres(made), turned(at_centres(faces), quarter_turns), atol=1e-15)


def test_another_grid_keeps_fluxes_and_has_no_divergence():
    """Through a cell of twice the length flows the sum of two cells; in its own, longer unit that is a quarter."""
    psi = stream(8, n_frames=2)
    fine, coarse = velocity_of(psi), velocity_of(resample(psi, 4))
    np.testing.assert_allclose(coarse[:, 0], (fine[:, 0, ::2, ::2] + fine[:, 0, 1::2, ::2]) / 4, atol=1e-15)
    assert np.abs(divergence(velocity_of(resample(psi, 5)))).max() < 1e-14


# --- windows and splits ---


def test_windows_are_consecutive_frames_of_the_task():
    """Inputs and targets of a window follow each other, two frames after its time."""
    plumes = flows(*(velocity_of(stream(4, n_frames=9, seed=k)) for k in range(3)))
    rows = windows(plumes, ["0_2_0", "0_0_0"], range(3), n_in=2, n_out=3)
    assert rows.tolist() == [[2, 2], [2, 3], [2, 4], [0, 2], [0, 3], [0, 4]]
    inputs, targets = read_windows(plumes, rows, n_in=2, n_out=3)
    np.testing.assert_array_equal(inputs[1], plumes.tasks[2].velocity[3:5])
    np.testing.assert_array_equal(targets[1], plumes.tasks[2].velocity[5:8])


def test_windows_that_end_too_late_are_refused():
    """The sentence has the frames, the windows and the times that would do."""
    plumes = flows(velocity_of(stream(4, n_frames=9)))
    with pytest.raises(ValueError, match=r"has 9 frames, but windows of 2 \+ 3 .* choose times from -2 to 2"):
        windows(plumes, ["0_0_0"], range(4), n_in=2, n_out=3)
    with pytest.raises(ValueError, match=r"no task `0_0_1`; did you mean `0_0_0`"):
        windows(plumes, ["0_0_1"], range(2), n_in=2, n_out=3)


def test_published_splits_keep_tests_apart():
    """25 and 10 tasks (28 and 10 of the scales) without a common one; no test frame is trained on."""
    for kind, n_tasks, n_train in (("rotation", 36, 25), ("scale", 38, 28)):
        split = PlumeSplit.published(kind)
        every = [f"{k}_{(k - 1) % 4}" for k in range(1, 37)] if kind == "rotation" else [str(k) for k in range(38)]
        assert len(every) == n_tasks
        assert (len(set(split.train_tasks)), len(set(split.domain_tasks))) == (n_train, 10)
        assert {*split.train_tasks, *split.domain_tasks} <= set(every)
        array = np.zeros((309, 2, 2, 2), dtype=np.float32)
        parts = split.windows(flows(*(array for _ in every), kind=kind, names=every))
        assert [len(part) for part in parts] == [n_train * 160, n_train * 40, n_train * 50, 10 * 100]
        last_trained = parts.train[:, 1].max() + split.n_in + split.n_out - 1
        assert last_trained < parts.future[:, 1].min()
        assert not set(parts.train[:, 0]) & set(parts.domain[:, 0])


# --- the sample ---


def test_the_sample_is_sound_and_fills_its_split():
    """Six flows of 32 x 32 cells that pass every check."""
    assert is_plumes(SAMPLE)
    plumes = open_plumes(SAMPLE)
    assert (plumes.kind, plumes.shape) == ("rotation", (25, 2, 32, 32))
    assert not verdicts(plumes)
    assert all(len(part) for part in PlumeSplit.sample().windows(plumes))
    table = plume_stats(plumes)
    assert table.divergence.max() < 1e-3
    assert table.task.tolist() == ["1_0", "2_1", "3_2", "4_3", "5_0", "6_1"]


def test_the_side_that_is_stronger_is_what_breaks_the_samples_symmetry():
    """Side 2 has 1.1 times the buoyancy and is 11 % off; the other sides are turned copies of unbiased flows."""
    errors = {task.info.side: task.info.symmetry_error for task in open_plumes(SAMPLE).tasks}
    assert 0.05 < errors[2] < 0.2
    assert max(errors[side] for side in (0, 1, 3)) < 1e-10


def test_centres_are_read_unless_faces_are_asked_for():
    """Faces next to the walls x = 0 and y = 0 are on them, where nothing flows."""
    faces, centres = (open_plumes(SAMPLE, sampling=where).tasks[1].velocity for where in ("faces", "centres"))
    assert (faces[:, 0, :, 0] == 0).all()
    assert (faces[:, 1, 0] == 0).all()
    np.testing.assert_array_equal(centres, at_centres(faces))
    with pytest.raises(ValueError, match="no sampling `nodes`"):
        open_plumes(SAMPLE, sampling="nodes")  # type: ignore[arg-type]


# --- checks: each has a fault that it finds ---


def four_sides(n_frames: int = 10, seed: int = 0) -> list[np.ndarray]:
    """A flow and its quarter turns."""
    faces = velocity_of(0.2 * stream(6, n_frames=n_frames, seed=seed)).astype(np.float32)
    return [turned(faces, side, "faces") for side in range(4)]


def slow_side(sides):
    """Side 1 is weaker by a hundredth."""
    sides[1] /= 1.01


def compressed_side(sides):
    """Side 2 has a constant added, which ends at the walls."""
    sides[2] += 0.01


def other_unit(sides):
    """All velocities are nine times too large."""
    for side in sides:
        side *= 9


def repeated_frame(sides):
    """Frame 4 of side 3 is a copy of the next one."""
    sides[3][4] = sides[3][5]


def same_side(sides):
    """Side 2 is a copy of side 0."""
    sides[2][:] = sides[0]


def test_a_sound_set_passes():
    """Random flows that are turned into each other have no fault."""
    assert not verdicts(flows(*four_sides()))


@pytest.mark.parametrize(
    ("spoil", "check", "words"),
    [
        (slow_side, "equal sides agree", r"differ by 9\.9e-03 at step 20.*Tasks: 0_1_0\."),
        (compressed_side, "no divergence", r"above 0\.001.*Tasks: 0_2_0\."),
        (other_unit, "velocities in cells per step", "0_0_0, 0_1_0, 0_2_0 and 1"),
        (repeated_frame, "no frame twice", r"Tasks: 0_3_0\."),
        (same_side, "no flow twice", r"Tasks: 0_2_0\."),
    ],
)
def test_a_fault_is_found_and_its_task_named(spoil, check, words):
    """Each check fails for its own fault, and says where it is."""
    sides = [side.copy() for side in four_sides()]
    spoil(sides)
    assert re.search(words, verdicts(flows(*sides))[check])


def test_tests_that_were_trained_on_are_found():
    """A split whose later times overlap the training is named."""
    plumes = flows(*four_sides(n_frames=12))
    split = PlumeSplit(
        ("0_0_0", "0_1_0"), ("0_2_0",), (0, 3), (3, 4), (4, 6), (0, 3), n_in=2, n_out=2, n_rollout=3, lag=0
    )
    assert (
        "Training sees frames of the tests: 4 of Future" in verdicts(plumes, split=split)["no test frame in training"]
    )
    apart = PlumeSplit(
        ("0_0_0", "0_1_0"), ("0_2_0",), (0, 3), (3, 4), (6, 7), (0, 3), n_in=2, n_out=2, n_rollout=3, lag=0
    )
    assert not verdicts(plumes, split=apart)
