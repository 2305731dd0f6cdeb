"""The smoke task: rollouts and their errors, deterministic batches, symmetry errors, and what is refused."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mdrelax.datasets.plume_files import open_plumes
from mdrelax.packs.smoke.run import windows_of
from mdrelax.packs.smoke.task import (
    Forecast,
    Frames,
    evenly,
    predict,
    quarter_turned,
    roll_out,
    rollout_errors,
    rollout_loss,
    symmetry_error,
)
from molecules import normal
from test_smoke_networks import network, turned_flow


class Persistence(nn.Module):
    """The last frame again, times a weight."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2 n, H, W) to (B, 2, H, W)."""
        return self.factor * x[:, -2:]

    def constraint(self) -> Tensor:
        """Nothing."""
        return torch.zeros(())


def forecast(**changes: object) -> Forecast:
    """The task on the shipped set."""
    data = windows_of("sample:plume")
    settings = {"train": data.train, "validation": data.validation, "batch_size": 5, "seed": 3, **changes}
    return Forecast(data.plumes, data.split, **settings)  # type: ignore[arg-type]


def test_a_prediction_is_put_behind_the_frames_that_are_seen():
    """A network that adds the first and the last frame it sees: the sequence 1, 2, 3 goes on with 4, 6, 9."""

    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :2] + x[:, -2:]

    inputs = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1, 1).expand(1, 3, 2, 4, 4)
    assert [frame[0, 0, 0, 0].item() for frame in roll_out(Sum(), inputs, 3)] == [4.0, 6.0, 9.0]


def test_errors_of_persistence_are_those_of_its_definition():
    """RMSE over everything and by step, against frames of the set read by hand."""
    data = windows_of("sample:plume")
    rows, n = data.future, data.split.n_rollout
    found = rollout_errors(Persistence(), data.plumes, data.split, rows, n, dtype=torch.float64)
    squares, size = np.zeros(n), 0.0
    for task, start in rows:
        velocity = data.plumes.tasks[task].velocity.astype(float)
        first = start + data.split.n_in
        for step in range(n):
            squares[step] += np.mean((velocity[first + step] - velocity[first - 1]) ** 2) / len(rows)
        size += np.mean(velocity[first : first + n] ** 2) / len(rows)
    assert found.by_step == pytest.approx(np.sqrt(squares).tolist(), rel=1e-6)
    assert found.rmse == pytest.approx(math.sqrt(squares.mean()), rel=1e-6)
    assert found.size == pytest.approx(math.sqrt(size), rel=1e-6)


def test_the_loss_is_the_sum_over_frames_and_its_gradient_does_not_depend_on_the_parts():
    """Persistence with a factor f: predictions f x, f^2 x; loss and derivative by hand, for parts of 1, 2 and 5."""
    inputs, targets = normal(5, 3, 2, 4, 4, seed=0).float(), normal(5, 2, 2, 4, 4, seed=1).float()
    f, x = 0.9, inputs[:, -1]
    errors = [f * x - targets[:, 0], f**2 * x - targets[:, 1]]
    expected = sum(e.square().mean() for e in errors)
    slope = (2 * errors[0] * x).mean() + (2 * errors[1] * 2 * f * x).mean()
    for part in (1, 2, 5):
        model = Persistence(f)
        loss = rollout_loss(model, Frames(inputs, targets), part=part)
        loss.backward()
        torch.testing.assert_close(loss.detach(), expected)
        torch.testing.assert_close(model.factor.grad, slope)


def test_every_window_is_seen_once_an_epoch_and_a_resumed_run_sees_the_rest():
    """Also the windows of the last batch, which is smaller; the order follows from seed and epoch."""
    own = forecast()
    whole = list(own.batches(2, start=0))
    assert own.n_steps(3) == 3 * len(whole) == 3 * 7  # of 32 windows
    assert sum(len(batch.inputs) for batch in whole) == 32
    assert len(torch.cat([batch.inputs for batch in whole]).flatten(1).unique(dim=0)) == 32
    rest = list(own.batches(2, start=4))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(whole[4:], rest, strict=True))
    assert not torch.equal(whole[0].inputs, next(iter(own.batches(3, start=0))).inputs)


def test_a_last_batch_of_one_window_is_left_out():
    """A batch norm cannot learn from it."""
    batches = list(forecast(batch_size=31).batches(0, start=0))
    assert [len(batch.inputs) for batch in batches] == [31]


def test_turning_flows_is_turning_grid_and_arrows():
    """Against the pixel-by-pixel form; four quarters are one."""
    velocity = normal(2, 3, 2, 5, 5, seed=0)
    torch.testing.assert_close(quarter_turned(velocity), turned_flow(velocity))
    torch.testing.assert_close(quarter_turned(velocity, 3), turned_flow(turned_flow(turned_flow(velocity))))
    assert torch.equal(quarter_turned(velocity, 4), velocity)


def test_augmentation_turns_inputs_and_targets_alike():
    """Persistence of a steady flow stays exact under any turn; turns follow from the step."""
    own = forecast(rotate=True)
    steady = normal(6, 1, 2, 8, 8, seed=0).float()
    batch = Frames(steady.expand(-1, 4, -1, -1, -1), steady.expand(-1, 3, -1, -1, -1))
    loss, (rmse,) = own.loss(Persistence(), batch, step=1)
    assert loss == rmse == 0
    turned = own._turned(batch, 1)
    assert not torch.equal(turned.inputs, batch.inputs)
    assert torch.equal(turned.inputs, own._turned(batch, 1).inputs)


def test_the_symmetry_error_is_zero_for_exact_networks_and_that_of_the_definition_for_others():
    """||f(g x) - g f(x)|| / ||f(x)|| by the independent turn."""
    inputs = normal(3, 3, 2, 12, 12, seed=1)
    assert symmetry_error(network("equiv"), inputs) < 1e-12
    model, squares = network("rsteer"), []
    still = model(inputs.flatten(1, 2))
    turned, moved = still, inputs
    for _ in range(3):
        turned, moved = turned_flow(turned), turned_flow(moved)
        squares.append((model(moved.flatten(1, 2)) - turned).square().mean().item())
    expected = math.sqrt(np.mean(squares) / still.square().mean().item())
    assert symmetry_error(model, inputs) == pytest.approx(expected, rel=1e-9)


def test_an_unstable_rollout_is_one_sentence():
    """The frame at which it leaves the numbers of float32."""
    inputs = torch.ones(1, 3, 2, 4, 4)
    with pytest.raises(ValueError, match="rollout is unstable: frame 4 of 8 is not finite; predict fewer frames"):
        predict(Persistence(1e10), inputs, 8)
    assert not torch.isfinite(predict(Persistence(1e10), inputs, 8, bounded=False)).all()


def test_windows_are_thinned_evenly():
    """First ones of equal stretches; all if there are no more."""
    rows = np.arange(20).reshape(10, 2)
    assert evenly(rows, 4)[:, 0].tolist() == [0, 4, 10, 14]
    assert evenly(rows, 40) is rows


def test_no_window_to_train_on_is_refused():
    """One sentence."""
    data = windows_of("sample:plume")
    with pytest.raises(ValueError, match="leaves no window to train on"):
        Forecast(data.plumes, data.split, train=data.train[:0], validation=data.validation, batch_size=2)


def test_the_shipped_set_is_what_the_tests_assume():
    """Six tasks on 32 x 32 cells, of all four sides."""
    plumes = open_plumes("sample:plume")
    assert plumes.kind == "rotation"
    assert {task.info.side for task in plumes.tasks} == {0, 1, 2, 3}
