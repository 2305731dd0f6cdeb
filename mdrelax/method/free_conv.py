"""Free kernels next to steerable convolutions of C_1, C_2 or C_4."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdrelax.method.free_maps import FreeMap, Sample, Terms, fold, some_of_each
from mdrelax.method.groups import FiniteRepresentation, orbit_spectrum

__all__ = ["FreeConv2d"]


class FreeConv2d(FreeMap):
    """A free kernel K (dim_out, dim_in, k, k) next to a steerable convolution.

    An element g turns the kernel's grid and acts on both channel axes, C_g(K) = rho_out(g) K(g^-1 .) rho_in(g)^-1 - K;
    on images x, with g^-1 for g, its size is that of rho_out(g) K x - K rho_in(g) x. A layer absorbs P(K) in a method
    ``fold(kernel)``.
    """

    def __init__(
        self, source: FiniteRepresentation, output: FiniteRepresentation, *, kernel_size: int, stride: int = 1,
        padding: int = 0, dilation: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.source, self.output = source, output
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.weight = nn.Parameter(torch.zeros(output.dim, source.dim, kernel_size, kernel_size, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, dim_in, H, W) to (B, dim_out, H', W')."""
        return self._convolve(x, self.weight)

    def joins(self, layer: nn.Module) -> bool:
        """If the layer says so by ``joins_kernels``: one convolution instead of two."""
        return bool(getattr(layer, "joins_kernels", False))

    def penalty_terms(self, inputs: Sequence[Tensor] | None = None, *, rows: int | Sample | None = None) -> Terms:
        """A row is an image; the means are over images and over the pixels of the result."""
        changes = self.commutators()
        if inputs is None:
            return Terms(changes.square().sum(), self.weight.square().sum())
        kernels = torch.cat([self.weight, changes.flatten(0, 1)])  # ((1 + G) dim_out, dim_in, k, k)
        derivative, size, n_pixels = self.weight.new_zeros(()), self.weight.new_zeros(()), 0
        for x in some_of_each(inputs, rows):
            image, change = self._convolve(x, kernels).split([self.output.dim, changes[:, :, 0, 0, 0].numel()], dim=1)
            derivative, size = derivative + change.square().sum(), size + image.square().sum()
            n_pixels += image[:, 0].numel()
        return Terms(derivative / max(n_pixels, 1), size / max(n_pixels, 1))

    def n_rows(self, inputs: Sequence[Tensor]) -> int:
        """The number of images."""
        return sum(map(len, inputs))

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

    def _convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        return functional.conv2d(x, kernel, stride=self.stride, padding=self.padding, dilation=self.dilation)
