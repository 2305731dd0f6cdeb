"""A training step of RSteer at hidden 92: at least twice as fast as the published form, in half the memory."""

import pytest

from mdrelax.analysis.benchmarks.smoke import FORMS, smoke_times


@pytest.mark.slow
def test_a_published_step_is_twice_as_fast_in_half_the_memory_and_relaxation_costs_a_fifth_at_most():
    """Processor time, in turns; memory in processes of their own. Fewer windows and frames than published, for time."""
    table = smoke_times("published", batch_size=4, n_frames=2, repeats=3).set_index("form")
    assert list(table.index) == list(FORMS)
    assert table.speed_up["standard"] >= 2
    assert table.memory_ratio["standard"] <= 0.5
    assert table.cost_of_relaxation["relaxed"] <= 1.2
