"""`mdrelax runs`: a search as a table: the settings that differ, and validation errors, never the test's."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from command_line import mdrelax
from mdrelax.analysis.runs import find_runs, table_of_runs


def write_run(place: Path, rate: float, forces: float, *, finished: bool = True) -> None:
    """The files of a run with this learning rate and last validation error."""
    place.mkdir(parents=True)
    config = {"training": {"learning_rate": rate, "betas": [0.9, 0.99]}, "data": {"train": 950}}
    (place / "config.yaml").write_text(yaml.safe_dump(config))
    columns = {"train_forces_mae_meV_per_A": [9.0, 8.0], "val_forces_mae_meV_per_A": [forces + 1, forces]}
    pd.DataFrame({"step": [10, 20], **columns}).to_csv(place / "metrics.csv", index=False)
    if finished:
        test = {"forces_mae_meV_per_A": 123.456}
        (place / "results.json").write_text(json.dumps({"cpu_seconds": 90.0, "test": test}))


@pytest.fixture
def searched(tmp_path: Path) -> Path:
    """Two stages of a search; one run is not finished."""
    write_run(tmp_path / "one" / "slow", 0.001, 12.0)
    write_run(tmp_path / "one" / "fast", 0.005, 10.0)
    write_run(tmp_path / "two" / "wild", 0.02, 40.0, finished=False)
    return tmp_path


def test_the_best_run_comes_first_with_what_makes_it_differ(searched: Path) -> None:
    """Only the learning rate differs, so it is the only setting shown; an unfinished run has no cost."""
    table = table_of_runs(find_runs([searched / "two", searched / "one"]))
    assert list(table.run) == ["one/fast", "one/slow", "two/wild"]
    assert list(table["training.learning_rate"]) == [0.005, 0.001, 0.02]
    assert not {"training.betas", "data.train"} & set(table)
    assert list(table.validation_forces) == [10.0, 12.0, 40.0]
    assert list(table.cpu_minutes[:2]) == [1.5, 1.5]
    assert table.cpu_minutes.isna()[2]


def test_a_run_is_listed_once_however_often_it_is_given(searched: Path) -> None:
    """The folder of a search, and a run in it."""
    assert len(find_runs([searched, searched / "one" / "slow"])) == 3


def test_the_command_keeps_the_table_without_test_errors(searched: Path) -> None:
    """runs.csv and runs.json with machine and command; a folder without runs is named."""
    said = mdrelax("runs", searched / "one", "--out", searched / "kept")
    assert said.code == 0, said.err
    assert "123.5" not in said.out
    record = json.loads((searched / "kept" / "runs.json").read_text())
    assert record["rows"][0]["run"] == "fast"
    assert record["environment"]["torch"]
    assert not (searched / "kept" / "layers.csv").exists(), "nothing was relaxed"
    pd.DataFrame({"step": [10], "layer": "a", "norm": 0.5}).to_csv(searched / "one/fast/layers.csv", index=False)
    mdrelax("runs", searched / "one", "--out", searched / "kept")
    assert pd.read_csv(searched / "kept" / "layers.csv").to_dict("records") == [
        {"run": "fast", "step": 10, "layer": "a", "norm": 0.5}
    ]
    (searched / "empty").mkdir()
    said = mdrelax("runs", searched / "empty")
    assert said.code != 0
    assert "There is no run in" in said.err
