"""`mdrelax md`, `audit`, `export` and `predict` on models that were never trained: what they take, write and say."""

import json
from pathlib import Path

import ase.io
import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.build import molecule

from command_line import mdrelax
from mdrelax.cli import CONFIG, DATA, OTHER
from mdrelax.engines.ase import MDRelaxCalculator
from mdrelax.engines.md import LOG_COLUMNS, MDResult
from untrained_models import saved


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of H, C and O."""
    return saved(tmp_path_factory.mktemp("model") / "m.safetensors", 1, 6, 8)


# --- audit ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        ((1, 6, 7, 8), "the embedded sample:ethanol."),
        ((14,), "rattled crystals of Si, seed 1."),
        ((7,), "random clusters of N, seed 1."),
        ((14, 8), "random clusters of Si, O, seed 1."),
    ],
)
def test_audit_without_data_finds_structures_of_the_models_elements(tmp_path, elements, said):
    """And says which they are."""
    path, output = saved(tmp_path / "m.safetensors", *sorted(elements)), tmp_path / "c.json"
    end = mdrelax("audit", path, "--structures", "3", "--operations", "1", "--output", output)
    assert end.code == 0, end.err
    for part in said.split(" of ")[-1].removesuffix(".").split(", "):
        assert part in end.out
    assert said.split(" of ")[0] in end.out
    assert json.loads(output.read_text())["n_structures"] == 3


def test_audit_refuses_elements_that_the_model_does_not_know(tmp_path, model):
    """In one sentence with both lists."""
    ase.io.write(tmp_path / "n2.xyz", molecule("N2"))
    said = mdrelax("audit", model, tmp_path / "n2.xyz")
    assert said.code == DATA
    assert said.last_line.startswith("Atomic numbers [7] are unknown to this model, which was trained on [1, 6, 8]")


# --- predict ----------------------------------------------------------------------------------------------------------


# --- export -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--to", "onnx"), CONFIG, "`--to` must be pt2"),
        (("--out", "model.so"), DATA, "is a file `*.pt2`, got `model.so`"),
    ],
)
def test_export_refuses_what_it_cannot_write(model, arguments, code, says):
    """Before anything is compiled."""
    said = mdrelax("export", model, *arguments)
    assert said.code == code
    assert says in said.last_line


@pytest.mark.slow
def test_an_exported_model_runs_by_itself_with_the_models_numbers(tmp_path, model):
    """The hash that is printed is the file's; a float64 file gives the energies and forces of the float64 model."""
    exported = tmp_path / "fast.pt2"
    said = mdrelax("export", model, "--out", exported, "--dtype", "float64")
    assert said.code == 0, said.err
    (sha256,) = (line.removeprefix("SHA-256: ") for line in said.out.splitlines() if line.startswith("SHA-256"))
    fast = MDRelaxCalculator.from_compiled(exported, sha256=sha256)
    plain = MDRelaxCalculator.from_file(model, dtype="float64")
    structures = [molecule("CH3CH2OH"), molecule("H2O"), Atoms("O")]
    for ours, theirs in zip(fast.calculate_many(structures), plain.calculate_many(structures), strict=True):
        np.testing.assert_allclose(ours["forces"], theirs["forces"], atol=1e-10)
        assert ours["energy"] == pytest.approx(theirs["energy"], abs=1e-10)


# --- predict ----------------------------------------------------------------------------------------------------------


def test_predict_reads_bare_frames_of_any_format(tmp_path, model):
    """All frames of a trajectory without labels get energies and forces, and only cells a stress."""
    cell = Atoms("CO", [[0, 0, 0], [1.2, 0.1, 0.2]], cell=[3.1, 3.2, 3.3], pbc=True)
    ase.io.write(tmp_path / "bare.traj", [molecule("CH3OH"), cell])
    said = mdrelax("predict", model, tmp_path / "bare.traj", tmp_path / "out.extxyz")
    assert said.code == 0, said.err
    first, second = ase.io.read(tmp_path / "out.extxyz", ":")
    assert "mdrelax_energy" in first.info
    assert "mdrelax_stress" not in first.info
    assert first.arrays["mdrelax_forces"].shape == (6, 3)
    cell.calc = MDRelaxCalculator.from_file(model)
    # An extxyz has eight digits.
    np.testing.assert_allclose(second.info["mdrelax_stress"], cell.get_stress(voigt=False), rtol=0, atol=1e-7)


def test_predict_refuses_atoms_at_one_point(tmp_path, model):
    """Instead of writing NaN."""
    ase.io.write(tmp_path / "h2.xyz", Atoms("H2", np.zeros((2, 3))))
    said = mdrelax("predict", model, tmp_path / "h2.xyz", tmp_path / "out.extxyz")
    assert said.code == DATA
    assert said.last_line.startswith("Frame 0 of `h2.xyz`: Atoms 0 and 1 lie at one point")
    assert not (tmp_path / "out.extxyz").exists()


# --- md ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def water(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A structure file in the folder where the command runs."""
    monkeypatch.chdir(tmp_path)
    ase.io.write("water.xyz", molecule("H2O"))
    return Path("water.xyz")


@pytest.mark.parametrize("existing", ["md.traj", "md.csv"])
def test_md_replaces_nothing_unless_told_to(model, water, existing):
    """An older trajectory or log stays as it was; with --overwrite it goes."""
    Path(existing).write_text("precious")
    said = mdrelax("md", model, water, "--ps", "0.002")
    assert said.code == CONFIG
    assert said.last_line == f"`{existing}` exists; name another output, or replace it with `--overwrite`."
    assert Path(existing).read_text() == "precious"
    said = mdrelax("md", model, water, "--ps", "0.002", "--overwrite")
    assert said.code == 0, said.err
    assert len(pd.read_csv("md.csv")) == 2
    assert len(ase.io.read("md.traj", ":")) == 1


def test_md_refuses_a_device_that_is_not_there(model, water):
    """No traceback of torch, and no output files."""
    said = mdrelax("md", model, water, "--device", "cuda:99")
    assert said.code == DATA
    assert said.last_line.startswith("The device `cuda:99` cannot be used here (")
    assert not Path("md.csv").exists()


def test_md_compiles_when_it_is_told_to(model, water, monkeypatch):
    """And says in one sentence that it cannot where there is no compiler; `--compile` left out, none is needed."""

    def missing() -> str:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", missing)
    said = mdrelax("md", model, water, "--ps", "0.002", "--compile")
    assert said.code == OTHER
    assert said.last_line.startswith("Compiling needs a C++ compiler, and none was found")
    assert mdrelax("md", model, water, "--ps", "0.002").code == 0


def pretended(monkeypatch: pytest.MonkeyPatch, *, exploded: bool) -> None:
    """A run of water whose second frame, at 10 fs, has its first bond twice as long."""

    def run(atoms: Atoms, *, trajectory: Path, **_: object) -> MDResult:
        frames = [atoms.copy(), atoms.copy()]
        frames[1].positions[1] += atoms.positions[1] - atoms.positions[0]
        frames[1].info["time_fs"] = 10.0
        ase.io.write(trajectory, frames)
        log = pd.DataFrame([[0.0] * len(LOG_COLUMNS)], columns=list(LOG_COLUMNS))
        return MDResult(log, 0.0, 300.0, exploded, "Too hot." if exploded else "", atoms)

    monkeypatch.setattr("mdrelax.engines.md.run_md", run)


def test_md_names_the_bond_that_broke(model, water, monkeypatch):
    """With its time and its lengths; an unbroken run says nothing of bonds."""
    assert "broke" not in mdrelax("md", model, water, "--ps", "0.002").out
    pretended(monkeypatch, exploded=False)
    said = mdrelax("md", model, water, "--overwrite")
    assert said.code == 0, said.err
    assert "The bond O0-H1 broke at 0.01 ps: 1.94 A, at the start 0.97 A." in said.out


def test_an_exploded_run_is_one_sentence_and_no_picture(model, water, monkeypatch):
    """Numbers that are none cannot be drawn, and the exception's name tells a user nothing."""
    pretended(monkeypatch, exploded=True)
    said = mdrelax("md", model, water, "--plot", "drift.png")
    assert said.code == OTHER
    assert said.last_line == "The run exploded: Too hot."
    assert not Path("drift.png").exists()
