"""Training: what is validated and selected, what the test set may touch, and what is learnt from which labels."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from mdrelax import potentials
from mdrelax.datasets import load
from mdrelax.forces import forcematching
from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.forcematching import ForceMatching, validation_errors
from mdrelax.forces.loader import Loader, frames_from_data, join
from mdrelax.method.relaxation import relax_constraints, relaxed_layers
from mdrelax.modelfile import load_model
from mdrelax.runs.config import Config, load_config
from mdrelax.runs.inputs import load_parts
from mdrelax.runs.train import Outcome, run_training
from mdrelax.runs.untrained import untrained
from mdrelax.structures.neighbors import build_graph
from mdrelax.training.trainer import Trainer, TrainingError
from small_runs import CRYSTAL_CUTOFF, clusters, crystals, document, write_frames

FORCES = "val_forces_mae_meV_per_A"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 labelled clusters."""
    return write_frames(tmp_path_factory.mktemp("data") / "clusters.extxyz", clusters(32))


def trainer(config: Config, folder: Path) -> Trainer:
    """A relaxed network and its data, ready to run."""
    parts = load_parts(config.data)
    train, valid = (frames_from_data(data, cutoff=config.potential.cutoff) for data in (parts.train, parts.validation))
    model = untrained(config, train, parts.isolated_energies, potentials, None).force_field
    relax_constraints(model, initial_std=config.relaxation.initial_std, generator=torch.Generator().manual_seed(0))
    loader = Loader(train, batch_size=config.training.batch_size, seed=config.training.seed)
    task = ForceMatching(loader, valid, config.training)
    return Trainer(model, task, training=config.training, relaxation=config.relaxation, folder=folder)


def run(content: dict[str, Any], folder: Path) -> Outcome:
    """A whole run."""
    return run_training(load_config(content), folder, potentials)


# --- what is validated and selected -----------------------------------------------------------------------------------


def test_validation_sees_the_projected_average(tmp_path, source):
    """The twin has the averaged weights of the trunk and no free maps, though the network itself has both otherwise."""
    subject = trainer(load_config(document(source, training={"steps": 9, "ema": 0.8})), tmp_path)
    subject.run()
    twin, records = subject.projected()
    average = dict(zip(subject.ema.names, subject.ema.average, strict=True))
    assert not relaxed_layers(twin)
    assert [record.how for record in records] == ["dropped"]
    trunk = {name.replace(".layer.", ".", 1): tensor for name, tensor in average.items() if ".free." not in name}
    assert set(trunk) == {name for name, _ in twin.named_parameters()}
    assert all(torch.equal(parameter, trunk[name]) for name, parameter in twin.named_parameters())
    assert any(not torch.equal(p, average[name]) for name, p in subject.model.named_parameters())


def test_the_free_maps_do_not_reach_validation(tmp_path, source):
    """Huge free maps change what is trained and nothing that is validated, bit for bit."""
    subject = trainer(load_config(document(source, training={"steps": 9})), tmp_path)
    subject.run()
    before = validation_errors(subject.projected()[0], subject.task.validation)
    batch = join(subject.task.validation)
    relaxed = subject.model.eval()(batch.graph).energy
    for layer in relaxed_layers(subject.model).values():
        layer.theta = 1.0
        torch.nn.init.constant_(layer.free.weight, 3.0)
    for name, average in zip(subject.ema.names, subject.ema.average, strict=True):
        if name.endswith("feed_forward.weight"):
            average.fill_(-5.0)
    assert not torch.equal(subject.model(batch.graph).energy, relaxed)
    after = validation_errors(subject.projected()[0], subject.task.validation)
    before.pop("val_stress_mae_meV_per_A3"), after.pop("val_stress_mae_meV_per_A3")  # NaN: no labels
    assert after == before


def test_the_result_is_the_network_of_the_best_validation(tmp_path, source):
    """The row of the smallest validation error, and the result measured again gives that row's number exactly."""
    keys = {"steps": 40, "validate_every": 4, "learning_rate": 0.05, "learning_rate_schedule": "constant", "ema": 0.0}
    subject = trainer(load_config(document(source, training=keys)), tmp_path)
    fit = subject.run()
    best = fit.metrics.loc[fit.metrics[FORCES].idxmin()]
    assert fit.best_step == best["step"]
    assert fit.best_step < fit.steps, "the last step is the best one: the law is not tested"
    assert validation_errors(fit.model, subject.task.validation)[FORCES] == best[FORCES]
    assert not relaxed_layers(fit.model)


def test_the_test_set_never_touches_the_model(tmp_path, source):
    """Law 6: with nonsense for test labels, the model, the selected step and the learning curve are the same."""
    wrong = clusters(8, seed=5)
    right = [atoms.copy() for atoms in wrong]
    for atoms in wrong:
        atoms.info["REF_energy"] = 1e3
        atoms.arrays["REF_forces"] *= -7.0
    outcomes = []
    for name, frames in (("right", right), ("wrong", wrong)):
        data = {"test_source": str(write_frames(tmp_path / f"{name}.extxyz", frames)), "test": None}
        outcomes.append(run(document(source, data=data), tmp_path / name))
    tensors = [load_file(tmp_path / name / "model.safetensors") for name in ("right", "wrong")]
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
    assert outcomes[0].fit.best_step == outcomes[1].fit.best_step
    curves = [outcome.fit.metrics.drop(columns="time_s") for outcome in outcomes]
    pd.testing.assert_frame_equal(*curves, check_exact=True)
    assert outcomes[0].results["test"] != outcomes[1].results["test"]


def test_both_arms_of_a_comparison_get_the_same_training(tmp_path, source, monkeypatch):
    """Law 7: the standard arm begins with the same weights and sees the same rotated batches at the same rates."""
    seen: dict[str, list[torch.Tensor]] = {"triangle": [], "off": []}
    rotate, curves = forcematching.rotate_batch, []
    for schedule, batches in seen.items():
        monkeypatch.setattr(forcematching, "rotate_batch", lambda *a, to=batches, **k: _kept(rotate(*a, **k), to))
        content = document(source, relaxation={"schedule": schedule})
        curves.append(run(content, tmp_path / schedule).fit.metrics)
    assert len(seen["off"]) == 24
    assert all(torch.equal(a, b) for a, b in zip(seen["triangle"], seen["off"], strict=True))
    assert curves[0][["step", "epoch", "lr"]].equals(curves[1][["step", "epoch", "lr"]])
    assert (curves[1]["theta"] == 0).all()
    assert not curves[0][FORCES].equals(curves[1][FORCES])


def _kept(batch: Any, to: list[torch.Tensor]) -> Any:
    to.append(torch.cat([batch.graph.positions, batch.targets.forces]))
    return batch


def test_the_last_step_is_equivariant(tmp_path, source):
    """theta follows the triangle over the optimiser steps and is 0 in the last."""
    heard: list[float] = []
    run_training(
        load_config(document(source)), tmp_path, potentials, listener=lambda progress: heard.append(progress.theta)
    )
    assert heard == pytest.approx([2 * min(s / 23, 1 - s / 23) for s in range(24)])
    assert heard[-1] == 0.0


# --- what is learnt ---------------------------------------------------------------------------------------------------


def test_crystals_with_stress_are_learnt(tmp_path):
    """On periodic cells with energy, forces and stress all three errors fall to less than half.

    The stress that is learnt is the derivative of the energy: in float64 it agrees with finite strains of 1e-5 (error
    of the difference quotient about 1e-9) to 1e-6 of the largest component.
    """
    source = write_frames(tmp_path / "cu.extxyz", crystals(32))
    keys = {"steps": 50, "stress_weight": 30.0, "energy_weight": 10.0, "max_edges": 220, "validate_every": 5}
    content = document(source, potential={"cutoff": CRYSTAL_CUTOFF}, training=keys)
    outcome = run(content, tmp_path / "run")
    for column in ("val_energy_mae_meV_per_atom", FORCES, "val_stress_mae_meV_per_A3"):
        errors = outcome.fit.metrics[column]
        assert errors.iloc[-1] < 0.5 * errors.iloc[0], f"{column}: {errors.tolist()}"
    assert outcome.results["test"]["stress_mae_meV_per_A3"] > 0
    model = load_model(tmp_path / "run" / "model.safetensors").force_field.to_dtype(torch.float64)
    frame = load(source)[0]
    found, expected = _stress(model, frame), _finite_strain_stress(model, frame)
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()


def _stress(model: ForceField, frame: Any) -> torch.Tensor:
    return model(build_graph(frame.pos, frame.z, frame.cell[0], frame.pbc[0], model.cutoff), stress=True).stress[0]


def _finite_strain_stress(model: ForceField, frame: Any, step: float = 1e-5) -> torch.Tensor:
    """(E(1 + e) - E(1 - e)) / (2 e V) for each component of a symmetric strain."""
    stress = torch.zeros(3, 3, dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            energies = []
            for sign in (1, -1):
                strain = torch.eye(3, dtype=torch.float64)
                strain[i, j] += sign * step / 2
                strain[j, i] += sign * step / 2
                graph = build_graph(frame.pos @ strain, frame.z, frame.cell[0] @ strain, frame.pbc[0], model.cutoff)
                energies.append(model(graph).energy.item())
            stress[i, j] = (energies[0] - energies[1]) / (2 * step)
    return stress / frame.cell[0].det().abs()


def test_energies_alone_are_learnt(tmp_path):
    """Without forces the energy error decides which network is best, and it falls to less than half."""
    source = write_frames(tmp_path / "e.extxyz", clusters(32, labels=("energy",)))
    outcome = run(document(source, training={"steps": 100, "energy_weight": 10.0}), tmp_path / "run")
    energies = outcome.fit.metrics["val_energy_mae_meV_per_atom"]
    assert energies.min() < 0.5 * energies.iloc[0]
    assert outcome.fit.best_step == outcome.fit.metrics["step"][energies.idxmin()]
    assert outcome.fit.metrics[FORCES].isna().all()
    assert "forces_mae_meV_per_A" not in outcome.results["test"]
    assert outcome.results["test"]["energy_mae_meV"] < outcome.results["baselines"]["mean"]["energy_mae_meV"]


def test_epochs_become_steps(tmp_path, source):
    """20 frames in batches of 4 are 5 steps an epoch."""
    content = document(source, training={"epochs": 3})
    del content["training"]["steps"]
    fit = run(content, tmp_path).fit
    assert fit.steps == 15
    assert fit.metrics["step"].tolist() == [7, 14, 15]


def test_early_stopping_ends_a_run_that_does_not_improve(tmp_path, source):
    """With a rate of (nearly) zero, averages off, the first validation stays the best; two more and the run ends."""
    keys = {"steps": 100, "validate_every": 5, "early_stopping": 2, "learning_rate": 1e-30, "ema": 0.0}
    fit = run(document(source, training=keys), tmp_path).fit
    assert (fit.best_step, fit.steps) == (5, 15)


def test_the_plateau_schedule_lowers_the_rate(tmp_path, source):
    """Each `plateau_patience` validations without improvement multiply the rate by the factor."""
    keys = {"steps": 30, "validate_every": 5, "learning_rate": 1e-30, "learning_rate_schedule": "plateau", "ema": 0.0}
    keys |= {"plateau_patience": 2, "plateau_factor": 0.1, "warmup_steps": 0}
    rates = run(document(source, training=keys), tmp_path).fit.metrics["lr"]
    assert [round(math.log10(rate)) for rate in rates] == [-30, -30, -30, -31, -31, -32]


# --- what cannot be trained -------------------------------------------------------------------------------------------


def test_a_gradient_that_is_not_finite_ends_the_run(tmp_path, source):
    """Before it touches the weights, with causes and remedies."""
    subject = trainer(load_config(document(source)), tmp_path)
    torch.nn.init.constant_(next(subject.model.parameters()), float("nan"))
    with pytest.raises(TrainingError, match=r"gradient is nan at step 0: \(a\) lower `training.learning_rate`"):
        subject.run()


def test_a_nan_of_the_network_is_no_missing_label(tmp_path, source):
    """A network whose predictions overflow has no validation error, not a small one."""
    subject = trainer(load_config(document(source)), tmp_path)
    subject.ema.average[0].fill_(torch.nan)
    errors = validation_errors(subject.projected()[0], subject.task.validation)
    assert math.isnan(errors[FORCES])
    with pytest.raises(TrainingError, match="no best network"):
        subject.result()


@pytest.mark.parametrize("size", [0, 0.0])
def test_without_validation_there_is_no_selection(tmp_path, source, size):
    """Said before training, with the key to set."""
    with pytest.raises(ValueError, match=r"no validation frames.*`data\.validation`"):
        run(document(source, data={"validation": size}), tmp_path)
