"""The N-body task's own measures, on networks whose answer is known."""

import pytest
import torch

from mdrelax.packs.nbody.task import Systems, error_profile


def test_the_error_profile_is_that_of_the_errors():
    """A network that predicts no motion: squared displacements, their median and what the largest twentieth holds."""
    moved = torch.zeros(40, 5, 3, dtype=torch.float64)
    moved[:, 0, 0] = torch.arange(1, 41, dtype=torch.float64)
    systems = Systems(torch.zeros_like(moved), torch.zeros_like(moved), moved[:, :, 0], moved)

    class Still(torch.nn.Module):
        """No motion."""

        def forward(self, positions, velocities, charges):
            """Zeros."""
            return torch.zeros_like(positions)

    squares = torch.arange(1, 41, dtype=torch.float64).square() / 15
    profile = error_profile(Still(), systems)
    assert profile["test_mse"] == pytest.approx(squares.mean().item())
    assert profile["test_median"] == pytest.approx(squares.median().item())
    assert profile["test_share_of_worst_twentieth"] == pytest.approx((squares[-2:].sum() / squares.sum()).item())
