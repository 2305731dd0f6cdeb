"""The ModelNet benchmark in miniature: fair arms, exact resume, model files, refusals, table and figures."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from command_line import mdrelax
from haar import rotations
from mdrelax.analysis.studies.modelnet import STUDY, finished_runs, write_study
from mdrelax.base.containers import ModelFileError
from mdrelax.base.sections import ConfigError
from mdrelax.datasets.modelnet import load_modelnet
from mdrelax.modelfile import load_model
from mdrelax.packs.arm_runs import read_result
from mdrelax.packs.modelnet.model_file import load_network
from mdrelax.packs.modelnet.run import ARMS, ModelNetRun, run_modelnet
from mdrelax.packs.modelnet.sizes import COMPARATORS
from mdrelax.packs.recipes import recipe
from mdrelax.training.folders import prepare_folder
from mdrelax.training.trainer import Progress

TRAINING = {"steps": 6, "batch_size": 16, "optimizer": "adam", "learning_rate": 0.01, "validate_every": 3,
            "warmup_steps": 0, "ema": 0.0, "norm_batches": 2}  # fmt: skip
MINIATURE = {"preset": "tiny", "n_points": 24, "n_train": 48, "n_test": 24}
MEASURED = ("seconds", "cpu_seconds", "peak_MB", "environment", "inference_ms")


def _run(arm: str, *, seed: int = 0, **other: Any) -> ModelNetRun:
    relaxation = {"schedule": "triangle", "initial_std": 0.01, "penalty_rows": 16}
    return ModelNetRun(**{**MINIATURE, "arm": arm, "training": {**TRAINING, "seed": seed}, "relaxation": relaxation,
                          **other})  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every arm's run, finished, in one study folder."""
    folder = tmp_path_factory.mktemp("study")
    for arm in ARMS:
        run_modelnet(_run(arm), folder / f"{arm}-lambda0.01-seed0")
    return folder


def _numbers(folder: Path) -> dict[str, Any]:
    """results.json without what depends on the clock and the machine."""
    found = read_result(folder)
    assert found is not None
    return {key: value for key, value in found.items() if key not in MEASURED}


def _of(study: Path, arm: str) -> dict[str, Any]:
    found = read_result(study / f"{arm}-lambda0.01-seed0")
    assert found is not None
    return found


def test_arms_differ_in_their_relaxation_only(study: Path):
    """Data, budget, optimiser and seed are the same; parameters after projection too."""
    runs = {arm: _of(study, arm) for arm in ARMS}
    for arm, found in runs.items():
        same = {key: value for key, value in found["run"].items() if key not in ("arm", "relaxation")}
        assert same == {
            key: value for key, value in runs["standard"]["run"].items() if key not in ("arm", "relaxation")
        }
        if arm not in COMPARATORS:
            assert found["n_parameters"] == runs["standard"]["n_parameters"]
            assert (found["n_free_parameters"] > 0) == (arm != "standard")
            assert max(found["equivariance_error_float64"][key] for key in ("rotation", "permutation")) < 1e-9
    assert runs["plain"]["equivariance_error_float64"]["rotation"] > 1e-3
    assert runs["equiv-adapt"]["equivariance_error_float64"]["rotation"] < 1e-6
    assert runs["no-lie-penalty"]["run"]["relaxation"]["lie_weight"] == 0
    assert runs["no-penalty"]["run"]["relaxation"]["weight"] == 0


def test_validation_and_test_shapes_are_the_same_for_all_seeds_and_arms(study: Path, tmp_path: Path):
    """Counts of the confusion matrix: every class three times; and another seed sees the same shapes."""
    other = run_modelnet(_run("standard", seed=1), tmp_path / "other")
    for found in (other, *(_of(study, arm) for arm in ARMS)):
        assert [sum(row) for row in found["confusion"]] == [3] * 8
        right = sum(found["confusion"][k][k] for k in range(8))
        assert found["test_accuracy"] == pytest.approx(right / 24)


class _Killed(Exception):
    pass


@pytest.mark.parametrize("arm", ["relaxed", "equi-tuning"])
def test_a_killed_run_resumes_to_the_same_numbers(study: Path, tmp_path: Path, arm: str):
    """Killed after step 4, resumed from the checkpoint of step 3."""

    def kill(progress: Progress) -> None:
        if progress.step == 4:
            raise _Killed

    with pytest.raises(_Killed):
        run_modelnet(_run(arm), tmp_path, listener=kill)
    run_modelnet(_run(arm), tmp_path)
    assert _numbers(tmp_path) == _numbers(study / f"{arm}-lambda0.01-seed0")


def test_a_model_file_gives_the_scores_of_its_run_in_any_pose(study: Path, tmp_path: Path):
    """Loaded without its run, probabilities are invariant; a force-field loader and an altered file are refused."""
    path = study / "relaxed-lambda0.01-seed0" / "model.safetensors"
    loaded = load_network(path)
    points, (matrix,) = load_modelnet(n_points=24).test.points, rotations(1, seed=0)
    found = loaded.probabilities(points)
    torch.testing.assert_close(found.sum(1), torch.ones(len(points)))
    torch.testing.assert_close(loaded.probabilities(points.double() @ matrix.mT), found, atol=1e-3, rtol=0)  # float32
    assert loaded.classes == load_modelnet(n_points=24).test.classes
    assert loaded.header["card"]["test_accuracy"] == _of(study, "relaxed")["test_accuracy"]
    with pytest.raises(ModelFileError, match="holds a point-cloud network, not a force field"):
        load_model(path)
    content = path.read_bytes()
    (tmp_path / "altered.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelFileError, match="was altered after it was saved"):
        load_network(tmp_path / "altered.safetensors")
    with pytest.raises(ModelFileError, match="does not hold a point-cloud network"):
        load_network(Path(__file__).parent / "golden" / "model_v2.safetensors")


def test_comparators_have_no_model_file(study: Path):
    """Their symmetry is approximate or none."""
    written = {path.parent.name.partition("-lambda")[0] for path in study.glob("*/model.safetensors")}
    assert written == set(ARMS) - set(COMPARATORS)


def test_the_study_is_one_table_with_figures(study: Path):
    """One row per arm, the standard one first; error, learning and Lie-derivative figures."""
    done, begun = finished_runs(study)
    assert not begun
    paths = write_study(study, command="mdrelax bench modelnet")
    text = (study / "study.md").read_text()
    assert all(f"| {arm} " in text for arm in ARMS)
    assert {path.name for path in paths} >= {"study.md", "runs.csv", "summary.csv", "errors.png", "confusion.png"}
    summary = STUDY.summarize(STUDY.collect(done))
    assert summary["arm"].iloc[0] == "standard"
    row = summary.set_index("arm").loc["relaxed"]
    difference = _of(study, "relaxed")["test_accuracy"] - _of(study, "standard")["test_accuracy"]
    assert row["accuracy_minus_first"] == pytest.approx(difference)


def test_a_run_folder_with_other_settings_is_refused(tmp_path: Path):
    """The changed keys are named."""
    prepare_folder(_run("relaxed"), tmp_path)
    with pytest.raises(ConfigError, match=r"n_points: 24 -> 30"):
        prepare_folder(_run("relaxed", n_points=30), tmp_path)


@pytest.mark.parametrize("network", ["vn-pointnet", "vn-dgcnn"])
@pytest.mark.parametrize("name", ["published", "small"])
def test_recipes_are_valid(network: str, name: str):
    """Every shipped recipe is one of its network."""
    assert ModelNetRun(**recipe("modelnet", network, name)).network == network


def test_unknown_recipes_networks_and_kept_maps_are_refused():
    """One sentence each."""
    with pytest.raises(ConfigError, match="no recipe `tuned`"):
        recipe("modelnet", "vn-pointnet", "tuned")
    with pytest.raises(ConfigError, match="no recipe of modelnet for `pointnet`"):
        recipe("modelnet", "pointnet", "small")
    with pytest.raises(ValueError, match="free maps cannot be kept"):
        _run("relaxed", relaxation={"schedule": "constant", "projection": "keep"})


def test_the_command_trains_and_tells(tmp_path: Path):
    """Two arms through the command line; a second call repeats nothing."""
    changes = [f"{key}={value}" for key, value in MINIATURE.items()]
    changes += ["training.steps=2", "training.epochs=null", "training.batch_size=16", "training.norm_batches=1"]
    words = ["bench", "modelnet", "--seeds", "0", "--jobs", "1", "--out", tmp_path]
    words += [word for change in changes for word in ("-r", change)]
    said = mdrelax(*words)
    assert said.code == 0, said.err
    assert "| relaxed " in said.out
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/results.json")}
    assert len(written) == 2
    assert mdrelax(*words).code == 0
    assert written == {path: path.stat().st_mtime_ns for path in written}
    assert "| relaxed " in mdrelax("bench", "modelnet", "--only-report", "--out", tmp_path).out


def test_the_verbs_know_point_clouds(study: Path, tmp_path: Path):
    """Predictions are those of the file, eval's accuracy is the run's, the audit passes, info shows the header."""
    model = study / "relaxed-lambda0.01-seed0" / "model.safetensors"
    said = mdrelax("predict", model, "modelnet:solids", tmp_path / "classes.csv", "--number", "10")
    assert said.code == 0, said.err
    table = pd.read_csv(tmp_path / "classes.csv")
    assert len(table) == 10
    assert table[list(load_network(model).classes)].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    said = mdrelax("eval", model, "modelnet:solids", "--out", tmp_path / "eval")
    assert said.code == 0, said.err
    found = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert found["n_shapes"] == 160
    assert 0 <= found["accuracy_percent"] <= 100
    said = mdrelax("audit", model, "--structures", "2")
    assert said.code == 0, said.err
    assert "SE(3); largest relative error, 2 inputs" in said.out
    assert json.loads(mdrelax("info", model).out)["kind"] == "a point-cloud network"
