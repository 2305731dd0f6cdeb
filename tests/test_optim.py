"""Learning rate, weight decay and the moving average, against their formulas."""

import math

import pytest
import torch
from torch import nn

from mdrelax.optim import Ema, LearningRate, make_optimizer


def rates(rate: LearningRate, n_steps: int, **state: int) -> list[float]:
    """The rate of every step."""
    return [rate.at_step(step, n_steps=n_steps, **state) for step in range(n_steps)]


def test_warm_up_is_linear_and_never_zero():
    """p (s + 1) / w for s < w, the peak at s = w - 1."""
    assert rates(LearningRate(0.4, "constant", 4), 6) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_cosine_ends_at_its_final_fraction():
    """p (f + (1 - f) (1 + cos(pi x)) / 2): peak after warm-up, the mean in the middle, f p at the last step."""
    found = rates(LearningRate(1.0, "cosine", 2, 0.1), 13)
    assert found[2] == pytest.approx(1.0)
    assert found[7] == pytest.approx(0.55)  # x = 1/2
    assert found[-1] == pytest.approx(0.1)
    assert found[5] == pytest.approx(0.1 + 0.9 * (1 + math.cos(0.3 * math.pi)) / 2)
    assert found[2:] == sorted(found[2:], reverse=True)


def test_plateau_multiplies_by_its_factor():
    """p factor^k for k reductions, whatever the step."""
    rate = LearningRate(1.0, "plateau", factor=0.5)
    assert [rate.at_step(9, n_steps=10, reductions=k) for k in range(3)] == [1.0, 0.5, 0.25]


@pytest.mark.parametrize("kind", ["constant", "cosine", "plateau"])
@pytest.mark.parametrize(("n_steps", "warmup"), [(1, 0), (1, 5), (3, 3), (2, 100)])
def test_short_runs_have_positive_rates(kind, n_steps, warmup):
    """A run shorter than its warm-up, or of one step, still learns, and divides by nothing."""
    assert all(0 < rate <= 1 for rate in rates(LearningRate(1.0, kind, warmup, 0.01), n_steps))


class Network(nn.Module):
    """A matrix, its bias, a norm's scale, and an offset in the shape of a feature."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.ones(4))
        self.offset = nn.Parameter(torch.ones(1, 4, 1))


def test_only_matrices_decay():
    """With zero gradients AdamW moves what decays, p <- p (1 - lr d), and nothing else."""
    model = Network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, lr=0.1, weight_decay=0.5, betas=(0.9, 0.99))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = dict(model.named_parameters())
    torch.testing.assert_close(after["linear.weight"], 0.95 * before["linear.weight"])
    for name in ("linear.bias", "scale", "offset"):
        assert torch.equal(after[name], before[name]), name


def test_every_parameter_is_optimised_once_and_frozen_ones_are_not():
    """The two groups share out the trainable parameters."""
    model = Network()
    model.scale.requires_grad_(False)
    groups = make_optimizer(model, lr=0.1, weight_decay=0.0, betas=(0.9, 0.99)).param_groups
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p is not model.scale)


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
