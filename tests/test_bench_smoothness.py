"""`mdrelax bench smoothness`: what networks learn from, and what is measured."""

import json

import numpy as np
import pandas as pd
import pytest
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

from command_line import mdrelax
from mdrelax.analysis.benchmarks.smoothness import (
    DISPLACEMENTS,
    NETWORKS,
    copper,
    copper_frames,
    draw_smoothness,
    force_constants,
    train_on_copper,
)
from mdrelax.base.sections import ConfigError


def test_the_frames_are_labelled_by_emt_and_rattled_in_equal_ratios():
    """34 frames, from 0.003 to 0.1 A, each with EMT's energy and forces."""
    frames = copper_frames()
    assert len(frames) == 34
    sizes = [np.sqrt(((frame.positions - copper().positions) ** 2).mean()) for frame in frames]
    assert sizes[0] == pytest.approx(0.003, rel=0.2)  # 96 coordinates scatter by 1 / sqrt(2 * 96)
    assert sizes[-1] == pytest.approx(0.1, rel=0.2)
    again = frames[-1].copy()
    again.calc = EMT()
    np.testing.assert_allclose(frames[-1].get_forces(), again.get_forces(), rtol=0, atol=1e-12)


def test_the_force_constant_is_the_second_derivative_of_the_energy():
    """Of Lennard-Jones argon, against second differences of the energy, and even in d up to the fourth order."""
    from ase.build import bulk

    atoms, step = bulk("Ar", cubic=True) * (2, 2, 2), 1e-3
    calculator = LennardJones(sigma=3.4, epsilon=0.01, rc=6.0, smooth=True)
    near, far = force_constants(calculator, atoms, (step, 1e-2))
    energies = []
    for distance in (-step, 0, step):
        moved = atoms.copy()
        moved.positions[0, 0] += distance
        moved.calc = calculator
        energies.append(moved.get_potential_energy())
    assert near == pytest.approx((energies[0] - 2 * energies[1] + energies[2]) / step**2, rel=1e-4)
    assert far == pytest.approx(near, rel=1e-2)


def test_a_network_of_another_name_is_refused(tmp_path):
    """With the nearest one that there is."""
    with pytest.raises(ConfigError, match="no arm `equiformr`; did you mean `equiformer`"):
        train_on_copper(tmp_path, ["equiformr"], seeds=[0], steps=1, jobs=1)


def test_the_picture_shows_the_table():
    """A line for EMT and one for each network; what is far off does not squeeze the rest."""
    row = dict.fromkeys([f"k({d:g} A)" for d in DISPLACEMENTS], 7.5)
    rows = [{"network": "EMT", **row}, *({"network": name, "seed": 0, **row} for name in NETWORKS)]
    rows[-1]["k(0.0001 A)"] = 2201.0
    (ax,) = draw_smoothness(pd.DataFrame(rows)).axes
    assert len(ax.lines) == 1 + len(NETWORKS)
    assert ax.get_ylim()[1] == pytest.approx(22.5)


@pytest.mark.slow
def test_the_default_network_has_the_force_constant_of_copper(tmp_path):
    """Within 5 % of EMT's at every displacement after 400 steps, and constant within 3 % up to 0.03 A."""
    out = tmp_path / "smoothness"
    said = mdrelax("bench", "smoothness", "--networks", "equiformer", "--steps", "400", "--out", out, "--jobs", "1")
    assert said.code == 0, said.err
    emt, network = json.loads((out / "smoothness.json").read_text())["rows"]
    columns = [f"k({d:g} A)" for d in DISPLACEMENTS]
    for column in columns:
        assert network[column] == pytest.approx(emt[column], rel=0.05)
    for column in columns[:-1]:
        assert network[column] == pytest.approx(network[columns[0]], rel=0.03)
    assert network["float32_force_eV_per_A"] < 1e-5
