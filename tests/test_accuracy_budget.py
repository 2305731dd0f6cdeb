"""Training within a budget of CPU time: the loop of the other packages' workers, and the number of steps of our own."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mdrelax.analysis.benchmarks import accuracy_worker
from mdrelax.analysis.benchmarks.accuracy_worker import Costs, config_of, index_files, plan_of
from mdrelax.analysis.benchmarks.peers import training
from mdrelax.analysis.benchmarks.peers.training import VALIDATIONS, Frames, Molecule, Recipe, Run, Setup

RECIPE = Recipe("linear", 4, (0.1, 0.001), "SGD", "squares", "nowhere", ema=0.5)
STEP, VALIDATION = 1.0, 0.5  # CPU seconds by the clock below


class Clock:
    """CPU time that passes by what is done, not by the machine."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the loop."""
    clock = Clock()
    monkeypatch.setattr(time, "process_time", clock)
    return clock


def molecule() -> Molecule:
    """Frames of one atom whose energy is 2 x + 3, less its mean over the training frames."""

    def frames(n: int, seed: int) -> Frames:
        x = np.random.default_rng(seed).normal(size=(n, 1, 3))
        return Frames(x, 2 * x[:, 0, 0] + 3, np.zeros_like(x))

    return Molecule(np.array([1]), frames(20, 0), frames(10, 1), frames(6, 2), -40.0)


def setup(clock: Clock, recipe: Recipe = RECIPE) -> Setup:
    """A linear model; a loss in training takes a second, one in validation half a second."""
    model = nn.Linear(1, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()

    def collate(chosen: Sequence[Any]) -> tuple[Tensor, Tensor]:
        positions, energies = zip(*chosen, strict=True)
        return torch.tensor(np.array(positions), dtype=torch.float32), torch.tensor(energies, dtype=torch.float32)

    def loss(batch: tuple[Tensor, Tensor], stage: int) -> Tensor:
        clock.now += STEP if model.training else VALIDATION
        return stage * (model(batch[0]).squeeze(1) - batch[1]).square().mean()

    def predict(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return model(batch[0]), torch.zeros(len(batch[0]), 3)

    def frames(part: Frames) -> list[Any]:
        return list(zip(part.positions[:, 0, :1], part.energies, strict=True))

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Setup(recipe, model, optimizer, frames, collate, loss, predict)


def begun(clock: Clock, folder: Path, budget: float, recipe: Recipe = RECIPE) -> Run:
    """A run that has not taken a step."""
    return Run(setup(clock, recipe), molecule(), budget=budget, seed=0, folder=folder)


@pytest.mark.parametrize("budget", [50.0, 100.0, 333.0])
def test_training_ends_within_its_budget(tmp_path: Path, clock: Clock, budget: float) -> None:
    """The last step and the last validation fit, what is left is less than they cost; validations take a twentieth."""
    run, validations = begun(clock, tmp_path, budget), []
    validate = run._validate
    run._validate = lambda progress: validations.append(validate(progress))  # type: ignore[method-assign]
    run.fit()
    assert budget - 2 * (STEP + VALIDATION) < run.seconds() <= budget
    assert len(validations) <= VALIDATIONS
    assert 0.02 * budget < VALIDATION * len(validations) < 0.05 * budget + 2 * VALIDATION
    assert run.epochs() == run.step / 5


def test_a_budget_below_one_step_is_one_step(tmp_path: Path, clock: Clock) -> None:
    """And says what it cost."""
    run = begun(clock, tmp_path, 0.1)
    run.fit()
    assert run.step == 1
    assert run.seconds() == STEP + VALIDATION


def test_the_rate_follows_the_budget() -> None:
    """Evenly on a log scale from the first to the last; warm-up takes a twentieth of the budget at most."""
    assert RECIPE.rate(0.0, 0) == 0.1
    assert RECIPE.rate(0.5, 100) == pytest.approx(0.01)
    assert RECIPE.rate(1.0, 200) == pytest.approx(0.001)
    warm = RECIPE._replace(warmup_steps=100)
    assert warm.rate(0.0, 0) == pytest.approx(0.001)
    assert warm.rate(0.025, 10) == pytest.approx(0.5 * RECIPE.rate(0.025, 10))
    assert warm.rate(0.05, 10) == RECIPE.rate(0.05, 10)


def test_the_second_stage_has_its_own_rate_loss_and_selection(tmp_path: Path, clock: Clock) -> None:
    """From four fifths on; losses of the two stages are not compared (here the second's is twice the first's)."""
    recipe = RECIPE._replace(stage_two=0.8, rates=(0.1, 0.02))
    assert (recipe.rate(0.8, 80), recipe.rate(1.0, 100)) == (0.02, 0.02)
    assert recipe.rate(0.4, 40) == pytest.approx(np.sqrt(0.1 * 0.02))
    run = begun(clock, tmp_path, 100.0, recipe)
    run.fit()
    assert run.best[0] == 2
    assert run.best_step > 0.8 * run.step


def test_a_killed_run_resumes_as_if_it_had_not_been(tmp_path: Path, clock: Clock) -> None:
    """The same steps, weights and CPU time as without interruption."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    run = begun(clock, whole, 60.0)
    run.fit()
    seconds = run.seconds()
    first = begun(clock, cut, 60.0)
    save, saved = first._save, []

    def killed() -> None:
        save()
        saved.append(first.step)
        if len(saved) == 5:
            raise KeyboardInterrupt

    first._save = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    clock.now += 1000.0  # on another day
    again = begun(clock, cut, 60.0)
    again.resume()
    assert again.step == saved[-1]
    again.fit()
    assert (again.step, again.best_step, again.seconds()) == (run.step, run.best_step, seconds)
    for name, weights in run.chosen.items():
        assert torch.equal(again.chosen[name], weights)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path, clock: Clock) -> None:
    """With the step."""
    run = begun(clock, tmp_path, 50.0, RECIPE._replace(rates=(1e30, 1e30)))
    with pytest.raises(FloatingPointError, match=r"the loss is .* at step"):
        run.fit()


def test_a_run_ends_when_the_process_that_waits_for_it_has(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs of a killed benchmark do not continue."""
    monkeypatch.setenv(training.PARENT, "1234567")
    with pytest.raises(SystemExit, match="the process that started this run has ended"):
        begun(clock, tmp_path, 50.0).fit()


def test_predictions_have_the_energy_of_the_labels(tmp_path: Path, clock: Clock) -> None:
    """The mean energy is put back in eV, and the constant fits the training frames even after a single step."""
    run, data = begun(clock, tmp_path, 0.1), molecule()
    run.fit()
    energies, forces = training.predictions(run, data)
    weight = run.chosen["weight"].item()
    shift = np.mean(data.train.energies - weight * data.train.positions[:, 0, 0])
    assert energies == pytest.approx(weight * data.test.positions[:, 0, 0] + shift - 40.0, abs=1e-5)  # float32
    assert forces.shape == (6, 1, 3)


def test_a_worker_reads_the_task_and_writes_the_result_last(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The energies in the file are absolute; test frames come without labels."""
    data = molecule()
    arrays = {"numbers": data.numbers, "test_positions": data.test.positions}
    for name, part in (("train", data.train), ("validation", data.validation)):
        arrays |= {
            f"{name}_positions": part.positions,
            f"{name}_energies": part.energies - 40,
            f"{name}_forces": part.forces,
        }
    np.savez(tmp_path / "data.npz", **arrays)
    task = {"data": str(tmp_path / "data.npz"), "budget": 200.0, "seed": 0}
    (tmp_path / "task.json").write_text(json.dumps(task))
    monkeypatch.setattr("sys.argv", ["worker", str(tmp_path)])
    training.main(lambda molecule, seed: setup(clock), ["numpy"])
    found = json.loads((tmp_path / "trained.json").read_text())
    assert 195 < found["cpu_seconds"] <= 200
    assert found["n_parameters"] == 2
    assert found["recipe"]["source"] == "nowhere"
    assert list(found["versions"]) == ["numpy"]
    with np.load(tmp_path / "predictions.npz") as file:
        assert file["energies"] == pytest.approx(data.test.energies - 40, abs=0.3)


# --- our own ----------------------------------------------------------------------------------------------------------


def test_the_steps_of_our_runs_fit_the_budget_with_all_validations() -> None:
    """97 % of the budget is planned for, 5 % of it for validations; a budget below the compilation is one step."""
    costs = Costs(first=30.0, step=0.05, validation=1.0)
    for budget, validations in ((900.0, 45), (3600.0, 50)):
        plan = plan_of(costs, budget)
        assert plan["validations"] == validations
        planned = costs.first + plan["steps"] * costs.step + validations * costs.validation
        assert 0.97 * budget - costs.step <= planned <= 0.97 * budget + 1e-6
    assert (plan_of(costs, 10.0)["steps"], plan_of(costs, 10.0)["validations"]) == (1, 1)
    assert plan_of(costs._replace(validation=0.0), 900.0)["validations"] == 50


def test_our_config_is_the_shipped_recipe(tmp_path: Path) -> None:
    """`rmd17-ethanol` but for the budget, without relaxation unless asked for; warm-up never takes the whole run."""
    task = {"model": "equiformer-small", "seed": 3, "compile": False, "overrides": []}
    data = index_files(tmp_path, 950, 50)
    config = config_of(task, data, steps=4000)
    assert (config.training.batch_size, config.training.learning_rate, config.training.optimizer) == (5, 0.003, "muon")
    assert (config.training.steps, config.training.warmup_steps, config.training.seed) == (4000, 100, 3)
    assert (config.potential.name, config.potential.preset) == ("equiformer", "small")
    assert config.relaxation.schedule == "off"
    assert config.training.validation_interval(4000) == 4000 / VALIDATIONS
    numbers = [int(line) for name in ("train", "validation") for line in (tmp_path / f"{name}.csv").read_text().split()]
    assert numbers == list(range(1000))
    relaxed = config_of({**task, "model": "segnn-tiny:relaxed"}, data, steps=200)
    assert relaxed.relaxation.schedule != "off"
    assert (relaxed.potential.name, relaxed.training.warmup_steps) == ("segnn", 10)
    changed = config_of({**task, "overrides": ["training.batch_size=8"]}, data, steps=9)
    assert changed.training.batch_size == 8


def test_the_trial_measures_steps_and_a_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first steps compile, the last one validates; neither is a typical step."""
    now = [0.0]
    monkeypatch.setattr(accuracy_worker, "_seconds", lambda: now[0])

    def run_training(config: Any, folder: Path, networks: Any, *, data: Any, listener: Any) -> None:
        for step in range(1, config.training.steps + 1):
            now[0] += 0.1 + (20.0 if step == 1 else 0.0) + (2.0 if step == config.training.validate_every else 0.0)
            listener(accuracy_worker.Progress(step, config.training.steps, 0.0, 0.0, None))

    monkeypatch.setattr(accuracy_worker, "run_training", run_training)
    config = accuracy_worker.open_config("rmd17-ethanol", [])
    costs = accuracy_worker._measure(config, [])
    assert costs == pytest.approx(Costs(20.0, 0.1, 2.0))
