"""Steerable kernels: kernels on the grid that commute with C_n, between fibres of regular, vector and scalar channels.

A kernel K between representations rho_in and rho_out of C_n is steerable if for each rotation g

    rho_out(g) K(g^-1 x) rho_in(g)^-1 = K(x)

As in Weiler and Cesa, NeurIPS 2019 (arXiv 1911.08251), kernels are sums of rings times circular harmonics,

    exp(-(|x| - r)^2 / 2 sigma^2) (C cos(m phi) + S sin(m phi))       r = 0 .. R, m <= min(3 r, 5)

with matrices C and S, on which the equation is linear. The solutions are sampled on the grid and made orthonormal. For
C_1, C_2 and C_4, whose rotations map the grid onto itself, the sampled kernels obey the equation exactly; for C_8 they
do so for quarter turns, and between them as far as the grid resolves.

Rows of an image are counted from the top in ``FiniteRepresentation``, and upwards in a plume's velocity: a quarter turn
by ``rot90`` takes (x, y) components (u, v) to (v, -u), see ``flow_vectors``.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from mdrelax.method.groups import FiniteRepresentation, cyclic_vectors

__all__ = ["by_quarter_turns", "flow_vectors", "orthonormal", "steerable_basis"]

SIGMA, SIGMA_OF_LAST = 0.6, 0.4  # of the rings, in pixels, as in e2cnn
FREQUENCIES_PER_PIXEL, MOST_FREQUENCIES = 3, 5
SMALLEST_NEW = 1e-6  # norm of the new part of a kernel, relative to it


def flow_vectors(n: int, channels: int = 1) -> FiniteRepresentation:
    """Velocities (x, y) under C_n, with y along the rows: element 1 of C_4 is ``rot90`` and (u, v) -> (v, -u)."""
    turning = cyclic_vectors(n, channels)
    return FiniteRepresentation(turning.matrices.mT, channels, turning.generators)


def by_quarter_turns(representation: FiniteRepresentation) -> FiniteRepresentation:
    """The same channels under C_4, or under the rotations of C_n that map the grid onto itself."""
    n = len(representation.matrices)
    kept = representation.matrices[:: n // math.gcd(n, 4)]
    return FiniteRepresentation(kept, representation.channels, (1,) if len(kept) > 1 else ())


def steerable_basis(source: FiniteRepresentation, output: FiniteRepresentation, kernel_size: int) -> Tensor:
    """An orthonormal basis of steerable kernels between one fibre of each side: (K, d_out, d_in, k, k), float64.

    Raises ``ValueError`` for an even kernel size, and for representations of different groups.
    """
    if kernel_size % 2 == 0 or kernel_size < 1:
        raise ValueError(f"`kernel_size` must be odd, got {kernel_size}.")
    if len(source.matrices) != len(output.matrices):
        raise ValueError("Both representations must be of the same finite group.")
    sides = (tuple(side.matrices.flatten().tolist()) for side in (source, output))
    return _basis(*sides, len(source.matrices), kernel_size).clone()


@lru_cache
def _basis(source: tuple[float, ...], output: tuple[float, ...], n: int, size: int) -> Tensor:
    rho_in, rho_out = (_square(entries, n) for entries in (source, output))
    kernels = [
        torch.einsum("bfpq,fxy->bpqxy", _solutions(rho_in, rho_out, frequency), _harmonics(ring, frequency, size))
        for ring in range(size // 2 + 1)
        for frequency in range(min(FREQUENCIES_PER_PIXEL * ring, MOST_FREQUENCIES) + 1)
    ]
    return orthonormal(torch.cat(kernels))


def orthonormal(tensors: Tensor) -> Tensor:
    """An orthonormal basis of the span of tensors (M, ...), in their order, by Gram-Schmidt: (K, ...).

    A tensor in the span of those before it is dropped. Unlike a singular value decomposition, the result does not
    depend on the linear algebra library.
    """
    basis, n = torch.zeros_like(tensors).flatten(1), 0
    for tensor in tensors.flatten(1):
        rest = tensor
        for _ in range(2):  # the second time removes what rounding has left
            rest = rest - basis[:n].T @ (basis[:n] @ rest)
        if rest.norm() > SMALLEST_NEW * max(tensor.norm(), 1.0):
            basis[n], n = rest / rest.norm(), n + 1
    return basis[:n].view(n, *tensors.shape[1:])


def _square(entries: tuple[float, ...], n: int) -> Tensor:
    d = math.isqrt(len(entries) // n)
    return torch.tensor(entries, dtype=torch.float64).view(n, d, d)


def _harmonics(ring: int, frequency: int, size: int) -> Tensor:
    """A ring times cos(m phi) and, for m > 0, sin(m phi), sampled on the grid."""
    places = torch.arange(size, dtype=torch.float64) - size // 2
    x, y = places.expand(size, size), -places.unsqueeze(1).expand(size, size)
    radius, phi = torch.hypot(x, y), torch.atan2(y, x)
    sigma = SIGMA_OF_LAST if ring == size // 2 else SIGMA
    profile = torch.exp(-((radius - ring) ** 2) / (2 * sigma**2))
    if frequency == 0:
        return profile.unsqueeze(0)
    return torch.stack([torch.cos(frequency * phi), torch.sin(frequency * phi)]) * (profile * (radius > 0))


def _solutions(rho_in: Tensor, rho_out: Tensor, frequency: int) -> Tensor:
    """Averages over the group of all unit matrices (C, S): (number, 1 or 2, d_out, d_in), not independent."""
    n, d_out, d_in = len(rho_in), rho_out.shape[1], rho_in.shape[1]
    n_functions = 2 if frequency else 1
    units = torch.eye(n_functions * d_out * d_in, dtype=torch.float64).view(-1, n_functions, d_out, d_in)
    total = torch.zeros_like(units)
    for k in range(n):
        c, s = math.cos(2 * math.pi * k * frequency / n), math.sin(2 * math.pi * k * frequency / n)
        turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)[:n_functions, :n_functions]
        total += torch.einsum("fh,po,bhoi,qi->bfpq", turn, rho_out[k], units, rho_in[k])
    return total / n
