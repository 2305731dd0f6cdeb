"""Averages: the moving average of the weights, and batch-norm statistics of the averaged network's own."""

import pytest
import torch
from torch import nn

from mdrelax.training.averages import Ema


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
