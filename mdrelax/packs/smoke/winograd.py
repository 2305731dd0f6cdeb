"""3 x 3 convolutions with a quarter of the multiplications (Winograd; Lavin and Gray, CVPR 2016, arXiv 1509.09308).

An image is cut into tiles of 4 x 4 pixels, each with the border of one pixel that its result depends on. With n = 6
points (five numbers and infinity), V the Vandermonde matrix of the points, and d a tile (6, 6),

    A = first four columns of V        G = first three columns of V        B = V^-T
    tile of the result = A^T [(G k G^T) * (B d B^T)] A                     * element by element, summed over channels

so that 36 matrix products over the channels take the place of 144. The points 0, +-3/4, +-3/2 and infinity have an rms
rounding error in float32 like that of the direct sum (0, +-1, +-2: twice that).

``transform`` of the kernel is made once for many images; only the images and both forms of the kernel are kept for the
backward pass.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["TILE", "convolve", "transform"]

TILE = 4  # pixels along a side
REACH = TILE + 2  # of the pixels that they depend on
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)


class _Matrices(NamedTuple):
    """For both axes at once, rows are the 36 pairs of points."""

    result: Tensor  # (36, 16), A
    kernel: Tensor  # (36, 9), G
    image: Tensor  # (36, 36), B


@lru_cache
def _matrices(dtype: torch.dtype, device: torch.device) -> _Matrices:
    points = torch.tensor(POINTS, dtype=torch.float64)

    def evaluation(n: int) -> Tensor:
        """Values at the points of polynomials with n coefficients; at infinity the last coefficient."""
        at_infinity = torch.eye(n, dtype=torch.float64)[-1:]
        return torch.cat([points.unsqueeze(1) ** torch.arange(n), at_infinity])

    one_axis = evaluation(TILE), evaluation(3), torch.linalg.inv(evaluation(REACH)).T
    return _Matrices(*(torch.kron(m, m).to(device, dtype) for m in one_axis))


def transform(kernel: Tensor) -> Tensor:
    """G k G^T of a kernel (C_out, C_in, 3, 3): (36, C_out, C_in), without gradient."""
    flat = kernel.detach().flatten(2).permute(2, 0, 1).flatten(1)  # (9, C_out C_in)
    return (_matrices(kernel.dtype, kernel.device).kernel @ flat).unflatten(1, kernel.shape[:2])


def convolve(x: Tensor, kernel: Tensor, transformed: Tensor) -> Tensor:
    """Images (B, C_in, H, W) and a kernel, with its ``transform``, to (B, C_out, H, W), with zeros around the images.

    Equal to ``conv2d`` with padding 1. H and W must be multiples of ``TILE``.
    """
    return _Convolution.apply(x, kernel, transformed)


class _Convolution(torch.autograd.Function):
    """Keeps images and kernel, not the tiles, which are 2.25 times as large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, transformed: Tensor) -> Tensor:
        """See ``convolve``."""
        ctx.save_for_backward(x, transformed)
        return _joined(transformed @ _tiles(x), x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """The transposes of the same steps."""
        x, transformed = ctx.saved_tensors
        of_product = _joined_transposed(gradient)  # (36, C_out, tiles)
        of_kernel = _transform_transposed(of_product @ _tiles(x).mT) if ctx.needs_input_grad[1] else None
        of_x = _tiles_transposed(transformed.mT @ of_product, x.shape) if ctx.needs_input_grad[0] else None
        return of_x, of_kernel, None


def _transform_transposed(of_transformed: Tensor) -> Tensor:
    matrix = _matrices(of_transformed.dtype, of_transformed.device).kernel
    flat = (matrix.T @ of_transformed.flatten(1)).unflatten(1, of_transformed.shape[1:])  # (9, C_out, C_in)
    return flat.permute(1, 2, 0).unflatten(2, (3, 3))


def _grid(shape: torch.Size) -> tuple[int, int, int]:
    return shape[0], shape[2] // TILE, shape[3] // TILE


def _tiles(x: Tensor) -> Tensor:
    """B d B^T of every tile: (36, C, tiles)."""
    padded = functional.pad(x, (1, 1, 1, 1))
    cut = x.new_empty(REACH, REACH, x.shape[1], *_grid(x.shape))
    for i in range(REACH):
        for j in range(REACH):
            cut[i, j] = _every(padded, i, j, x.shape).transpose(0, 1)
    return (_matrices(x.dtype, x.device).image @ cut.flatten(2).flatten(0, 1)).view(REACH**2, x.shape[1], -1)


def _tiles_transposed(of_tiles: Tensor, shape: torch.Size) -> Tensor:
    n, channels, height, width = shape
    matrix = _matrices(of_tiles.dtype, of_tiles.device).image
    cut = (matrix.T @ of_tiles.flatten(1)).view(REACH, REACH, channels, *_grid(shape))
    padded = of_tiles.new_zeros(n, channels, height + 2, width + 2)
    for i in range(REACH):
        for j in range(REACH):
            _every(padded, i, j, shape).add_(cut[i, j].transpose(0, 1))
    return padded[:, :, 1:-1, 1:-1]


def _every(padded: Tensor, i: int, j: int, shape: torch.Size) -> Tensor:
    """Pixel (i, j) of every tile, (B, C, H / 4, W / 4), a view."""
    return padded[:, :, i : i + shape[2] : TILE, j : j + shape[3] : TILE][:, :, : shape[2] // TILE, : shape[3] // TILE]


def _joined(product: Tensor, shape: torch.Size) -> Tensor:
    """A^T m A of every tile (36, C, tiles), put together: (B, C, H, W)."""
    pixels = _matrices(product.dtype, product.device).result.T @ product.flatten(1)
    tiles = pixels.view(TILE, TILE, product.shape[1], *_grid(shape))
    return tiles.permute(3, 2, 4, 0, 5, 1).reshape(shape[0], product.shape[1], shape[2], shape[3])


def _joined_transposed(gradient: Tensor) -> Tensor:
    n, rows, columns = _grid(gradient.shape)
    tiles = gradient.view(n, gradient.shape[1], rows, TILE, columns, TILE).permute(3, 5, 1, 0, 2, 4)
    matrix = _matrices(gradient.dtype, gradient.device).result
    return (matrix @ tiles.reshape(TILE**2, -1)).view(REACH**2, gradient.shape[1], -1)
