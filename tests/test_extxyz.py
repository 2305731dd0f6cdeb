"""Extended xyz: label keys, units, isolated atoms, periodic cells; every fault named by frame and atom."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, io
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from mdrelax.datasets import load_frames
from mdrelax.datasets.extxyz import load_extxyz


def labelled(atoms: Atoms, prefix: str = "REF_", energy: float = -1.5) -> Atoms:
    """The structure with an energy and forces under ``prefix`` + energy, forces."""
    atoms.info[f"{prefix}energy"] = energy
    atoms.arrays[f"{prefix}forces"] = np.arange(3.0 * len(atoms)).reshape(-1, 3) / 7
    return atoms


def stressed() -> Atoms:
    """A cell with all three labels."""
    atoms = labelled(bulk("Si"))
    atoms.info["REF_stress"] = np.eye(3)
    return atoms


def written(folder: Path, *frames: Atoms, name: str = "data.extxyz") -> Path:
    """An extxyz file of some frames."""
    io.write(folder / name, list(frames), format="extxyz")
    return folder / name


def test_mixed_sizes_elements_and_periodicity_in_one_file(tmp_path):
    """Molecules, a bulk cell and a slab, each with its own cell and pbc."""
    slab = labelled(bulk("Cu", cubic=True))
    slab.pbc = (True, True, False)
    path = written(tmp_path, labelled(molecule("H2O")), labelled(molecule("CH3CH2OH")), labelled(bulk("Si")), slab)
    frames = load_extxyz(path)
    assert [len(frame.z) for frame in frames.data] == [3, 9, 2, 4]
    assert [frame.pbc[0].tolist() for frame in frames.data[1:]] == [[False] * 3, [True] * 3, [True, True, False]]
    assert not frames.data[0].cell.any()
    np.testing.assert_allclose(frames.data[2].cell[0].numpy(), bulk("Si").cell.array, atol=1e-8)
    assert frames.report.elements == ("H", "C", "O", "Si", "Cu")


@pytest.mark.parametrize("name", ["data.xyz", "data.extxyz.gz"])
def test_xyz_and_compressed_files_are_read(tmp_path, name):
    """The ending decides the format, ``.gz`` is unpacked on the way."""
    plain = written(tmp_path, labelled(molecule("H2O")))
    path = tmp_path / name
    path.write_bytes(gzip.compress(plain.read_bytes()) if name.endswith("gz") else plain.read_bytes())
    assert load_frames(path).data[0].energy.item() == -1.5


def test_ref_keys_come_before_calculator_results_and_explicit_keys_before_both(tmp_path):
    """The order of reading: the caller's key, REF_*, what ASE moved to the calculator."""
    atoms = labelled(labelled(molecule("H2O"), "REF_", -2.0), "dft_", -3.0)
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.ones((3, 3)))
    path = written(tmp_path, atoms)
    assert load_extxyz(path).data[0].energy.item() == -2.0
    explicit = load_extxyz(path, energy_key="dft_energy", forces_key="dft_forces")
    assert explicit.data[0].energy.item() == -3.0
    assert explicit.report.keys == {"energy": "dft_energy", "forces": "dft_forces"}
    results = load_extxyz(path, energy_key="energy", forces_key="forces")
    assert results.data[0].energy.item() == -1.0
    assert results.data[0].forces.eq(1).all()


def test_calculator_results_are_found_by_themselves(tmp_path):
    """Energy, forces and stress of ASE's own EMT potential, as ASE writes them (Voigt stress, 1e-7 in the text)."""
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.rattle(0.1, seed=1)
    atoms.set_cell(atoms.cell * [[1.0], [1.02], [0.97]], scale_atoms=True)
    atoms.calc = EMT()
    expected = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False)
    frame = load_extxyz(written(tmp_path, atoms)).data[0]
    assert frame.energy.item() == pytest.approx(expected[0], abs=1e-7)
    np.testing.assert_allclose(frame.forces.numpy(), expected[1], atol=1e-7)
    np.testing.assert_allclose(frame.stress[0].numpy(), expected[2], atol=1e-7)


@pytest.mark.parametrize("form", ["3x3", "nine", "voigt"])
def test_stress_is_read_in_every_form(tmp_path, form):
    """A matrix, 9 numbers and Voigt's 6 in ASE's order (xx, yy, zz, yz, xz, xy) are the same stress."""
    matrix = np.array([[1.0, 0.6, 0.5], [0.6, 2.0, 0.4], [0.5, 0.4, 3.0]])
    atoms = labelled(bulk("Si"))
    values = {"3x3": matrix, "nine": matrix.ravel(), "voigt": np.array([1.0, 2.0, 3.0, 0.4, 0.5, 0.6])}
    atoms.info["REF_stress"] = values[form]
    np.testing.assert_allclose(load_extxyz(written(tmp_path, atoms)).data[0].stress[0].numpy(), matrix)


def test_units_are_converted_once_and_together(tmp_path):
    """Hartree and Bohr, with CODATA 2018 values: energy, lengths, forces and stress."""
    hartree, bohr = 27.211386245988, 0.529177210903
    atoms = labelled(bulk("Si"))
    atoms.info["REF_stress"] = np.eye(3)
    frame = load_extxyz(written(tmp_path, atoms), energy_unit="Hartree", length_unit="Bohr").data[0]
    assert frame.energy.item() == pytest.approx(-1.5 * hartree)
    np.testing.assert_allclose(frame.pos.numpy(), atoms.positions * bohr, atol=1e-7)
    np.testing.assert_allclose(frame.cell[0].numpy(), atoms.cell.array * bohr, atol=1e-7)
    np.testing.assert_allclose(frame.forces.numpy(), atoms.arrays["REF_forces"] * hartree / bohr, atol=1e-6)
    np.testing.assert_allclose(frame.stress[0].numpy(), np.eye(3) * hartree / bohr**3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"energy_unit": "hartre"}, "did you mean `Hartree`"),
        ({"length_unit": "Angstrum"}, "did you mean `Angstrom`"),
        ({"energy_unit": "parsec"}, "Unknown energy unit `parsec`"),
        ({"forces_unit": "eV"}, "Unknown force unit `eV`"),
        ({"stress_unit": "GPA/m"}, "Unknown stress unit `GPA/m`"),
        ({"stress_sign": "minus"}, "Unknown `stress_sign: minus`; known: opposite, usual"),
    ],
)
def test_a_wrong_unit_name_is_an_error(tmp_path, options, sentence):
    """Units are never guessed."""
    with pytest.raises(ValueError, match=sentence):
        load_extxyz(written(tmp_path, stressed()), **options)


def test_isolated_atoms_become_reference_energies(tmp_path):
    """``config_type=IsolatedAtom`` frames are taken apart, their energies converted like the others."""
    atoms = [labelled(Atoms(symbol), energy=energy) for symbol, energy in (("H", -0.5), ("O", -75.0))]
    for atom in atoms:
        atom.info["config_type"] = "IsolatedAtom"
    frames = load_extxyz(written(tmp_path, *atoms, labelled(molecule("H2O"))), energy_unit="Hartree")
    assert len(frames.data) == 1
    assert frames.isolated_energies == pytest.approx({1: -0.5 * 27.211386245988, 8: -75.0 * 27.211386245988})
    assert "2 isolated atoms" in str(frames.report)


def isolated(n_atoms: int = 1, energy: float = -1.0) -> Atoms:
    """A frame marked as an isolated atom."""
    atoms = labelled(Atoms(f"H{n_atoms}", np.eye(3)[:n_atoms]), energy=energy)
    atoms.info["config_type"] = "IsolatedAtom"
    return atoms


@pytest.mark.parametrize(
    ("frames", "sentence"),
    [
        ([isolated()], "holds 1 isolated atoms and nothing else"),
        ([isolated(2), labelled(molecule("H2O"))], r"frame 0 of `data.extxyz` has 2"),
        ([isolated(), isolated(energy=-2.0), labelled(molecule("H2O"))], "two isolated H atoms of different energy"),
    ],
)
def test_wrong_isolated_atoms_are_refused(tmp_path, frames, sentence):
    """Reference energies decide every total energy, so they are never ambiguous."""
    with pytest.raises(ValueError, match=sentence):
        load_extxyz(written(tmp_path, *frames))


def test_a_missing_label_lists_the_keys_found(tmp_path):
    """No training on a label that is not there."""
    path = written(tmp_path, labelled(molecule("H2O"), "dft_"))
    with pytest.raises(
        ValueError, match=r"no energy under `REF_energy` or `energy`.*keys found: dft_energy, dft_forces"
    ):
        load_extxyz(path)
    with pytest.raises(ValueError, match=r"no energy under `dft_enrgy`.*keys found: dft_energy"):
        load_extxyz(path, energy_key="dft_enrgy")


def test_forces_under_an_unknown_name_are_not_silently_dropped(tmp_path):
    """A column that could be forces asks for a decision; ``none`` trains on energies only."""
    atoms = molecule("H2O")
    atoms.info["energy"] = -1.0
    atoms.arrays["my_forces"] = np.ones((3, 3))
    path = written(tmp_path, atoms)
    with pytest.raises(ValueError, match=r"no forces under .*my_forces"):
        load_extxyz(path)
    frames = load_extxyz(path, forces_key="none")
    assert "forces" not in frames.data[0]
    assert frames.report.unused_keys == ("my_forces",)


def test_energy_only_data_has_no_forces(tmp_path):
    """Absent labels are absent attributes."""
    atoms = molecule("H2O")
    atoms.info["REF_energy"] = -1.0
    frame = load_extxyz(written(tmp_path, atoms)).data[0]
    assert "forces" not in frame
    assert "stress" not in frame


def test_structures_without_labels_are_read_on_demand(tmp_path):
    """Predictions need no labels."""
    frames = load_extxyz(written(tmp_path, molecule("H2O")), labelled=False)
    assert "energy" not in frames.data[0]
    assert frames.report.energy_range is None


def spoilt(fault: str) -> Atoms:
    """A labelled bulk cell with one fault."""
    atoms = labelled(bulk("Si"))
    if fault == "nan force":
        atoms.arrays["REF_forces"][1, 2] = np.nan
    elif fault == "infinite force":
        atoms.arrays["REF_forces"][0, 0] = np.inf
    elif fault == "nan energy":
        atoms.info["REF_energy"] = np.nan
    elif fault == "nan position":
        atoms.positions[1] = np.nan
    elif fault == "flat cell":
        atoms.cell[2] = atoms.cell[1]
    elif fault == "text energy":
        atoms.info["REF_energy"] = "unconverged"
    elif fault == "two energies":
        atoms.info["REF_energy"] = np.array([1.0, 2.0])
    elif fault == "long stress":
        atoms.info["REF_stress"] = np.arange(5.0)
    elif fault == "skew stress":
        atoms.info["REF_stress"] = np.arange(9.0).reshape(3, 3)
    elif fault == "thin cell":
        atoms.cell[:] = 0.03 * np.eye(3)
    elif fault == "atoms on a point":
        atoms.positions[1] = atoms.positions[0] + 1e-3
    elif fault == "atoms on an image":
        atoms.positions[1] = atoms.positions[0] + atoms.cell[0] - 2 * atoms.cell[2]
    elif fault == "dummy element":
        atoms.numbers[0] = 0
    return atoms


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("nan force", "There is a forces value of nan in frame 1 of `.*`, atom 1;"),
        ("infinite force", "forces value of inf in frame 1 of `.*`, atom 0;"),
        ("nan energy", "There is an energy value of nan in frame 1 of `.*`;"),
        ("nan position", "positions value of nan in frame 1 of `.*`, atom 1;"),
        ("flat cell", "cell of frame 1 .* is periodic along abc, but"),
        ("text energy", "energy of frame 1 .* is not a number"),
        ("two energies", r"must be one number, got shape \(2,\)"),
        ("long stress", r"6 \(Voigt\) or 9 numbers"),
        ("skew stress", "not symmetric"),
        ("dummy element", "unknown element .* frame 1"),
        ("thin cell", "cell of frame 1 .* periodic along abc, is only 0.03"),
        ("atoms on a point", "Two atoms of frame 1 .* lie at one point"),
        ("atoms on an image", "Two atoms of frame 1 .* lie at one point"),
    ],
)
def test_bad_numbers_name_frame_and_atom(tmp_path, fault, sentence):
    """One bad frame of many is found, not trained on."""
    first = labelled(bulk("Si"))
    if "stress" in fault:
        first.info["REF_stress"] = np.eye(3)
    with pytest.raises(ValueError, match=sentence):
        load_extxyz(written(tmp_path, first, spoilt(fault)))


@pytest.mark.parametrize(
    ("content", "sentence"), [("", "is empty"), ("3\n\nO 0 0 0\n", "cut off"), ("{}", "cannot be read")]
)
def test_empty_and_broken_files_are_one_clear_error(tmp_path, content, sentence):
    """Nothing, half a frame, another format."""
    path = tmp_path / "data.xyz"
    path.write_text(content)
    with pytest.raises(ValueError, match=sentence):
        load_extxyz(path)


def test_the_report_says_what_was_read(tmp_path):
    """Keys, frames, units and range, for the person who watches."""
    path = written(tmp_path, labelled(molecule("H2O"), energy=-3.0), labelled(molecule("H2O"), energy=-1.0))
    text = str(load_extxyz(path).report)
    for part in ("2 frames", "`REF_energy`", "`REF_forces`", "eV, Angstrom", "-3.0000 to -1.0000 eV", "largest force"):
        assert part in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "(units assumed: eV, Angstrom)"),
        ({"energy_unit": "eV", "length_unit": "Angstrom"}, "(the file's units: eV, Angstrom)"),
        ({"energy_unit": "kcal/mol"}, "(the file's units: kcal/mol; units assumed: Angstrom)"),
    ],
)
def test_the_report_says_which_units_were_assumed(tmp_path, options, said):
    """An extxyz does not name its units: whoever did not either is told."""
    assert said in str(load_extxyz(written(tmp_path, labelled(molecule("H2O"))), **options).report)


@pytest.mark.data
def test_real_silicon_has_energy_forces_and_stress(shared_data):
    """The periodic set: 214 training frames of 12 to 96 atoms with a symmetric stress in ASE's sign.

    A strained crystal pulls back: over the elastically strained cells, the mean normal stress grows with the volume
    (measured correlation 0.97; tension is positive).
    """
    frames = load_frames(shared_data / "silicon" / "silicon_train.extxyz")
    assert len(frames.data) == 214
    assert frames.report.keys == {"energy": "REF_energy", "forces": "REF_forces", "stress": "REF_stress"}
    assert all(frame.pbc.all() and torch.equal(frame.stress, frame.stress.mT) for frame in frames.data)
    strained = [frame for frame in frames.data if frame.config_type == "Elastic"]
    volume = torch.tensor([float(torch.linalg.det(f.cell[0]).abs()) / len(f.z) for f in strained])
    tension = torch.tensor([float(f.stress[0].trace()) / 3 for f in strained])
    assert torch.corrcoef(torch.stack([volume, tension]))[0, 1] > 0.9
