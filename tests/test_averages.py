"""Averages: the moving average of the weights, and batch-norm statistics of the averaged network's own."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from e3nn import nn as e3nn_nn
from torch import Tensor, nn

from mdrelax.method.relaxation import relax_constraints
from mdrelax.training.averages import Ema, own_statistics
from mdrelax.training.trainer import Trainer
from toy_regression import Network, assert_equal, assert_resumes, network, trainer


def test_moving_average_follows_its_formula():
    """a <- d_s a + (1 - d_s) p with d_s = min(d, s / (s + 10)), s = 1, 2, ...; float64, so 1e-14."""
    model = nn.Linear(2, 1).double()
    ema, expected = Ema(model, decay=0.3), [p.detach().clone() for p in model.parameters()]
    for step in range(1, 12):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.full_like(parameter, 0.1 * step))
        ema.update(model.parameters())
        decay = min(0.3, step / (step + 10))
        expected = [decay * a + (1 - decay) * p.detach() for a, p in zip(expected, model.parameters(), strict=True)]
    for average, wanted in zip(ema.average, expected, strict=True):
        torch.testing.assert_close(average, wanted, rtol=0, atol=1e-14)


def test_without_decay_the_average_is_the_weights():
    """`ema: 0` turns averaging off, bit for bit."""
    model, ema = nn.Linear(2, 1), Ema(nn.Linear(2, 1), decay=0.0)
    ema.update(model.parameters())
    assert all(torch.equal(a, p) for a, p in zip(ema.average, model.parameters(), strict=True))


def test_the_average_is_restored_and_handed_to_a_model():
    """state_dict -> load_state_dict -> copy_to is lossless, the number of steps included."""
    model, other = nn.Linear(2, 1), nn.Linear(2, 1)
    ema, restored = Ema(model, decay=0.9), Ema(other, decay=0.9)
    ema.update(other.parameters())
    restored.load_state_dict(ema.state_dict())
    restored.copy_to(other)
    assert restored.steps == 1
    assert all(torch.equal(a, p) for a, p in zip(ema.average, other.parameters(), strict=True))


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_an_impossible_decay_is_refused(decay):
    """An average that never moves, or runs away, is a mistake."""
    with pytest.raises(ValueError, match=r"\[0, 1\), got"):
        Ema(nn.Linear(1, 1), decay=decay)


# --- batch-norm statistics --------------------------------------------------------------------------------------------


def batches(*sizes: int, dim: int = 3) -> list[Tensor]:
    """Batches of numbers whose mean and spread differ from one to the next."""
    generator = torch.Generator().manual_seed(4)
    return [(k + 1) * torch.randn(n, dim, generator=generator) + k for k, n in enumerate(sizes)]


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the buffers of a network."""
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def normed() -> nn.Sequential:
    """Two batch norms, one behind a layer, with statistics that training has spoilt."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.Tanh(), nn.BatchNorm1d(4), nn.Linear(4, 1))
    for x in batches(5, 5):
        model(10 * x)
    return model


def test_own_statistics_are_torchs_update_bn():
    """Against `torch.optim.swa_utils.update_bn`, for batches of different sizes; the same sums, so 1e-6."""
    ours, theirs = normed(), normed()
    data = batches(8, 3, 6)
    own_statistics(ours.eval(), lambda batch, k: ours(batch), data)
    torch.optim.swa_utils.update_bn(data, theirs)
    found, expected = statistics(ours), statistics(theirs)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], rtol=1e-6, atol=1e-6) for name in found)
    assert {module.momentum for module in ours if isinstance(module, nn.BatchNorm1d)} == {0.1}
    assert not any(module.training for module in ours.modules())


def test_own_statistics_of_e3nns_norm_are_means_over_batches():
    """A module of another package with its own buffers: mean of scalars, mean square of vectors (by component)."""
    model = e3nn_nn.BatchNorm("1x0e+1x1o")
    data = batches(8, 3, 6, dim=4)
    own_statistics(model, lambda batch, k: model(batch), data)
    mean = torch.stack([x[:, 0].mean() for x in data]).mean()
    scalar = torch.stack([x[:, 0].var(correction=0) for x in data]).mean()
    vector = torch.stack([x[:, 1:].square().mean() for x in data]).mean()
    torch.testing.assert_close(model.running_mean, mean.reshape(1))
    torch.testing.assert_close(model.running_var, torch.stack([scalar, vector]))
    assert model.training
    assert model.momentum == 0.1


def test_a_norm_that_is_called_twice_has_the_mean_of_all_its_calls():
    """As is a norm inside a loop over chunks; and one that is never called keeps what it has."""
    used, unused = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    model, data = nn.ModuleList([used, unused]), batches(4, 4, 4, 4)
    unused.running_mean.fill_(5.0)
    own_statistics(model, lambda pair, k: [used(x) for x in pair], [data[:2], data[2:]])
    torch.testing.assert_close(used.running_mean, torch.stack([x.mean(0) for x in data]).mean(0))
    assert (unused.running_mean == 5).all()


def test_dropout_widens_no_variance():
    """Validation drops nothing, and neither does the pass that measures for it."""
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(3))
    (x,) = batches(50)
    own_statistics(model, lambda batch, k: model(batch), [x])
    torch.testing.assert_close(model[1].running_var, x.var(0))


# --- in the trainer ---------------------------------------------------------------------------------------------------


class WithNorm(Network):
    """The toy network with a batch norm of the scalars behind its first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        """Features (M, 9) to features."""
        y = self.first(x)
        return self.last(torch.cat([self.norm(y[:, :3]), y[:, 3:]], dim=1))


def with_norm(folder: Path, *, relaxed: bool = False, **keys: Any) -> Trainer:
    """A run of that network, with the weights and free maps of ``network``."""
    model = WithNorm()
    model.load_state_dict(network(relaxed=False).state_dict(), strict=False)
    if relaxed:
        relax_constraints(model, initial_std=0.3, generator=torch.Generator().manual_seed(2))
    return trainer(folder, model=model, relaxed=relaxed, **keys)


@pytest.mark.parametrize("limit", [3, 32])
def test_the_averaged_network_is_validated_with_statistics_of_its_own(tmp_path, limit):
    """By hand: averaged weights in a copy, torch's update_bn over 3 or all 5 batches of epoch 0, its error."""
    subject = with_norm(tmp_path, norm_batches=limit, ema=0.9)
    row = subject.run().metrics.iloc[-1]
    copied = copy.deepcopy(subject.model)
    subject.ema.copy_to(copied)
    live = subject.task.validate(copied.eval())
    data = [subject.task.x[batch] for batch in subject.task.batches(0, start=0)]
    assert len(data) == 5
    torch.optim.swa_utils.update_bn(data[:limit], copied)
    errors = subject.task.validate(copied.eval())
    assert row["val_mse"] == pytest.approx(errors["val_mse"], rel=1e-5)  # float32
    assert abs(live["val_mse"] / errors["val_mse"] - 1) > 1e-3, "both statistics do alike: the law is not tested"


def test_the_trained_networks_statistics_are_not_touched(tmp_path):
    """Bit for bit those, and the weights, of a run that measures none; which validates with the trained network's."""
    with_own, without = (with_norm(tmp_path / str(n), norm_batches=n) for n in (32, 0))
    errors = [subject.run().metrics["val_mse"].iloc[-1] for subject in (with_own, without)]
    assert errors[0] != errors[1]
    assert_equal(with_own.model.state_dict(), without.model.state_dict())
    twin, _ = without.projected()
    assert_equal(statistics(twin), statistics(without.model))


@pytest.mark.parametrize("relaxed", [False, True])
def test_a_run_with_batch_norm_resumes_bit_for_bit(tmp_path, relaxed):
    """Statistics of the trained network, of the best one and so every validation error."""
    assert_resumes(tmp_path, partial(with_norm, relaxed=relaxed))


def test_the_projected_network_has_statistics_of_its_own(tmp_path):
    """Free maps before a norm move its input: what the trained network has seen is not what the projection sees."""

    model = WithNorm()
    relax_constraints(model, where=["first"], initial_std=1.0, generator=torch.Generator().manual_seed(2))
    subject = trainer(tmp_path, model=model, relaxation={"schedule": "constant", "weight": 0.0}, ema=0.0)
    twin = subject.run().model
    inputs = [subject.task.x[batch] for batch in subject.task.batches(0, start=0)]
    with torch.no_grad():
        expected = torch.stack([twin.first(x)[:, :3].mean(0) for x in inputs]).mean(0)
    best = subject.best["state"]["norm.running_mean"]
    torch.testing.assert_close(best, expected)
    assert not torch.allclose(best, subject.model.norm.running_mean, atol=0.01)


def test_a_network_without_batch_norm_pays_nothing(tmp_path):
    """Not one call of the loss more than there are steps."""
    subject, calls = trainer(tmp_path), []
    loss = subject.task.loss
    subject.task.loss = lambda *given, step: calls.append(step) or loss(*given, step=step)
    subject.run()
    assert calls == list(range(35))
