"""Free kernels next to convolutions: ``FreeConv2d`` next to steerable ones of C_1, C_2 or C_4, and the base of all."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdrelax.method.free_maps import FreeMap, Sample, Terms, fold, some_of_each
from mdrelax.method.groups import FiniteRepresentation, Representation, orbit_spectrum

__all__ = ["FreeConv2d", "FreeKernel"]


class FreeKernel(FreeMap):
    """A free kernel K (dim_out, dim_in / groups, k, k), applied to images (B, dim_in, H, W); a row is an image."""

    def __init__(self, source: Representation, output: Representation, *, kernel_size: int, groups: int = 1) -> None:
        super().__init__()
        self.source, self.output, self.groups = source, output, groups
        shape = output.dim, source.dim // groups, kernel_size, kernel_size
        self.weight = nn.Parameter(torch.zeros(shape, dtype=torch.float32))

    @abstractmethod
    def convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Images (B, dim_in, H, W) and a kernel of the shape of K to images (B, dim_out, H', W')."""

    @abstractmethod
    def convolve_all(self, x: Tensor, changes: Tensor) -> tuple[Tensor, Tensor]:
        """The images convolved with K, and with all its commutators (G, *K.shape), (B, G dim_out, H', W')."""

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, dim_in, H, W) to (B, dim_out, H', W')."""
        return self.convolve(x, self.weight)

    def penalty_terms(self, inputs: Sequence[Tensor] | None = None, *, rows: int | Sample | None = None) -> Terms:
        """The means are over images and over the pixels of the result."""
        changes = self.commutators()
        if inputs is None:
            return Terms(changes.square().sum(), self.weight.square().sum())
        derivative, size, n_pixels = self.weight.new_zeros(()), self.weight.new_zeros(()), 0
        for x in some_of_each(inputs, rows):
            image, change = self.convolve_all(x, changes)
            derivative, size = derivative + change.square().sum(), size + image.square().sum()
            n_pixels += image[:, 0].numel()
        return Terms(derivative / max(n_pixels, 1), size / max(n_pixels, 1))

    def n_rows(self, inputs: Sequence[Tensor]) -> int:
        """The number of images."""
        return sum(map(len, inputs))


class FreeConv2d(FreeKernel):
    """A free kernel K (dim_out, dim_in, k, k) next to a steerable convolution.

    An element g turns the kernel's grid and acts on both channel axes, C_g(K) = rho_out(g) K(g^-1 .) rho_in(g)^-1 - K;
    on images x, with g^-1 for g, its size is that of rho_out(g) K x - K rho_in(g) x. A layer absorbs P(K) in a method
    ``fold(kernel)``.
    """

    source: FiniteRepresentation
    output: FiniteRepresentation

    def __init__(
        self, source: FiniteRepresentation, output: FiniteRepresentation, *, kernel_size: int, stride: int = 1,
        padding: int = 0, dilation: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(source, output, kernel_size=kernel_size)
        self.stride, self.padding, self.dilation = stride, padding, dilation

    def joins(self, layer: nn.Module) -> bool:
        """If the layer says so by ``joins_kernels``: one convolution instead of two."""
        return bool(getattr(layer, "joins_kernels", False))

    def convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        """With this stride, padding and dilation; the kernel may have any number of output channels."""
        return functional.conv2d(x, kernel, stride=self.stride, padding=self.padding, dilation=self.dilation)

    def convolve_all(self, x: Tensor, changes: Tensor) -> tuple[Tensor, Tensor]:
        """In one convolution."""
        both = self.convolve(x, torch.cat([self.weight, changes.flatten(0, 1)]))
        return both[:, : self.output.dim], both[:, self.output.dim :]

    def commutators(self) -> Tensor:
        """C_g(K) of the inverse of the generator, as on images above: (G, dim_out, dim_in, k, k)."""
        return self._orbit()[[-g for g in self.output.generators]] - self.weight

    def equivariant_part(self) -> Tensor:
        """The mean of the kernel's orbit, (dim_out, dim_in, k, k)."""
        return self._orbit().mean(0)

    def spectrum(self) -> Tensor:
        """||K_f||^2 per irrep of the group."""
        return orbit_spectrum(self._orbit(), cyclic=True)

    @torch.no_grad()
    def fold_into(self, layer: nn.Module, theta: float) -> bool:
        """By the layer's rule in ``FOLDS`` or its own ``fold``."""
        return fold(layer, theta * self.equivariant_part())

    def _orbit(self) -> Tensor:
        return self.output.orbit_of_kernel(self.weight, self.source)
