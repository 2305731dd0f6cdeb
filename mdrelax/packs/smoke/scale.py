"""Scale-steerable convolutions: one set of weights, applied at several scales (Sosnovik et al., arXiv 1910.11093).

Features at S scales are stacked scale by scale, (B, S C, H, W). With the Hermite functions psi_b at the scales s,

| layer | kernel between channels o and i at scale s |
| --- | --- |
| ``ScaleConv`` | sum_b w_boi psi_b(x / s) |
| ``ResidualScaleConv`` | the same + K_oi,s(x), K free and small (RPP) |
| ``RelaxedScaleConv`` | sum_b w_boi(x) psi_b(x / s) (RSteer; Wang, Walters, Yu, ICML 2022, arXiv 2201.11969) |

The first layer computes features at all scales of a field, a hidden one treats every scale by itself, and the last one
reads the smallest. No scaling but 1 maps a grid onto itself, so equivariance is approximate everywhere, and what a
layer claims is the form of its kernels: a free map is measured by its distance from that form.

It differs from the published code in that the basis is orthonormal (its 49 functions depend on each other on a grid of
5 x 5), in that scales are stacked outermost, so that a hidden layer is one grouped convolution, and in that K connects
equal scales only.
"""

import math
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from numpy.polynomial.hermite_e import hermeval
from torch import Tensor, nn
from torch.nn import functional

from mdrelax.method.free_conv import FreeKernel
from mdrelax.method.free_maps import ImageView
from mdrelax.method.groups import FiniteRepresentation, Representation
from mdrelax.method.sites import Site
from mdrelax.packs.smoke.convolution import KernelConv, initial_std
from mdrelax.packs.smoke.steerable_kernels import orthonormal

__all__ = ["FreeScaleConv", "RelaxedScaleConv", "ResidualScaleConv", "ScaleConv", "scale_basis"]

ORDERS = 7  # of Hermite functions along each axis, as published


@lru_cache
def scale_basis(scales: tuple[float, ...], kernel_size: int) -> Tensor:
    """Orthonormal kernels at all scales, (K, S, k, k), float64; a smaller scale has a smaller kernel, padded."""
    sampled = []
    for scale in scales:
        size = int(kernel_size * scale / max(scales)) // 2 * 2 + 1
        x = torch.arange(size, dtype=torch.float64) - size // 2
        envelope = torch.exp(-((x / scale) ** 2) / 2) / scale
        orders = torch.eye(ORDERS, dtype=torch.float64)
        axis = torch.stack([envelope * torch.from_numpy(hermeval((x / scale).numpy(), o.numpy())) for o in orders])
        plane = torch.einsum("ax,by->abxy", axis, axis).flatten(0, 1)
        sampled.append(functional.pad(plane, [(kernel_size - size) // 2] * 4))
    functions = torch.stack(sampled, dim=1)
    order = sorted(range(ORDERS**2), key=lambda k: k // ORDERS + k % ORDERS)  # low orders first
    return orthonormal(functions[order])


class Scaled(NamedTuple):
    """Kernels of one form at all scales, (S C_out, C_in, k, k), and coefficients (K, C_out, C_in) in its basis."""

    basis: Tensor  # (K, S, k, k), float64
    c_out: int
    c_in: int

    def spread(self, points: Tensor) -> Tensor:
        """Coefficients at each point of the kernel, (k k or 1, K, C_out, C_in), as a kernel."""
        basis = self.basis.flatten(2).to(points)
        if len(points) == 1:
            kernel = torch.einsum("boi,bsx->soix", points[0], basis)
        else:
            kernel = torch.einsum("xboi,bsx->soix", points, basis)
        return kernel.flatten(0, 1).unflatten(-1, self.basis.shape[2:])

    def coefficients(self, kernel: Tensor) -> Tensor:
        """Of the part of a kernel that has the form."""
        return torch.einsum("bsxy,soixy->boi", self.basis.to(kernel), kernel.unflatten(0, (-1, self.c_out)))

    def nearest(self, kernel: Tensor) -> Tensor:
        """That part."""
        return self.spread(self.coefficients(kernel).unsqueeze(0))

    def initial(self, *shape: int, before_relu: bool) -> Tensor:
        """Random coefficients (*shape, K, C_out, C_in)."""
        _, n_scales, k, _ = self.basis.shape
        std = initial_std(self.c_in * k**2, before_relu=before_relu) * math.sqrt(n_scales * k**2 / len(self.basis))
        return std * torch.randn(*shape, len(self.basis), self.c_out, self.c_in)


class FreeScaleConv(FreeKernel):
    """A free kernel next to a scale-steerable one; P(W) is its part of that form.

    Its commutator is sqrt(2) (W - P(W)), so that the sum of squares bounds the distance as that of a group does.
    """

    def __init__(self, source: Representation, output: Representation, *, form: Scaled, groups: int) -> None:
        super().__init__(source, output, kernel_size=form.basis.shape[-1], groups=groups)
        self.form = form

    def joins(self, layer: nn.Module) -> bool:
        """Always: it stands next to a layer of this module."""
        return True

    def convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Images with at least dim_in channels, of which the first are read; results have their size."""
        return functional.conv2d(x[:, : self.source.dim], kernel, padding=kernel.shape[-1] // 2, groups=self.groups)

    def convolve_all(self, x: Tensor, changes: Tensor) -> tuple[Tensor, Tensor]:
        """One by one: the channels of a grouped convolution belong to its groups."""
        return self.convolve(x, self.weight), torch.cat([self.convolve(x, change) for change in changes], dim=1)

    def commutators(self) -> Tensor:
        """(1, *weight.shape)."""
        return math.sqrt(2) * (self.weight - self.equivariant_part()).unsqueeze(0)

    def equivariant_part(self) -> Tensor:
        """The nearest kernel of the layer's form."""
        return self.form.nearest(self.weight)

    def spectrum(self) -> Tensor:
        """The squared norms of that part and of the rest."""
        part = self.equivariant_part()
        return torch.stack([part.square().sum(), (self.weight - part).square().sum()])

    @torch.no_grad()
    def fold_into(self, layer: nn.Module, theta: float) -> bool:
        """By the layer's ``fold``."""
        if not isinstance(layer, RelaxableScaleLayer):
            return False
        layer.fold(theta * self.weight)
        return True


class ScaleLayer(KernelConv):
    """The base of the three layers; each reads the smallest scales of its input.

    Args:
        c_in: Input channels, at each scale.
        c_out: Output channels, at each scale.
        scales: The scales of the result.
        kernel_size: Pixels along a side, odd.
        lifts: Whether the input is a field without scales, which all scales of the result read.
        before_relu: Whether a ReLU follows, which decides the size of the initial weights.
    """

    varies = False  # whether the weights differ between the points of the kernel

    def __init__(
        self, c_in: int, c_out: int, scales: tuple[float, ...], kernel_size: int, *, lifts: bool = False,
        before_relu: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(kernel_size, groups=1 if lifts else len(scales))
        self.form = Scaled(scale_basis(scales, kernel_size), c_out, c_in)
        self.bias = nn.Parameter(torch.zeros(c_out))
        points = (kernel_size**2,) if self.varies else ()
        self.weight = nn.Parameter(self.form.initial(*points, before_relu=before_relu))  # ([k k,] K, C_out, C_in)

    @property
    def n_out(self) -> int:
        """dim_out."""
        return self.form.basis.shape[1] * self.form.c_out

    def whole_bias(self) -> Tensor:
        """The same at all scales."""
        return self.bias.repeat(self.form.basis.shape[1])

    def forward(self, x: Tensor, *, free: "tuple[float | Tensor, Tensor] | None" = None) -> Tensor:
        """Images with at least the scales of this layer."""
        return super().forward(x[:, : self.groups * self.form.c_in], free=free)

    def kernel(self) -> Tensor:
        """sum_b w_b psi_b, where w_b may depend on the point."""
        return self.form.spread(self.weight if self.varies else self.weight.unsqueeze(0))


class RelaxableScaleLayer(ScaleLayer):
    """A layer next to which a free kernel is put, and that takes up its part of the layer's form."""

    def relaxable(self) -> Site:
        """A free kernel between the same channels."""
        one = torch.ones(1, 1, 1)
        source = FiniteRepresentation(one, self.groups * self.form.c_in, ())
        make = partial(FreeScaleConv, form=self.form, groups=self.groups)
        return Site(source, FiniteRepresentation(one, self.n_out, ()), view=ImageView(), make_free=make)

    def fold(self, kernel: Tensor) -> None:
        """Take up the part of a kernel that has the layer's form, at all points alike."""
        self.weight.add_(self.form.coefficients(kernel))


class ScaleConv(RelaxableScaleLayer):
    """One set of weights for all scales."""


class ResidualScaleConv(ScaleLayer):
    """One set of weights for all scales, and a free kernel for good, which ``constraint`` keeps small."""

    def __init__(
        self, c_in: int, c_out: int, scales: tuple[float, ...], kernel_size: int, *, lifts: bool = False,
        before_relu: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(c_in, c_out, scales, kernel_size, lifts=lifts, before_relu=before_relu)
        std = initial_std(c_in * kernel_size**2, before_relu=before_relu) / 3  # as of torch's own convolutions
        self.residual = nn.Parameter(std * torch.randn(self.n_out, c_in, kernel_size, kernel_size))

    def kernel(self) -> Tensor:
        """The sum of both kernels."""
        return super().kernel() + self.residual

    def constraint(self) -> Tensor:
        """The squared norm of the residual, as published."""
        return self.residual.square().sum()


class RelaxedScaleConv(RelaxableScaleLayer):
    """Weights that vary over the kernel."""

    varies = True

    def constraint(self) -> Tensor:
        """The mean difference of the weights between diagonal neighbours in the kernel, as published."""
        k = self.kernel_size
        weights = self.weight.unflatten(0, (k, k))
        return (weights.roll((1, 1), (0, 1)) - weights).abs().mean()
