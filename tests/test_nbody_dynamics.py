"""N-body dynamics: the comparison of a force field with the simulator, on force fields whose answer is known."""

import json

import numpy as np
import pytest
from ase.calculators.calculator import Calculator, all_changes

from mdrelax.analysis.studies.nbody_dynamics import compare_dynamics, dynamics_figure, starts, write_comparison
from mdrelax.datasets.nbody_frames import NBodyCalculator


class NoForce(Calculator):
    """Free particles: positions after a time t are x + v t."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 (ASE's interface)

    def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)):
        """Zeros."""
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3))}


def test_the_simulator_does_not_diverge_from_itself():
    """The exact potential as the model: no distance, the same energy drift, and a nudged start moves away."""
    table = compare_dynamics(NBodyCalculator("charged"), "charged", n_starts=2, duration=0.3)
    assert (table.divergence == 0).all()
    assert (table.energy_drift_model == table.energy_drift_exact).all()
    assert sorted(table.time.unique().round(6)) == [0.0, 0.1, 0.2, 0.3]
    assert table.sensitivity[table.time == 0].between(5e-4, 4e-3).all()  # 1e-3 a coordinate, root of three of them
    assert table.energy_drift_exact.abs().max() < 1e-2


def test_free_particles_diverge_by_half_the_acceleration():
    """Without forces d(t) = |a| t^2 / 2 to leading order; a from the exact forces, all masses 1."""
    table, system = compare_dynamics(NoForce(), "springs", n_starts=1, duration=0.1), starts("springs", 1)[0]
    system.calc = NBodyCalculator("springs")
    acceleration = np.sqrt(np.square(system.get_forces()).sum(1).mean())
    found = table.divergence[table.time.round(6) == 0.1].item()
    assert found == pytest.approx(acceleration * 0.1**2 / 2, rel=0.1)
    assert table.energy_drift_model.abs().max() < 1e-12


def test_the_files_hold_the_medians_and_the_command(tmp_path):
    """dynamics.json repeats what the table says; the figure is there."""
    lines = write_comparison(
        NBodyCalculator("gravity"), "gravity", tmp_path, n_starts=2, duration=0.2, command="mdrelax bench nbody-md x"
    )
    record = json.loads((tmp_path / "dynamics.json").read_text())
    assert record["command"] == "mdrelax bench nbody-md x"
    assert record["medians_by_time"]["0.2"]["divergence"] == 0
    assert {"seed", "date", "torch"} <= record["environment"].keys()
    assert (tmp_path / "dynamics.png").read_bytes().startswith(b"\x89PNG")
    assert "energy drift at the end" in lines[1]


def test_the_figure_shows_three_distances_and_two_drifts():
    """Five median lines with their bands."""
    figure = dynamics_figure(compare_dynamics(NoForce(), "charged", n_starts=2, duration=0.3))
    assert [len(ax.lines) for ax in figure.axes] == [3, 2]
    assert [len(ax.collections) for ax in figure.axes] == [3, 2]
