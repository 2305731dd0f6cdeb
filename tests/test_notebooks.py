"""The notebooks of the documentation run as they stand, and without the command line."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "docs" / "notebooks").glob("*.ipynb"))


def _cells(path: Path) -> list[str]:
    document = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in document["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that the notebook of Python runs leaves, run cell by cell in an empty folder."""
    (path,) = [path for path in NOTEBOOKS if path.stem == "from_python"]
    found: dict[str, Any] = {}
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("notebook"))
    try:
        for cell in _cells(path):
            exec(compile(cell, str(path), "exec"), found)
    finally:
        os.chdir(before)
    return found


def test_it_trains_on_a_list_of_atoms_and_continues_from_the_file(names: dict[str, Any]) -> None:
    """Both runs are certified; the second begins where the first ended and is better."""
    assert names["run"].certificate.passed
    assert names["longer"].certificate.passed
    assert names["after"] < names["before"]
    assert names["run"].results["baselines"]["mean"]["forces_mae_meV_per_A"] > names["before"]


def test_its_dynamics_keep_the_energy(names: dict[str, Any]) -> None:
    """Velocity Verlet at 100 K: below 1 meV per atom in 50 fs."""
    assert abs(names["atoms"].get_total_energy() - names["start"]) / len(names["atoms"]) < 1e-3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs_and_leave_the_door_alone(path: Path) -> None:
    """Outputs would grow stale; a notebook imports nothing of the command line."""
    document = json.loads(path.read_text(encoding="utf-8"))
    assert all(not cell["outputs"] for cell in document["cells"] if cell["cell_type"] == "code")
    assert "mdrelax.cli" not in path.read_text(encoding="utf-8")
