"""Radial functions: the envelope that ends every interaction smoothly, two bases, and the radial networks.

With x = r / cutoff the polynomial envelope (Gasteiger et al., DimeNet, arXiv 2003.03123, eq. 8) is

    f(x) = 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2)    for x < 1, else 0

and f, f' and f'' vanish at x = 1: energy, forces and their gradient are continuous when an atom crosses the cut-off.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdrelax.potentials.steerable import Constant

__all__ = ["BesselBasis", "ExpNormalBasis", "RadialNetworks", "polynomial_envelope", "uniform"]

ENVELOPE_POWER = 6  # p, DimeNet's choice
# f(x) = (1 - x)^3 sum_k C(k+2, 2) x^k, k < p: the same polynomial without cancellation where it vanishes.
BINOMIALS = [math.comb(k + 2, 2) for k in range(ENVELOPE_POWER)]


def polynomial_envelope(scaled: Tensor) -> Tensor:
    """f(r / cutoff), same shape as its argument; 1 at the origin, 0 with two derivatives from the cut-off on."""
    rest = BINOMIALS[-1] * scaled
    for binomial in BINOMIALS[-2:0:-1]:
        rest = (rest + binomial) * scaled
    return (1 - scaled).clamp(min=0).pow(3) * (1 + rest)


class BesselBasis(nn.Module):
    """sqrt(2 / c) sin(n pi r / c) / r for n = 1..K (DimeNet, eq. 7), scaled to unit size: lengths (E,) -> (E, K)."""

    def __init__(self, n_basis: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.frequencies = Constant(math.pi / cutoff * torch.arange(1, n_basis + 1, dtype=torch.float64))

    def forward(self, lengths: Tensor) -> Tensor:
        """Values (E, K) at the given lengths (E,) in Angstrom."""
        lengths = lengths.unsqueeze(1)
        return math.sqrt(2 * self.cutoff) * torch.sin(self.frequencies.like(lengths) * lengths) / lengths


class ExpNormalBasis(nn.Module):
    """Gaussians in exp(-5 r / c), PhysNet's basis as the published Equiformer uses it: lengths (E,) -> (E, K)."""

    def __init__(self, n_basis: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        start = math.exp(-cutoff)
        self.beta = (2 / n_basis * (1 - start)) ** -2
        self.means = Constant(torch.linspace(start, 1, n_basis, dtype=torch.float64))

    def forward(self, lengths: Tensor) -> Tensor:
        """Values (E, K) at the given lengths (E,) in Angstrom."""
        lengths = lengths.unsqueeze(1)
        fade = 0.5 * (1 + torch.cos(math.pi * (lengths / self.cutoff).clamp(max=1)))
        return fade * torch.exp(-self.beta * (torch.exp(-5 / self.cutoff * lengths) - self.means.like(lengths)) ** 2)


class RadialNetworks(nn.Module):
    """B networks of the radial basis, run as one: basis (E, K) -> for each network a list of weights (E, W_k).

    Each is linear - layer norm - SiLU - linear - layer norm - SiLU - linear (the published radial profile). The B
    copies of a layer are one batched product; ``sizes`` are the W_k.
    """

    def __init__(self, n_networks: int, n_basis: int, hidden: int, sizes: list[int]) -> None:
        super().__init__()
        self.hidden = hidden
        self.weights = nn.ParameterList(uniform(n_networks, n_in, hidden, fan_in=n_in) for n_in in (n_basis, hidden))
        self.biases = nn.ParameterList(torch.zeros(n_networks, 1, hidden) for _ in range(2))
        self.norm_weights = nn.ParameterList(torch.ones(n_networks, 1, hidden) for _ in range(2))
        self.norm_biases = nn.ParameterList(torch.zeros(n_networks, 1, hidden) for _ in range(2))
        self.outputs = nn.ParameterList(uniform(n_networks, hidden, size, fan_in=hidden) for size in sizes)
        self.offsets = nn.ParameterList(uniform(n_networks, 1, size, fan_in=hidden) for size in sizes)

    def forward(self, basis: Tensor, number: int | None = None) -> list[tuple[Tensor, ...]]:
        """The weights of each network at the basis values (E, K), or those of a single network."""

        def chosen(parameters: nn.ParameterList) -> list[Tensor]:
            return list(parameters) if number is None else [each[number : number + 1] for each in parameters]

        hidden = zip(*map(chosen, (self.biases, self.weights, self.norm_biases, self.norm_weights)), strict=True)
        x = basis.expand(len(self.biases[0]) if number is None else 1, -1, -1)  # (B, E, K)
        for bias, weight, norm_bias, norm_weight in hidden:
            x = functional.layer_norm(torch.baddbmm(bias, x, weight), (self.hidden,))
            x = functional.silu(torch.addcmul(norm_bias, x, norm_weight))
        columns = [
            torch.baddbmm(offset, x, output).unbind(0)
            for output, offset in zip(chosen(self.outputs), chosen(self.offsets), strict=True)
        ]
        return list(zip(*columns, strict=True))


def uniform(*shape: int, fan_in: int) -> Tensor:
    """torch's initialisation of a linear layer: uniform within 1 / sqrt(fan_in)."""
    return torch.empty(shape).uniform_(-1, 1) / math.sqrt(fan_in)
