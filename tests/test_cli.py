"""The command line: one whole run with everything that it writes, and every verb on what it left."""

import json
import resource
import subprocess
from contextlib import nullcontext
from pathlib import Path

import ase
import ase.io
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from command_line import Said, mdrelax, shell
from mdrelax.cli import CERTIFICATE, CONFIG, DATA
from mdrelax.engines.ase import MDRelaxCalculator
from mdrelax.modelfile import load_model
from mdrelax.runs import train
from small_runs import clusters, crystals, document, write_config, write_frames

VERBS = ("train", "data", "config", "md", "vibrations", "phonons", "audit", "project", "predict", "report", "info")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 labelled clusters."""
    return write_frames(tmp_path_factory.mktemp("data") / "clusters.extxyz", clusters(32))


@pytest.fixture(scope="module")
def trained(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """A run with its standard baseline and a little MD, and what it said."""
    folder = tmp_path_factory.mktemp("train")
    content = {**document(source, training={"steps": 80}), "standard_baseline": True, "md_picoseconds": 0.05}
    said = mdrelax("train", write_config(folder / "c.yaml", content), "--out", folder / "run")
    assert said.code == 0, said.err
    return folder / "run", said


@pytest.fixture(scope="module")
def model(trained: tuple[Path, Said]) -> Path:
    """The model file of that run."""
    return trained[0] / "model.safetensors"


# --- help -------------------------------------------------------------------------------------------------------------


def test_help_is_quick_and_names_the_verbs():
    """Under one second of computing time, because nothing heavy is imported before a verb is chosen."""
    command, environment = shell("--help")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    for verb in VERBS:
        assert f" {verb} " in said.stdout


@pytest.mark.parametrize("verb", [*VERBS, "data fetch", "data generate", "data stats", "data check", "config schema"])
def test_every_verb_has_help(verb):
    """With a sentence of what it does."""
    said = mdrelax(*verb.split(), "--help")
    assert said.code == 0
    assert f"mdrelax {verb}" in said.out


@pytest.mark.parametrize("arguments", [["trian"], ["train"], ["train", "x", "--ot", "y"], ["md", "a"]])
def test_a_misspelt_command_is_a_usage_error(arguments):
    """Exit code 2, and the message names what is wrong."""
    said = mdrelax(*arguments)
    assert said.code == CONFIG
    assert "Traceback" not in said.err
    assert "No such" in said.err or "Missing" in said.err


# --- train ------------------------------------------------------------------------------------------------------------


def test_a_run_folder_has_everything(trained):
    """What ECOSYSTEM asks of a run folder, and no leavings beside it."""
    folder, _ = trained
    expected = {
        "config.yaml", "env.json", "split.json", "train.log", "metrics.csv", "checkpoints/last.pt", "model.safetensors",
        "results.json", "test_predictions.npz", "md_log.csv", "report.html", "plots/learning_curves.png",
        "plots/parity.png", "standard.log", "standard/model.safetensors", "standard/results.json",
    }  # fmt: skip
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert expected <= files
    assert not [name for name in files if name.endswith(".part")]


def test_the_run_says_the_numbers_that_it_writes(trained):
    """Certificate, errors beside both baselines, the drift; the screen and train.log agree."""
    folder, said = trained
    results = json.loads((folder / "results.json").read_text())
    assert "Certificate PASSED: E(3)" in said.out
    for arm in (results["test"], *results["baselines"].values()):
        assert f"{arm['forces_mae_meV_per_A']:.2f}" in said.out
    assert set(results["baselines"]) == {"mean", "standard"}
    assert results["test"]["forces_mae_meV_per_A"] < results["baselines"]["mean"]["forces_mae_meV_per_A"]
    assert f"{results['md']['drift_meV_per_atom_per_ps']:+.4f} meV/atom/ps" in said.out
    assert said.out.strip() == (folder / "train.log").read_text().strip()
    assert "step 7/80  forces" in said.err


def test_the_saved_predictions_are_those_of_the_model(trained, model, source):
    """test_predictions.npz against the calculator of model.safetensors on the frames of split.json (float32: 1e-5)."""
    folder, _ = trained
    saved = np.load(folder / "test_predictions.npz")
    frames = ase.io.read(source, ":")
    chosen = [frames[k] for k in json.loads((folder / "split.json").read_text())["test"]]
    results = MDRelaxCalculator.from_file(model).calculate_many(chosen)
    np.testing.assert_allclose(saved["energy_true"], [atoms.info["REF_energy"] for atoms in chosen], rtol=1e-7)
    np.testing.assert_allclose(saved["energy_pred"], [r["energy"] for r in results], rtol=0, atol=1e-5)
    np.testing.assert_allclose(saved["forces_pred"], np.concatenate([r["forces"] for r in results]), rtol=0, atol=1e-5)


def test_the_standard_run_differs_in_its_schedule_only(trained):
    """Law 7 on the command line: same data, seed, optimiser and steps."""
    folder, _ = trained
    relaxed, standard = (yaml.safe_load((f / "config.yaml").read_text()) for f in (folder, folder / "standard"))
    assert standard["relaxation"].pop("schedule") == "off"
    assert relaxed["relaxation"].pop("schedule") == "triangle"
    for key in ("data", "potential", "relaxation", "training", "reference_energies"):
        assert standard[key] == relaxed[key]
    splits = [json.loads((f / "split.json").read_text()) for f in (folder, folder / "standard")]
    assert splits[0] == splits[1]
    curves = [pd.read_csv(f / "metrics.csv") for f in (folder, folder / "standard")]
    assert curves[0]["lr"].equals(curves[1]["lr"])
    assert (curves[1]["theta"] == 0).all()


def test_a_failed_certificate_is_refused(tmp_path, source, monkeypatch):
    """Exit code 4, no model file, one sentence."""
    certify = train.certify

    def broken(*arguments: object, **options: object) -> object:
        good = certify(*arguments, **options)
        return good._replace(float64=good.float64._replace(rotation=1e-3))

    monkeypatch.setattr("mdrelax.runs.train.certify", broken)
    said = mdrelax("train", write_config(tmp_path / "c.yaml", document(source)), "--out", tmp_path / "run")
    assert said.code == CERTIFICATE
    assert said.last_line.startswith("The network is not E(3)-equivariant")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert "Traceback" not in said.err
    assert "CertificateError" in (tmp_path / "run" / "train.log").read_text()


# --- the other verbs --------------------------------------------------------------------------------------------------


def test_md_writes_a_trajectory_and_a_log(tmp_path, model, source):
    """NVE and NVT from the last structure of a file, with the drift on the screen."""
    for ensemble in ("nve", "nvt"):
        trajectory, log = tmp_path / f"{ensemble}.traj", tmp_path / f"{ensemble}.csv"
        said = mdrelax(
            "md", model, source, "--ps", "0.02", "--ensemble", ensemble, "--temperature", "100", "--dtype", "float64",
            "--trajectory", trajectory, "--log", log, "--plot", tmp_path / "plot.png",
        )  # fmt: skip
        assert said.code == 0, said.err
        assert ("meV/atom/ps" in said.out) == (ensemble == "nve")
        assert len(ase.io.read(trajectory, ":")) == 3  # of 40 steps: 0, 20, 40
        assert pd.read_csv(log)["time_ps"].iloc[-1] == pytest.approx(0.02)
        assert (tmp_path / "plot.png").stat().st_size > 0


def test_audit_measures_anew(tmp_path, model, source):
    """The certificate of the file beside a fresh one, on given structures."""
    said = mdrelax("audit", model, source, "--structures", "3", "--operations", "2", "--output", tmp_path / "c.json")
    assert said.code == 0, said.err
    assert "PASSED" in said.out
    assert json.loads((tmp_path / "c.json").read_text())["n_structures"] == 3


def test_predict_keeps_what_the_frames_carry(tmp_path, model, source):
    """mdrelax_energy and mdrelax_forces beside the references."""
    said = mdrelax("predict", model, source, tmp_path / "out.extxyz")
    assert said.code == 0, said.err
    written, expected = ase.io.read(tmp_path / "out.extxyz", ":"), MDRelaxCalculator.from_file(model)
    assert len(written) == 32
    results = expected.calculate_many(written)
    for atoms, result in zip(written, results, strict=True):
        assert atoms.info["mdrelax_energy"] == pytest.approx(result["energy"], abs=1e-5)
        np.testing.assert_allclose(atoms.arrays["mdrelax_forces"], result["forces"], rtol=0, atol=1e-5)
        assert {"REF_energy"} <= set(atoms.info)


def test_info_shows_the_header_or_the_versions(model):
    """With a model its whole header as JSON; without one, what is installed."""
    assert json.loads(mdrelax("info", model).out) == load_model(model).header
    assert f"torch {torch.__version__}" in mdrelax("info").out


def test_project_gives_the_model_of_the_run_again(tmp_path, trained, model):
    """From the last checkpoint: the tensors of model.safetensors, bit for bit."""
    said = mdrelax("project", trained[0], "--output", tmp_path / "again.safetensors")
    assert said.code == 0, said.err
    before, after = load_file(model), load_file(tmp_path / "again.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_report_is_written_again(trained):
    """After it was deleted."""
    (trained[0] / "report.html").unlink()
    said = mdrelax("report", trained[0])
    assert said.code == 0, said.err
    assert "<html" in (trained[0] / "report.html").read_text()


def test_data_stats_and_check(tmp_path, source):
    """Counts and ranges; a broken frame ends with exit code 3."""
    said = mdrelax("data", "stats", source)
    assert said.code == 0
    assert "32 frames of H, O" in said.out
    sound = write_frames(tmp_path / "crystals.extxyz", crystals(12))
    assert mdrelax("data", "check", sound).code == 0
    said = mdrelax("data", "check", source)  # made-up chemistry: its O-H distances are those of Bohr for Angstrom
    assert (said.code, "FAILED  lengths fit the elements" in said.out) == (DATA, True)
    frames = clusters(3)
    frames[1].positions[0] = frames[1].positions[1] + 0.1
    said = mdrelax("data", "check", write_frames(tmp_path / "clash.extxyz", frames))
    assert said.code == DATA
    assert said.last_line == "Some checks failed; see the table above."
    frames[1].positions[0] = frames[1].positions[1]
    said = mdrelax("data", "check", write_frames(tmp_path / "clash.extxyz", frames))
    assert said.code == DATA
    assert "Two atoms of frame 1 of `clash.extxyz` lie at one point" in said.last_line


def test_training_without_a_test_set_works(tmp_path, source, monkeypatch):
    """Validation errors remain, and nothing is claimed about a test, not by the standard run either."""
    monkeypatch.setattr("mdrelax.cli.train._standard_arm", lambda *_, **__: nullcontext(lambda: {"validation": {}}))
    config = write_config(tmp_path / "c.yaml", document(source, data={"test": 0}))
    said = mdrelax("train", config, "--out", tmp_path / "run")
    assert said.code == 0, said.err
    assert "There are no test frames" in said.out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert "test" not in results
    assert results["validation"]["forces_mae_meV_per_A"] > 0


def test_audit_needs_no_data_and_no_labels(tmp_path, model):
    """Without data the audit makes clusters of the model's own elements; a bare xyz will do as well."""
    assert mdrelax("audit", model).code == 0
    ase.io.write(tmp_path / "bare.xyz", ase.Atoms("OH2", [[0, 0, 0], [0.9, 0.1, 0], [-0.2, 0.9, 0.3]]))
    assert mdrelax("audit", model, tmp_path / "bare.xyz").code == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_indices": "0.txt"}, "need `data.train_indices`"),
        ({"train_indices": "0.txt", "test": 3}, "`data.test_indices`, not `data.test`"),
    ],
)
def test_index_files_are_never_silently_ignored(tmp_path, source, change, message):
    """A test set that is not the named one would leak into training."""
    (tmp_path / "0.txt").write_text("0\n1\n2\n3\n4\n5\n")
    data = {key: str(tmp_path / value) if key.endswith("indices") else value for key, value in change.items()}
    said = mdrelax("train", write_config(tmp_path / "c.yaml", document(source, data=data)), "--out", tmp_path / "run")
    assert said.code == CONFIG
    assert message in said.last_line
