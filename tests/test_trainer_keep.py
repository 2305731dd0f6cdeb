"""`projection: keep`: the trainer's network keeps its free maps, for data that are only nearly symmetric."""

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from mdrelax.base.sections import ConfigError
from mdrelax.method.projection import project
from mdrelax.method.relaxation import is_relaxed, relaxed_layers, set_theta
from mdrelax.packs.nbody.run import NBodyRun
from mdrelax.runs.config import load_config
from mdrelax.training.checkpoint import load_checkpoint
from mdrelax.training.settings import RelaxationConfig
from mdrelax.training.trainer import Trainer
from small_runs import document
from toy_regression import Regression, assert_resumes, trainer

PEAK = 0.7


class NearlySymmetric(Regression):
    """The same fit, of data that a fixed vector has been added to: no equivariant map has it."""

    def __init__(self) -> None:
        super().__init__()
        self.y[:, 3:] += 1.5 * self.x[:, :1] * torch.tensor([1.0, 0, 0, 0, 1.0, 0])


def keeping(folder: Path, **keys: Any) -> Trainer:
    """A run that keeps its free maps at theta = 0.7."""
    relaxation = {"schedule": "constant", "peak": PEAK, "projection": "keep", "weight": 0.0}
    subject = trainer(folder, relaxation=relaxation, validate_every=6, **{"epochs": 20, **keys})
    subject.task = NearlySymmetric()
    return subject


def averaged(subject: Trainer) -> dict[str, Tensor]:
    """The averaged weights of a run by name."""
    return dict(zip(subject.ema.names, subject.ema.average, strict=True))


def test_the_kept_network_is_the_averaged_one_at_its_theta(tmp_path):
    """In its last validation: the free maps and everything else, and the table's error is that network's."""
    subject = keeping(tmp_path)
    fit = subject.run()
    twin, records = subject.projected()
    weights = averaged(subject)
    assert {name for name, _ in twin.named_parameters()} == weights.keys()
    assert all(torch.equal(parameter, weights[name]) for name, parameter in twin.named_parameters())
    assert [(record.how, record.theta) for record in records] == [("kept", PEAK)] * 2
    errors = subject.task.validate(twin)
    assert {name: fit.metrics[name].iloc[-1] for name in errors} == errors


def test_the_result_is_the_best_kept_network(tmp_path):
    """Its free maps are there, at theta = 0.7, and it has the smallest kept error of the table, exactly."""
    subject = keeping(tmp_path)
    fit = subject.run()
    assert is_relaxed(fit.model)
    assert {layer.theta for layer in relaxed_layers(fit.model).values()} == {PEAK}
    assert not fit.model.training
    assert subject.task.validate(fit.model)["val_worst"] == fit.metrics["val_worst"].min()
    assert fit.best_step == fit.metrics["step"][fit.metrics["val_worst"].idxmin()]


def test_the_kept_network_and_not_its_projection_chooses_the_best(tmp_path):
    """In this run the two would choose different steps."""
    metrics = keeping(tmp_path, learning_rate=0.1).run().metrics
    best = metrics["val_worst"].idxmin()
    assert best != metrics["projected_val_worst"].idxmin(), "both choose the same step: the law is not tested"
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["best"]["step"] == metrics["step"][best]


def test_both_errors_are_logged(tmp_path):
    """The projected columns are those of f + theta P(W), folded by hand, which cannot fit such data."""
    subject = keeping(tmp_path)
    fit = subject.run()
    table = pd.read_csv(tmp_path / "metrics.csv")
    names = ["val_mse", "val_worst"]
    assert list(table)[-4:] == [*names, *(f"projected_{name}" for name in names)]
    twin, _ = subject.projected()
    project(twin, how="fold")
    errors = subject.task.validate(twin)
    assert {name: fit.metrics[f"projected_{name}"].iloc[-1] for name in names} == errors
    assert fit.metrics["val_mse"].iloc[-1] < 0.5 * errors["val_mse"]


def test_free_maps_and_theta_survive_an_interruption(tmp_path):
    """Stopped between two validations and resumed: bit for bit; a finished run gives the same network again."""
    build = partial(keeping, epochs=7)
    assert_resumes(tmp_path, build)
    again = build(tmp_path / "parts")
    again.resume()
    fits = [again.result(), build(tmp_path / "other").run()]
    states = [fit.model.state_dict() for fit in fits]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    x = again.task.x
    assert torch.equal(fits[0].model(x), fits[1].model(x))
    set_theta(fits[1].model, 1.0)
    assert not torch.equal(fits[0].model(x), fits[1].model(x)), "theta does not act: the law is not tested"


def test_without_free_maps_there_is_nothing_to_keep(tmp_path):
    """The standard arm of a study that keeps: schedule off, one set of columns."""
    fit = trainer(tmp_path, relaxed=False, relaxation={"projection": "keep"}).run()
    assert not any(name.startswith("projected") for name in fit.metrics)
    assert fit.layers == []


@pytest.mark.parametrize("schedule", [{"schedule": "triangle"}, {"schedule": "constant", "end": 0.5}])
def test_a_theta_that_ends_at_zero_leaves_nothing_to_keep(schedule):
    """Said when the settings are read: at the end the network would be the dropped one under another name."""
    with pytest.raises(ValidationError, match=r"`projection: keep` .* theta is 0 at the end.*`schedule: constant`"):
        RelaxationConfig(projection="keep", **schedule)


def test_a_force_field_cannot_keep_its_free_maps(tmp_path):
    """Refused before anything is read or trained; N-body networks are certified too."""
    relaxation = {"schedule": "constant", "projection": "keep"}
    sentence = "has to be exactly equivariant.*`relaxation.projection` must be drop or fold, got keep"
    with pytest.raises(ConfigError, match=f"a potential {sentence}"):
        load_config(document(tmp_path / "missing.extxyz", relaxation=relaxation))
    with pytest.raises(ValidationError, match=f"the N-body network {sentence}"):
        NBodyRun(arm="relaxed", relaxation=relaxation, training={"steps": 1})
