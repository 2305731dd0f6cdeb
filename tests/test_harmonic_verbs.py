"""`mdrelax vibrations`, `phonons` and `eval --harmonic`: what they write and say, and what they refuse."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read, write
from ase.vibrations import VibrationsData

from command_line import Said, mdrelax
from mdrelax.analysis.geometry import relax
from mdrelax.cli import CONFIG, DATA, OTHER
from mdrelax.engines.ase import MDRelaxCalculator
from mdrelax.modelfile import load_model
from small_runs import clusters, write_frames
from untrained_models import saved

AS_IT_IS = "--no-relax"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of H, O and Cu, a molecule and a crystal."""
    folder = tmp_path_factory.mktemp("harmonic")
    saved(folder / "m.safetensors", 1, 8, 29)
    write(folder / "water.xyz", molecule("H2O"))
    write(folder / "copper.cif", bulk("Cu", cubic=True))
    return folder


def run(folder: Path, verb: str, structure: str, *options: str | Path) -> Said:
    """The verb on the fixture's model."""
    return mdrelax(verb, folder / "m.safetensors", folder / structure, *options)


def test_vibrations_writes_tables_modes_hessian_and_picture(folder: Path, tmp_path: Path) -> None:
    """Everything of the exact Hessian, with the model's hash; ASE reads it back; forces that remain are warned of."""
    said = run(folder, "vibrations", "water.xyz", AS_IT_IS, "--out", tmp_path)
    assert said.code == 0, said.err
    assert "Warning: not relaxed, and the largest force is" in said.out
    table, summary = pd.read_csv(tmp_path / "vibrations.csv"), json.loads((tmp_path / "vibrations.json").read_text())
    assert list(table) == ["mode", "wavenumber_per_cm", "frequency_THz", "energy_meV", "kind", "imaginary"]
    assert table.kind.tolist() == ["translation"] * 3 + ["rotation"] * 3 + ["vibration"] * 3
    assert summary["wavenumbers_per_cm"] == pytest.approx(table.wavenumber_per_cm[6:].tolist())
    assert summary["model_content"] == load_model(folder / "m.safetensors").header["content"]
    assert (summary["method"], summary["delta_A"], summary["relaxation_steps"]) == ("exact", None, 0)
    assert summary["command"].startswith("mdrelax vibrations m.safetensors")
    assert len(summary["imaginary"]) == int(table.imaginary.sum())
    for sentence in summary["imaginary"]:
        assert sentence in said.out
    calculator = MDRelaxCalculator.from_file(folder / "m.safetensors", dtype="float64")
    stored = VibrationsData.read(str(tmp_path / "hessian.json"))
    np.testing.assert_allclose(stored.get_hessian(), calculator.get_hessian(molecule("H2O")), atol=1e-10)
    assert len(read(tmp_path / "modes.xyz", ":")) == 3
    assert (tmp_path / "vibrations.png").read_bytes().startswith(b"\x89PNG")


def test_finite_differences_agree_and_are_named(folder: Path, tmp_path: Path) -> None:
    """`--method finite` has the wavenumbers of the exact Hessian to the error of the step, and says the step."""
    for method in ("exact", "finite"):
        options = ("--method", method, "--delta", "0.001", "--out", tmp_path / method)
        assert run(folder, "vibrations", "water.xyz", AS_IT_IS, *options).code == 0
    exact, finite = (json.loads((tmp_path / m / "vibrations.json").read_text()) for m in ("exact", "finite"))
    assert finite["wavenumbers_per_cm"] == pytest.approx(exact["wavenumbers_per_cm"], rel=1e-3, abs=0.1)
    assert finite["delta_A"] == 0.001


def test_older_results_are_replaced_only_when_told(folder: Path, tmp_path: Path) -> None:
    """Both verbs refuse what is there, and name the option."""
    pytest.importorskip("phonopy")
    for verb, structure in (("vibrations", "water.xyz"), ("phonons", "copper.cif")):
        (tmp_path / f"{verb}.json").write_text("old")
        options = (AS_IT_IS, "--out", tmp_path)
        said = run(folder, verb, structure, *options)
        assert said.code == CONFIG
        assert "exists; name another output, or replace it with `--overwrite`." in said.last_line
        more = ("--supercell", "2,2,2") if verb == "phonons" else ()
        assert run(folder, verb, structure, *options, *more, "--overwrite").code == 0
        assert (tmp_path / f"{verb}.json").read_text() != "old"


def test_phonons_writes_bands_states_heat_and_phonopys_file(folder: Path, tmp_path: Path) -> None:
    """The primitive cell of the conventional one, the sum rule before, and tables with units in their columns."""
    phonopy = pytest.importorskip("phonopy")
    options = ("--supercell", "2,2,2", "--mesh", "6,6,6", "--temperature", "0,600,300", "--path", "GXL")
    said = run(folder, "phonons", "copper.cif", AS_IT_IS, *options, "--out", tmp_path)
    assert said.code == 0, said.err
    summary = json.loads((tmp_path / "phonons.json").read_text())
    assert (summary["atoms_in_primitive_cell"], summary["atoms_in_supercell"]) == (1, 32)
    assert (summary["supercell"], summary["mesh"]) == ([2, 2, 2], [6, 6, 6])
    assert summary["acoustic_sum_rule_violation_eV_per_A2"] < 1e-10
    bands, thermal = pd.read_csv(tmp_path / "bands.csv"), pd.read_csv(tmp_path / "thermal.csv")
    assert bands.label.dropna().tolist() == ["G", "X", "X", "L"]
    assert {"distance_per_A", "qa", "branch_3_THz", "branch_3_per_cm"} < set(bands)
    assert thermal.temperature_K.tolist() == [0, 300, 600]
    assert list(pd.read_csv(tmp_path / "dos.csv")) == ["frequency_THz", "frequency_per_cm", "dos_per_THz"]
    assert ("No imaginary modes." in said.out) == (not summary["imaginary"])
    again = phonopy.load(str(tmp_path / "phonopy_params.yaml"), log_level=0)
    found = again.run_qpoints([[0.5, 0.0, 0.5]]).frequencies[0]
    np.testing.assert_allclose(found, bands[bands.label == "X"].filter(like="_THz").to_numpy()[0], atol=1e-5)
    assert (tmp_path / "phonons.png").read_bytes().startswith(b"\x89PNG")


def test_the_default_supercell_is_told(folder: Path, tmp_path: Path) -> None:
    """Three conventional cells of 3.61 A are wider than 10 A."""
    pytest.importorskip("phonopy")
    said = run(folder, "phonons", "copper.cif", AS_IT_IS, "--method", "finite", "--path", "GX", "--out", tmp_path)
    assert said.code == 0, said.err
    assert "Supercell 3,3,3, the smallest that is 10 A and twice the cut-off of 4 A wide" in said.out
    assert json.loads((tmp_path / "phonons.json").read_text())["displacements"] in (1, 2)


def test_eval_compares_vibrations_with_a_file(folder: Path, tmp_path: Path) -> None:
    """The model's own vibrations as the reference: no error, in the table, on the screen and in eval.json."""
    frames = clusters(3)
    frames[0].set_positions(molecule("NH3").positions[:4])  # an untrained network need not hold it together
    data = write_frames(tmp_path / "data.extxyz", frames)
    write(tmp_path / "first.xyz", Atoms(frames[0].numbers, frames[0].positions))
    model = folder / "m.safetensors"
    said = mdrelax("vibrations", model, tmp_path / "first.xyz", "--out", tmp_path / "v")
    assert said.code == 0, said.err
    for reference, paired in (("vibrations.json", "overlap"), ("hessian.json", "overlap"), ("vibrations.csv", "order")):
        out = tmp_path / reference
        said = mdrelax("eval", model, data, "--harmonic", tmp_path / "v" / reference, "--out", out)
        assert said.code == 0, said.err
        found = json.loads((out / "eval.json").read_text())["harmonic"]
        assert found["paired_by"] == paired
        assert found["mae_per_cm"] == pytest.approx(0.0, abs=0.01)
        assert f"Vibrations against {reference}: MAE 0.0 / cm" in said.out
        table = pd.read_csv(out / "harmonic.csv")
        assert list(table) == ["mode", "reference_per_cm", "model_per_cm", "difference_per_cm", "overlap"]
        assert len(table) == 6
        assert (out / "harmonic.png").is_file()


@pytest.mark.parametrize(
    ("verb", "structure", "options", "code", "message"),
    [
        ("vibrations", "copper.cif", [], DATA, "use `mdrelax phonons`"),
        ("vibrations", "water.xyz", ["--method", "exakt"], CONFIG, "must be exact or finite, got 'exakt'"),
        ("vibrations", "water.xyz", ["--delta", "nan"], CONFIG, "`--delta` must be a finite number, got nan."),
        ("vibrations", "water.xyz", ["--fmax", "0"], CONFIG, "`--fmax` must be a force > 0"),
        ("vibrations", "water.xyz", ["--temperature", "-1"], CONFIG, "Input should be greater than or equal to 0"),
        ("vibrations", "nowhere.xyz", [], DATA, "There is no file"),
        ("phonons", "water.xyz", [], DATA, "use `mdrelax vibrations` for a molecule"),
        ("phonons", "copper.cif", ["--supercell", "2,2"], CONFIG, "`--supercell` must be three whole numbers > 0"),
        ("phonons", "copper.cif", ["--supercell", "0,2,2"], CONFIG, "such as 3,3,3, got '0,2,2'"),
        ("phonons", "copper.cif", ["--mesh", "a,b,c"], CONFIG, "`--mesh` must be three whole numbers"),
        ("phonons", "copper.cif", ["--temperature", "-5,10,5"], CONFIG, "none below 0"),
        ("phonons", "copper.cif", ["--temperature", "hot"], CONFIG, "must be first,last,step in K"),
        ("phonons", "copper.cif", ["--delta", "0"], CONFIG, "`--delta` must be a displacement in A"),
        ("phonons", "copper.cif", [AS_IT_IS, "--path", "GQ"], DATA, "`--path` names Q, and the lattice has G, K, L"),
    ],
)
def test_a_wrong_option_is_one_sentence(folder, tmp_path, verb, structure, options, code, message) -> None:
    """Other structures, words and numbers that make no sense; nothing is written."""
    pytest.importorskip("phonopy")
    said = run(folder, verb, structure, *options, "--out", tmp_path / "out")
    assert said.code == code, said.err
    assert message in said.last_line
    assert not (tmp_path / "out").exists()


def test_a_geometry_that_does_not_relax_is_one_sentence(folder, tmp_path, monkeypatch) -> None:
    """With the force that is left, and what to do."""
    monkeypatch.setitem(relax.__kwdefaults__, "steps", 2)
    said = run(folder, "vibrations", "water.xyz", "--fmax", "1e-30", "--out", tmp_path / "out")
    assert said.code == OTHER
    assert said.last_line.startswith("The geometry did not relax: the largest force is")
    assert not (tmp_path / "out").exists()


def test_a_missing_phonopy_is_one_sentence(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is computed."""
    monkeypatch.setitem(sys.modules, "phonopy", None)
    said = run(folder, "phonons", "copper.cif", "--out", tmp_path)
    assert said.code == CONFIG
    assert said.last_line == "Phonons need phonopy; install it with `pip install 'mdrelax[phonons]'`."


@pytest.mark.parametrize(
    ("reference", "code", "message"),
    [
        ("B3LYP", CONFIG, "must name a file (.json, .csv) or a level of theory such as GFN2-xTB"),
        ("nowhere.json", CONFIG, "There is no file `nowhere.json` for `--harmonic`."),
        ("NOSUCH/def2-SVP", DATA, "pyscf does not know `NOSUCH/def2-SVP`"),
    ],
)
def test_a_wrong_reference_is_one_sentence(folder, tmp_path, reference, code, message) -> None:
    """Before the errors are computed."""
    if "/" in reference:
        pytest.importorskip("pyscf")
    data = write_frames(tmp_path / "data.extxyz", clusters(2))
    said = mdrelax("eval", folder / "m.safetensors", data, "--harmonic", reference, "--out", tmp_path / "out")
    assert said.code == code, said.err
    assert message in said.last_line
    assert not (tmp_path / "out").exists()
