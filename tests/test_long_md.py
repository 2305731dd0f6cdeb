"""`mdrelax bench long-md`: what is measured, how runs resume, and the table in the docs."""

import mmap
import tracemalloc
from functools import partial

import numpy as np
import pandas as pd
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.io import iread, write

from blueprint import ROOT
from command_line import mdrelax
from mdrelax.analysis.benchmarks.long_md import LIMIT, MOLECULES, SYSTEMS, laws, page, planned, read_results
from mdrelax.analysis.benchmarks.long_run import LongRun, kept_by, long_run, memory_of
from mdrelax.base.allocator import open_files, resident_memory
from mdrelax.base.sections import ConfigError
from mdrelax.engines.md import run_md
from mdrelax.engines.npt import run_npt
from untrained_models import saved

LENGTHS = {"ps": 100.0, "plain_ps": 10.0, "npt_ps": 20.0, "compiled": True}
STORED = ROOT / "docs/results/long_md"


def _turning_pair() -> tuple[Atoms, float]:
    """Two nitrogen atoms that turn about their centre, and their angular momentum in hbar from SI constants."""
    pair = Atoms("N2", [[0, 0, 0], [1.1, 0, 0]])
    speed = 0.01  # A/fs
    pair.set_velocities(np.array([[0, -speed, 0], [0, speed, 0]]) / units.fs)
    mass = pair.get_masses()[0] * 1.66053906660e-27  # kg
    return pair, 2 * mass * (speed * 1e5) * 0.55e-10 / 1.054571817e-34


def test_angular_momentum_is_measured_in_hbar_and_the_centre_in_angstrom():
    """Against SI constants, in the frame where both are largest."""
    pair, expected = _turning_pair()
    far = pair.copy()
    far.positions += [3, 4, 0]
    found = kept_by([pair, far, pair])
    assert found["angular_momentum_hbar"] == pytest.approx(expected, rel=1e-6)
    assert found["centre_of_mass_A"] == pytest.approx(5.0)
    assert (found["bonds"], found["broken"]) == (1, False)


@pytest.mark.parametrize(("length", "broken"), [(1.64, False), (1.66, True), (np.nan, True), (np.inf, True)])
def test_a_bond_is_broken_above_one_and_a_half_times_its_length(length, broken):
    """Of 1.1 A: 1.65 A. A length that is not finite is broken, also if later ones are."""
    frames = [Atoms("N2", [[0, 0, 0], [x, 0, 0]]) for x in (1.1, length, 1.1)]
    assert kept_by(frames)["broken"] == broken


def test_memory_is_that_of_the_longest_part_made_by_one_process():
    """A run of two processes; the second one made more steps: 900 in 9 s."""
    samples = pd.DataFrame(
        {
            "stretch": ["a"] * 3 + ["b"] * 11,
            "step": [0, 50, 90, *range(100, 1001, 90)],
            "resident_MB": [900.0] * 3 + [*np.arange(11.0)],
            "open_files": [90] * 3 + [7] * 10 + [8],
            "cpu_seconds": [0.0, 1.0, 2.0, *(100 + np.arange(11) * 0.9)],
        }
    )
    found = memory_of(samples)
    assert found["processes"] == 2
    assert found["resident_MB"] == [1.0, 5.0, 10.0]
    assert found["open_files"] == [7, 7, 8]
    assert found["steps_per_cpu_second"] == pytest.approx(100.0)


def test_open_files_and_memory_are_those_of_this_process(tmp_path):
    """An open file more, and 67 MB more for pages that have been written."""
    files, memory = open_files(), resident_memory()
    if np.isnan(files):
        pytest.skip("no /proc on this system")
    with (tmp_path / "file").open("w"):
        assert open_files() == files + 1
    with mmap.mmap(-1, 64 << 20) as pages:  # an array might lie in memory that the process has kept
        for start in range(0, len(pages), mmap.PAGESIZE):
            pages[start] = 1
        assert resident_memory() - memory == pytest.approx(len(pages) / 1e6, rel=0.1)


def _note_memory(sizes: list[int], done: int, total: int) -> None:
    sizes.append(tracemalloc.get_traced_memory()[0])


def test_a_run_with_a_log_keeps_no_rows_of_it_in_memory(tmp_path):
    """Rows are read from the file at the end: 80 of them in memory are 40 kB, as without a log."""
    atoms = molecule("H2O")
    atoms.calc = EMT()
    settings = {"temperature_K": 10, "duration_ps": 0.05, "log_interval": 1}
    grown = []
    for log in (tmp_path / "md.csv", None):
        sizes: list[int] = []
        tracemalloc.start()
        result = run_md(atoms, log=log, progress=partial(_note_memory, sizes), **settings)
        tracemalloc.stop()
        grown.append(sizes[100] - sizes[20])
        assert len(result.log) == 101
    assert grown[0] < 12_000  # the sizes themselves are 3 kB
    assert grown[1] > 25_000


# --- constant pressure ---


def _copper() -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.calc = EMT()
    return atoms


def test_the_conserved_quantity_fluctuates_four_times_less_with_half_the_step():
    """The integrator is of second order, so the error of a conserved quantity is too; a wrong stress would drift."""
    spread = []
    for timestep in (4.0, 2.0):
        run = run_npt(_copper(), temperature_K=300, duration_ps=0.4, timestep_fs=timestep, interval=1)
        spread.append(run.log.conserved_eV.std())
    assert spread[0] / spread[1] == pytest.approx(4.0, rel=0.25)
    assert abs(run.drift_meV_per_atom_ps) < LIMIT


def test_the_cell_breathes_under_the_barostat_and_the_start_is_not_changed(tmp_path):
    """The volume moves; pressure makes it smaller; every logged step has a frame."""
    atoms, volumes = _copper(), []
    for pressure in (0.0, 20.0):
        run = run_npt(
            atoms, temperature_K=300, duration_ps=0.4, timestep_fs=4.0, pressure_GPa=pressure, interval=20,
            trajectory=tmp_path / f"{pressure}.traj",
        )  # fmt: skip
        volumes.append(run.log.volume_A3)
        assert [frame.get_volume() for frame in iread(tmp_path / f"{pressure}.traj")] == run.log.volume_A3.tolist()
    assert volumes[0].std() > 0.01
    assert volumes[1].mean() < 0.97 * volumes[0].mean()  # 20 GPa of a bulk modulus of 140 GPa
    assert atoms.get_volume() == bulk("Cu", cubic=True).get_volume()


def test_constant_pressure_is_refused_where_it_makes_no_sense():
    """A molecule has no volume; no length of time is negative."""
    with pytest.raises(ValueError, match="periodic in three directions"):
        run_npt(molecule("H2O"), temperature_K=300, duration_ps=1)
    with pytest.raises(ValueError, match="must be > 0, got 300, -1"):
        run_npt(_copper(), temperature_K=300, duration_ps=-1)


# --- runs ---


def test_a_finished_run_is_continued_by_more_picoseconds(tmp_path):
    """Its log begins with the shorter one, its momenta neither translate nor rotate, and two processes are counted."""
    model, start = saved(tmp_path / "m.safetensors", 1, 6, 8), tmp_path / "start.xyz"
    write(start, molecule("CH3OH"), format="extxyz")
    run = LongRun("methanol", 300.0, 0.05, compiled=False, warm_up=0.01)
    short = long_run(run, model, start, tmp_path / "run")
    before = (tmp_path / "run" / "log.csv").read_text()
    long = long_run(run._replace(picoseconds=0.1), model, start, tmp_path / "run")
    assert (tmp_path / "run" / "log.csv").read_text().startswith(before)
    assert (short["steps"], long["steps"], long["processes"]) == (100, 200, 2)
    assert long["centre_of_mass_A"] < 1e-9
    assert long["angular_momentum_hbar"] < 1e-2  # torques of a float32 network, over 0.1 ps
    assert len(pd.read_csv(tmp_path / "run" / "log.csv")) == 11


def test_all_ten_molecules_run_at_both_temperatures_and_two_of_them_plain():
    """And silicon once, at constant pressure."""
    runs = planned([*MOLECULES, "silicon"], [300.0, 500.0], **LENGTHS)
    assert len(MOLECULES) == 10
    assert len({run.name for run in runs}) == len(runs) == 20 + 4 + 1
    assert {run.system for run in runs if not run.compiled} == {"ethanol", "aspirin"}
    assert [run.name for run in runs if run.ensemble == "npt"] == ["silicon-npt-300K"]


def test_unknown_systems_lengths_and_settings_are_refused(tmp_path):
    """Each in one sentence."""
    with pytest.raises(ConfigError, match="no system `etanol`; choose from ethanol, "):
        planned(["etanol"], [300.0], **LENGTHS)
    with pytest.raises(ConfigError, match="`--ps` must be > 0, got 0"):
        planned(["ethanol"], [300.0], **{**LENGTHS, "ps": 0.0})
    said = mdrelax("bench", "long-md-run", '{"system": "x"}', "m.safetensors", "w.xyz", tmp_path / "run")
    assert (said.code, '`{"system": "x"}` (temperature: field required).' in said.last_line) == (2, True)
    assert not (tmp_path / "run").exists()
    said = mdrelax("bench", "long-md", "--model", "silicon")
    assert said.code == 2
    assert "`--model` wants SYSTEM=FILE" in said.last_line


def test_each_broken_law_is_named():
    """A run that breaks all of them."""
    good = read_results(STORED)[0]
    bad = {
        **good, "exploded": "Hot.", "drift_meV_per_atom_ps": -0.2, "broken": True, "resident_MB": [100.0, 110.0, 120.0],
        "open_files": [7, 8, 9],
    }  # fmt: skip
    assert len(laws(bad)) == 5
    assert laws({**good, "drift_meV_per_atom_ps": float("nan")}), "a drift that is no number is none"


@pytest.mark.slow
def test_the_quick_form_goes_from_data_to_the_table_and_repeats_nothing(tmp_path):
    """Copper at constant pressure and the embedded ethanol, hardly trained; the second time only the table is made."""
    said = mdrelax("bench", "long-md", "--quick", "--out", tmp_path / "out")
    assert said.code == 0, said.err
    found = read_results(tmp_path / "out" / "results")
    assert [(r["system"], r["ensemble"]) for r in found] == [("sample-ethanol", "nve"), ("copper", "npt")]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.csv")}
    again = mdrelax("bench", "long-md", "--quick", "--out", tmp_path / "out")
    assert page(found) in again.out
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.slow
def test_a_trained_and_compiled_network_keeps_the_laws(tmp_path):
    """The embedded ethanol, 400 steps of training, 2 ps at 300 K compiled and plain: every law holds."""
    said = mdrelax(
        "bench", "long-md", "--systems", "sample-ethanol", "--temperatures", "300", "--steps", "400", "--ps", "2",
        "--plain-ps", "2", "--out", tmp_path,
    )  # fmt: skip
    assert said.code == 0, said.err
    found = read_results(tmp_path / "results")
    assert [r["compiled"] for r in found] == [True, False]
    for result in found:
        assert not laws(result), page(found)
        assert result["centre_of_mass_A"] < 1e-9
        assert result["mean_temperature_K"] == pytest.approx(300, rel=0.5)  # one molecule, 2 ps


# --- what is stored ---


def test_the_page_repeats_the_stored_results():
    """Every row of the table in docs/studies/long-md.md is what the result files give, and the stored table is too."""
    text = page(read_results(STORED))
    assert (STORED / "long-md.md").read_text() == text
    assert text in (ROOT / "docs/studies/long-md.md").read_text()


def test_stored_results_tell_seed_versions_machine_date_and_command():
    """And come from the systems of the benchmark, each run once."""
    found = read_results(STORED)
    assert len({(r["system"], r["ensemble"], r["temperature"], r["compiled"]) for r in found}) == len(found)
    for result in found:
        assert result["system"] in SYSTEMS
        assert {"seed", "date", "platform", "torch", "e3nn", "python", "threads"} <= result["environment"].keys()
        assert abs(result["drift_meV_per_atom_ps"]) < (0.001 if result["compiled"] else 0.006)  # as the page says
        assert result["largest_stretch"] < 1.29
        assert result["command"].startswith("mdrelax bench long-md ")
        assert len(result["model"]["sha256"]) == 64
