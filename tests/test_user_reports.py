"""Situations that users of such packages reported, and their siblings: each with the right value."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, io
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

import mdrelax
from command_line import mdrelax as command
from lennard_jones import CUTOFF as LJ_CUTOFF
from lennard_jones import lj_calculator, lj_force_field
from mdrelax import potentials
from mdrelax.base.sections import ConfigError
from mdrelax.engines.ase import MDRelaxCalculator
from mdrelax.engines.md import run_md, thermal_momenta
from mdrelax.forces.forcefield import ForceField
from mdrelax.modelfile import load_model
from mdrelax.runs.checkpoints import project_checkpoint
from mdrelax.runs.config import load_config
from mdrelax.runs.inputs import check_folder
from mdrelax.testing import LAWS, check_potential
from molecules import ELEMENTS, batch_of, ethanol, graph_of, tiny_equiformer_pytorch, tiny_force_field
from small_runs import CLUSTER_CUTOFF, NETWORK, document, write_config, write_frames
from untrained_models import saved

# --- the stress of what is periodic in part --------------------------------------------------------------------------


def _slab() -> Atoms:
    atoms = fcc111("Cu", (1, 1, 3), vacuum=6.0)
    atoms.pbc = (True, True, False)
    atoms.rattle(0.05, seed=1)
    return atoms


def _wire() -> Atoms:
    atoms = Atoms("Ar2", [[0, 0, 0], [0.3, 0.2, 3.5]], cell=[12, 12, 7.2], pbc=(False, False, True))
    return atoms


@pytest.mark.parametrize("atoms", [_slab(), _wire(), bulk("Cu", cubic=True)], ids=["slab", "wire", "bulk"])
def test_the_stress_of_what_has_a_volume_is_the_strain_derivative(atoms: Atoms) -> None:
    """All six components over |det(cell)|, from the calculator, from many at once and from the force field alike."""
    atoms.calc = lj_calculator()
    found, h = atoms.get_stress(voigt=False), 1e-5
    for a in range(3):
        for b in range(3):
            strain = np.zeros((3, 3))
            strain[a, b] += h / 2
            strain[b, a] += h / 2
            energies = []
            for sign in (1, -1):
                copied = atoms.copy()
                copied.set_cell(atoms.cell.array @ (np.eye(3) + sign * strain), scale_atoms=True)
                copied.calc = lj_calculator()
                energies.append(copied.get_potential_energy())
            assert found[a, b] == pytest.approx((energies[0] - energies[1]) / (2 * h) / atoms.get_volume(), abs=1e-8)
    assert np.abs(found).max() > 1e-5
    (many,) = lj_calculator().calculate_many([atoms])
    np.testing.assert_allclose(many["stress"], atoms.get_stress(), atol=1e-15)
    inner = lj_force_field()(graph_of(atoms, LJ_CUTOFF), stress=True).stress
    np.testing.assert_allclose(inner[0], found, atol=1e-14)


def test_what_has_no_volume_has_no_stress() -> None:
    """A molecule, and a slab without a third vector; a sentence with the vectors."""
    flat = _slab()
    flat.cell[2] = 0.0
    for atoms in (Atoms("Ar2", [[0, 0, 0], [0, 0, 3.5]]), flat):
        atoms.calc = lj_calculator()
        with pytest.raises(PropertyNotImplementedError, match="needs a cell with a volume, got the lattice vectors"):
            atoms.get_stress()
        assert "stress" not in lj_calculator().calculate_many([atoms])[0]


def test_a_slab_is_relaxed_with_its_cell() -> None:
    """FrechetCellFilter with a mask for the plane: the in-plane stress goes to zero."""
    atoms = _slab()
    atoms.calc = lj_calculator()
    before = np.abs(atoms.get_stress()[[0, 1, 5]]).max()
    BFGS(FrechetCellFilter(atoms, mask=[1, 1, 0, 0, 0, 1]), logfile=None).run(fmax=1e-3, steps=200)
    assert np.abs(atoms.get_stress()[[0, 1, 5]]).max() < 0.05 * before


# --- which of many structures ----------------------------------------------------------------------------------------


def _spoilt(name: str) -> list[Atoms]:
    structures = [bulk("Cu", cubic=True) for _ in range(12)]
    bad = structures[7]
    if name == "atoms at one point":
        bad.positions[2] = bad.positions[1]
    elif name == "an unknown element":
        bad.symbols[0] = "Ag"
    elif name == "a flat cell":
        bad.set_cell(np.zeros((3, 3)))
    elif name == "a NaN":
        bad.positions[0, 0] = np.nan
    else:
        del bad[:]
    return structures


@pytest.mark.parametrize("fault", ["atoms at one point", "an unknown element", "a flat cell", "a NaN", "no atoms"])
def test_one_bad_structure_of_many_is_named(fault: str) -> None:
    """By its number, whatever the batch it falls into."""
    for batch_size in (1, 5, 32):
        with pytest.raises(ValueError, match=r"^Frame 7: ") as caught:
            lj_calculator().calculate_many(_spoilt(fault), batch_size=batch_size)
        assert "\n" not in str(caught.value)


# --- velocities that a structure brings ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file that knows H, C and O."""
    return saved(tmp_path_factory.mktemp("model") / "model.safetensors", 1, 6, 8)


def _hot(path: Path, kelvin: float = 600.0) -> Atoms:
    atoms = ethanol()
    atoms.set_momenta(thermal_momenta(atoms, kelvin, np.random.default_rng(1)))
    atoms.write(path)
    return atoms


@pytest.mark.parametrize("more", [[], ["--ensemble", "nvt"], ["--equilibrate", "0.002"]])
def test_velocities_are_replaced_and_that_is_said_or_kept(tmp_path: Path, model: Path, more: list[str]) -> None:
    """The first frame has those of the file with `--keep-velocities`, new ones of the target without."""
    atoms = _hot(tmp_path / "last.traj")
    for keep in (False, True):
        out = ["--trajectory", tmp_path / f"{keep}.traj", "--log", tmp_path / f"{keep}.csv", "--ps", "0.002"]
        said = command("md", model, tmp_path / "last.traj", *out, *more, *(["--keep-velocities"] if keep else []))
        assert said.code == 0, said.err
        assert "The velocities in `" in said.out
        assert ("are kept." if keep else "are replaced by new ones of 300 K") in said.out
        first = io.read(tmp_path / f"{keep}.traj", 0)
        if "--equilibrate" not in more:
            assert np.allclose(first.get_momenta(), atoms.get_momenta()) == keep


def test_velocities_that_are_not_there_are_not_kept(tmp_path: Path, model: Path) -> None:
    """A sentence with the remedy, and no line about velocities for a structure without any."""
    ethanol().write(tmp_path / "start.xyz")
    out = ["--trajectory", tmp_path / "a.traj", "--log", tmp_path / "a.csv", "--ps", "0.001"]
    said = command("md", model, tmp_path / "start.xyz", *out, "--keep-velocities")
    assert said.code == 2
    assert "has no velocities to keep; leave out `--keep-velocities`" in said.err
    said = command("md", model, tmp_path / "start.xyz", *out)
    assert said.code == 0
    assert "The velocities in" not in said.out


def test_a_cold_run_may_begin_at_a_strained_geometry() -> None:
    """Heated from 10 K to hundreds by its own strain it has not exploded; nor has one that begins at 2,000 K."""
    atoms = bulk("Ar", a=4.8, cubic=True) * (2, 2, 2)
    atoms.positions += np.random.default_rng(0).normal(scale=0.3, size=atoms.positions.shape)
    atoms.calc = lj_calculator()
    strained = run_md(atoms, temperature_K=1, duration_ps=0.5, timestep_fs=2.0)
    assert strained.max_temperature_K > 20
    assert not strained.exploded
    atoms.set_momenta(thermal_momenta(atoms, 2000, np.random.default_rng(1)))
    hot = run_md(atoms, temperature_K=50, duration_ps=0.1, keep_momenta=True)
    assert hot.max_temperature_K > 1000
    assert not hot.exploded


# --- direct forces on data with stress -------------------------------------------------------------------------------


def test_direct_forces_are_evaluated_on_data_with_stress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Errors of energy and forces, and a line that stress is left out."""
    from mdrelax.cli.evaluate import _errors
    from mdrelax.datasets import make_frame

    with pytest.warns(UserWarning, match="not the gradient"):
        calculator = MDRelaxCalculator(ForceField(tiny_equiformer_pytorch(forces="direct"), elements=ELEMENTS))
    atoms = bulk("C", cubic=True)
    frame = make_frame(
        atoms.numbers, atoms.positions, energy=0.0, forces=np.zeros((8, 3)), stress=np.zeros((3, 3)),
        cell=atoms.cell.array, pbc=atoms.pbc,
    )  # fmt: skip
    found = _errors(tmp_path, calculator, [frame, frame], 0)
    assert found["forces_mae_meV_per_A"] > 0
    assert "stress_mae_meV_per_A3" not in found
    assert "so it has no stress: that of the data is left out" in capsys.readouterr().out


# --- isolated atoms --------------------------------------------------------------------------------------------------

ISOLATED = {"H": -13.6, "O": -2041.8}  # eV


def _waters(n: int) -> list[Atoms]:
    """Water with EMT's binding on top of the energies of isolated atoms."""
    lone = {symbol: _emt(Atoms(symbol)) for symbol in ISOLATED}
    frames = [Atoms(s, info={"config_type": "IsolatedAtom", "REF_energy": e}) for s, e in ISOLATED.items()]
    for k in range(n):
        atoms = molecule("H2O")
        atoms.rattle(0.05, seed=k)
        energy = _emt(atoms) + sum(ISOLATED[s] - lone[s] for s in atoms.symbols)
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = energy, atoms.get_forces()
        atoms.calc = None
        frames.append(atoms)
    return frames


def _emt(atoms: Atoms) -> float:
    atoms.calc = EMT()
    return float(atoms.get_potential_energy())


@pytest.mark.parametrize(
    "keys", [{"reference_energies": "isolated"}, {"reference_energies": "fit", "exact_lone_atoms": True}]
)
def test_lone_atoms_have_their_reference_energies(tmp_path: Path, keys: dict[str, object]) -> None:
    """From the model file, from `project` of the run and after continuing it: to 1e-5 eV, float32 of the sums."""
    source = write_frames(tmp_path / "water.extxyz", _waters(32))
    content = document(source) | {"potential": {"cutoff": CLUSTER_CUTOFF, "arguments": NETWORK}} | keys
    run = mdrelax.train(content, folder=tmp_path / "run")
    references = dict(zip(run.fit.model.elements, run.fit.model.reference_energies.tolist(), strict=True))
    if keys["reference_energies"] == "isolated":
        assert references == {1: ISOLATED["H"], 8: ISOLATED["O"]}
    again = mdrelax.train({**content, "potential": {"start": str(run.model_file)}}, folder=tmp_path / "again")
    project_checkpoint(tmp_path / "run", tmp_path / "projected.safetensors", potentials)
    for file in (run.model_file, tmp_path / "projected.safetensors", again.model_file):
        calculator = MDRelaxCalculator.from_file(file)
        for number, energy in references.items():
            (lone,) = calculator.calculate_many([Atoms([number])])
            if file != again.model_file or keys["reference_energies"] == "isolated":
                assert lone["energy"] == pytest.approx(energy, abs=1e-4)
        assert not load_model(file).force_field.exact_lone_atoms  # nothing is left to compute


def test_folding_changes_no_energy_and_unfolding_brings_it_back() -> None:
    """Energies, forces and training gradients in float64; without the option a lone atom is somewhere else."""
    model = tiny_force_field()
    model.exact_lone_atoms = True
    graph = batch_of(ethanol(), Atoms("H"), Atoms("O"))
    before = model(graph)
    assert before.energies[-2:].tolist() == pytest.approx(model.reference_energies[[0, 2]].tolist(), abs=1e-12)
    folded = model.with_folded_lone_atoms()
    torch.testing.assert_close(folded(graph).energies, before.energies, rtol=1e-12, atol=1e-12)
    assert torch.equal(folded(graph).forces, before.forces)
    assert abs(folded.reference_energies - model.reference_energies).min() > 1e-3
    folded.unfold_lone_atoms()
    torch.testing.assert_close(folded.reference_energies, model.reference_energies)
    model(graph, create_graph=True).energy.sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def test_what_binds_on_average_is_a_smooth_function_of_the_neighbours() -> None:
    """E_bound of atoms that leave goes from the binding energy to zero, its forces and stress are its derivatives."""
    model = tiny_force_field()
    model.binding.fill_(-4.5)
    plain = tiny_force_field()
    apart = [Atoms("HO", [[0, 0, 0], [0, 0, r]]) for r in np.linspace(0.5, 5.2, 48)]
    bound = np.array([float(model(graph_of(a)).energy - plain(graph_of(a)).energy) for a in apart])
    assert bound[0] == pytest.approx(-2 * 4.5 * (1 - np.exp(-((1 - 0.01) ** 3))), rel=1e-6)
    assert np.all(np.diff(bound) >= 0)
    assert bound[-1] == 0.0
    with_binding = {name: law for name, law in LAWS.items() if "energy" in name or "strain" in name or "turn" in name}
    assert len(with_binding) == 3
    check_potential(model, with_binding)  # derivatives of the energy, strain, rotations


# --- settings that train on nothing, or on everything -----------------------------------------------------------------


def test_a_cutoff_below_every_bond_or_far_beyond_is_refused(tmp_path: Path) -> None:
    """With the shortest distance, or with the neighbours per atom; also of one atom in a cell."""
    water = write_frames(tmp_path / "water.extxyz", _waters(32))
    with pytest.raises(ConfigError, match=r"`potential.cutoff: 0.5` is below every distance .* shortest is 0\.\d\d A"):
        mdrelax.train(document(water, potential={"cutoff": 0.5}), folder=tmp_path / "a")
    crystals = []
    for k in range(32):
        atoms = bulk("Cu") * (1, 1, 1)
        atoms.set_cell(atoms.cell * (1 + 0.001 * k), scale_atoms=True)
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = _emt(atoms), np.zeros((1, 3))
        atoms.calc = None
        crystals.append(atoms)
    copper = write_frames(tmp_path / "copper.extxyz", crystals)
    with pytest.raises(ConfigError, match=r"is below every distance .* shortest is 2\.55 A"):
        mdrelax.train(document(copper, potential={"cutoff": 1.0}), folder=tmp_path / "b")
    with pytest.raises(ConfigError, match=r"`potential.cutoff: 20` gives [\d,]+ neighbours per atom"):
        mdrelax.train(document(copper, potential={"cutoff": 20.0}), folder=tmp_path / "c")


def test_broken_yaml_is_one_line_with_its_place(tmp_path: Path) -> None:
    """Without the parser's internals."""
    (tmp_path / "c.yaml").write_text("training: {steps: 10\ndata: [")
    said = command("train", tmp_path / "c.yaml")
    assert said.code == 2
    assert len(said.err.strip().splitlines()) == 1
    assert "is not valid YAML: " in said.err
    assert "(line 2, column 5)" in said.err
    assert "unicode string" not in said.err


# --- energies that nobody trained, runs that should be longer, threads ----------------------------------------------


@pytest.mark.parametrize(("weight", "start"), [(0.0, False), (0.0, True), (4.0, False)])
def test_training_leaves_no_offset_in_the_energies(tmp_path: Path, weight: float, start: bool) -> None:
    """The constant of each element follows from the labels, with or without energies in the loss, also continued.

    The mean error is below 1e-4 of the labels' spread, float32 sums; `project` gives the model of the run.
    """
    source = write_frames(tmp_path / "water.extxyz", _waters(32)[2:])
    training = {"energy_weight": weight, "steps": 40}
    run = mdrelax.train(document(source, training=training), folder=tmp_path / "run")
    if start:
        content = {**document(source, training=training), "potential": {"start": str(run.model_file)}}
        run = mdrelax.train(content, folder=tmp_path / "again")
    frames = io.read(source, ":")
    calculator = MDRelaxCalculator.from_file(run.model_file)
    train = [frames[k] for k in run.parts.split.train]
    found = np.array([result["energy"] for result in calculator.calculate_many(train)])
    labels = np.array([atoms.info["REF_energy"] for atoms in train])
    assert abs((found - labels).mean()) < 1e-4 * labels.std()
    project_checkpoint(run.folder, tmp_path / "projected.safetensors", potentials)
    again = load_model(tmp_path / "projected.safetensors").force_field
    assert torch.equal(again.reference_energies, run.fit.model.reference_energies)


def test_a_finished_run_is_made_longer(tmp_path: Path) -> None:
    """`--restart auto` with more steps continues, and says how; fewer steps or another rate are other runs."""
    source, folder = write_frames(tmp_path / "water.extxyz", _waters(32)), tmp_path / "run"
    first = mdrelax.train(document(source), folder=folder)
    longer = document(source, training={"steps": 48})
    assert "24 steps is continued to 48" in str(check_folder(load_config(longer), folder, restart=True))
    second = mdrelax.train(longer, folder=folder, restart=True)
    assert (first.fit.steps, second.fit.steps) == (24, 48)
    before, after = first.fit.metrics, second.fit.metrics
    assert after[: len(before)].equals(before)  # the rows of the first part stay
    assert after["theta"].iloc[-1] == 0  # at its own end, the network is symmetric
    assert second.certificate.passed
    for changes in ({"steps": 24}, {"steps": 60, "learning_rate": 0.02}, {"epochs": 60, "steps": None}):
        with pytest.raises(ConfigError, match=r"training\.steps: 48 -> "):
            mdrelax.train(document(source, training=changes), folder=folder, restart=True)


@pytest.mark.parametrize("told", [None, "2"])
def test_a_training_process_takes_one_thread_unless_told(tmp_path: Path, told: str | None) -> None:
    """It says so first, and leaves OMP_NUM_THREADS alone where it is set."""
    source = write_frames(tmp_path / "water.extxyz", _waters(32))
    write_config(tmp_path / "c.yaml", document(source, training={"steps": 2, "validate_every": 2}))
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment |= {} if told is None else {"OMP_NUM_THREADS": told}
    command = [sys.executable, "-m", "mdrelax", "train", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("One thread per process") == (told is None)
    threads = json.loads((tmp_path / "run" / "env.json").read_text())["threads"]
    assert threads == (1 if told is None else int(told))
