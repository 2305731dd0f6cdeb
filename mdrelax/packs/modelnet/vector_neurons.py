"""Vector-neuron layers (Deng et al., ICCV 2021, arXiv 2104.12229): channels that are 3-vectors.

Features are (C, 3, ...): channels, components, then clouds, points, neighbours in any form. A rotation acts on the
components, so every layer here commutes with rotations and with the inversion:

    linear          y_o = sum_c W_oc x_c
    length norm     x BN(|x|) / |x|                       batch norm of the lengths, |x| + 1e-6 in place of |x|
    leaky ReLU      p - (1 - s) min(<p, d>, 0) d / (|d|^2 + 1e-6)      p feature, d learnt direction, s slope
    max-pool        x_i with the largest <x_i, d_i>       d = W x

Published layers keep channels behind the clouds, (B, C, 3, ...); with channels first every map is one product of two
matrices, and statistics are taken over rows that lie together.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from mdrelax.method.free_maps import AxesView
from mdrelax.method.groups import Blocks, IrrepsRepresentation
from mdrelax.method.sites import Site
from mdrelax.packs.modelnet.vector_relu import edge_vector_relu, length_scale, vector_relu

__all__ = [
    "CloudActivation",
    "EdgeActivation",
    "LengthNorm",
    "VectorActivation",
    "VectorLinear",
    "VectorMaxPool",
    "inner_products",
]

VIEW = AxesView(channels=0, components=1)


class VectorLinear(nn.Module):
    """y_o = sum_c W_oc x_c on (C, 3, ...); the place where a free map (3 C_in -> 3 C_out) can stand.

    Weights start as those of ``nn.Linear`` with ``fan_in`` channels, which is more than ``n_in`` for a part of a map.
    """

    def __init__(self, n_in: int, n_out: int, *, fan_in: int | None = None) -> None:
        super().__init__()
        self.n_in, self.n_out = n_in, n_out
        reach = 1 / math.sqrt(fan_in or n_in)
        self.weight = nn.Parameter(torch.empty(n_out, n_in).uniform_(-reach, reach))

    def forward(self, x: Tensor) -> Tensor:
        """(C_in, 3, ...) to (C_out, 3, ...)."""
        return (self.weight @ x.flatten(1)).view(self.n_out, *x.shape[1:])

    def relaxable(self) -> Site:
        """Copies of the 3-vector on both sides."""
        source, output = (IrrepsRepresentation(f"{n}x1o", "mul_ir") for n in (self.n_in, self.n_out))
        return Site(source, output, view=VIEW)

    def fold(self, blocks: Blocks) -> None:
        """Take up the equivariant part of a free map."""
        self.weight.add_(blocks[0, 0])


class LengthNorm(nn.Module):
    """Batch norm of the vectors' lengths."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(n)

    def forward(self, x: Tensor) -> Tensor:
        """(C, 3, ...) to the same form."""
        return x * length_scale(x, self.norm).unsqueeze(1)


class VectorActivation(nn.Module):
    """A linear map, the norm of its lengths, and a leaky ReLU whose directions are a second linear map.

    With ``one_direction`` all channels share a direction.
    """

    def __init__(self, n_in: int, n_out: int, *, slope: float, one_direction: bool = False) -> None:
        super().__init__()
        self.feature = VectorLinear(n_in, n_out)
        self.direction = VectorLinear(n_in, 1 if one_direction else n_out)
        self.norm, self.slope = LengthNorm(n_out), slope

    def forward(self, x: Tensor) -> Tensor:
        """(C_in, 3, ...) to (C_out, 3, ...)."""
        return vector_relu(self.feature(x), self.direction(x), self.norm.norm, slope=self.slope)


class CloudActivation(nn.Module):
    """``VectorActivation`` of (x, g), with features x of points (C, 3, B, N) and g of their cloud (C', 3, B).

    g is the same for all points of a cloud, so its part of the maps is made once a cloud.
    """

    def __init__(self, n_point: int, n_cloud: int, n_out: int, *, slope: float) -> None:
        super().__init__()
        both = n_point + n_cloud
        self.feature_of_point = VectorLinear(n_point, n_out, fan_in=both)
        self.feature_of_cloud = VectorLinear(n_cloud, n_out, fan_in=both)
        self.direction_of_point = VectorLinear(n_point, n_out, fan_in=both)
        self.direction_of_cloud = VectorLinear(n_cloud, n_out, fan_in=both)
        self.norm, self.slope = LengthNorm(n_out), slope

    def forward(self, x: Tensor, cloud: Tensor) -> Tensor:
        """(C, 3, B, N) and (C', 3, B) to (C_out, 3, B, N)."""
        p = self.feature_of_point(x) + self.feature_of_cloud(cloud).unsqueeze(-1)
        d = self.direction_of_point(x) + self.direction_of_cloud(cloud).unsqueeze(-1)
        return vector_relu(p, d, self.norm.norm, slope=self.slope)


class EdgeActivation(nn.Module):
    """``VectorActivation`` of the edge features (x_j - x_i, x_i)."""

    def __init__(self, n_in: int, n_out: int, *, slope: float) -> None:
        super().__init__()
        self.feature_of_neighbour = VectorLinear(n_in, n_out, fan_in=2 * n_in)
        self.feature_of_centre = VectorLinear(n_in, n_out, fan_in=2 * n_in)
        self.direction_of_neighbour = VectorLinear(n_in, n_out, fan_in=2 * n_in)
        self.direction_of_centre = VectorLinear(n_in, n_out, fan_in=2 * n_in)
        self.norm, self.slope = LengthNorm(n_out), slope

    def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
        """Features of points (C_in, 3, B, N), places (k, B, N): features of edges (C_out, 3, k, B, N)."""
        p, d = self.feature_of_neighbour(x), self.direction_of_neighbour(x)
        of_p, of_d = (p, self.feature_of_centre(x) - p), (d, self.direction_of_centre(x) - d)
        return edge_vector_relu(of_p, of_d, neighbours, self.norm.norm, slope=self.slope)


class VectorMaxPool(nn.Module):
    """Of each channel the vector that goes farthest along its own learnt direction, over one axis."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.direction = VectorLinear(n, n)

    def forward(self, x: Tensor, *, dim: int) -> Tensor:
        """(C, 3, ...) without the axis ``dim``, which must be behind the components."""
        chosen = (x * self.direction(x)).sum(1, keepdim=True).argmax(dim, keepdim=True)
        return x.gather(dim, chosen.expand(*(1 if k == dim % x.ndim else n for k, n in enumerate(x.shape)))).squeeze(
            dim
        )


class _InnerProducts(torch.autograd.Function):
    """Keeps its two arguments; one product of each pair of components at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor) -> Tensor:
        """See ``inner_products``."""
        ctx.save_for_backward(x, z)
        out = x.new_empty(len(x), len(z), *x.shape[2:])
        for k, vector in enumerate(z):
            torch.mul(x[:, 0], vector[0], out=out[:, k])
            for j in (1, 2):
                out[:, k].addcmul_(x[:, j], vector[j])
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """For x the sum over the vectors of z, for z that over the channels of x."""
        x, z = ctx.saved_tensors
        of_x, of_z = torch.zeros_like(gradient[:, :3]), torch.empty_like(z)
        for k, vector in enumerate(z):
            for j in range(3):
                of_x[:, j].addcmul_(gradient[:, k], vector[j])
                of_z[k, j] = (gradient[:, k] * x[:, j]).sum(0)
        return of_x, of_z


def inner_products(x: Tensor, z: Tensor) -> Tensor:
    """<x_c, z_k> of (C, 3, ...) and three vectors (3, 3, ...): invariants (C, 3, ...)."""
    return _InnerProducts.apply(x, z)
