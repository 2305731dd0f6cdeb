"""The speed benchmark: it times what it says, in turns, and its ratios are those of its medians."""

import json

import pytest

from mdrelax.analysis.benchmarks.backbones import backbone_times
from mdrelax.analysis.benchmarks.speed import nbody_step_times, write_speed
from mdrelax.potentials import POTENTIALS


def test_the_table_names_every_network_and_its_ratios(tmp_path):
    """Plain form, standard, relaxed with either penalty, projected: parameters as published, ratios of medians."""
    table = nbody_step_times(repeats=1)
    assert list(table.index) == [
        "plain e3nn", "standard", "relaxed, activation penalty", "relaxed, weight penalty", "projected",
    ]  # fmt: skip
    assert table.n_parameters.tolist() == [147_424, 147_424, 344_032, 344_032, 147_424]
    assert table.ratio_to_standard["standard"] == table.times_faster_than_plain["plain e3nn"] == 1
    expected = table.ms_median["plain e3nn"] / table.ms_median["standard"]
    assert table.times_faster_than_plain["standard"] == pytest.approx(expected)
    csv, record = write_speed(table, tmp_path, command="mdrelax bench speed")
    assert csv.read_text().startswith("network,ms_lower_quartile,ms_median")
    assert json.loads(record.read_text())["networks"]["standard"]["n_parameters"] == 147_424


def test_every_potential_is_timed_in_training_and_in_dynamics():
    """Three kinds of steps for each potential; a free map adds no parameter to what is counted."""
    table = backbone_times(batch_size=1, repeats=1, sizes=("tiny",))
    kinds = ("training", "training, relaxed", "MD")
    assert list(table.index) == [f"{name} tiny: {kind}" for name in POTENTIALS for kind in kinds]
    assert (table.ms_median > 0).all()
    assert table.groupby(table.n_parameters).size().tolist() == [3, 3, 3]
