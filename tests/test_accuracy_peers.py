"""Other packages' own training, by their recipes: a few steps of each. Needs `make peers`; `-m peer`."""

import os
from pathlib import Path

import pytest

from blueprint import ROOT
from mdrelax.analysis.benchmarks.accuracy import (
    HOUR,
    PEERS,
    Inputs,
    Sizes,
    implementation,
    planned,
    read_results,
    run_all,
)

VENVS = Path(os.environ.get("MDRELAX_PEERS", ROOT / ".peers"))
PARAMETERS = {"mace": 604_432, "nequip": 849_024, "tensornet": 766_337, "painn": 589_057}


@pytest.mark.peer
@pytest.mark.parametrize("model", PEERS)
def test_a_peer_is_trained_by_its_recipe(tmp_path: Path, model: str) -> None:
    """The network of the speed benchmark; a few CPU seconds end within 1.5 of the budget (a step takes a second)."""
    if not implementation(model, VENVS).installed:
        pytest.skip(f"{model} is not installed: make peers")
    runs = planned(["ethanol"], [model], [15 / HOUR], [0])
    inputs = Inputs(None, VENVS, Sizes(40, 10, 10), sample=True)
    run_all(runs, tmp_path / "runs", tmp_path / "results", inputs, jobs=1, command="")
    (found,) = read_results(tmp_path / "results")
    assert found["n_parameters"] == PARAMETERS[model]
    assert found["steps"] >= 2
    assert found["budget_used"] < 1.5
    assert found["test"]["forces_mae_meV_per_A"] < 1200  # without forces: 850 to 1,000
    assert found["recipe"]["source"]
    assert found["versions"]["torch"]
