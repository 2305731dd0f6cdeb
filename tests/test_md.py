"""Molecular dynamics: conservation, temperature, files and the guard, on ASE's own potentials."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ase import Atoms, io, units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.harmonic import HarmonicCalculator, HarmonicForceField
from ase.constraints import FixAtoms
from ase.md.verlet import VelocityVerlet

from mdrelax.base.seeds import numpy_generator
from mdrelax.engines.md import (
    LOG_COLUMNS,
    degrees_of_freedom,
    energy_drift,
    kinetic_temperature,
    run_md,
    thermal_momenta,
)


class Wrecked(Calculator):
    """Harmonic for ten steps, then a broken energy or a blow that sends the atoms off."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 (ASE's interface)

    def __init__(self, energy: float, force: float) -> None:
        super().__init__()
        self.broken = (energy, force)
        self.calls = 0

    def calculate(self, atoms: Atoms | None = None, *_: Any, **__: Any) -> None:
        """The harmonic energy about the origin, or the broken one."""
        super().calculate(atoms)
        assert atoms is not None
        self.calls += 1
        x = atoms.positions
        energy, force = self.broken if self.calls > 10 else (float((x**2).sum()), 0.0)
        self.results = {"energy": energy, "forces": -2 * x + [force, 0.0, 0.0]}


def _methanol() -> Atoms:
    atoms = molecule("CH3OH")
    atoms.calc = EMT()  # knows C, H and O; smooth enough for dynamics of a few ps
    return atoms


def _momenta(atoms: Atoms, temperature: float = 300.0, seed: int = 0) -> Atoms:
    atoms = atoms.copy()
    atoms.set_momenta(thermal_momenta(atoms, temperature, numpy_generator(seed, "dynamics")))
    return atoms


# --- momenta and temperature ---


@pytest.mark.parametrize("name", ["CH3CH2OH", "CO2", "H2", "H"])
def test_molecules_start_without_momentum_and_rotation(name: str) -> None:
    """Total and angular momentum vanish for bent and linear molecules and for atoms (1e-12: rounding)."""
    atoms = _momenta(molecule(name))
    np.testing.assert_allclose(atoms.get_momenta().sum(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(atoms.get_angular_momentum(), 0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("atoms", "freedom"),
    [(molecule("CH3CH2OH"), 21), (molecule("CO2"), 4), (molecule("H2"), 1), (Atoms("H"), 1), (bulk("Cu") * 2, 21)],
)
def test_degrees_of_freedom_are_those_that_move(atoms: Atoms, freedom: int) -> None:
    """3N - 6 for a molecule, 3N - 5 if linear, 3N - 3 in a cell, 3N with Langevin noise; never less than 1."""
    assert degrees_of_freedom(atoms, "nve") == freedom
    assert degrees_of_freedom(atoms, "nvt") == 3 * len(atoms)


@pytest.mark.parametrize("atoms", [molecule("CH3CH2OH"), molecule("CO2"), bulk("Cu") * 2])
def test_drawn_momenta_have_the_temperature_on_average(atoms: Atoms) -> None:
    """Each moving degree of freedom holds kT/2: the mean over draws is within four standard errors of 300 K."""
    freedom = degrees_of_freedom(atoms, "nve")
    kinetic = [_momenta(atoms, seed=seed).get_kinetic_energy() for seed in range(400)]
    mean = np.mean([kinetic_temperature(energy, freedom) for energy in kinetic])
    standard_error = 300.0 * np.sqrt(2 / freedom / len(kinetic))
    assert abs(mean - 300.0) < 4 * standard_error


def test_constrained_atoms_stay_where_they_are() -> None:
    """ASE's constraints hold: a fixed atom neither moves nor counts as warm."""
    atoms = _methanol()
    atoms.set_constraint(FixAtoms([0]))
    result = run_md(atoms, temperature_K=100, duration_ps=0.01)
    np.testing.assert_array_equal(result.atoms.positions[0], atoms.positions[0])
    assert not np.array_equal(result.atoms.positions[1:], atoms.positions[1:])
    assert degrees_of_freedom(atoms, "nve") == 3 * (len(atoms) - 1)


# --- the two ensembles ---


def test_nve_is_velocity_verlet() -> None:
    """Positions after 40 steps are those of ASE's own ``VelocityVerlet`` from the same momenta."""
    atoms = _methanol()
    result = run_md(atoms, temperature_K=200, duration_ps=0.01, timestep_fs=0.25, seed=4)
    other = _momenta(atoms, 200, seed=4)
    other.calc = EMT()
    VelocityVerlet(other, 0.25 * units.fs).run(40)
    np.testing.assert_allclose(result.atoms.positions, other.positions, atol=1e-12)
    assert result.log.step.iloc[-1] == 40


def test_nve_conserves_the_energy_to_second_order() -> None:
    """Velocity Verlet's energy error falls with the square of the time step (4 within 20 % for a halved step)."""
    spread = [
        np.std(
            run_md(_spring(), temperature_K=300, duration_ps=0.2, timestep_fs=dt, log_interval=1).log.total_energy_eV
        )
        for dt in (1.0, 0.5)
    ]
    assert spread[0] / spread[1] == pytest.approx(4.0, rel=0.2)
    assert spread[1] < 1e-3


def _spring() -> Atoms:
    """Two hydrogen atoms on springs of 5 eV/A^2: a period of 29 fs."""
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 3.0]])
    atoms.calc = HarmonicCalculator(HarmonicForceField(ref_atoms=atoms, ref_energy=0.0, hessian_x=5.0 * np.eye(6)))
    return atoms


def test_nvt_samples_the_temperature() -> None:
    """Mean kinetic and potential energy of six oscillators are kT/2 each (within 15 %: some 100 independent times)."""
    result = run_md(
        _spring(),
        ensemble="nvt",
        temperature_K=300,
        duration_ps=5,
        timestep_fs=2.0,
        friction_per_fs=0.05,
        seed=1,
        log_interval=2,
    )
    warm = result.log[result.log.time_ps > 0.2]
    assert warm.temperature_K.mean() == pytest.approx(300, rel=0.15)
    assert warm.potential_energy_eV.mean() == pytest.approx(3 * units.kB * 300, rel=0.15)
    assert np.isnan(result.drift_meV_per_atom_ps)
    assert not result.exploded


@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
def test_a_seed_gives_one_trajectory(ensemble: Any) -> None:
    """The same seed repeats the run bit for bit, another one does not; the input is left as it was."""
    atoms = _methanol()
    before = atoms.positions.copy()
    first, second, third = (
        run_md(atoms, ensemble=ensemble, temperature_K=300, duration_ps=0.01, seed=seed) for seed in (1, 1, 2)
    )
    pd.testing.assert_frame_equal(first.log, second.log, check_exact=True)
    assert not first.log.equals(third.log)
    np.testing.assert_array_equal(atoms.positions, before)
    assert not atoms.has("momenta")


def test_two_halves_are_the_whole_run() -> None:
    """``keep_momenta`` goes on from the last structure: 20 + 20 NVE steps end where 40 do."""
    whole = run_md(_methanol(), temperature_K=300, duration_ps=0.02, seed=3)
    half = run_md(_methanol(), temperature_K=300, duration_ps=0.01, seed=3)
    rest = run_md(half.atoms, temperature_K=300, duration_ps=0.01, keep_momenta=True)
    np.testing.assert_allclose(rest.atoms.positions, whole.atoms.positions, atol=1e-12)


@pytest.mark.parametrize("motion", ["straight", "turning"])
def test_kept_motion_of_the_whole_counts_all_degrees_of_freedom(motion: str) -> None:
    """Momenta at rest as a whole count 3N - 6, as in the run before; a flying or turning molecule counts 3N."""
    atoms = _momenta(_methanol())
    atoms.calc = EMT()
    arms = atoms.positions - atoms.get_center_of_mass()
    whole = np.broadcast_to([0.0, 0.0, 0.02], arms.shape) if motion == "straight" else np.cross([0, 0, 0.02], arms)
    for velocity, freedom in ((0.0 * whole, 12), (whole, 18)):
        atoms.set_momenta(_momenta(atoms).get_momenta() + atoms.get_masses()[:, None] * velocity)
        kinetic = atoms.get_kinetic_energy()
        result = run_md(atoms, temperature_K=300, duration_ps=0.001, keep_momenta=True)
        assert result.log.kinetic_energy_eV[0] == pytest.approx(kinetic)
        assert result.log.temperature_K[0] == pytest.approx(kinetic_temperature(kinetic, freedom))


# --- log, trajectory, guard ---


def test_drift_is_the_slope_of_the_energy() -> None:
    """A line of 2 meV/ps in 4 atoms, with a ripple that it averages out, is 0.5 meV/atom/ps; one time has no slope."""
    time = np.linspace(0, 10, 1001)
    energy = -154.0 + 2e-3 * time + 1e-3 * np.cos(2 * np.pi * time)
    assert energy_drift(time, energy, 4) == pytest.approx(0.5, abs=1e-3)
    assert energy_drift(time, energy, 4) == pytest.approx(1000 * np.polyfit(time, energy, 1)[0] / 4, rel=1e-6)
    assert np.isnan(energy_drift([0.0], [1.0], 4))
    with pytest.raises(ValueError, match="as many times as energies"):
        energy_drift([0.0, 1.0], [1.0], 4)


def test_log_file_holds_the_table_with_units(tmp_path: Path) -> None:
    """The CSV reads back as the result's log, from step 0 to the last one; progress hears of each line."""
    heard = []
    result = run_md(
        _methanol(), temperature_K=300, duration_ps=0.0125, log=tmp_path / "md.csv", log_interval=10,
        progress=lambda done, total: heard.append((done, total)),
    )  # fmt: skip
    table = pd.read_csv(tmp_path / "md.csv")
    pd.testing.assert_frame_equal(table, result.log, rtol=1e-9)
    assert tuple(table.columns) == LOG_COLUMNS
    assert table.step.tolist() == [0, 10, 20, 25]
    assert heard == [(0, 25), (10, 25), (20, 25), (25, 25)]
    np.testing.assert_allclose(table.potential_energy_eV + table.kinetic_energy_eV, table.total_energy_eV, atol=1e-9)


@pytest.mark.parametrize("suffix", ["extxyz", "traj"])
def test_trajectory_reads_back_with_ase(tmp_path: Path, suffix: str) -> None:
    """Each frame has its time, geometry, momenta and results, and no label of the starting structure."""
    atoms = _methanol()
    atoms.info["REF_energy"] = -1.0
    atoms.arrays["REF_forces"] = np.ones((len(atoms), 3))
    path = tmp_path / f"md.{suffix}"
    result = run_md(
        atoms, temperature_K=300, duration_ps=0.02, trajectory=path, trajectory_interval=20, log_interval=20
    )
    frames = io.read(path, index=":")
    assert [frame.info["time_fs"] for frame in frames] == [0.0, 10.0, 20.0]
    for frame, row in zip(frames, result.log.itertuples(), strict=True):
        energy = frame.info["mdrelax_energy"] if suffix == "extxyz" else frame.get_potential_energy()
        forces = frame.arrays["mdrelax_forces"] if suffix == "extxyz" else frame.get_forces()
        assert energy == pytest.approx(row.potential_energy_eV, abs=1e-6)
        assert np.linalg.norm(forces, axis=1).max() == pytest.approx(row.max_force_eV_per_A, abs=1e-6)
        assert frame.get_kinetic_energy() == pytest.approx(row.kinetic_energy_eV, abs=1e-6)
        assert not {"REF_energy", "REF_forces"} & (frame.info.keys() | frame.arrays.keys())
    np.testing.assert_allclose(frames[-1].positions, result.atoms.positions, atol=1e-7)
    if suffix == "extxyz":
        assert "mdrelax_energy eV" in frames[0].info["units"]


@pytest.mark.parametrize(
    ("energy", "force", "sentence"),
    [
        (np.nan, 0.0, "not a finite number"),
        (0.0, np.inf, "not a finite number"),
        (0.0, 1e4, "more than 20 times 300 K, the largest of the target, the start and 300 K"),
    ],
)
def test_an_exploding_run_stops_and_says_why(tmp_path: Path, energy: float, force: float, sentence: str) -> None:
    """NaN, infinite forces and boiling atoms end the run; the reason is a sentence, and the log ends there."""
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.7]])
    atoms.calc = Wrecked(energy, force)
    result = run_md(atoms, temperature_K=300, duration_ps=1.0, log=tmp_path / "md.csv", trajectory=tmp_path / "md.traj")
    assert result.exploded
    assert sentence in result.reason
    assert len(pd.read_csv(tmp_path / "md.csv")) == len(result.log)
    assert 10 <= result.log.step.iloc[-1] < 20
    assert len(io.read(tmp_path / "md.traj", index=":")) == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ensemble": "nvee"}, "did you mean `nve`"),
        ({"temperature_K": 0.0}, "`temperature_K` must be > 0"),
        ({"timestep_fs": -0.5}, "`timestep_fs` must be > 0"),
        ({"duration_ps": np.nan}, "`duration_ps` must be > 0"),
        ({"friction_per_fs": 0.0}, "`friction_per_fs` must be > 0"),
        ({"log_interval": 0}, "`log_interval` must be > 0"),
        ({"trajectory": "md.pdb"}, "must end in one of .traj, .extxyz, .xyz"),
    ],
)
def test_impossible_settings_are_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    """Each impossible setting raises before the first step."""
    settings: dict[str, Any] = {"temperature_K": 300.0, "duration_ps": 0.01} | changes
    with pytest.raises(ValueError, match=sentence):
        run_md(_methanol(), **settings)


def test_structures_that_cannot_move_are_refused() -> None:
    """No calculator and no atoms are errors."""
    with pytest.raises(ValueError, match="has no calculator"):
        run_md(molecule("H2O"), temperature_K=300, duration_ps=0.01)
    with pytest.raises(ValueError, match="at least one atom"):
        run_md(Atoms(), temperature_K=300, duration_ps=0.01)
