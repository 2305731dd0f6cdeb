"""A training step of RSteer at hidden 92: at least twice as fast as the published form, in half the memory."""

import pytest

from mdrelax.analysis.benchmarks.smoke import FORMS, smoke_times, step_memory


@pytest.mark.slow
def test_a_published_step_is_twice_as_fast_and_relaxation_costs_a_fifth_at_most():
    """Processor time, in turns in one process. Fewer windows and frames than published, which changes no ratio."""
    table = smoke_times("published", batch_size=4, n_frames=2, repeats=3).set_index("form")
    assert list(table.index) == list(FORMS)
    assert table.speed_up["standard"] >= 2
    assert table.cost_of_relaxation["relaxed"] <= 1.2


@pytest.mark.slow
def test_a_published_batch_takes_half_the_memory():
    """Growth of the largest resident size (Linux), 16 windows; three frames, which favours the plain form."""
    plain, own = (step_memory(form, "published", batch_size=16, n_frames=3) for form in FORMS[:2])
    assert own < plain / 2, f"{own:.0f} MB against {plain:.0f} MB"
