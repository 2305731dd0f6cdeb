"""The trainer with a task of its own, nothing of force fields in it; and what layers.csv says of the free maps."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from e3nn import o3
from torch import Tensor, nn

from mdrelax.method.free_map_log import activation_lie_squares
from mdrelax.method.penalty import record_inputs
from mdrelax.method.relaxation import is_relaxed, relax_constraints
from mdrelax.training.checkpoint import load_checkpoint
from mdrelax.training.optimizers import OPTIMIZERS
from mdrelax.training.settings import OptimisationConfig, RelaxationConfig
from mdrelax.training.trainer import Progress, Trainer

IRREPS = o3.Irreps("3x0e+2x1e")


class Network(nn.Module):
    """Two equivariant linear maps with e3nn's norm activation between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = o3.Linear(IRREPS, IRREPS), o3.Linear(IRREPS, IRREPS)

    def forward(self, x: Tensor) -> Tensor:
        """Features (M, 9) to features."""
        return self.last(torch.cat([torch.tanh(self.first(x)[:, :3]), x[:, 3:]], dim=1))


class Regression:
    """Fit a fixed equivariant map from 40 noisy pairs, in batches of 8; select by what is no loss."""

    train_columns = ("train_mae",)
    validation_columns = ("val_mse", "val_worst")
    selected = "val_worst"

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(48, IRREPS.dim, generator=generator)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.y = Network()(self.x).detach() + 0.1 * torch.randn(self.x.shape, generator=generator)
        self.validated: list[nn.Module] = []

    def batches(self, epoch: int, *, start: int) -> Iterator[Tensor]:
        """Positions in an order that follows from the epoch."""
        order = torch.randperm(40, generator=torch.Generator().manual_seed(epoch))
        yield from order.split(8)[start:]

    def n_steps(self, epochs: int) -> int:
        """Five batches an epoch."""
        return 5 * epochs

    def loss(self, model: nn.Module, batch: Tensor, *, step: int) -> tuple[Tensor, list[Tensor]]:
        """Mean square, and the mean error beside it: NaN in every third step."""
        difference = model(self.x[batch]) - self.y[batch]
        mae = difference.detach().abs().mean()
        return difference.square().mean(), [mae if step % 3 else torch.full_like(mae, torch.nan)]

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Mean square and largest error on the last eight pairs."""
        self.validated.append(model)
        with torch.no_grad():
            difference = model(self.x[40:]) - self.y[40:]
        return {"val_mse": difference.square().mean().item(), "val_worst": difference.abs().max().item()}


def trainer(folder: Path, *, listener: Any = lambda progress: None, relaxed: bool = True, **training: Any) -> Trainer:
    """Seven epochs with a validation every six steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Network()
    if relaxed:
        relax_constraints(model, initial_std=0.1, generator=torch.Generator().manual_seed(2))
    keys = {"epochs": 7, "learning_rate": 0.03, "warmup_steps": 0, "validate_every": 6, "ema": 0.5, **training}
    relaxation = RelaxationConfig(schedule="triangle" if relaxed else "off")
    settings = OptimisationConfig(**keys)
    return Trainer(model, Regression(), training=settings, relaxation=relaxation, folder=folder, listener=listener)


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


class Stop(BaseException):
    """What ends a run in the middle."""


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_any_task_resumes_bit_for_bit(tmp_path, optimizer):
    """Stopped between two validations, with every optimiser: weights, averages, tables, best network."""

    def stop(progress: Progress) -> None:
        if progress.step == 16:
            raise Stop

    trainer(tmp_path / "whole", optimizer=optimizer).run()
    with pytest.raises(Stop):
        trainer(tmp_path / "parts", optimizer=optimizer, listener=stop).run()
    again = trainer(tmp_path / "parts", optimizer=optimizer)
    again.resume()
    assert again.step == 12
    again.run()
    states = [load_checkpoint(tmp_path / name / "checkpoints" / "last.pt") for name in ("whole", "parts")]
    for state in states:
        state.pop("seconds"), state.pop("cpu_seconds")
        for row in state["rows"]:
            row.pop("time_s")
    assert_equal(*states)
    assert len({(tmp_path / name / "layers.csv").read_bytes() for name in ("whole", "parts")}) == 1


def assert_equal(a: Any, b: Any) -> None:
    """The same nest of tensors and primitives, bit for bit."""
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


# --- layers.csv -------------------------------------------------------------------------------------------------------


def test_layers_are_logged_at_each_validation(tmp_path):
    """One row a relaxed layer and validation, of the averaged W that the projection removes."""
    fit = trainer(tmp_path).run()
    table = pd.read_csv(tmp_path / "layers.csv")
    assert list(table) == ["step", "layer", "norm", "distance", "lie", "activation_lie_square"]
    assert table["layer"].tolist() == ["first", "last"] * len(fit.metrics)
    assert table["step"].tolist() == [step for step in fit.metrics["step"] for _ in range(2)]
    assert table.notna().all(axis=None)
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
