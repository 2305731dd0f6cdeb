"""Learning rates, against their formulas and torch's schedulers."""

import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError

from mdrelax.training.rates import LearningRate, LearningRateKind
from mdrelax.training.settings import OptimisationConfig


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
    rate = LearningRate(1.0, "plateau", plateau_factor=0.5)
    assert [rate.at_step(9, n_steps=10, reductions=k) for k in range(3)] == [1.0, 0.5, 0.25]


@pytest.mark.parametrize("kind", get_args(LearningRateKind))
@pytest.mark.parametrize(("n_steps", "warmup"), [(1, 0), (1, 5), (3, 3), (2, 100)])
def test_short_runs_have_positive_rates(kind, n_steps, warmup):
    """A run shorter than its warm-up, or of one step, still learns, and divides by nothing."""
    assert all(0 < rate <= 1 for rate in rates(LearningRate(1.0, kind, warmup, 0.01), n_steps))


# --- torch's schedulers -----------------------------------------------------------------------------------------------


def torchs(make: Callable[[Any], Any], n: int) -> list[float]:
    """The first n rates of a scheduler of torch's, from 0.4."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    scheduler, found = make(optimizer), []
    for _ in range(n):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("every", [1, 3, 7])
def test_step_decay_is_torchs_step_lr(every):
    """By the factor 0.3 after each 1, 3 or 7 steps; torch multiplies one factor after the other, hence 1e-12."""
    found = rates(LearningRate(0.4, "step", decay_factor=0.3, decay_every=every), 20)
    assert found == pytest.approx(torchs(lambda o: torch.optim.lr_scheduler.StepLR(o, every, 0.3), 20), rel=1e-12)


@pytest.mark.parametrize("every", [1, 4])
def test_exponential_decay_is_torchs_exponential_lr(every):
    """A factor of 0.3 over ``every`` steps is 0.3^(1/every) in each."""
    found = rates(LearningRate(0.4, "exponential", decay_factor=0.3, decay_every=every), 20)
    gamma = 0.3 ** (1 / every)
    assert found == pytest.approx(torchs(lambda o: torch.optim.lr_scheduler.ExponentialLR(o, gamma), 20), rel=1e-12)


@pytest.mark.parametrize("kind", ["step", "exponential"])
def test_decay_may_count_epochs(kind):
    """Schedulers that are stepped after each epoch, as published recipes do: every epoch of 5 steps has one rate."""
    rate = LearningRate(0.4, kind, decay_factor=0.9, decay_every=1, decay_unit="epochs")
    found = [rate.at_step(step, n_steps=20, epoch=step // 5) for step in range(20)]
    theirs = torchs(lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9), 4)
    assert found == pytest.approx([theirs[step // 5] for step in range(20)], rel=1e-12)


def test_the_rate_does_not_jump_when_warm_up_ends():
    """Warm-up multiplies the decaying rate."""
    found = rates(LearningRate(1.0, "exponential", 4, decay_factor=0.5, decay_every=2), 6)
    assert found == pytest.approx([(s + 1) / 4 * 0.5 ** (s / 2) for s in range(4)] + [0.25, 0.5**2.5])


def test_the_settings_know_every_schedule_and_its_length():
    """Settings and function are of one list; a decay without its length is refused, and so are two lengths."""
    for kind in get_args(LearningRateKind):
        assert OptimisationConfig(steps=1, learning_rate_schedule=kind, decay_steps=5).rate(1).kind == kind
    rate = OptimisationConfig(epochs=9, learning_rate_schedule="step", decay_epochs=2, decay_factor=0.1).rate(9)
    assert (rate.decay_every, rate.decay_unit, rate.decay_factor) == (2, "epochs", 0.1)
    sentence = "`learning_rate_schedule: step` needs either `decay_steps` or `decay_epochs`, got None and None"
    with pytest.raises(ValidationError, match=sentence):
        OptimisationConfig(steps=1, learning_rate_schedule="step")
    with pytest.raises(ValidationError, match="needs at most one of `decay_steps` and `decay_epochs`, got 3 and 2"):
        OptimisationConfig(steps=1, decay_steps=3, decay_epochs=2)
