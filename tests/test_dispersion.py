"""D3(BJ) dispersion: the library's own numbers, its stress, and a network that learns the rest."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.calculator import PropertyNotImplementedError

from command_line import mdrelax
from mdrelax import datasets, potentials
from mdrelax.base.sections import ConfigError
from mdrelax.cli import OTHER
from mdrelax.engines.ase import MDRelaxCalculator
from mdrelax.forces.dispersion import D3, without_dispersion
from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.metrics import load_predictions
from mdrelax.forces.physics import Physics
from mdrelax.forces.symmetry import certify
from mdrelax.modelfile import load_model, save_model
from mdrelax.runs.config import load_config
from mdrelax.runs.train import run_training
from molecules import ELEMENTS, batch_of, crystal, ethanol, rattled, tiny_force_field
from small_runs import clusters, document, write_frames
from test_physics import Nothing
from untrained_models import ARGUMENTS

library = pytest.importorskip("dftd3.ase", reason="the extra `dispersion` is not installed")


def bare(*elements: int) -> MDRelaxCalculator:
    """PBE's dispersion and nothing else."""
    return MDRelaxCalculator(ForceField(Nothing(), elements=elements, physics=Physics(dispersion="PBE")))


def salt() -> Atoms:
    """A rattled, strained cell of rock salt."""
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.set_cell(atoms.cell @ [[1, 0.02, 0], [0.02, 1.01, 0], [0, 0, 0.99]], scale_atoms=True)
    atoms.rattle(0.1, seed=1)
    return atoms


def slab() -> Atoms:
    """Two layers of copper, periodic in two directions."""
    atoms = fcc111("Cu", (1, 1, 2), vacuum=5.0)
    atoms.rattle(0.05, seed=0)
    return atoms


@pytest.mark.parametrize("make", [lambda: rattled(ethanol(), 1, 0)[0], salt, slab], ids=["ethanol", "salt", "slab"])
def test_it_has_the_librarys_numbers(make) -> None:
    """Energy, forces and stress of s-dftd3's own ASE calculator, to rounding; the atoms' energies add up."""
    atoms = make()
    other = atoms.copy()
    other.calc = library.DFTD3(method="PBE", damping="d3bj")
    atoms.calc = bare(*sorted(set(atoms.numbers.tolist())))
    assert atoms.get_potential_energy() == pytest.approx(other.get_potential_energy(), abs=1e-12)
    assert abs(atoms.get_potential_energy()) > 0.05
    np.testing.assert_allclose(atoms.get_forces(), other.get_forces(), atol=1e-12)
    if atoms.pbc.all():
        np.testing.assert_allclose(atoms.get_stress(), other.get_stress(), atol=1e-12)
    assert atoms.get_potential_energies().sum() == pytest.approx(atoms.get_potential_energy(), abs=1e-10)


def test_its_stress_is_the_derivative_of_the_energy_by_strain() -> None:
    """All components by strains of 1e-4, to 2e-5 of 1e-2 eV/A^3: pairs cross the library's limit of 60 bohr."""
    atoms, step = salt(), 1e-4
    atoms.calc = bare(11, 17)
    stress = atoms.get_stress(voigt=False)
    assert abs(stress).max() > 1e-3
    for a in range(3):
        for b in range(3):
            energies = []
            for sign in (1, -1):
                strain = np.zeros((3, 3))
                strain[a, b] += sign * step / 2
                strain[b, a] += sign * step / 2
                moved = atoms.copy()
                moved.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
                moved.calc = atoms.calc
                energies.append(moved.get_potential_energy())
            slope = (energies[0] - energies[1]) / (2 * step * atoms.get_volume())
            assert stress[a, b] == pytest.approx(slope, abs=2e-5)


@pytest.mark.parametrize("make", [lambda: rattled(ethanol(), 1, 0)[0], salt], ids=["ethanol", "salt"])
def test_hessians_contain_it(make) -> None:
    """Against central differences of the forces (1e-3 A), to 2e-5 eV/A^2: pairs cross the limit of 60 bohr."""
    atoms = make()
    atoms.calc = bare(*sorted(set(atoms.numbers.tolist())))
    exact = atoms.calc.get_hessian(atoms)
    forces = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[2, 1] += sign * 1e-3
        moved.calc = atoms.calc
        forces.append(moved.get_forces())
    np.testing.assert_allclose(exact[2, 1], -(forces[0] - forces[1]) / 2e-3, atol=2e-5)
    direction = np.zeros((1, len(atoms), 3))
    direction[0, 2, 1] = 1
    np.testing.assert_allclose(atoms.calc.get_hessian_products(atoms, direction)[0], exact[2, 1], atol=1e-12)


def test_it_is_added_to_the_network_in_batches_too() -> None:
    """`calculate_many` of molecules and crystals is the network alone plus the library, to rounding."""
    field = tiny_force_field("4x0e+4x1o")
    whole = MDRelaxCalculator(ForceField(field.potential, elements=ELEMENTS, physics=Physics(dispersion="B3LYP")))
    alone = MDRelaxCalculator(ForceField(field.potential, elements=ELEMENTS))
    structures = [ethanol(), crystal()]
    for atoms, ours, learnt in zip(structures, *(c.calculate_many(structures) for c in (whole, alone)), strict=True):
        added = D3("B3LYP")(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
        assert ours.keys() == learnt.keys()
        assert ours["energy"] == ours["free_energy"] == pytest.approx(learnt["energy"] + added.energy, abs=1e-12)
        np.testing.assert_allclose(ours["forces"], learnt["forces"] + added.forces, atol=1e-12)
        assert ours["energies"].sum() == pytest.approx(ours["energy"], abs=1e-9)
    with pytest.raises(PropertyNotImplementedError):
        whole.get_property("stress", ethanol())


# --- training ---------------------------------------------------------------------------------------------------------


def test_labels_are_learnt_without_it_and_predicted_with_it(tmp_path: Path) -> None:
    """Labels that are dispersion alone leave nothing to learn, and the stored predictions are the whole labels."""
    frames = clusters(16)
    for atoms in frames:
        atoms.calc = bare(1, 8)
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = None
    source = write_frames(tmp_path / "dispersed.extxyz", frames)
    content = document(
        source,
        data={"train": 10, "validation": 3, "test": 3},
        physics={"dispersion": "PBE"},
        training={"steps": 1, "validate_every": 1, "warmup_steps": 0},
    )
    run = run_training(load_config(content), tmp_path / "run", potentials)
    assert run.results["test"]["forces_mae_meV_per_A"] < 1e-3  # the file has eight decimals
    assert load_model(run.model_file).force_field.physics == Physics(dispersion="PBE")
    stored = load_predictions(tmp_path / "run" / "test_predictions.npz")
    labels = [float(frame.energy) for frame in run.parts.test]
    np.testing.assert_allclose(stored.energy_true, labels, atol=1e-9)
    np.testing.assert_allclose(stored.energy_pred, labels, atol=1e-5)
    assert max(map(abs, labels)) > 1e-3
    said = mdrelax("eval", run.model_file, source, "--out", tmp_path / "eval")
    assert said.code == 0
    calculator = MDRelaxCalculator.from_file(run.model_file)
    worst = datasets.read_atoms(tmp_path / "eval" / "worst.extxyz")
    for atoms, result in zip(worst, calculator.calculate_many(worst), strict=True):
        assert atoms.info["mdrelax_energy"] == pytest.approx(result["energy"], abs=1e-7)


def test_plain_labels_are_learnt_as_they_are(tmp_path: Path) -> None:
    """With `dispersion_in_labels: false` errors are those of the network, and the calculator still adds it."""
    source = write_frames(tmp_path / "plain.extxyz", clusters(16))
    sizes = {"train": 10, "validation": 3, "test": 3}
    runs = [
        run_training(load_config(document(source, data=sizes, physics=physics)), tmp_path / name, potentials)
        for name, physics in (("none", {}), ("added", {"dispersion": "PBE", "dispersion_in_labels": False}))
    ]
    assert runs[0].results["test"] == runs[1].results["test"]
    atoms = clusters(1)[0]
    energies = [MDRelaxCalculator.from_file(run.model_file).get_property("energy", atoms) for run in runs]
    added = D3("PBE")(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    assert energies[1] - energies[0] == pytest.approx(added.energy, abs=1e-9)


def test_stress_labels_lose_it_too() -> None:
    """What remains of a crystal whose labels are dispersion is zero, and the frames themselves are not changed."""
    atoms = salt()
    found = D3("PBE")(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    frame = datasets.make_frame(
        atoms.numbers, atoms.positions, energy=found.energy, forces=found.forces, stress=found.stress,
        cell=atoms.cell.array, pbc=atoms.pbc,
    )  # fmt: skip
    (rest,) = without_dispersion([frame], "PBE")
    for name in ("energy", "forces", "stress"):
        assert rest[name].abs().max() < 1e-12
        assert frame[name].abs().max() > 1e-3
    assert without_dispersion([frame], None) == [frame]


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_missing_library_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a model is loaded into a calculator, and before a run reads its data; the file itself can be read."""
    field = tiny_force_field(seed=3, **ARGUMENTS).to_dtype(torch.float32)
    model = ForceField(field.potential, elements=ELEMENTS, physics=Physics(dispersion="PBE")).eval()
    proof = certify(model, batch_of(*rattled(ethanol(), 2, 0), cutoff=model.cutoff), n_operations=1)
    path = save_model(tmp_path / "m.safetensors", model, potential="equiformer", arguments=ARGUMENTS, certificate=proof)
    monkeypatch.setitem(sys.modules, "dftd3.interface", None)
    assert load_model(path).header["physics"]["dispersion"] == "PBE"
    sentence = r"\(PBE\) needs s-dftd3; install it with `pip install 'mdrelax\[dispersion\]'`\."
    with pytest.raises(ImportError, match=sentence):
        MDRelaxCalculator.from_file(path)
    ethanol().write(tmp_path / "a.xyz")
    said = mdrelax("md", path, tmp_path / "a.xyz", "--log", tmp_path / "l.csv", "--trajectory", tmp_path / "t.traj")
    assert (said.code, said.last_line.endswith("`pip install 'mdrelax[dispersion]'`.")) == (OTHER, True)
    with pytest.raises(ConfigError, match=sentence):
        run_training(
            load_config(document(tmp_path / "none.extxyz", physics={"dispersion": "PBE"})), tmp_path / "r", potentials
        )


def test_an_unknown_functional_is_refused_before_the_data_are_read(tmp_path: Path) -> None:
    """Although the data file does not even exist."""
    content = document(tmp_path / "none.extxyz", physics={"dispersion": "PBEX"})
    with pytest.raises(ConfigError, match="s-dftd3 has no D3\\(BJ\\) parameters for `PBEX`; name a functional such as"):
        run_training(load_config(content), tmp_path / "run", potentials)
