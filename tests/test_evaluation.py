"""`mdrelax eval`: errors kind by kind, the worst structures, and bonds and vibrations of a simulation."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ase import Atoms, units
from ase.calculators.harmonic import SpringCalculator
from ase.io import read, write

from command_line import mdrelax
from mdrelax.analysis.evaluation import errors_by_config_type, take, worst_structures
from mdrelax.analysis.spectra import (
    bond_lengths,
    bond_table,
    draw_bonds,
    draw_spectrum,
    spectrum_distance,
    velocity_spectrum,
)
from mdrelax.base.sections import ConfigError
from mdrelax.cli.evaluate import _name, _recorded
from mdrelax.engines.nve import nve_after_langevin
from mdrelax.forces.metrics import Predictions, errors, net_force_and_torque
from mdrelax.modelfile import load_model
from molecules import ethanol, rattled, water
from small_runs import NETWORK, clusters, document, write_config, write_frames


def predictions() -> Predictions:
    """Three structures of 2, 1 and 3 atoms whose largest force errors are 3, 1 and 2 meV/A; the last has no energy."""
    n_atoms = np.array([2, 1, 3])
    true, error = np.zeros((6, 3)), np.zeros((6, 3))
    error[1, 0], error[2, 1], error[5, 2] = 3e-3, 1e-3, 2e-3
    energy = np.array([0.0, 0.0, np.nan])
    return Predictions(np.array([1, 1, 8, 1, 1, 6]), n_atoms, energy, np.array([1e-3, 2e-3, 3e-3]), true, true + error)


def test_the_worst_structures_come_first() -> None:
    """By the largest force error of one atom; a NaN is worse than any number."""
    assert worst_structures(predictions(), 3).tolist() == [0, 2, 1]
    broken = predictions()
    broken.forces_pred[2] = np.nan
    assert worst_structures(broken, 1).tolist() == [1]
    without = predictions()._replace(forces_true=None, forces_pred=None)
    assert worst_structures(without, 3).tolist() == [1, 0, 2]  # meV/atom; no label comes last


def test_errors_of_a_kind_are_those_of_its_structures() -> None:
    """Each kind as if it were alone, in the order of appearance."""
    table = errors_by_config_type(predictions(), ["bulk", "gas", "bulk"]).set_index("config_type")
    assert list(table.index) == ["bulk", "gas"]
    assert table.n_structures.tolist() == [2, 1]
    alone = errors(take(predictions(), np.array([1])))
    assert table.loc["gas"].forces_mae_meV_per_A == alone["forces_mae_meV_per_A"]
    assert table.loc["bulk"].energy_mae_meV == pytest.approx(1.0)


def test_net_force_and_torque_are_those_of_mechanics() -> None:
    """A pair of opposite forces across a lever of 2 A: no net force, torque 2 eV; two equal ones: 2 eV/A, no torque."""
    positions = np.array([[0.0, 0, 0], [2.0, 0, 0]])
    couple = net_force_and_torque(np.array([[0, -1.0, 0], [0, 1.0, 0]]), positions + 7.0, np.array([2]))
    assert couple == pytest.approx({"net_force_meV_per_A": 0.0, "net_torque_meV": 2000.0})
    push = net_force_and_torque(np.array([[0, 1.0, 0], [0, 1.0, 0]]), positions, np.array([2]))
    assert push == pytest.approx({"net_force_meV_per_A": 2000.0, "net_torque_meV": 0.0})


def test_bonds_are_compared_kind_by_kind() -> None:
    """A molecule with all bonds 1 % longer: the means and the distance say so."""
    frames = rattled(water(), 50, seed=0, amplitude=0.02)
    longer = [Atoms(atoms.numbers, 1.01 * atoms.positions) for atoms in frames]
    reference, simulated = (bond_lengths(each, water()) for each in (frames, longer))
    assert list(reference) == ["H-O"]
    assert len(reference["H-O"]) == 100
    (row,) = bond_table(simulated, reference).to_dict("records")
    assert row["mean_A"] == pytest.approx(1.01 * row["reference_mean_A"])
    assert row["distance_A"] == pytest.approx(0.01 * row["reference_mean_A"], rel=0.02)
    assert set(bond_lengths([ethanol()], ethanol())) == {"C-C", "C-H", "C-O", "H-O"}
    assert len(draw_bonds(simulated, reference).axes) == 1


def test_a_springs_frequency_is_the_spectrums_peak() -> None:
    """An atom on a spring of k: sqrt(k / m) / (2 pi c), to the resolution of a window of 2 ps (17 / cm)."""
    atoms = Atoms("C", positions=[[0.1, 0, 0]])
    atoms.calc = SpringCalculator(np.zeros((1, 3)), k=30.0)
    frames = []
    velocity = np.zeros(3)
    mass, step = atoms.get_masses()[0], 0.5 * units.fs
    position = np.array([0.1, 0.0, 0.0])
    for k in range(16_000):  # velocity Verlet by hand
        velocity = velocity - 0.5 * step * 30.0 * position / mass
        position = position + step * velocity
        velocity = velocity - 0.5 * step * 30.0 * position / mass
        if k % 4 == 0:
            frames.append(Atoms("C", positions=[position], velocities=[velocity]))
    spectrum = velocity_spectrum(frames, 2.0)
    peak = spectrum.wavenumber_per_cm[spectrum.intensity.idxmax()]
    expected = np.sqrt(30.0 / mass) / (2 * np.pi) / (units._c * 100) * (units.s)
    assert peak == pytest.approx(expected, abs=17)
    assert spectrum.intensity.sum() == pytest.approx(1)
    assert draw_spectrum(spectrum).axes[0].get_xlim() == (0, 4000)
    with pytest.raises(ValueError, match="at most 5 fs"):
        velocity_spectrum(frames, 10.0)


def test_the_command_writes_what_it_measured(tmp_path: Path) -> None:
    """Tables, worst structures with predictions beside references, dynamics with its spectra; numbers agree."""
    source = write_frames(tmp_path / "frames.xyz", clusters(34))
    training = {"steps": 4, "batch_size": 4, "validate_every": 2, "warmup_steps": 1}
    config = document(source, training=training, potential={"arguments": NETWORK})
    assert mdrelax("train", write_config(tmp_path / "config.yaml", config), "--out", tmp_path / "run").code == 0
    out = tmp_path / "eval"
    options = ["--out", out, "--frames", "10", "--worst", "3", "--nve", "0.05", "--temperature", "30"]
    said = mdrelax("eval", tmp_path / "run" / "model.safetensors", source, *options)
    assert said.code == 0, said.err
    summary = json.loads((out / "eval.json").read_text())
    assert summary["n_structures"] == 10
    assert summary["trained"] == {"seed": 0, "schedule": "triangle"}
    assert summary["model_content"] == load_model(tmp_path / "run" / "model.safetensors").header["content"]
    worst = read(out / "worst.extxyz", ":")
    sizes = [np.linalg.norm(a.arrays["mdrelax_forces"] - a.arrays["REF_forces"], axis=1).max() for a in worst]
    assert sizes == sorted(sizes, reverse=True)
    assert pd.read_csv(out / "percentiles.csv")["max"].max() >= 1e3 * sizes[0] / np.sqrt(3)
    assert summary["md"]["exploded"] is False
    assert len(pd.read_csv(out / "nve.csv")) == 11
    assert {"parity.png", "nve.png", "spectrum.png", "bonds.csv"} <= {path.name for path in out.iterdir()}
    refused = mdrelax("eval", tmp_path / "run" / "model.safetensors", source, "--frames", "0")
    assert (refused.code, "at least 1" in refused.err) == (2, True)
    again = mdrelax("eval", tmp_path / "run" / "model.safetensors", source, "--out", out)
    assert (again.code, "--overwrite" in again.err) == (2, True)
    units = ["--energy-unit", "kcal/mol", "--energy-key", "REF_energy", "--overwrite", "--out", out]
    other_run = [tmp_path / "run" / "model.safetensors", source]
    other = mdrelax("eval", *other_run, *units, "--frames", "10")
    assert other.code == 0, other.err
    assert "kcal/mol" in other.out
    signed = ["--forces-unit", "kcal/mol/A", "--forces-sign", "opposite", "--overwrite", "--out", tmp_path / "signed"]
    assert "note: The sign of the forces is changed." in mdrelax("eval", *other_run, *signed).out
    assert not (out / "nve.csv").exists(), "older dynamics does not stand beside new errors"
    smaller = json.loads((out / "eval.json").read_text())["errors"]
    assert smaller["forces_mae_meV_per_A"] != summary["errors"]["forces_mae_meV_per_A"]


def test_an_evaluation_is_named_after_what_was_trained(tmp_path: Path) -> None:
    """Every run's file is called model.safetensors."""
    assert _name(tmp_path / "relaxed-0" / "model.safetensors") == "relaxed-0"
    assert _name(tmp_path / "ethanol.safetensors") == "ethanol"


def swinging(turn: float) -> list[Atoms]:
    """A thousand waters, 2 fs apart, whose atoms swing by ``turn`` rad a frame."""
    frames = []
    for k in range(1000):
        atoms = water()
        atoms.set_velocities(np.cos(turn * k) * np.ones((3, 3)))
        atoms.info["time_fs"] = 2.0 * k
        frames.append(atoms)
    return frames


def test_vibrations_are_compared_with_those_of_a_reference_trajectory(tmp_path: Path) -> None:
    """The spectrum of a file is that of its frames; what has no times, no velocities or other atoms is refused."""
    slow, fast = swinging(0.3), swinging(0.4)
    one, other = (velocity_spectrum(frames, 2.0) for frames in (slow, fast))
    shift = 0.1 / 2.0 / (2 * np.pi) / (units._c * 1e-13)  # 0.1 rad in 2 fs as a wavenumber, 1 / cm
    assert spectrum_distance(one, one) == 0
    assert spectrum_distance(one, other) == pytest.approx(shift, rel=0.05)  # a line is as wide as its window
    assert len(draw_spectrum(one, other).axes[0].lines) == 2
    write(tmp_path / "md.extxyz", slow[:100])
    recorded = _recorded(tmp_path / "md.extxyz", None, water())
    assert np.allclose(recorded.intensity, velocity_spectrum(slow[:100], 2.0).intensity, atol=1e-6)
    with pytest.raises(ConfigError, match="name one of these"):
        _recorded(tmp_path / "md.extxyz", None, ethanol())
    for frame in fast:
        frame.info.clear()
    write(tmp_path / "untimed.extxyz", fast[:20])
    with pytest.raises(ConfigError, match="--reference-interval"):
        _recorded(tmp_path / "untimed.extxyz", None, water())
    write(tmp_path / "still.extxyz", [water() for _ in range(20)])
    with pytest.raises(ConfigError, match="no velocities"):
        _recorded(tmp_path / "still.extxyz", 2.0, water())


def test_a_warm_up_that_explodes_is_the_result(tmp_path: Path) -> None:
    """No NVE starts from what has flown apart: no drift, the reason, and no log of an older run."""
    atoms = water()
    atoms.calc = SpringCalculator(atoms.positions.copy(), k=-3000.0)  # pushes away what has moved
    (tmp_path / "nve.csv").write_text("an older run")
    result = nve_after_langevin(atoms, temperature_K=300.0, warm_up_ps=0.1, duration_ps=0.1, log=tmp_path / "nve.csv")
    assert result.exploded
    assert np.isnan(result.drift_meV_per_atom_ps)
    assert result.reason.startswith("In the warm-up: ")
    assert not (tmp_path / "nve.csv").exists()
