"""Siblings of the situations that users reported, which nobody had tried: each with the right value."""

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms, io
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms

import mdrelax
from command_line import mdrelax as command
from lennard_jones import lj_calculator
from mdrelax.cli import DATA
from mdrelax.datasets import check_frames, load_frames, to_atoms
from mdrelax.engines.ase import MDRelaxCalculator
from mdrelax.forces.forcefield import ForceField
from molecules import ELEMENTS, ethanol, tiny_equiformer_pytorch, tiny_force_field
from small_runs import CRYSTAL_CUTOFF, clusters, crystals, document, write_frames
from untrained_models import saved

FEW = {"steps": 3, "validate_every": 1}


def _labelled(atoms: Atoms) -> Atoms:
    atoms.calc = EMT()
    done = atoms.copy()
    done.info["REF_energy"], done.arrays["REF_forces"] = atoms.get_potential_energy(), atoms.get_forces()
    return done


def _trained(tmp_path: Path, frames: list[Atoms], **sections: Any) -> Any:
    content = document(
        write_frames(tmp_path / "x.extxyz", frames), data={"train": 0.7, "validation": 0.1, "test": None},
        training=FEW, **sections,
    )  # fmt: skip
    return mdrelax.train(content, folder=tmp_path / "run")


# --- verdicts that throw a good run away -----------------------------------------------------------------------------


def test_symmetric_molecules_with_all_electron_energies_are_certified(tmp_path: Path) -> None:
    """Breathing methane, whose carbon has no force, at -80 MeV: reference energies play no part in the verdict."""
    frames = []
    for length in np.linspace(0.9, 1.1, 14):
        atoms = molecule("CH4")
        atoms.positions *= length
        frames.append(_labelled(atoms))
        frames[-1].info["REF_energy"] -= 8e7
    assert _trained(tmp_path, frames).certificate.passed


def test_frames_of_one_atom_may_be_tested_and_certified(tmp_path: Path) -> None:
    """Lone atoms that nobody marked as such are frames; their forces are zero, and so are their magnitudes."""
    lone = [_labelled(Atoms("O")) for _ in range(10)]
    run = _trained(tmp_path, [*clusters(6), *lone])
    assert run.certificate.passed
    assert any(len(frame.z) == 1 for frame in run.parts.test)


# --- isolated atoms ---------------------------------------------------------------------------------------------------


def test_a_molecule_that_is_taken_apart_ends_at_its_atoms() -> None:
    """Also in a periodic box, in which there are no neighbours: the sum of the reference energies, to rounding."""
    model = tiny_force_field()
    model.exact_lone_atoms = True
    model.binding.fill_(-3.0)
    apart = Atoms("OH2C", 40.0 * np.eye(4, 3))
    boxed = Atoms("OH2C", 20.0 * np.eye(4, 3), cell=[40, 40, 40], pbc=True)
    references = dict(zip(model.elements, model.reference_energies.tolist(), strict=True))
    wanted = sum(references[int(z)] for z in apart.numbers)
    for result in MDRelaxCalculator(model).calculate_many([apart, boxed]):
        assert result["energy"] == pytest.approx(wanted, abs=1e-9)
        assert np.abs(result["forces"]).max() == 0


@pytest.mark.filterwarnings("ignore:This model predicts forces directly")
def test_direct_forces_have_exact_lone_atoms_too() -> None:
    """Their energies come from another branch of the network."""
    network = tiny_equiformer_pytorch(forces="direct")
    references = torch.tensor([-13.6, -1029.0, -2041.8], dtype=torch.float64)
    model = ForceField(network, elements=ELEMENTS, reference_energies=references, exact_lone_atoms=True)
    for number, energy in zip(ELEMENTS, references.tolist(), strict=True):
        (result,) = MDRelaxCalculator(model).calculate_many([Atoms([number])])
        assert result["energy"] == pytest.approx(energy, abs=1e-9)


# --- units and signs --------------------------------------------------------------------------------------------------


def test_energies_per_atom_are_named_as_that(tmp_path: Path) -> None:
    """A ninth of the work of the forces is not a unit of length for want of a better idea."""
    frames = io.read(_sample(tmp_path), ":120")
    for atoms in frames:
        atoms.info["REF_energy"] /= len(atoms)
    table = check_frames(load_frames(write_frames(tmp_path / "x.extxyz", frames)).data).set_index("check")
    assert not table.loc["forces agree with energies", "passed"]
    assert "energies are per atom" in table.loc["forces agree with energies", "message"]


def _sample(tmp_path: Path) -> Path:
    frames = load_frames("sample:ethanol").data[:120]
    return write_frames(tmp_path / "ethanol.extxyz", [to_atoms(frame) for frame in frames])


def test_forces_of_atoms_in_another_order_are_named(tmp_path: Path) -> None:
    """They still add up to nothing, but have a torque and do not follow the energies."""
    frames, order = io.read(_sample(tmp_path), ":"), np.random.default_rng(0).permutation(9)
    for atoms in frames:
        atoms.arrays["REF_forces"] = atoms.arrays["REF_forces"][order]
    table = check_frames(load_frames(write_frames(tmp_path / "x.extxyz", frames)).data).set_index("check")
    assert not table.loc["forces agree with energies", "passed"]
    assert not table.loc["no cell lost", "passed"]  # whose sentence has the wrong order among its causes


# --- periodicity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lattice", "cell", "box", "npz"])
def test_verbs_without_labels_keep_the_cell_too(tmp_path: Path, name: str) -> None:
    """`predict` on a crystal in each dialect gives the energy of the crystal, not of a cluster."""
    atoms, model = bulk("Cu", cubic=True), saved(tmp_path / "model.safetensors", 29)
    atoms.rattle(0.05, seed=0)
    if name == "npz":
        path, lattice = tmp_path / "x.npz", atoms.cell.array.T
        np.savez(
            path, z=atoms.numbers, R=[atoms.positions], E=[0.0], F=[np.zeros((4, 3))], lattice=lattice, e_unit="eV",
            r_unit="Ang", type="d",
        )  # fmt: skip
    else:
        path = tmp_path / "x.xyz"
        cell = " ".join(map(repr, atoms.cell.array.ravel().tolist()))
        rows = [f"Cu {x!r} {y!r} {z!r}" for x, y, z in atoms.positions.tolist()]
        path.write_text("\n".join(["4", f'{name}="{cell}" pbc="T T T" properties=species:S:1:pos:R:3', *rows, ""]))
    said = command("predict", model, path, tmp_path / "out.extxyz")
    assert said.code == 0, said.err
    found = io.read(tmp_path / "out.extxyz")
    atoms.calc = MDRelaxCalculator.from_file(model)
    assert found.pbc.all()
    assert found.info["mdrelax_energy"] == pytest.approx(atoms.get_potential_energy(), abs=1e-5)


def test_a_cell_that_predict_cannot_read_is_refused(tmp_path: Path) -> None:
    """It would be a cluster."""
    (tmp_path / "x.xyz").write_text("1\ncell=cubic properties=species:S:1:pos:R:3\nCu 0 0 0\n")
    said = command("predict", saved(tmp_path / "m.safetensors", 29), tmp_path / "x.xyz", tmp_path / "out.extxyz")
    assert said.code == DATA
    assert "frame 0 of `x.xyz` is no cell that can be read" in said.last_line


def test_a_left_handed_cell_has_the_same_stress() -> None:
    """The volume is the absolute value of the determinant."""
    right = bulk("Cu", cubic=True)
    right.rattle(0.1, seed=0)
    left = right.copy()
    left.set_cell(right.cell.array[[1, 0, 2]])
    ours, theirs = lj_calculator().calculate_many([left, right])
    np.testing.assert_allclose(ours["stress"], theirs["stress"], rtol=0, atol=1e-12)
    assert abs(ours["stress"]).max() > 1e-3


# --- labels that some frames lack -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lack", ["first forces", "most energies", "all stresses but one", "all forces and stresses"])
def test_frames_train_with_the_labels_they_have(tmp_path: Path, lack: str) -> None:
    """Whichever frames lack them, the first or those to validate on included."""
    frames = crystals(12)
    for k, atoms in enumerate(frames):
        if "forces" in lack and (k < 8 or "all" in lack):
            del atoms.arrays["REF_forces"]
        if lack == "most energies" and k > 3:
            del atoms.info["REF_energy"]
        if "stresses" in lack and not (k == 5 and "one" in lack):
            del atoms.info["REF_stress"]
    run = _trained(tmp_path, frames, potential={"cutoff": CRYSTAL_CUTOFF})
    assert run.certificate.passed
    assert np.isfinite(run.fit.metrics["train_loss"]).all()


# --- which frame? -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file that knows H, C and O."""
    return saved(tmp_path_factory.mktemp("model") / "model.safetensors", 1, 6, 8)


def _ethanols(fault: str) -> list[Atoms]:
    frames = []
    for k in range(9):
        atoms = ethanol()
        atoms.rattle(0.05, seed=k)
        frames.append(_labelled(atoms))
    if fault == "an unknown element":
        frames[7].symbols[0] = "N"
    else:
        frames[7].positions[2] = frames[7].positions[1]
    return frames


@pytest.mark.parametrize("ending", ["extxyz", "traj"])
@pytest.mark.parametrize("verb", ["predict", "eval", "audit"])
@pytest.mark.parametrize("fault", ["an unknown element", "atoms at one point"])
def test_every_verb_names_frame_and_file(tmp_path: Path, model: Path, verb: str, fault: str, ending: str) -> None:
    """With one wording, counted as ASE counts: frame 7 is `bad.extxyz@7`."""
    path = tmp_path / f"bad.{ending}"
    frames = _ethanols(fault)
    if ending == "traj":
        for atoms in frames:
            atoms.calc = EMT() if fault != "an unknown element" else None
        io.write(path, frames)
    else:
        write_frames(path, frames)
    options = {
        "predict": [tmp_path / "out.extxyz"], "eval": ["--out", tmp_path / "e", "--energy-key", "none"], "audit": [],
    }  # fmt: skip
    said = command(verb, model, path, *options[verb])
    assert said.code == DATA
    assert f"rame 7 of `bad.{ending}`" in said.last_line
    assert "\n" not in said.last_line


@pytest.mark.parametrize("key", ["data.source", "data.test_source"])
def test_a_bad_frame_of_each_file_of_a_run_is_named(tmp_path: Path, key: str) -> None:
    """Training and test files have different names, and their frames the numbers that they have there."""
    good, bad = tmp_path / "good.extxyz", write_frames(tmp_path / "bad.extxyz", _ethanols("atoms at one point"))
    frames = _ethanols("")
    frames[7] = frames[6].copy()
    write_frames(good, frames)
    said = command("train", good, "-r", f"{key}={bad}", "-r", "training.steps=2", "--out", tmp_path / "run")
    assert said.code == DATA
    assert "frame 7 of `bad.extxyz`" in said.last_line


def test_a_checked_frame_is_named_with_its_file(tmp_path: Path) -> None:
    """In the table of `data check`, too."""
    frames = _ethanols("")
    frames[7] = frames[6].copy()
    said = command("data", "check", write_frames(tmp_path / "twice.extxyz", frames))
    assert "Frame 7 of `twice.extxyz`." in said.out


# --- silent replacement -----------------------------------------------------------------------------------------------


def test_md_keeps_constraints_and_masses_and_says_which_structure_it_takes(tmp_path: Path, model: Path) -> None:
    """Fixed atoms stay, deuterium stays deuterium, and of two structures the last one moves."""
    atoms = ethanol()
    atoms.set_constraint(FixAtoms([0, 1]))
    masses = atoms.get_masses()
    masses[3] = 2.014
    atoms.set_masses(masses)
    io.write(tmp_path / "two.traj", [atoms, atoms])
    said = command(
        "md", model, tmp_path / "two.traj", "--ps", "0.005", "--trajectory", tmp_path / "o.traj", "--log",
        tmp_path / "o.csv",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert "two.traj` has 2 structures; the last one is taken." in said.out
    last = io.read(tmp_path / "o.traj", -1)
    np.testing.assert_array_equal(last.positions[:2], atoms.positions[:2])
    assert np.abs(last.positions[2:] - atoms.positions[2:]).max() > 1e-3
    assert last.get_masses()[3] == 2.014


# --- gradients switched off outside -----------------------------------------------------------------------------------


def test_copies_of_a_calculator_give_its_forces() -> None:
    """Deep copies and pickles, as parallel programs make them, and calculators in several threads at once."""
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    calculator = lj_calculator()
    (wanted,) = calculator.calculate_many([atoms])
    found = [
        copied.calculate_many([atoms])[0]["forces"]
        for copied in (copy.deepcopy(calculator), pickle.loads(pickle.dumps(calculator)))  # noqa: S301 - our own
    ]
    own = [lj_calculator() for _ in range(3)]
    threads = [threading.Thread(target=lambda c=c: found.append(c.calculate_many([atoms])[0]["forces"])) for c in own]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 5
    for forces in found:
        np.testing.assert_array_equal(forces, wanted["forces"])
