"""The smoke benchmark in miniature: fair arms, exact resume, model files, verbs, refusals, table, figures."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from command_line import mdrelax
from mdrelax.analysis.studies.smoke import STUDY, set_name, write_study
from mdrelax.base.containers import ModelFileError
from mdrelax.base.sections import ConfigError
from mdrelax.datasets.plume import Kind, PlumeInfo, PlumeSet, PlumeSplit, PlumeTask, read_windows
from mdrelax.method.relaxation import is_relaxed
from mdrelax.modelfile import load_model
from mdrelax.packs.arm_runs import read_result
from mdrelax.packs.recipes import recipe
from mdrelax.packs.registry import PACKS
from mdrelax.packs.smoke.model_file import load_flow
from mdrelax.packs.smoke.run import ARMS, SmokeRun, run_smoke, windows_of
from mdrelax.training.trainer import Progress
from molecules import normal

TRAINING = {"steps": 6, "batch_size": 4, "optimizer": "adam", "learning_rate": 0.003, "validate_every": 3,
            "warmup_steps": 0, "ema": 0.0, "norm_batches": 2, "rotate": False}  # fmt: skip
MINIATURE = {"preset": "tiny", "n_train": 12, "n_validation": 2, "n_test": 3}
MEASURED = ("seconds", "cpu_seconds", "peak_MB", "environment", "inference_ms")


def _run(arm: str, *, seed: int = 0, **other: Any) -> SmokeRun:
    relaxation = {"schedule": "triangle", "initial_std": 0.01, "penalty": "weight"}
    return SmokeRun(**{**MINIATURE, "arm": arm, "training": {**TRAINING, "seed": seed}, "relaxation": relaxation,
                       **other})  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every arm's run, finished, in one study folder."""
    folder = tmp_path_factory.mktemp("study")
    for arm in ARMS:
        run_smoke(_run(arm), folder / f"sample-{arm}-seed0")
    return folder


def _of(study: Path, arm: str) -> dict[str, Any]:
    found = read_result(study / f"sample-{arm}-seed0")
    assert found is not None
    return found


def _model(study: Path, arm: str) -> Path:
    return study / f"sample-{arm}-seed0" / "model.safetensors"


def test_arms_differ_in_their_network_and_relaxation_only(study: Path):
    """Data, budget, optimiser and seed are the same; only equiv is exact, and keeps so through relaxation."""
    shared = {key: value for key, value in _of(study, "rsteer")["run"].items() if key not in ("arm", "relaxation")}
    for arm in ARMS:
        found = _of(study, arm)
        assert {key: value for key, value in found["run"].items() if key not in ("arm", "relaxation")} == shared
        assert (found["n_free_parameters"] > 0) == arm.endswith(("relaxed", "keep", "ace"))
        exact = arm in ("equiv", "equiv-relaxed", "equiv-ace")
        assert (found["equivariance_error_float64"]["rotation"] < 1e-9) == exact
        assert (found["symmetry_error"] < 1e-12) == exact
        assert found["data_symmetry_error"] > 0
    for arm in ("rsteer", "equiv"):
        assert _of(study, f"{arm}-relaxed")["n_parameters"] == _of(study, arm)["n_parameters"]


class _Killed(Exception):
    pass


@pytest.mark.parametrize("arm", ["rsteer-relaxed", "equiv-keep"])
def test_a_killed_run_resumes_to_the_same_numbers(study: Path, tmp_path: Path, arm: str):
    """Killed after step 4, resumed from the checkpoint of step 3."""

    def kill(progress: Progress) -> None:
        if progress.step == 4:
            raise _Killed

    with pytest.raises(_Killed):
        run_smoke(_run(arm), tmp_path, listener=kill)
    resumed = run_smoke(_run(arm), tmp_path)
    for key, value in _of(study, arm).items():
        assert key in MEASURED or resumed[key] == value


@pytest.mark.parametrize("arm", ["rsteer-relaxed", "equiv", "equiv-keep", "lift", "mlp"])
def test_a_model_file_predicts_what_its_run_predicted(study: Path, arm: str):
    """Loaded without its run; of kept free maps theta is in the file; the stored rollout is the one predicted now."""
    loaded, data = load_flow(_model(study, arm)), windows_of("sample:plume", n_test=3)
    assert is_relaxed(loaded.network) == (arm == "equiv-keep")
    assert loaded.certificate.symmetry == ("C4" if arm == "equiv" else "none")
    inputs, _ = read_windows(data.plumes, data.future[1:2], data.split.n_in, 1)
    stored = np.load(study / f"sample-{arm}-seed0" / "rollouts.npz")
    found = loaded.predict(inputs, data.split.n_rollout)[0]
    np.testing.assert_allclose(found.numpy(), stored["future_prediction"], atol=1e-5)  # float32


def test_wrong_velocities_and_foreign_files_are_one_sentence(study: Path, tmp_path: Path):
    """Each names what is wrong and what is wanted."""
    loaded = load_flow(_model(study, "rsteer"))
    good = torch.zeros(1, 4, 2, 32, 32)
    for wrong, words in (
        (good[:, :, :1], r"have the shape \(windows, frames, 2, H, W\), got \(1, 4, 1, 32, 32\)"),
        (good[:, :3], "predicts from 4 frames, got 3"),
        (good[..., :16], r"trained on a grid of \(32, 32\), got \(32, 16\)"),
        (good * torch.nan, "contain NaN or infinite numbers"),
    ):
        with pytest.raises(ValueError, match=words):
            loaded.predict(wrong, 2)
    with pytest.raises(ModelFileError, match="holds a flow network, not a force field"):
        load_model(_model(study, "rsteer"))
    content = _model(study, "rsteer").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelFileError, match="truncated"):
        load_flow(tmp_path / "cut.safetensors")
    with pytest.raises(ModelFileError, match="does not hold a flow network"):
        load_flow(Path(__file__).parent / "golden" / "model_v2.safetensors")


def test_settings_that_do_not_fit_are_one_sentence(tmp_path: Path):
    """An arm, a group and a level that are not there."""
    with pytest.raises(ValueError, match="no arm `rsteer-relax`; did you mean `rsteer-relaxed`"):
        _run("rsteer-relax")
    with pytest.raises(ValueError, match="no network `lift` for scalings"):
        _run("lift", group="scale")
    with pytest.raises(ConfigError, match="`level` chooses the part of a graded set"):
        run_smoke(_run("conv", level=2), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no plumes `nowhere\.npz`"):
        run_smoke(_run("conv", data="nowhere.npz"), tmp_path / "other")


@pytest.mark.parametrize("size", ["small", "published"])
@pytest.mark.parametrize("kind", ["rotation", "scale", "graded"])
def test_recipes_are_valid(kind: str, size: str):
    """Every shipped recipe with every arm, and the presets of `mdrelax train`."""
    for arm in ARMS:
        assert SmokeRun(**{**recipe("smoke", kind, size), "arm": arm}).preset == size
    for pack in PACKS.values():
        for document in pack.presets().values():
            pack.settings.model_validate(document)


def test_table_figures_and_animation(study: Path):
    """Every arm has a row; sets are named; the animation has a frame for each predicted one."""
    paths = {path.name: path for path in write_study(study, command="test")}
    text = paths["study.md"].read_text()
    assert all(f" {arm} " in text for arm in ARMS)
    assert "Future minus rsteer" in text
    figures = ("errors", "learning_curves", "lie_derivatives", "rmse_by_step", "learnt_symmetry", "rollout_sample")
    assert {f"{name}.png" for name in figures} <= set(paths)
    assert "rmse_by_symmetry.png" not in paths  # no graded set
    with Image.open(paths["rollout_sample.gif"]) as gif:
        assert gif.n_frames == 5
    assert set_name("data/graded.npz", 3) == "graded-level3"
    assert len(json.loads(paths["study.json"].read_text())["runs"]) == len(ARMS)


def test_the_command_trains_and_repeats_nothing(tmp_path: Path):
    """Two arms through the command line."""
    changes = [f"{key}={value}" for key, value in MINIATURE.items()]
    changes += ["training.steps=2", "training.epochs=null", "training.batch_size=4", "training.norm_batches=1"]
    words = ["bench", "smoke", "--arms", "rsteer,rsteer-relaxed", "--jobs", "1", "--out", tmp_path]
    words += [word for change in changes for word in ("-r", change)]
    said = mdrelax(*words)
    assert said.code == 0, said.err
    assert "| rsteer-relaxed " in said.out
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/results.json")}
    assert len(written) == 2
    assert mdrelax(*words).code == 0
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_train_predict_eval_audit_and_info_know_flows(study: Path, tmp_path: Path):
    """The verbs of force fields, on a recipe that names its pack and on the model file that it makes."""
    document = {**_run("rsteer").model_dump(mode="json"), "pack": "smoke"}
    document["training"]["steps"] = 2
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(document))
    said = mdrelax("train", tmp_path / "mine.yaml", "--out", tmp_path / "run")
    assert said.code == 0, said.err
    again = mdrelax("train", tmp_path / "mine.yaml", "--out", tmp_path / "run")
    assert again.code == 2
    assert "already contains a run" in again.err
    model = tmp_path / "run" / "model.safetensors"
    said = mdrelax("predict", model, "sample:plume", tmp_path / "next.npz", "--number", "3")
    assert said.code == 0, said.err
    rollouts = np.load(tmp_path / "next.npz")
    assert rollouts["1_0"].shape == (3, 2, 32, 32)
    said = mdrelax("eval", model, "sample:plume", "--frames", "2", "--out", tmp_path / "eval")
    assert said.code == 0, said.err
    assert json.loads((tmp_path / "eval" / "eval.json").read_text())["future_rmse"] > 0
    said = mdrelax("audit", _model(study, "equiv"))
    assert said.code == 0, said.err
    assert "C4; largest relative error" in said.out
    assert json.loads(mdrelax("info", model).out)["kind"] == "a flow network"


def test_predict_refuses_what_is_no_flow(study: Path, tmp_path: Path):
    """A missing channel, NaN, a wrong grid and a file that is cut off, each in one sentence."""
    model = _model(study, "rsteer")
    np.save(tmp_path / "channel.npy", np.zeros((4, 1, 32, 32)))
    np.save(tmp_path / "nan.npy", np.full((4, 2, 32, 32), np.nan))
    np.save(tmp_path / "grid.npy", np.zeros((4, 2, 16, 16)))
    np.save(tmp_path / "cut.npy", np.zeros((4, 2, 32, 32)))
    cut = tmp_path / "cut.npy"
    cut.write_bytes(cut.read_bytes()[:500])
    for name, words in (
        ("channel", "must hold velocities (frames, 2, H, W)"), ("nan", "contain NaN"), ("grid", "trained on a grid"),
        ("cut", "may be cut off"),
    ):  # fmt: skip
        said = mdrelax("predict", model, tmp_path / f"{name}.npy", tmp_path / "out.npz")
        assert said.code == 3
        assert words in said.err
        assert len(said.err.strip().splitlines()) == 1
    assert "no preset `smoke-rstear`; did you mean `smoke-rsteer`" in mdrelax("train", "smoke-rstear").err


def _made_up(kind: Kind, n_frames: int) -> Callable[..., PlumeSet]:
    """In the place of ``open_plumes``: still flows of a kind on 16 x 16 cells, with the names of its tasks."""
    split = PlumeSplit.graded(1) if kind == "graded" else PlumeSplit.published(kind)
    names = (*split.train_tasks, *split.domain_tasks)

    def still(k: int) -> np.ndarray:
        return np.broadcast_to(normal(1, 2, 16, 16, seed=k).float().numpy(), (n_frames, 2, 16, 16))

    tasks = tuple(
        PlumeTask(PlumeInfo(name, symmetry_error=0.1), partial(still, k), "faces") for k, name in enumerate(names)
    )
    return lambda source, **_: PlumeSet(kind, tasks, (n_frames, 2, 16, 16), str(source))


@pytest.mark.parametrize("arm", ["equiv", "rsteer-relaxed", "equiv-keep"])
@pytest.mark.parametrize("kind", ["scale", "graded"])
def test_scale_and_graded_sets_train_too(kind: Kind, arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With the shipped recipe of the kind: its networks, its places of free maps, its split; and files that load."""
    monkeypatch.setattr("mdrelax.packs.smoke.run.open_plumes", _made_up(kind, 120 if kind == "graded" else 310))
    document = {**recipe("smoke", kind, "small"), **MINIATURE, "arm": arm, "data": "made-up.npz"}
    document["level"] = 1 if kind == "graded" else None
    document["training"] = {**document["training"], "epochs": 1, "batch_size": 6, "validate_every": 2}
    found = run_smoke(SmokeRun(**document), tmp_path)
    assert found["set"] == kind
    assert len(found["future_by_step"]) == 20
    assert (found["symmetry_error"] is None) == (kind == "scale")  # that of quarter turns, which scalings are not
    assert (found["n_free_parameters"] > 0) == (arm != "equiv")
    loaded = load_flow(tmp_path / "model.safetensors")
    assert loaded.built.group == ("scale" if kind == "scale" else "C4")
    assert loaded.certificate.symmetry == ("C4" if (kind, arm) == ("graded", "equiv") else "none")
    assert is_relaxed(loaded.network) == (arm == "equiv-keep")


def test_arms_are_planned_in_the_order_of_the_table():
    """Lift has no form for scalings; the study refuses unknown arms by name."""
    with pytest.raises(ConfigError, match="no arm `steer`"):
        STUDY.plan({**recipe("smoke", "rotation", "small")}, arms=["steer"], seeds=[0], levels={"set": ["sample"]})
