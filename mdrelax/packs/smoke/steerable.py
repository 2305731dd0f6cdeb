"""Steerable convolutions of C_n: exact, with a residual (RPP), and with weights that vary over the kernel (RSteer).

Features are C fibres of d channels, flattened channel by channel: regular fibres (d = n) are permuted by a rotation,
velocities (d = 2) turned. With the basis B_b of steerable kernels between two fibres (``steerable_kernels``),

| layer | kernel between channels o and i at the point x |
| --- | --- |
| ``SteerableConv`` | sum_b w_boi B_b(x) |
| ``ResidualConv`` | sum_b w_boi B_b(x) + K_oi(x), K free and small (RPP; Finzi, Benton, Wilson, arXiv 2112.01388) |
| ``RelaxedSteerableConv`` | sum_b w_boi(x) B_b(x) (RSteer; Wang, Walters, Yu, ICML 2022, arXiv 2201.11969) |

The first commutes with C_n, on the grid exactly with quarter turns; its bias is equal within a regular fibre, and a
velocity has none. The others deviate as far as the data ask for, and their ``constraint`` measures by how much.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn

from mdrelax.method.free_conv import FreeConv2d
from mdrelax.method.free_maps import ImageView
from mdrelax.method.groups import FiniteRepresentation
from mdrelax.method.sites import Site
from mdrelax.packs.smoke.convolution import KernelConv, initial_std
from mdrelax.packs.smoke.steerable_kernels import by_quarter_turns, steerable_basis

__all__ = ["RelaxedSteerableConv", "ResidualConv", "SteerableConv"]


class Fibres:
    """Kernels between the fibres of two representations, as coefficients in the basis of steerable ones.

    The basis is float64 whatever the network is: cast twice, its entries would be equal to rounding only.
    """

    def __init__(self, source: FiniteRepresentation, output: FiniteRepresentation, kernel_size: int) -> None:
        self.source, self.output, self.kernel_size = source, output, kernel_size
        self.basis = steerable_basis(source, output, kernel_size)  # (K, d_out, d_in, k, k)
        self.shape = output.channels, self.basis.shape[1], source.channels, self.basis.shape[2]

    def spread(self, points: Tensor) -> Tensor:
        """Kernels (k k, d_out d_in, C_out C_in), point by point, as (dim_out, dim_in, k, k)."""
        c_out, d_out, c_in, d_in = self.shape
        k = self.kernel_size
        kernel = points.view(k, k, d_out, d_in, c_out, c_in).permute(4, 2, 5, 3, 0, 1)
        return kernel.reshape(c_out * d_out, c_in * d_in, k, k)

    def by_point(self, like: Tensor) -> Tensor:
        """The basis (k k, d_out d_in, K) in the precision of the weights."""
        return self.basis.flatten(1, 2).flatten(2).permute(2, 1, 0).to(like)

    def coefficients(self, kernel: Tensor) -> Tensor:
        """Of the part of a kernel (dim_out, dim_in, k, k) in the span of the basis: (K, C_out, C_in)."""
        c_out, d_out, c_in, d_in = self.shape
        blocks = kernel.view(c_out, d_out, c_in, d_in, self.kernel_size, self.kernel_size)
        return torch.einsum("bpqxy,opiqxy->boi", self.basis.to(kernel), blocks)

    def initial(self, *shape: int, before_relu: bool) -> Tensor:
        """Random coefficients (*shape, K, C_out, C_in)."""
        c_out, d_out, c_in, d_in = self.shape
        n_entries = d_out * d_in * self.kernel_size**2
        std = initial_std(c_in * d_in * self.kernel_size**2, before_relu=before_relu)
        return std * math.sqrt(n_entries / len(self.basis)) * torch.randn(*shape, len(self.basis), c_out, c_in)

    def site(self) -> Site:
        """A free kernel, whose distance from equivariance is that under the rotations of the grid onto itself."""
        make = partial(FreeConv2d, kernel_size=self.kernel_size, padding=self.kernel_size // 2)
        return Site(by_quarter_turns(self.source), by_quarter_turns(self.output), view=ImageView(), make_free=make)

    @property
    def is_regular(self) -> bool:
        """Whether the rotations permute the entries of an output fibre; they turn those of a velocity."""
        return bool((self.output.matrices >= 0).all())


class SteerableConv(KernelConv):
    """The equivariant convolution, in which a free map folds as far as the basis reaches."""

    def __init__(
        self, source: FiniteRepresentation, output: FiniteRepresentation, kernel_size: int, *, before_relu: bool = True
    ) -> None:
        super().__init__(kernel_size)
        self.fibres = Fibres(source, output, kernel_size)
        self.weight = nn.Parameter(self.fibres.initial(before_relu=before_relu))  # (K, C_out, C_in)
        self.bias = nn.Parameter(torch.zeros(output.channels)) if self.fibres.is_regular else None

    @property
    def n_out(self) -> int:
        """dim_out."""
        return self.fibres.output.dim

    def kernel(self) -> Tensor:
        """sum_b w_b B_b."""
        return self.fibres.spread(self.fibres.by_point(self.weight) @ self.weight.flatten(1))

    def whole_bias(self) -> Tensor | None:
        """One number per regular fibre."""
        return None if self.bias is None else self.bias.repeat_interleave(self.fibres.shape[1])

    def relaxable(self) -> Site:
        """See ``Fibres.site``."""
        return self.fibres.site()

    def fold(self, kernel: Tensor) -> None:
        """Take up the part of a kernel that the basis represents."""
        self.weight.add_(self.fibres.coefficients(kernel))


class ResidualConv(KernelConv):
    """The equivariant convolution and a free kernel for good, which ``constraint`` keeps small."""

    def __init__(
        self, source: FiniteRepresentation, output: FiniteRepresentation, kernel_size: int, *, before_relu: bool = True
    ) -> None:
        super().__init__(kernel_size)
        self.steerable = SteerableConv(source, output, kernel_size, before_relu=before_relu)
        std = initial_std(source.dim * kernel_size**2, before_relu=before_relu) / 3  # as of torch's own convolutions
        self.residual = nn.Parameter(std * torch.randn(output.dim, source.dim, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(output.dim))

    @property
    def n_out(self) -> int:
        """dim_out."""
        return len(self.bias)

    def kernel(self) -> Tensor:
        """The sum of both kernels."""
        return self.steerable.kernel() + self.residual

    def whole_bias(self) -> Tensor:
        """The sum of both biases."""
        own = self.steerable.whole_bias()
        return self.bias if own is None else self.bias + own

    def constraint(self) -> Tensor:
        """The squared norm of the residual, as published."""
        return self.residual.square().sum() + self.bias.square().sum()


class RelaxedSteerableConv(KernelConv):
    """Weights that vary over the kernel, and a free bias; where they do not vary, it is the equivariant convolution."""

    def __init__(
        self, source: FiniteRepresentation, output: FiniteRepresentation, kernel_size: int, *, before_relu: bool = True
    ) -> None:
        super().__init__(kernel_size)
        self.fibres = Fibres(source, output, kernel_size)
        self.weight = nn.Parameter(
            self.fibres.initial(kernel_size**2, before_relu=before_relu)
        )  # (k k, K, C_out, C_in)
        reach = 1 / math.sqrt(source.channels * kernel_size**2)
        self.bias = nn.Parameter(torch.empty(output.dim).uniform_(-reach, reach))

    @property
    def n_out(self) -> int:
        """dim_out."""
        return len(self.bias)

    def kernel(self) -> Tensor:
        """sum_b w_b(x) B_b(x)."""
        return self.fibres.spread(self.fibres.by_point(self.weight) @ self.weight.flatten(2))

    def whole_bias(self) -> Tensor:
        """The bias."""
        return self.bias

    def constraint(self) -> Tensor:
        """The mean difference of the weights between consecutive points of the kernel, as published."""
        return (self.weight[1:] - self.weight[:-1]).abs().mean()

    def relaxable(self) -> Site:
        """See ``Fibres.site``."""
        return self.fibres.site()

    def fold(self, kernel: Tensor) -> None:
        """Take up the part of a kernel that the basis represents, at all points alike."""
        self.weight.add_(self.fibres.coefficients(kernel))
