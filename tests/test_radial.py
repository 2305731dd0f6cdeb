"""Radial functions against their closed forms (numpy, float64) and the batched networks against separate torch ones."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mdrelax.potentials.radial import ENVELOPE_POWER, BesselBasis, ExpNormalBasis, RadialNetworks, polynomial_envelope
from molecules import normal

CUTOFF = 5.0


def _grid(n: int, low: float = 0.0, high: float = CUTOFF) -> Tensor:
    return torch.linspace(low, high, n, dtype=torch.float64)


def _derivatives(x: Tensor, n: int) -> list[Tensor]:
    """The envelope and its first n derivatives by autograd."""
    x = x.clone().requires_grad_()
    values = [polynomial_envelope(x)]
    for _ in range(n):
        (slope,) = torch.autograd.grad(values[-1].sum(), x, create_graph=True)
        values.append(slope)
    return [value.detach() for value in values]


def test_envelope_is_dimenets_polynomial() -> None:
    """Equation 8 of arXiv 2003.03123 with p = 6; its three terms of up to 48 cancel, so 1e-13."""
    x, p = _grid(101, 0, 1), ENVELOPE_POWER
    published = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
    assert p == 6
    torch.testing.assert_close(polynomial_envelope(x), published, rtol=0, atol=1e-13)


def test_envelope_begins_flat_at_one() -> None:
    """f(0) = 1 and the first p - 1 derivatives vanish there."""
    value, *slopes = _derivatives(torch.zeros(1, dtype=torch.float64), ENVELOPE_POWER - 1)
    assert value.item() == 1
    assert max(slope.abs().item() for slope in slopes) < 1e-10  # derivatives of order k carry factors up to k! C(8, 2)


def test_envelope_ends_with_two_derivatives_and_no_more() -> None:
    """f, f' and f'' are exactly 0 at the cut-off from both sides, f''' is not: -p(p+1)(p+2) = -336 from inside."""
    value, first, second, third = _derivatives(torch.tensor([1.0, 1 - 1e-12], dtype=torch.float64), 3)
    assert value[0] == first[0] == second[0] == 0
    assert abs(value[1]) < 1e-33  # cubic: 56e-36, without cancellation
    assert abs(second[1]) < 1e-9
    assert third[1].item() == pytest.approx(-336, rel=1e-6)


def test_envelope_falls_from_one_to_zero_and_stays_there() -> None:
    """Monotone within the cut-off, exactly 0 with its derivatives beyond it, never negative; in float32 too."""
    for dtype in (torch.float64, torch.float32):
        values = polynomial_envelope(_grid(2001, 0, 1).to(dtype))
        assert values.min() == 0
        assert (values.diff() <= 10 * torch.finfo(dtype).eps).all()  # the rounding of a dozen operations
    assert all(not value.any() for value in _derivatives(_grid(11, 1.001, 3), 2))


def test_bessel_functions_are_the_closed_form() -> None:
    """sqrt(2 / c) sin(n pi r / c) / r of DimeNet, times c."""
    r, n = _grid(50, 0.1).numpy()[:, None], np.arange(1, 9)
    expected = CUTOFF * math.sqrt(2 / CUTOFF) * np.sin(n * math.pi * r / CUTOFF) / r
    found = BesselBasis(8, CUTOFF)(_grid(50, 0.1)).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_bessel_functions_are_orthogonal_in_the_sphere() -> None:
    """Their integrals with r^2 are the identity times c^2 (Gauss-Legendre with 60 points is exact to rounding)."""
    points, weights = np.polynomial.legendre.leggauss(60)
    r = CUTOFF / 2 * (points + 1)
    values = BesselBasis(8, CUTOFF)(torch.from_numpy(r)).numpy()
    overlap = np.einsum("r,rn,rm->nm", CUTOFF / 2 * weights * r**2, values, values)
    np.testing.assert_allclose(overlap, CUTOFF**2 * np.eye(8), rtol=0, atol=1e-11)


def test_expnormal_functions_are_the_published_ones() -> None:
    """Gaussians in exp(-5 r / c), centres from exp(-c) to 1, times a cosine that ends at the cut-off."""
    r, k = _grid(50, 0.1).numpy()[:, None], 32
    start = math.exp(-CUTOFF)
    beta = (2 / k * (1 - start)) ** -2
    cosine = 0.5 * (np.cos(r * math.pi / CUTOFF) + 1)
    expected = cosine * np.exp(-beta * (np.exp(-5 / CUTOFF * r) - np.linspace(start, 1, k)) ** 2)
    found = ExpNormalBasis(k, CUTOFF)(_grid(50, 0.1)).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("basis", [BesselBasis, ExpNormalBasis])
def test_bases_keep_the_type_of_the_lengths_and_no_parameters(basis: type[nn.Module]) -> None:
    """float32 lengths give float32 values, those of float64 rounded; used so, the float64 values stay exact."""
    functions, r = basis(6, CUTOFF), _grid(20, 0.1)
    exact, single = functions(r), functions(r.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=1e-4)  # arguments up to 6 pi, slopes up to 30 / A
    assert torch.equal(functions.float().double()(r), exact)
    assert not functions.state_dict()


def test_radial_networks_are_the_separate_networks_they_batch() -> None:
    """Linear, layer norm, SiLU, twice, and a last linear whose columns are the weights of each coupling."""
    n_networks, n_basis, hidden, sizes = 3, 6, 16, [5, 2, 9]
    batched = RadialNetworks(n_networks, n_basis, hidden, sizes).double()
    for k, parameter in enumerate(batched.parameters()):
        parameter.data += normal(*parameter.shape, seed=k)
    basis = normal(11, n_basis, seed=50)
    found = batched(basis)
    assert len(found) == n_networks
    for k in range(n_networks):
        separate = _network(batched, k, n_basis, hidden, sizes)
        for weights, expected in zip(found[k], separate(basis).split(sizes, dim=1), strict=True):
            torch.testing.assert_close(weights, expected, rtol=0, atol=1e-12)


def _network(batched: RadialNetworks, k: int, n_basis: int, hidden: int, sizes: list[int]) -> nn.Sequential:
    """The k-th network made of torch's layers."""
    layers: list[nn.Module] = []
    for depth, n_in in enumerate((n_basis, hidden)):
        linear, norm = nn.Linear(n_in, hidden), nn.LayerNorm(hidden)
        linear.weight.data, linear.bias.data = batched.weights[depth][k].T, batched.biases[depth][k, 0]
        norm.weight.data, norm.bias.data = batched.norm_weights[depth][k, 0], batched.norm_biases[depth][k, 0]
        layers += [linear, norm, nn.SiLU()]
    last = nn.Linear(hidden, sum(sizes))
    last.weight.data = torch.cat([output[k].T for output in batched.outputs])
    last.bias.data = torch.cat([offset[k, 0] for offset in batched.offsets])
    return nn.Sequential(*layers, last)


def test_radial_networks_take_no_edges() -> None:
    """A molecule without edges: empty weights of the right widths."""
    found = RadialNetworks(2, 6, 16, [5, 3])(torch.zeros(0, 6))
    assert [[tuple(weights.shape) for weights in network] for network in found] == [[(0, 5), (0, 3)]] * 2
