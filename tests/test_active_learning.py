"""The active-learning example in miniature: both arms, two rounds, resumed."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from blueprint import ROOT
from small_runs import NETWORK

SCRIPT = ROOT / "docs" / "examples" / "active_learning.py"


def example() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("active_learning", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_both_arms_grow_by_frames_of_the_pool_and_are_not_run_twice(tmp_path: Path) -> None:
    """Each round adds frames that were not there; the first round is the same in both; a second call trains nothing."""
    pytest.importorskip("tblite")
    script = example()
    config = script.recipe() | {"potential": {"cutoff": 4.0, "arguments": dict(NETWORK)}}
    config["training"] |= {"committee": 2, "steps": 6, "validate_every": 6, "warmup_steps": 0}
    sizes = {"rounds": 2, "start": 10, "per_round": 3, "pool": 24, "test": 4}
    curve = script.main(tmp_path, molecule="H2O", config=config, **sizes)
    assert curve.n_labels.tolist() == [10, 13, 10, 13]
    assert curve.forces_mae_meV_per_A[0] == pytest.approx(curve.forces_mae_meV_per_A[2], rel=1e-6)
    added = [json.loads((tmp_path / arm / "round-0.json").read_text())["next"] for arm in script.ARMS]
    assert all(len(set(places)) == 3 for places in added)
    assert added[0] != added[1]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    again = script.main(tmp_path, molecule="H2O", config=config, **sizes)
    assert again.equals(curve)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == times
    assert (tmp_path / "curve.png").stat().st_size > 5000
