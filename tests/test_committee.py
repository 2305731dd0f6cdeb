"""Committees: members like single runs, spread like that of independent models, and the verbs that use it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from ase.io import read
from scipy.stats import spearmanr

import mdrelax as package
from command_line import mdrelax
from mdrelax import potentials
from mdrelax.analysis.selection import farthest_uncertain
from mdrelax.base.sections import ConfigError
from mdrelax.cli import CONFIG, OTHER
from mdrelax.engines.ase import MDRelaxCalculator
from mdrelax.engines.committee import CommitteeCalculator, model_files
from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.metrics import Predictions, errors
from mdrelax.forces.physics import Physics
from mdrelax.forces.spread import calibration
from mdrelax.modelfile import ModelFileError, load_model
from mdrelax.runs.committee import _finished
from mdrelax.runs.config import load_config
from mdrelax.runs.train import run_training
from molecules import ELEMENTS, crystal, ethanol, rattled, tiny_force_field
from small_runs import clusters, document, write_config, write_frames

MEMBERS = 2


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 labelled clusters."""
    return write_frames(tmp_path_factory.mktemp("data") / "clusters.extxyz", clusters(32))


@pytest.fixture(scope="module")
def trained(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A committee from the command line."""
    folder = tmp_path_factory.mktemp("committee")
    content = document(source, training={"committee": MEMBERS, "seed": 5})
    said = mdrelax("train", write_config(folder / "c.yaml", content), "--out", folder / "run")
    assert said.code == 0, said.err
    assert f"A committee of {MEMBERS} networks" in said.out
    assert "Spread of the forces" in said.out
    return folder / "run"


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_member_is_the_single_run_of_its_seed(source: Path, trained: Path, tmp_path: Path) -> None:
    """The last member has the numbers of a run that knows nothing of committees, with seed + 1: bit for bit."""
    single = run_training(load_config(document(source, training={"seed": 6})), tmp_path / "single", potentials)
    member = load_model(trained / "member-1" / "model.safetensors")
    other = load_model(single.model_file)
    for name, tensor in other.force_field.state_dict().items():
        assert torch.equal(tensor, member.force_field.state_dict()[name])
    splits = {(trained / f"member-{k}" / "split.json").read_text() for k in range(MEMBERS)}
    assert splits == {(tmp_path / "single" / "split.json").read_text()}


def test_the_results_are_those_of_the_mean(trained: Path) -> None:
    """Recomputed from the members' own files: errors of the averaged forces, and spread against error."""
    files = [np.load(trained / f"member-{k}" / "test_predictions.npz") for k in range(MEMBERS)]
    forces = np.stack([file["forces_pred"] for file in files])
    error = forces.mean(0) - files[0]["forces_true"]
    found = json.loads((trained / "results.json").read_text())
    assert found["test"]["forces_mae_meV_per_A"] == pytest.approx(1e3 * abs(error).mean(), rel=1e-9)
    spread = np.sqrt(((forces - forces.mean(0)) ** 2).sum(axis=(0, 2)) / (MEMBERS - 1))
    observed = np.linalg.norm(error, axis=1)
    summary = found["uncertainty"]
    assert summary["spread_rms_meV_per_A"] == pytest.approx(1e3 * np.sqrt((spread**2).mean()), rel=1e-9)
    assert summary["factor"] == pytest.approx(np.sqrt((observed**2).mean() / (spread**2).mean()), rel=1e-9)
    assert summary["spearman"] == pytest.approx(spearmanr(spread, observed).statistic, rel=1e-9)
    assert len(found["members"]) == MEMBERS


def test_only_what_is_missing_is_trained_again(trained: Path, source: Path) -> None:
    """A member that lost its results resumes at its last step; the others are left alone; without `--restart` no."""
    config = str(trained.parent / "c.yaml")
    assert mdrelax("train", config, "--out", trained).last_line.startswith(f"`{trained}` already contains a run")
    before = {k: (trained / f"member-{k}" / "model.safetensors").stat().st_mtime_ns for k in range(MEMBERS)}
    results = (trained / "results.json").read_text()
    (trained / "member-1" / "results.json").unlink()
    said = mdrelax("train", config, "--out", trained, "--restart", "auto")
    assert said.code == 0, said.err
    assert "member-1: test MAE" in said.out
    assert "member-0:" not in said.out
    after = {k: (trained / f"member-{k}" / "model.safetensors").stat().st_mtime_ns for k in range(MEMBERS)}
    assert [k for k in range(MEMBERS) if after[k] != before[k]] == [1]
    assert json.loads((trained / "results.json").read_text())["test"] == json.loads(results)["test"]
    content = {**document(source, training={"committee": MEMBERS, "seed": 9})}
    other = mdrelax("train", write_config(trained.parent / "d.yaml", content), "--out", trained, "--restart", "auto")
    assert (other.code, "training.seed" in other.err) == (CONFIG, True)


def test_structures_in_memory_are_trained_on_through_a_file(tmp_path: Path) -> None:
    """`mdrelax.train_committee` of ASE atoms; `mdrelax.train` says that it is for single networks."""
    content = {
        key: value
        for key, value in document(Path("unused"), training={"committee": 2, "steps": 4, "validate_every": 4}).items()
        if key != "data"
    } | {"data": {"train": 20, "validation": 6, "test": 6}}
    found = package.train_committee(content, clusters(32), folder=tmp_path / "run")
    assert len(found.model_files) == 2
    assert found.results["test"]["forces_mae_meV_per_A"] > 0
    assert yaml.safe_load((tmp_path / "run" / "member-1.yaml").read_text())["training"]["seed"] == 1
    with pytest.raises(ConfigError, match=r"`training.committee: 2` trains several networks, .*train_committee"):
        package.train(content, clusters(32), folder=tmp_path / "single")
    with pytest.raises(ConfigError, match=r"A committee has at least 2 members, got `training.committee: 1`"):
        package.train_committee({**content, "training": {"steps": 1}}, clusters(32), folder=tmp_path / "one")


# --- the calculator ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: rattled(ethanol(), 1, 0)[0], crystal], ids=["ethanol", "crystal"])
def test_mean_and_spread_are_those_of_independent_calculators(make) -> None:
    """Against four single calculators and numpy, one by one and in batches: rounding, 1e-10."""
    fields = [tiny_force_field("4x0e+4x1o", seed=seed) for seed in range(4)]
    atoms = make()
    singles = [MDRelaxCalculator(field).calculate_many([atoms])[0] for field in fields]
    committee = CommitteeCalculator(fields)
    atoms.calc = committee
    found = {name: atoms.calc.get_property(name, atoms) for name in singles[0]}
    for name, value in found.items():
        np.testing.assert_allclose(value, np.mean([single[name] for single in singles], axis=0), atol=1e-10)
    forces = np.array([single["forces"] for single in singles])
    results = atoms.calc.results
    assert results["energy_std"] == pytest.approx(np.std([single["energy"] for single in singles], ddof=1), abs=1e-10)
    np.testing.assert_allclose(results["forces_std"], np.std(forces, axis=0, ddof=1), atol=1e-10)
    np.testing.assert_allclose(results["forces_spread"], np.linalg.norm(results["forces_std"], axis=1), atol=1e-12)
    assert results["forces_spread"].shape == (len(atoms),)
    assert results["forces_std"].min() > 0
    for name, value in committee.calculate_many([ethanol(), atoms])[1].items():
        np.testing.assert_allclose(value, results[name], atol=1e-10)


def test_members_that_agree_have_no_spread_and_results_are_never_stale() -> None:
    """Twice the same network: standard deviations of zero; another geometry is computed again."""
    committee = CommitteeCalculator([tiny_force_field("4x0e+4x1o")] * 2)
    atoms = rattled(ethanol(), 1, seed=0)[0]
    atoms.calc = committee
    first = atoms.get_forces().copy()
    assert committee.results["energy_std"] == 0
    assert abs(committee.results["forces_std"]).max() == 0
    atoms.positions[0, 0] += 0.1
    assert abs(atoms.get_forces() - first).max() > 1e-3


def test_a_committee_of_strangers_is_refused(tmp_path: Path) -> None:
    """One member, other cut-offs, other physics, a folder without members: a sentence each."""
    field = tiny_force_field("4x0e+4x1o")
    with pytest.raises(ValueError, match="A committee needs at least 2 members, got 1"):
        CommitteeCalculator([field])
    with pytest.raises(ValueError, match="must have the same cutoff"):
        CommitteeCalculator([field, tiny_force_field("4x0e+4x1o", cutoff=4.0)])
    with pytest.raises(ValueError, match="must have the same physics"):
        CommitteeCalculator([field, ForceField(field.potential, elements=ELEMENTS, physics=Physics(1.0))])
    with pytest.raises(ModelFileError, match=r"holds no committee: there are 0 model files `member-\*/model"):
        model_files(tmp_path)


# --- calibration and selection ----------------------------------------------------------------------------------------


def test_calibration_of_errors_drawn_with_the_stated_spread() -> None:
    """Normal errors of exactly the stated size: factor 1, every bin on the line, to the noise of 1,000 atoms a bin.

    Twice the errors give the factor 2; an atom without a label is left out.
    """
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.01, 0.3, 10_000)
    noise = spread[:, None] * rng.normal(size=(10_000, 3)) / np.sqrt(3)
    truth = rng.normal(size=(10_000, 3))
    base = Predictions(np.ones(10_000, int), np.array([10_000]), np.zeros(1), np.zeros(1), truth, truth + noise)
    found = calibration(base, spread)
    assert found.summary["factor"] == pytest.approx(1, abs=0.03)
    np.testing.assert_allclose(found.table.observed_meV_per_A, found.table.predicted_meV_per_A, rtol=0.1)
    assert found.table.n_atoms.tolist() == [1000] * 10
    truth[0] = np.nan
    twice = calibration(base._replace(forces_pred=truth + 2 * noise, forces_true=truth), spread)
    assert twice.summary["factor"] == pytest.approx(2, abs=0.06)
    assert twice.table.n_atoms.sum() == 9_999
    assert errors(base)["forces_mae_meV_per_A"] > 0


def test_the_uncertain_and_far_apart_are_chosen() -> None:
    """A certain outlier and the copy of a chosen point are left for last."""
    points = np.array([[0.0], [0.01], [5.0], [9.0], [100.0]])
    spread = np.array([1.0, 0.99, 0.5, 0.6, 1e-6])
    assert farthest_uncertain(spread, points, 5) == [0, 3, 2, 1, 4]


def test_select_writes_candidates_in_the_order_chosen(trained: Path, tmp_path: Path) -> None:
    """The first one has the largest spread of all, as single calculators of the members find it."""
    candidates = clusters(12, seed=3)
    candidates[4].positions *= 1.3
    for atoms in candidates:
        atoms.calc = None
        atoms.info.clear()
        del atoms.arrays["REF_forces"]
    path = write_frames(tmp_path / "candidates.extxyz", candidates)
    said = mdrelax("data", "select", trained, path, "--n", "5", "--output", tmp_path / "chosen.extxyz")
    assert said.code == 0, said.err
    chosen = read(tmp_path / "chosen.extxyz", ":")
    assert len({atoms.info["candidate"] for atoms in chosen}) == 5
    members = [MDRelaxCalculator.from_file(file) for file in model_files(trained)]
    forces = np.array([[r["forces"] for r in member.calculate_many(read(path, ":"))] for member in members])
    spread = np.linalg.norm(forces.std(axis=0, ddof=1), axis=-1).max(axis=1)
    assert chosen[0].info["candidate"] == spread.argmax()
    np.testing.assert_allclose(
        [atoms.info["mdrelax_forces_spread"] for atoms in chosen],
        [spread[atoms.info["candidate"]] for atoms in chosen],
        rtol=1e-5,
    )
    refused = mdrelax("data", "select", trained, path, "--n", "50", "--output", tmp_path / "other.extxyz")
    assert "`--n` must lie between 1 and the 12 candidates, got 50" in refused.err
    single = mdrelax("data", "select", trained / "member-0" / "model.safetensors", path)
    assert (single.code, "is no folder" in single.err) == (CONFIG, True)


# --- md and eval ------------------------------------------------------------------------------------------------------


def test_md_stops_where_the_committee_disagrees(trained: Path, tmp_path: Path) -> None:
    """At a limit below the spread at the start it stops there, and the frame is written; far above it runs to the end.

    One model has no spread.
    """
    start = clusters(1)[0]
    start.write(tmp_path / "start.xyz", format="xyz")
    files = ("--log", tmp_path / "l.csv", "--trajectory", tmp_path / "t.traj", "--overwrite", "--ps", "0.005")
    said = mdrelax("md", trained, tmp_path / "start.xyz", *files, "--stop-above", "1e-9")
    assert said.code == 0, said.err
    assert "Stopped at 0 ps: The forces on atom" in said.out
    assert len(read(tmp_path / "t.traj", ":")) == 1
    assert len(pd.read_csv(tmp_path / "l.csv")) == 1
    said = mdrelax("md", trained, tmp_path / "start.xyz", *files, "--stop-above", "1e9")
    assert said.code == 0, said.err
    assert "Stopped" not in said.out
    single = trained / "member-0" / "model.safetensors"
    refused = mdrelax("md", single, tmp_path / "start.xyz", *files, "--stop-above", "0.3")
    assert (refused.code, "needs the spread of a committee" in refused.err) == (CONFIG, True)
    empty = mdrelax("md", tmp_path, tmp_path / "start.xyz", *files)
    assert (empty.code, "holds no committee" in empty.err) == (OTHER, True)


def test_eval_draws_the_calibration_of_a_committee(trained: Path, source: Path, tmp_path: Path) -> None:
    """Errors of the mean, the spread against them in a table and a figure; the members are named by content."""
    said = mdrelax("eval", trained, source, "--out", tmp_path / "eval")
    assert said.code == 0, said.err
    assert "times the spread" in said.out
    found = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert len({member["model_content"] for member in found["members"]}) == MEMBERS
    table = pd.read_csv(tmp_path / "eval" / "calibration.csv")
    assert table.n_atoms.sum() == 32 * 4
    assert (tmp_path / "eval" / "calibration.png").stat().st_size > 5000
    structures = list(read(source, ":"))
    results = CommitteeCalculator.from_file(trained).calculate_many(structures)
    error = np.array([r["forces"] - a.arrays["REF_forces"] for r, a in zip(results, structures, strict=True)])
    assert found["errors"]["forces_mae_meV_per_A"] == pytest.approx(1e3 * abs(error).mean(), rel=1e-4)


def test_a_member_that_was_killed_before_its_report_is_not_finished(tmp_path):
    """The resumed command left it without report and plots for ever."""
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    assert _finished(tmp_path) is None
    (tmp_path / "report.html").touch()
    assert _finished(tmp_path) == "there are no test frames"
