"""Schedules: theta over the training time, from the formulas of the paper and of the module's table."""

import math
from typing import get_args

import numpy as np
import pytest

from mdrelax.method.schedule import Schedule, ScheduleKind

KINDS: tuple[ScheduleKind, ...] = get_args(ScheduleKind)
ENDING = tuple(kind for kind in KINDS if kind != "constant")  # constant never gives the symmetry back


@pytest.mark.parametrize("n_steps", [1, 2, 3, 7, 10, 49, 1000])
@pytest.mark.parametrize("peak", [1.0, 0.3])
@pytest.mark.parametrize("kind", ENDING)
def test_the_last_step_has_theta_zero_exactly(kind: ScheduleKind, peak: float, n_steps: int):
    """Exactly 0, not 2/epochs as in the releases: the last step trains the network that is shipped."""
    assert Schedule(kind, peak).at_step(n_steps - 1, n_steps=n_steps) == 0


def test_a_constant_schedule_stays_at_its_peak():
    """It never ends: the one kind whose network is projected with theta > 0."""
    assert {Schedule("constant", 0.4)(t) for t in np.linspace(0, 1, 11)} == {0.4}


@pytest.mark.parametrize("peak", [1.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_theta_lies_between_zero_and_the_peak(kind: ScheduleKind, peak: float):
    """At every step, and the peak is reached by all but `off` (501 steps: one falls on the middle)."""
    thetas = [Schedule(kind, peak).at_step(step, n_steps=501) for step in range(501)]
    assert min(thetas) >= 0
    assert max(thetas) == (0 if kind == "off" else peak)


def test_the_triangle_is_the_papers():
    """theta(t) = 2t up to the middle of training, 2 - 2t after it (section 3.3 of the paper)."""
    times = np.linspace(0, 1, 101)
    expected = np.where(times <= 0.5, 2 * times, 2 - 2 * times)
    np.testing.assert_allclose([Schedule("triangle")(t) for t in times], expected, atol=1e-15)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("linear", [1, 0.75, 0.5, 0.25, 0]),
        ("cosine", [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0]),
        ("triangle", [0, 0.5, 1, 0.5, 0]),
        ("trapezoid", [0, 1, 1, 1, 0]),
        ("constant", [1, 1, 1, 1, 1]),
        ("off", [0, 0, 0, 0, 0]),
    ],
)
def test_each_kind_at_the_quarters_of_training(kind: ScheduleKind, expected: list[float]):
    """The values of the table in the module, worked out by hand; the trapezoid with its ramps of 1/5."""
    found = [Schedule(kind).at_step(step, n_steps=5) for step in range(5)]
    assert found == pytest.approx(expected, abs=1e-15)


def test_the_trapezoids_ramp_is_as_long_as_asked():
    """With ramp 0.4, half of the peak is reached at 0.2 and left at 0.8."""
    schedule = Schedule("trapezoid", peak=0.6, ramp=0.4)
    assert [schedule(t) for t in (0.2, 0.4, 0.5, 0.6, 0.8)] == pytest.approx([0.3, 0.6, 0.6, 0.6, 0.3])


@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_with_an_end_is_over_by_then(kind: ScheduleKind):
    """With end 0.5 the schedule runs twice as fast, and from the middle on theta is exactly 0, also of `constant`."""
    short, long = Schedule(kind, 0.7, end=0.5), Schedule(kind, 0.7)
    times = np.linspace(0, 1, 101)
    assert [short(t) for t in times[times < 0.5]] == pytest.approx([long(2 * t) for t in times[times < 0.5]])
    assert {short(t) for t in times[times >= 0.5]} == {0.0}


@pytest.mark.parametrize("kind", KINDS)
def test_theta_does_not_jump(kind: ScheduleKind):
    """Between neighbouring steps of 1000 theta moves by at most 1 / (1000 ramp) = 5 / 999."""
    thetas = [Schedule(kind).at_step(step, n_steps=1000) for step in range(1000)]
    assert np.abs(np.diff(thetas)).max() <= 5 / 999 + 1e-12


def test_a_misspelt_kind_names_the_nearest():
    """An unknown schedule is an error that says which ones are known."""
    with pytest.raises(ValueError, match=r"`triangel`; did you mean `triangle`\? Known: constant, cosine"):
        Schedule("triangel").check()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="triangel"):
        Schedule("triangel")(0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="peek"):
        Schedule("triangle", peek=0.5)  # type: ignore[call-arg]


@pytest.mark.parametrize("time", [-0.01, 1.01, math.nan])
def test_times_outside_training_are_refused(time: float):
    """t lies in [0, 1]; a resumed run that counts its steps wrongly is told."""
    with pytest.raises(ValueError, match=r"`time` must lie in \[0, 1\]"):
        Schedule()(time)


@pytest.mark.parametrize("peak", [0.0, -0.1, 1.3, math.nan])
def test_peaks_outside_their_range_are_refused(peak: float):
    """theta is at most 1; a peak of 0 is what `off` is for."""
    with pytest.raises(ValueError, match=rf"`Schedule\(peak=...\)` must lie in \(0, 1\], got {peak}"):
        Schedule(peak=peak).check()


@pytest.mark.parametrize("ramp", [0.0, 0.51, math.nan])
def test_ramps_outside_their_range_are_refused(ramp: float):
    """Two ramps have to fit into the training."""
    with pytest.raises(ValueError, match=rf"`Schedule\(ramp=...\)` must lie in \(0, 0.5\], got {ramp}"):
        Schedule("trapezoid", ramp=ramp)(0.1)


@pytest.mark.parametrize("end", [0.0, -0.5, 1.01, math.nan])
def test_ends_outside_the_training_are_refused(end: float):
    """A schedule takes some of the training and no more than all of it."""
    with pytest.raises(ValueError, match=rf"`Schedule\(end=...\)` must lie in \(0, 1\], got {end}"):
        Schedule("triangle", end=end)(0.1)
