"""The N-body benchmark in miniature, through the functions of the real one: fair arms, exact resume, refusals."""

import json
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from torch import Tensor

from command_line import mdrelax
from mdrelax.analysis.studies.nbody import STUDY, finished_runs, recipe
from mdrelax.analysis.studies.run_files import Run
from mdrelax.analysis.studies.study import Study
from mdrelax.base.sections import ConfigError
from mdrelax.packs.arm_runs import read_result
from mdrelax.packs.nbody.run import ARMS, NBodyRun, run_nbody
from mdrelax.packs.nbody.task import Displacement
from mdrelax.runs import jobs
from mdrelax.training.folders import load_run, prepare_folder
from mdrelax.training.trainer import Progress

TRAINING = {"epochs": 3, "batch_size": 20, "learning_rate": 0.002, "validate_every": 4, "warmup_steps": 0, "ema": 0.0}
MINIATURE = {"n_train": 60, "n_validation": 20, "n_test": 20, "n_layers": 1, "channels": 8}  # 9 steps in 3 epochs


FAILURE = [sys.executable, "-c", "raise SystemExit(1)"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Simulated data go into a folder of this module, also those of the processes that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MDRELAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def _run(arm: str, *, seed: int = 0, training: dict[str, Any] | None = None, **other: Any) -> NBodyRun:
    settings = {**TRAINING, "seed": seed, **(training or {})}
    relaxation = {"schedule": "triangle", "initial_std": 0.01, "penalty_rows": 16}
    return NBodyRun(**{**MINIATURE, "arm": arm, "training": settings, "relaxation": relaxation, **other})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every arm's run, finished, in one study folder."""
    study = tmp_path_factory.mktemp("study")
    folders = {arm: study / _run(arm).name() for arm in ARMS}
    for arm, folder in folders.items():
        run_nbody(_run(arm), folder)
    return folders


MEASURED = ("seconds", "cpu_seconds", "peak_MB", "environment")


def _numbers(folder: Path) -> dict[str, Any]:
    """results.json without what depends on the clock and the machine."""
    result = read_result(folder)
    assert result is not None
    return {key: value for key, value in result.items() if key not in MEASURED}


class _Killed(Exception):
    pass


def _kill_at(step: int) -> Callable[[Progress], None]:
    def listen(progress: Progress) -> None:
        if progress.step == step:
            raise _Killed

    return listen


# --- a run ---


def test_arms_see_the_same_trajectories_in_the_same_order_from_the_same_weights(tmp_path, monkeypatch):
    """Every batch that reaches the network is bit for bit the same, turned as it is; at theta = 0 so is the answer."""
    loss = Displacement.loss

    def record(arm: str) -> list[tuple[tuple[Tensor, ...], Tensor]]:
        seen: list[tuple[tuple[Tensor, ...], Tensor]] = []

        def spied(self: Displacement, model: Any, batch: Any, *, step: int) -> Any:
            def spy(*inputs: Tensor) -> Tensor:
                answer = model(*inputs)
                seen.append((inputs, answer.detach()))
                return answer

            return loss(self, spy, batch, step=step)  # type: ignore[arg-type]

        monkeypatch.setattr(Displacement, "loss", spied)
        run_nbody(_run(arm), tmp_path / arm)
        return seen

    standard, relaxed = record("standard"), record("relaxed")
    assert len(standard) == len(relaxed) == 9
    for (one, _), (other, _) in zip(standard, relaxed, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert torch.allclose(standard[0][1], relaxed[0][1], rtol=0, atol=1e-7)
    assert not torch.equal(standard[-1][1], relaxed[-1][1])
    assert not torch.equal(standard[0][0][0], standard[3][0][0]), "epochs have orders of their own"


@pytest.mark.parametrize("arm", ["standard", "relaxed", "relaxed-weight"])
@pytest.mark.parametrize("step", [4, 6])  # with its checkpoint, and two steps after the last one
def test_an_interrupted_run_goes_on_to_the_same_numbers(finished, tmp_path, arm, step):
    """results.json, metrics.csv and layers.csv are those of the run that nobody stopped, bit for bit."""
    with pytest.raises(_Killed):
        run_nbody(_run(arm), tmp_path, listener=_kill_at(step))
    assert read_result(tmp_path) is None
    steps = []
    run_nbody(_run(arm), tmp_path, listener=lambda progress: steps.append(progress.step))
    assert steps == [5, 6, 7, 8, 9]
    assert _numbers(tmp_path) == _numbers(finished[arm])
    for path in finished[arm].glob("*.csv"):
        tables = (pd.read_csv(p).drop(columns="time_s", errors="ignore") for p in (tmp_path / path.name, path))
        pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_a_finished_run_is_not_repeated(finished):
    """It is read; nothing is trained and nothing written."""
    for arm, folder in finished.items():
        before = (folder / "results.json").stat().st_mtime_ns
        assert run_nbody(_run(arm), folder, listener=_kill_at(1)) == read_result(folder)
        assert (folder / "results.json").stat().st_mtime_ns == before


def test_a_folder_with_other_settings_is_refused_with_the_difference(finished):
    """Both values of every key that changed."""
    other = _run("relaxed", training={"learning_rate": 0.1}, n_test=10)
    with pytest.raises(ConfigError, match="holds a run with other settings") as caught:
        run_nbody(other, finished["relaxed"])
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert lines == ["n_test: 20 -> 10", "training.learning_rate: 0.002 -> 0.1"]


def test_a_run_that_is_older_than_a_key_goes_on(tmp_path):
    """What its run.yaml does not say is the default: no difference to a run of today that leaves the key alone."""
    run = _run("relaxed")
    prepare_folder(run, tmp_path)
    document = yaml.safe_load((tmp_path / "run.yaml").read_text())
    for key in ("norm_batches", "decay_factor", "decay_steps", "decay_epochs"):
        del document["training"][key]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    prepare_folder(run, tmp_path)
    assert load_run(NBodyRun, tmp_path) == run
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError, match=r"training\.decay_factor: 0\.5 -> 0\.1"):
        prepare_folder(_run("relaxed", training={"decay_factor": 0.1}), tmp_path)


def test_every_arm_ends_equivariant(finished):
    """To rounding in float64 and float32, also EGNN, and whatever theta was when training ended."""
    for arm, folder in finished.items():
        result = read_result(folder)
        assert result is not None
        assert max(result["equivariance_error_float64"].values()) < 1e-9, arm
        assert max(result["equivariance_error_float32"].values()) < 1e-4, arm
        assert 0 < result["test_mse"] < 1, arm
        assert result["steps"] == 9
        assert load_run(NBodyRun, folder) == _run(arm)


def test_arms_are_what_their_names_say(finished):
    """theta as their schedule says, free maps where there are some, and how these were projected."""
    theta = {arm: pd.read_csv(folder / "metrics.csv")["theta"] for arm, folder in finished.items()}
    results = {arm: _numbers(folder) for arm, folder in finished.items()}
    for arm in ("standard", "egnn"):
        assert (theta[arm] == 0).all()
        assert results[arm]["n_free_parameters"] == 0
        assert not (finished[arm] / "layers.csv").exists()
        assert results[arm]["layers"] == []
    for arm in ("relaxed", "relaxed-weight", "relaxed-fold"):
        assert theta[arm].tolist() == pytest.approx([0.75, 0.25, 0.0])  # steps 3, 7 and 8 of 0 to 8
    for arm in ("constant-drop", "constant-fold"):
        assert (theta[arm] == 1).all()
    for arm in set(ARMS) - {"standard", "egnn"}:
        hows = {layer["how"] for layer in results[arm]["layers"]}
        assert results[arm]["n_parameters"] == results["standard"]["n_parameters"]
        assert results[arm]["n_free_parameters"] > 0
        assert hows <= {"dropped", "folded"}
        assert ("folded" in hows) == arm.endswith("-fold")
        assert set(pd.read_csv(finished[arm] / "layers.csv")["step"]) == {4, 8, 9}
    for arm in ("ace", "ace-mlp"):
        assert theta[arm].iloc[-1] == 0  # the last of 9 steps
        assert theta[arm].iloc[0] > 0
        assert results[arm]["theta_at_end"] > 0
    assert results["ace-mlp"]["n_free_parameters"] > results["ace"]["n_free_parameters"]
    assert results["relaxed"]["test_mse"] != results["relaxed-weight"]["test_mse"]


def test_the_arms_own_keys_replace_the_studys():
    """An arm is what its name says, whatever the study's relaxation; the other keys are the study's."""
    given = {"schedule": "linear", "penalty": "activation", "projection": "drop", "peak": 0.5}
    for arm, own in ARMS.items():
        relaxation = NBodyRun(arm=arm, training=TRAINING, relaxation=given).relaxation.model_dump()
        assert {key: relaxation[key] for key in (*given, *own)} == {**given, **own}


# --- a grid ---


def _plan(arms: Any = ("standard", "relaxed"), seeds: Any = (0,), layers: Any = (4,), **other: Any) -> list[Run]:
    levels = {"n_layers": layers, "n_train": other.pop("train_sizes", (3000,))}
    return STUDY.plan(**{"base": recipe(), "arms": arms, "seeds": seeds, "levels": levels, **other})


def _planned(*runs: NBodyRun) -> list[Run]:
    return [Run(run.name(), {}, run.model_dump(mode="json")) for run in runs]


def test_a_grid_is_every_combination_seeds_outermost():
    """Two arms of a first seed are there before a second seed begins; names tell the runs apart."""
    runs = _plan(seeds=(0, 1), layers=(1, 2), base=recipe("published"), overrides=["channels=8"])
    names = [run.name for run in runs]
    assert names[:3] == [f"{k}-train3000-seed0" for k in ("standard-layers1", "relaxed-layers1", "standard-layers2")]
    assert len(set(names)) == 8
    settings = [NBodyRun.model_validate(run.config) for run in runs]
    assert names == [run.name() for run in settings]
    assert {(r.channels, r.training.epochs, r.training.batch_size, r.huber) for r in settings} == {(8, 1000, 100, None)}


def test_an_unknown_arm_recipe_or_key_names_the_nearest():
    """And an empty grid says what it lacks."""
    with pytest.raises(ConfigError, match=r"no recipe `tunned`; .*tuned"):
        recipe("tunned")
    with pytest.raises(ConfigError, match=r"no arm `relaxd`; .*relaxed"):
        _plan(arms=["relaxd"])
    with pytest.raises(ConfigError, match=r"Unknown config key `chanels`; .*channels"):
        _plan(overrides=["chanels=8"])
    with pytest.raises(ConfigError, match="at least one seed"):
        _plan(seeds=())
    with pytest.raises(ConfigError, match="at least one n_layers, each once"):
        _plan(layers=(2, 2))


def test_a_grid_skips_what_is_finished_and_names_what_failed(finished, tmp_path, monkeypatch):
    """No process is started for finished runs; one that fails is named after the others have ended."""
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.01)
    study = finished["standard"].parent
    failing = STUDY._replace(command=FAILURE)
    failing.run(_planned(_run("standard"), _run("egnn")), study, jobs=2)
    assert sorted(each.run.factors["arm"] for each in finished_runs(study)[0]) == sorted(ARMS)
    said: list[str] = []
    with pytest.raises(RuntimeError, match=r"failed: egnn-layers1-train60-seed0; see run\.log"):
        failing.run(_planned(_run("egnn")), tmp_path, jobs=1, tell=said.append)
    assert said == ["[1/1] egnn-layers1-train60-seed0: FAILED with exit code 1"]
    with pytest.raises(ConfigError, match="channels: 8 -> 4"):
        failing.run(_planned(_run("standard", channels=4)), study, jobs=1)


def test_a_prepared_folder_is_run_by_the_hidden_command(tmp_path):
    """`mdrelax bench nbody-run` is what the grid starts; it says its validations."""
    prepare_folder(_run("egnn"), tmp_path)
    said = mdrelax("bench", "nbody-run", tmp_path)
    assert said.code == 0, said.err
    assert [line.split()[:2] for line in said.out.splitlines()] == [["step", f"{step}/9"] for step in (4, 8, 9)]
    assert read_result(tmp_path) is not None
    (tmp_path / "run.yaml").write_text("arm: standrd\n")
    refused = mdrelax("bench", "nbody-run", tmp_path)
    assert (refused.code, "standard" in refused.err) == (2, True)


# --- the command ---


def _recorded(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that the command would have started; none is, and none finishes."""
    asked: list[Run] = []

    def record(self: Study, runs: Sequence[Run], folder: Path, **options: Any) -> None:
        asked.extend(runs)
        raise RuntimeError("nothing was run")

    monkeypatch.setattr(Study, "run", record)
    return asked


def test_the_command_says_and_keeps_what_the_runs_found(tmp_path, monkeypatch):
    """The summary and the files on the screen, the command as typed in study.json; also when another run has failed."""
    changes = ["channels=8", "n_validation=20", "n_test=20", "training.epochs=1", "training.batch_size=20"]
    base = {**recipe(), "compile": False}
    for run in _plan(layers=(1,), train_sizes=(60,), base=base, overrides=changes):
        run_nbody(NBodyRun.model_validate(run.config), tmp_path / run.name)
    options = ["--seeds", "0", "--layers", "1", "--train-sizes", "60", "--no-compile"]
    command = ["bench", "nbody", "--out", tmp_path, *options, *(word for change in changes for word in ("-r", change))]
    said = mdrelax(*command)
    assert said.code == 0, said.err
    table = STUDY.collect(finished_runs(tmp_path)[0]).set_index("arm")["test_mse"]
    assert f"| {1e3 * table['relaxed']:.2f} |" in " ".join(said.out.split())
    paths = [Path(line) for line in said.out.splitlines() if line.startswith(str(tmp_path))]
    assert {path.name for path in paths} >= {"study.md", "summary.csv", "runs.csv", "study.json", "errors.png"}
    assert all(path.is_file() for path in paths)
    kept = json.loads((tmp_path / "study.json").read_text())["command"]
    assert kept.startswith(f"mdrelax bench nbody --out {tmp_path.name} --seeds 0 ")
    _recorded(monkeypatch)
    (tmp_path / "study.md").unlink()
    said = mdrelax(*command)
    assert (said.code, "nothing was run" in said.last_line) == (1, True)
    assert (tmp_path / "study.md").is_file()


def test_quick_is_a_grid_with_both_figures(tmp_path, monkeypatch):
    """Two depths and two training sets, one seed of each arm; what is given beside it still counts."""
    asked = _recorded(monkeypatch)
    said = mdrelax("bench", "nbody", "--quick", "--out", tmp_path, "--seeds", "5,6", "-r", "training.epochs=2")
    assert (said.code, said.last_line) == (1, "RuntimeError: nothing was run")
    settings = {(run.factors["arm"], run.factors["n_layers"], run.factors["n_train"]) for run in asked}
    assert settings == set(product(("standard", "relaxed"), (1, 2), (200, 400)))
    assert [(run.factors["seed"], run.config["training"]["epochs"]) for run in asked] == [(5, 2)] * 8


def test_numbers_that_are_none_are_refused(tmp_path):
    """The sentence names the option."""
    said = mdrelax("bench", "nbody", "--out", tmp_path, "--seeds", "0,x")
    assert (said.code, said.last_line) == (2, "`--seeds` wants whole numbers separated by commas, got `0,x`.")


@pytest.mark.slow
def test_quick_goes_from_nothing_to_figures_in_minutes(tmp_path):
    """Eight runs, all better than particles that fly straight on (0.1), tables and figures; 5 CPU-minutes at most."""
    said = mdrelax("bench", "nbody", "--quick", "--out", tmp_path)
    assert said.code == 0, said.err
    figures = {"errors", "errors_n_layers", "errors_n_train", "learning_curves", "lie_derivatives"}
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == figures
    table = pd.read_csv(tmp_path / "summary.csv")
    assert len(table) == 8
    assert (table["test_mse"] < 0.04).all()
    runs = pd.read_csv(tmp_path / "runs.csv")
    assert (runs["equivariance_error"] < 1e-9).all()
    assert runs["cpu_seconds"].sum() < 300
