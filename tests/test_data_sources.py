"""Data as people have it: several files, folders and patterns, other programs' formats, weights, convert and split."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, io
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io.trajectory import Trajectory

from command_line import mdrelax
from mdrelax import potentials
from mdrelax.base.reading import listening
from mdrelax.base.sections import ConfigError
from mdrelax.datasets import load_frames
from mdrelax.forces.forcefield import Prediction
from mdrelax.forces.loader import Batch, frames_from_data, join, rotate_batch, split_batch
from mdrelax.forces.loss import LossKind, LossWeights, Targets, task_loss
from mdrelax.runs.config import load_config
from mdrelax.runs.inputs import load_parts
from mdrelax.runs.train import run_training
from small_runs import clusters, crystals, document, write_frames


def calculated(frames: list[Atoms]) -> list[Atoms]:
    """The same frames with their labels as a calculator's results, as most programs' files have them."""
    found = []
    for atoms in frames:
        copy = Atoms(atoms.numbers, atoms.positions)
        copy.calc = SinglePointCalculator(
            copy, energy=atoms.info["REF_energy"], forces=atoms.arrays["REF_forces"].copy()
        )
        found.append(copy)
    return found


def energies(frames: list) -> list[float]:
    """The labels."""
    return [float(frame.energy) for frame in frames]


# --- several sources --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Clusters in an extxyz, a compressed one in an inner folder, a trajectory, a database, and a note."""
    tmp_path = tmp_path / "data"
    tmp_path.mkdir()
    frames = clusters(12)
    write_frames(tmp_path / "a.extxyz", frames[:3])
    (tmp_path / "inner").mkdir()
    plain = write_frames(tmp_path / "b.xyz", frames[3:6])
    (tmp_path / "inner" / "b.xyz.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    with Trajectory(str(tmp_path / "c.traj"), "w") as file:
        for atoms in calculated(frames[6:9]):
            file.write(atoms)
    with connect(tmp_path / "d.db") as database:
        for atoms in calculated(frames[9:]):
            database.write(atoms)
    (tmp_path / "notes.md").write_text("energies in eV")
    return tmp_path


def test_a_folder_a_pattern_and_a_list_are_their_files(folder: Path) -> None:
    """In rising order; labels by each file's own keys, to the eight decimals of an extxyz."""
    expected = [atoms.info["REF_energy"] for atoms in clusters(12)]
    order = [*range(3), *range(6, 12), *range(3, 6)]  # a, c, d, inner/b
    whole = load_frames(folder)
    np.testing.assert_allclose(energies(whole.data), [expected[k] for k in order], atol=1e-7)
    listed = load_frames([folder / "c.traj", str(folder / "inner")])
    np.testing.assert_allclose(energies(listed.data), [expected[k] for k in (6, 7, 8, 3, 4, 5)], atol=1e-7)
    fitting = load_frames(str(folder / "**" / "*.xyz.gz"))
    np.testing.assert_allclose(energies(fitting.data), expected[3:6], atol=1e-7)
    report = str(whole.report)
    assert report.startswith("4 files (a.extxyz, c.traj, d.db, b.xyz.gz): 12 frames of H, O")
    assert "energy from `REF_energy` and `energy`, forces from `REF_forces` and `forces`" in report
    assert "frames with energy: 12, forces: 12" in report


def test_one_file_is_read_as_ever_and_none_is_a_sentence(folder: Path, tmp_path: Path) -> None:
    """Empty lists, folders and patterns name themselves."""
    assert load_frames([folder / "a.extxyz"]).report == load_frames(folder / "a.extxyz").report
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no file whose name shows a data format"):
        load_frames(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"No file fits the pattern `.*\*\.none`"):
        load_frames(str(folder / "*.none"))
    with pytest.raises(ValueError, match=r"`data.source` is an empty list"):
        load_frames([])


def test_isolated_atoms_of_two_files_must_agree(tmp_path: Path) -> None:
    """The same energies twice are one; different ones are two levels of theory."""
    paths = []
    for name, energy in (("a", -13.0), ("b", -13.0), ("c", -12.0)):
        atom = Atoms("H", info={"config_type": "IsolatedAtom", "REF_energy": energy})
        paths.append(write_frames(tmp_path / f"{name}.extxyz", [*clusters(2), atom]))
    assert load_frames(paths[:2]).isolated_energies == {1: -13.0}
    with pytest.raises(ValueError, match=r"have the energies -13.0 and -12.0 eV in two of the files, `c.extxyz`"):
        load_frames(paths)


def test_a_run_takes_a_list_in_its_config(folder: Path, tmp_path: Path) -> None:
    """The model card has the files' names, not their places."""
    content = document(folder, data={"train": 8, "validation": 2, "test": 2}, training={"steps": 2})
    content["data"]["source"] = [str(folder / "a.extxyz"), str(folder / "*.traj"), str(folder / "inner"),
                                 str(folder / "d.db")]  # fmt: skip
    run = run_training(load_config(content), tmp_path / "run", potentials)
    assert run.results["test"]["forces_mae_meV_per_A"] > 0
    from mdrelax.modelfile import load_model

    assert load_model(run.model_file).header["card"]["config"]["data"]["source"][0] == "a.extxyz"


# --- weights ----------------------------------------------------------------------------------------------------------


def test_weights_are_those_of_the_frame_times_those_of_its_kind(tmp_path: Path) -> None:
    """`config_weight` in the file, `data.weights` in the config; 1 where neither says anything."""
    frames = clusters(12)
    for k, atoms in enumerate(frames):
        atoms.info["config_type"] = "hot" if k % 2 else "cold"
        if k % 3 == 0:
            atoms.info["config_weight"] = 0.5
    source = write_frames(tmp_path / "w.extxyz", frames)
    config = load_config(document(source, data={"train": 12, "validation": 0, "test": 0, "weights": {"hot": 3}}))
    train = load_parts(config.data).train
    expected = {k: (3 if k % 2 else 1) * (0.5 if k % 3 == 0 else 1) for k in range(12)}
    for frame in train:
        number = int(frame.place.split()[1])
        assert (frame.weight if "weight" in frame else 1.0) == expected[number]
    with pytest.raises(ConfigError, match=r"names the config_type `warm`, which no training frame has; k?"):
        load_parts(
            load_config(document(source, data={"train": 10, "validation": 2, "test": 0, "weights": {"warm": 3}})).data
        )
    frames[3].info["config_weight"] = "much"
    write_frames(source, frames)
    with pytest.raises(ValueError, match=r"The `config_weight` of frame 3 of `w.extxyz` must be a number"):
        load_frames(source)


@pytest.mark.parametrize("kind", ["mae", "mse", "huber", "l2norm"])
def test_a_weight_of_two_counts_as_if_the_structure_were_there_twice(kind: LossKind) -> None:
    """The loss of [a, b] with weights 2, 1 over 2 structures is that of [a, a, b] over 3, times 3 / 2: rounding."""
    frames = frames_from_data(_data(crystals(3)), cutoff=3.0)
    pair, triple = (
        join([frames[0]._replace(weights=torch.tensor([2.0])), frames[1]]),
        join([*frames[:1] * 2, frames[1]]),
    )
    weights = LossWeights(1.0, 2.0, 3.0)
    losses = []
    for batch in (pair, triple):
        off = [0.9 * target + 0.01 for target in batch.targets]
        prediction = Prediction(off[0], off[0], off[1], off[2])
        losses.append(
            task_loss(
                prediction, batch.targets, batch.graph, kind=kind, weights=weights, of_structures=batch.weights
            ).item()
        )
    assert losses[0] == pytest.approx(1.5 * losses[1], rel=1e-12)


def test_weights_follow_their_structures_through_batches() -> None:
    """Joined, split, turned and moved; structures without one weigh 1."""
    frames = frames_from_data(_data(crystals(4)), cutoff=3.0)
    frames[2] = frames[2]._replace(weights=torch.tensor([0.25], dtype=torch.float64))
    batch = join(frames)
    assert batch.weights is not None
    assert batch.weights.tolist() == [1, 1, 0.25, 1]
    assert [part.weights.tolist() for part in split_batch(batch, 3)] == [[1, 1, 0.25], [1]]
    assert rotate_batch(batch, seed=0, step=0).weights is batch.weights
    assert batch.to("cpu").weights.tolist() == batch.weights.tolist()
    assert join(frames[:2]).weights is None
    assert Batch(batch.graph, Targets(*batch.targets)).weights is None


def test_a_weight_of_zero_leaves_frames_out(tmp_path: Path) -> None:
    """Spoilt labels of one kind do no harm: the run has the weights of the clean one, bit for bit."""
    frames = clusters(24)
    for atoms in frames[:4]:
        atoms.info["config_type"] = "odd"
    (tmp_path / "train").write_text("\n".join(map(str, range(16))))
    (tmp_path / "test").write_text("\n".join(map(str, range(16, 24))))
    states = []
    for offset in (0.0, 50.0):
        for atoms in frames[:4]:
            atoms.arrays["REF_forces"] = atoms.arrays["REF_forces"] + offset
        source = write_frames(tmp_path / f"{offset}.extxyz", frames)
        content = document(source, data={"weights": {"odd": 0.0}}, training={"steps": 6})
        content["data"] |= {"train_indices": str(tmp_path / "train"), "validation_indices": str(tmp_path / "test")}
        content["data"]["test"] = None
        run = run_training(load_config(content), tmp_path / f"run-{offset}", potentials)
        assert len(run.parts.train) == 12
        states.append(run.fit.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    content["data"]["weights"] = {"odd": 0.0, "default": 0.0}
    with pytest.raises(ConfigError, match="All training frames have the weight 0"):
        run_training(load_config(content), tmp_path / "none", potentials)


def _data(frames: list[Atoms]) -> list:
    from mdrelax.datasets import load_atoms

    return load_atoms(frames).data


# --- the verbs --------------------------------------------------------------------------------------------------------


def test_convert_writes_what_it_read(folder: Path, tmp_path: Path) -> None:
    """Any sources, in eV and Angstrom, weights and isolated atoms too; read again, the labels are the same."""
    frames = clusters(3)
    frames[1].info["config_weight"] = 2.0
    atom = Atoms("H", info={"config_type": "IsolatedAtom", "REF_energy": -0.5})
    hartree = write_frames(tmp_path / "hartree.extxyz", [*frames, atom])
    said = mdrelax("data", "convert", hartree, "-o", tmp_path / "eV.extxyz", "-r", "data.energy_unit=Ha")
    assert said.code == 0, said.err
    before, after = load_frames(hartree, energy_unit="Ha"), load_frames(tmp_path / "eV.extxyz")
    np.testing.assert_allclose(energies(after.data), energies(before.data), rtol=1e-9)
    for ours, theirs in zip(after.data, before.data, strict=True):
        np.testing.assert_allclose(ours.forces, theirs.forces, atol=1e-7)
    assert after.isolated_energies == pytest.approx(before.isolated_energies)
    assert after.data[1].weight == 2.0
    said = mdrelax("data", "convert", folder, hartree, "-o", tmp_path / "all.extxyz")
    assert "16 structures written" in said.out
    assert "exists; name another output" in mdrelax("data", "convert", folder, "-o", tmp_path / "all.extxyz").err
    other = mdrelax("data", "convert", folder, "-o", tmp_path / "x.extxyz", "-r", "training.steps=3")
    assert "Only keys of `data` say how to read a file, got `training`" in other.err


def test_split_has_the_parts_of_a_run(tmp_path: Path) -> None:
    """The same seed and sizes: the test file holds the frames that a run tests on, in its order."""
    source = write_frames(tmp_path / "all.extxyz", clusters(20))
    said = mdrelax("data", "split", source, "--out", tmp_path / "parts", "--train", "12", "--validation", "0.2")
    assert said.code == 0, said.err
    parts = load_parts(load_config(document(source, data={"train": 12, "validation": 0.2, "test": None})).data)
    for name in ("train", "validation", "test"):
        found = energies(load_frames(tmp_path / "parts" / f"{name}.extxyz").data)
        np.testing.assert_allclose(found, energies(getattr(parts, name)), atol=1e-8)
    assert [len(io.read(tmp_path / "parts" / f"{n}.extxyz", ":")) for n in ("train", "validation", "test")] == [
        12,
        4,
        4,
    ]


def test_whoever_listens_hears_how_far_a_file_is_read(tmp_path: Path) -> None:
    """Parts grow to the whole, and nobody hears anything outside."""
    source = write_frames(tmp_path / "long.extxyz", clusters(5))
    heard: list[tuple[str, int, int]] = []
    with listening(lambda *progress: heard.append(progress)):
        load_frames(source)
    own = [(done, total) for name, done, total in heard if name == "long.extxyz"]
    assert len(own) == 5
    assert own == sorted(own)
    assert own[-1][0] == own[-1][1] == len(source.read_text())
    load_frames(source)
    assert len(heard) == 6
