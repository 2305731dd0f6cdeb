"""The trainer with a task of its own, nothing of force fields in it; and what layers.csv says of the free maps."""

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from mdrelax.method.free_map_log import activation_lie_squares
from mdrelax.method.penalty import record_inputs
from mdrelax.method.relaxation import is_relaxed, relax_constraints
from mdrelax.training.optimizers import OPTIMIZERS
from mdrelax.training.trainer import Trainer
from toy_regression import IRREPS, Network, Stop, assert_resumes, network, stop_at, trainer


def test_any_task_is_trained_validated_and_selected(tmp_path):
    """The table has the task's columns, the result is the projected network of the smallest selected error."""
    subject = trainer(tmp_path)
    fit = subject.run()
    first = ["step", "epoch", "time_s", "lr", "theta", "penalty", "train_loss"]
    assert list(fit.metrics) == [*first, "train_mae", "val_mse", "val_worst"]
    assert fit.metrics["step"].tolist() == [6, 12, 18, 24, 30, 35]
    assert fit.best_step == fit.metrics["step"][fit.metrics["val_worst"].idxmin()]
    assert fit.metrics["val_mse"].iloc[-1] < 0.7 * fit.metrics["val_mse"].iloc[0]
    assert fit.metrics["train_mae"].notna().all()  # means leave NaN out
    assert subject.task.validate(fit.model)["val_worst"] == fit.metrics["val_worst"].min()
    assert not any(is_relaxed(model) or model.training for model in subject.task.validated)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_any_task_resumes_bit_for_bit(tmp_path, optimizer):
    """Stopped between two validations, with every optimiser: weights, averages, tables, best network."""
    assert_resumes(tmp_path, partial(trainer, optimizer=optimizer))
    assert len({(tmp_path / name / "layers.csv").read_bytes() for name in ("whole", "parts")}) == 1


def test_decay_by_epochs_follows_the_trainers_epochs(tmp_path):
    """Five batches an epoch: with two epochs a stage the rate falls after steps 10, 20 and 30, resumed or not."""
    keys = {"learning_rate_schedule": "step", "decay_epochs": 2, "decay_factor": 0.1, "validate_every": 5}
    with pytest.raises(Stop):
        trainer(tmp_path, listener=stop_at(17), **keys).run()
    subject = trainer(tmp_path, **keys)
    subject.resume()
    rates = subject.run().metrics["lr"]  # of the last step of each epoch
    assert rates.tolist() == pytest.approx([0.03, 0.03, 3e-3, 3e-3, 3e-4, 3e-4, 3e-5])


# --- random numbers of the network ------------------------------------------------------------------------------------


class WithDropout(Network):
    """Half of the scalars are dropped; keeps the masks."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.masks: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Features (M, 9) to features."""
        scalars = self.dropout(torch.ones_like(x[:, :3]))
        self.masks.append(scalars)
        return super().forward(torch.cat([scalars * x[:, :3], x[:, 3:]], dim=1))


def with_dropout(folder: Path, **keys: Any) -> Trainer:
    """A run of that network with the weights of ``network``."""
    model = WithDropout()
    model.load_state_dict(network(relaxed=False).state_dict())
    return trainer(folder, model=model, relaxed=False, **keys)


def test_dropout_resumes_bit_for_bit(tmp_path):
    """Though torch's generator stands elsewhere when the run goes on: (seed, step) decides what is dropped."""
    assert_resumes(tmp_path, with_dropout)


def test_dropout_follows_the_seed_and_the_step(tmp_path):
    """Masks of the steps differ, those of two runs of one seed do not, and validation drops nothing."""
    masks = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(masks))  # of no consequence
        subject = with_dropout(tmp_path / name, seed=seed, epochs=1)
        subject.run()
        masks.append(torch.stack(subject.model.masks))  # (5, 8, 3); the copies that are validated have their own list
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert len({tuple(mask.flatten().tolist()) for mask in masks[0]}) == 5
    validated = subject.task.validated[-1].masks[-1]
    assert torch.equal(validated, torch.ones_like(validated))


def test_training_leaves_torchs_generator_alone(tmp_path):
    """A caller's random numbers after a run are those that it would have drawn without one."""
    subject = with_dropout(tmp_path, epochs=1)
    before = torch.get_rng_state()
    subject.run()
    assert torch.equal(torch.get_rng_state(), before)


# --- layers.csv -------------------------------------------------------------------------------------------------------


def test_layers_are_logged_at_each_validation(tmp_path):
    """One row a relaxed layer and validation, of the averaged W that the projection removes."""
    fit = trainer(tmp_path).run()
    table = pd.read_csv(tmp_path / "layers.csv")
    assert list(table) == ["step", "layer", "norm", "distance", "lie", "activation_lie_square", "theta", "dual"]
    assert table["layer"].tolist() == ["first", "last"] * len(fit.metrics)
    assert table["step"].tolist() == [step for step in fit.metrics["step"] for _ in range(2)]
    assert table.drop(columns="dual").notna().all(axis=None)
    for record in fit.layers:
        row = table[(table["step"] == fit.best_step) & (table["layer"] == record.name)].iloc[0]
        assert (row["norm"], row["distance"]) == (record.norm, record.distance)


def test_a_network_that_is_not_relaxed_has_no_layer_log(tmp_path):
    """There is nothing to log."""
    trainer(tmp_path, relaxed=False).run()
    assert not (tmp_path / "layers.csv").exists()


def turned(angle: float, axis: int) -> Tensor:
    """D(R) of the features for a turn about x, y or z, by e3nn; float64."""
    vector = torch.zeros(3)
    vector[axis] = 1.0
    return IRREPS.D_from_axis_angle(vector, torch.tensor(angle)).double()


def test_the_lie_norms_are_derivatives_of_rotations(tmp_path):
    """Against turns by +-0.05 rad about x, y and z: D W D^-1 and D W x - W D x, divided by the angle.

    The difference quotient's relative error is 0.05^2 / 6 < 1e-3 for l = 1, twice that for its square. At the last
    step: the averaged W, and the inputs of the last batch, which the first layer sees as they are.
    """
    subject = trainer(tmp_path)
    subject.run()
    row = pd.read_csv(tmp_path / "layers.csv").query("layer == 'first'").iloc[-1]
    w = subject.ema.average[subject.ema.names.index("first.free.weight")].double()
    (x,) = [subject.task.x[batch].double() for batch in subject.task.batches(6, start=4)]
    of_w, of_x = 0.0, 0.0
    for axis in range(3):
        d, back = turned(0.05, axis), turned(-0.05, axis)
        of_w += ((d @ w @ d.T - back @ w @ back.T) / 0.1).square().sum().item()
        moved = x @ (d @ w - w @ d).T - x @ (back @ w - w @ back).T
        of_x += (moved / 0.1).square().sum(1).mean().item()
    assert row["norm"] == pytest.approx(w.norm().item())
    assert row["lie"] ** 2 == pytest.approx(of_w, rel=5e-3)
    assert row["activation_lie_square"] == pytest.approx(of_x, rel=5e-3)


def test_large_batches_are_sampled_for_the_log():
    """Of 5000 rows every twentieth is looked at, which gives the mean of all within a few per cent."""
    model = Network()
    relax_constraints(model, initial_std=0.3, generator=torch.Generator().manual_seed(0))
    x = torch.randn(5000, IRREPS.dim, generator=torch.Generator().manual_seed(1))
    with record_inputs(model) as inputs:
        model(x)
    sampled = activation_lie_squares(model, inputs)
    parts = [
        activation_lie_squares(model, {name: [value[k::20]] for name, (value,) in inputs.items()}) for k in range(20)
    ]
    for name, value in sampled.items():
        assert value == pytest.approx(sum(part[name] for part in parts) / 20, rel=0.1)
