"""The room's face: one loader for every source, the shipped samples, statistics and checks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import io
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from torch_geometric.data import Data

from mdrelax.datasets import check_frames, dataset_stats, load, load_frames, make_frame, min_distance
from mdrelax.datasets.sample import provenance, sample_path

ROOT = Path(__file__).resolve().parents[1]


def waters(n_frames: int, scale: float = 0.02) -> list[Data]:
    """Rattled water molecules with the energies and forces of ASE's EMT, which has parameters for H and O."""
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(n_frames):
        atoms = molecule("H2O")
        atoms.positions += rng.normal(scale=scale, size=(3, 3))
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        frames.append(make_frame(atoms.numbers, atoms.positions, energy=energy, forces=forces))
    return frames


# --- one loader for every source ---


def test_the_ending_or_the_name_decides_the_format(tmp_path):
    """The same file under a foreign ending is read when its format is named."""
    atoms = molecule("H2O")
    atoms.info["REF_energy"] = -1.0
    io.write(tmp_path / "a.xyz", atoms, format="extxyz")
    shutil.copy(tmp_path / "a.xyz", tmp_path / "a.txt")
    assert load(tmp_path / "a.xyz")[0].energy.item() == -1.0
    assert load(str(tmp_path / "a.txt"), format="extxyz")[0].energy.item() == -1.0
    with pytest.raises(ValueError, match=r"format of `a.txt` does not follow from its ending; known endings are \.npz"):
        load(tmp_path / "a.txt")


def test_options_go_to_the_loader_and_none_is_not_given(tmp_path):
    """A configuration hands on its defaults."""
    atoms = molecule("H2O")
    atoms.info["my"] = -1.0
    io.write(tmp_path / "a.xyz", atoms, format="extxyz")
    assert load(tmp_path / "a.xyz", energy_key="my", energy_unit=None, length_unit=None)[0].energy.item() == -1.0


@pytest.mark.parametrize(
    ("source", "options", "sentence"),
    [
        ("a.xyz", {"enery_key": "my"}, "no option `enery_key`; did you mean `energy_key`"),
        ("a.xyz", {"format": "extxzy"}, "no data format `extxzy`; did you mean `extxyz`"),
        ("sample:ethanoll", {}, "no sample `ethanoll`; did you mean `ethanol`"),
        ("rmd17:aspirine", {}, "did you mean `rmd17:aspirin`"),
    ],
)
def test_misspelt_sources_and_options_name_the_nearest(tmp_path, monkeypatch, source, options, sentence):
    """Nothing is guessed, nothing ignored."""
    monkeypatch.chdir(tmp_path)
    io.write("a.xyz", molecule("H2O"), format="extxyz")
    with pytest.raises(ValueError, match=sentence):
        load_frames(source, **options)


def test_a_missing_file_says_what_a_data_set_may_be(tmp_path):
    """A file, a sample, a fetched name."""
    with pytest.raises(FileNotFoundError, match=r"`sample:NAME` \(ethanol\)"):
        load(tmp_path / "nothing.xyz")


def test_the_folder_refuses_to_be_a_top_level_package():
    """Run in the repository, ``import datasets`` would shadow the package of that name: a sentence instead."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "import datasets"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "ImportError: This folder is `mdrelax.datasets`" in done.stderr


def test_importing_the_room_does_not_import_what_only_some_need():
    """tblite, pyscf and pooch come when they are called for."""
    code = "import sys, mdrelax.datasets; print(*sorted({'tblite', 'pyscf', 'pooch'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# --- the shipped sample ---


def test_the_embedded_ethanol_is_complete_and_clean():
    """At least 600 ethanol frames with energies and forces, three isolated atoms, and no failed check."""
    frames = load_frames("sample:ethanol")
    assert len(frames.data) >= 600
    assert set(frames.isolated_energies) == {1, 6, 8}
    assert all(sorted(frame.z.tolist()) == [1] * 6 + [6] * 2 + [8] for frame in frames.data)
    assert all("forces" in frame for frame in frames.data)
    checks = check_frames(frames.data)
    assert checks["passed"].all(), checks.to_string()


def test_the_embedded_ethanol_is_small_and_says_where_it_comes_from():
    """Well under 2 MB, with method, temperature and versions."""
    assert sample_path("ethanol").stat().st_size < 2_000_000
    found = provenance(sample_path("ethanol"))
    assert found["method"] == "PBE/def2-SVP"
    assert found["temperature"] == 500.0
    assert {"ase", "date", "pyscf", "tblite", "units"} <= set(found)


def test_a_file_of_other_origin_has_no_provenance(tmp_path):
    """Nothing is made up."""
    io.write(tmp_path / "a.xyz", molecule("H2O"), format="extxyz")
    assert provenance(tmp_path / "a.xyz") == {}


# --- statistics and checks ---


def test_statistics_are_those_of_numpy_with_their_units():
    """Count, range, mean and standard deviation of energies and of all force components."""
    data = waters(30)
    table = dataset_stats(data).set_index("quantity")
    energies = np.array([frame.energy.item() for frame in data])
    forces = np.concatenate([frame.forces.numpy().ravel() for frame in data])
    for name, values, unit in (("energy", energies, "eV"), ("force component", forces, "eV/Angstrom")):
        row = table.loc[name]
        expected = [values.size, values.min(), values.mean(), values.max(), values.std()]
        np.testing.assert_allclose(row[["count", "min", "mean", "max", "std"]].astype(float), expected, atol=1e-12)
        assert row["unit"] == unit
    assert table.loc["H atoms per frame", "mean"] == 2
    assert "stress component" not in table.index


def test_statistics_of_single_atoms_and_of_no_frames():
    """Nothing to measure is no error."""
    table = dataset_stats([make_frame(np.array([1]), np.zeros((1, 3)), energy=-13.6)]).set_index("quantity")
    assert table.loc["shortest distance", "count"] == 0
    assert dataset_stats([]).empty


def test_the_shortest_distance_sees_periodic_images():
    """One atom of a primitive copper cell has its neighbours in the next cells, at a / sqrt(2)."""
    copper = bulk("Cu", a=3.6)
    frame = make_frame(copper.numbers, copper.positions, cell=copper.cell.array, pbc=copper.pbc)
    assert min_distance(frame) == pytest.approx(3.6 / np.sqrt(2))
    slab = make_frame(copper.numbers, copper.positions, cell=np.diag([3.0, 3.5, 0.0]), pbc=(True, True, False))
    assert min_distance(slab) == pytest.approx(3.0)
    water = molecule("H2O")
    assert min_distance(make_frame(water.numbers, water.positions)) == pytest.approx(water.get_all_distances()[0, 1])


def spoil(data: list[Data], fault: str) -> None:
    """Put one fault into frame 7."""
    if fault == "all numbers finite":
        data[7].forces[1, 1] = float("nan")
    elif fault == "labels complete":
        del data[7].forces
    elif fault == "no atoms too near":
        data[7].pos[1] = data[7].pos[0] + 0.1
    elif fault == "no duplicate geometry":
        data[7].pos, data[7].energy, data[7].forces = (data[3][key].clone() for key in ("pos", "energy", "forces"))
    elif fault == "no net force":
        data[7].forces[:, 0] += 1.0
    elif fault == "no extreme force":
        data[7].forces[0, 0] += 100.0
        data[7].forces[1, 0] -= 100.0
    elif fault == "no energy outlier":
        data[7].energy += 500.0


@pytest.mark.parametrize(
    ("fault", "also"),
    [
        ("all numbers finite", set()),
        ("labels complete", set()),
        ("no atoms too near", {"forces agree with energies", "no cell lost"}),  # labels of another geometry
        ("no duplicate geometry", set()),
        ("no net force", {"no cell lost"}),
        ("no extreme force", {"no cell lost", "forces agree with energies"}),
        ("no energy outlier", {"forces agree with energies"}),
    ],
)
def test_each_check_finds_its_fault(fault, also):
    """Clean data passes all; a fault in frame 7 fails its check, with a sentence that names the frame."""
    data = waters(40)
    assert check_frames(data)["passed"].all()
    spoil(data, fault)
    table = check_frames(data).set_index("check")
    failed = table[~table["passed"]]
    assert {fault} <= set(failed.index) <= {fault} | also
    assert failed.loc[fault, "frames"] == [7]
    assert failed.loc[fault, "message"].endswith("Frame 7.")


def test_two_temperatures_are_no_fault():
    """Half the frames cold and half hot: two modes of energy, and geometries that explain them."""
    data = waters(40, scale=0.01) + waters(80, scale=0.08)[40:]
    assert check_frames(data)["passed"].all(), check_frames(data).to_string()


def test_many_bad_frames_are_counted():
    """The sentence names five and counts the rest."""
    data = waters(20)
    for frame in data:
        frame.forces += torch.tensor([1.0, 0.0, 0.0])
    message = check_frames(data).set_index("check").loc["no net force", "message"]
    assert message.endswith("Frames 0, 1, 2, 3, 4 and 15 more.")


@pytest.mark.data
@pytest.mark.parametrize("name", ["rmd17/rmd17_ethanol_train_01.npz", "silicon/silicon_train.extxyz"])
def test_published_data_passes_every_check(shared_data, name):
    """The limits do not cry wolf."""
    table = check_frames(load(shared_data / name))
    assert table["passed"].all(), table.to_string()
