"""VN-PointNet and VN-DGCNN in their plain form, as the equations stand in arXiv 2104.12229.

Features are (B, C, 3, N) of points and (B, C, 3, N, k) of edges. Every map is an einsum over all points or edges, pairs
are made before they are mapped, and nothing is fused. The networks of the package are compared with these for equal
weights, which ``weights_of`` reads off their parts, and timed against them.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mdrelax.packs.modelnet.networks import VNDGCNN, InvariantFeatures, VNPointNet
from mdrelax.packs.modelnet.vector_neurons import CloudActivation, EdgeActivation, LengthNorm, VectorActivation

EPS = 1e-6


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """(B, C, 3, ...) to (B, C', 3, ...)."""
    return torch.einsum("oc,bc...->bo...", weight, x)


def length_norm(x: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    """Batch norm of lengths, with the statistics of the batch or the running ones."""
    lengths = x.square().sum(2).sqrt() + EPS  # (B, C, ...)
    return (
        x
        / lengths.unsqueeze(2)
        * norm(lengths.flatten(2) if lengths.ndim > 2 else lengths).view_as(lengths).unsqueeze(2)
    )


def leaky_relu(p: Tensor, d: Tensor, slope: float) -> Tensor:
    """Deng et al., equation 6, with the leak of their code."""
    dot = (p * d).sum(2, keepdim=True)
    outside = p - dot / (d.square().sum(2, keepdim=True) + EPS) * d
    return slope * p + (1 - slope) * torch.where(dot >= 0, p, outside)


def activation(x: Tensor, weights: tuple[Tensor, Tensor], norm: LengthNorm, slope: float) -> Tensor:
    """Linear, norm, ReLU along linear directions."""
    feature, direction = weights
    return leaky_relu(length_norm(linear(x, feature), norm.norm), linear(x, direction), slope)


def neighbours(x: Tensor, k: int) -> Tensor:
    """The k nearest points of each (B, N, k), by the features (B, C, 3, N)."""
    flat = x.flatten(1, 2).mT  # (B, N, 3 C)
    return torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").topk(k, largest=False).indices


def at_neighbours(x: Tensor, index: Tensor) -> Tensor:
    """(B, C, 3, N) to (B, C, 3, N, k)."""
    return torch.stack([cloud[..., places] for cloud, places in zip(x, index, strict=True)])


def pairs(x: Tensor, k: int, *, cross: bool) -> Tensor:
    """(x_j - x_i, x_i), and x_j x x_i with ``cross``: (B, 2 C or 3 C, 3, N, k)."""
    there = at_neighbours(x, neighbours(x, k))
    here = x.unsqueeze(-1).expand_as(there)
    return torch.cat([there - here, here, *([torch.cross(there, here, dim=2)] if cross else [])], dim=1)


def weights_of(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Feature and direction map as matrices of the whole published input."""
    if isinstance(layer, VectorActivation):
        return layer.feature.weight, layer.direction.weight
    if isinstance(layer, EdgeActivation):
        halves = (("feature_of_neighbour", "feature_of_centre"), ("direction_of_neighbour", "direction_of_centre"))
    else:
        halves = (("feature_of_point", "feature_of_cloud"), ("direction_of_point", "direction_of_cloud"))
    one, two = (torch.cat([layer.get_submodule(name).weight for name in half], dim=1) for half in halves)
    return one, two


def apply(layer: VectorActivation | EdgeActivation | CloudActivation) -> Callable[[Tensor], Tensor]:
    """A layer of the package as a function of the published input."""
    return lambda x: activation(x, weights_of(layer), layer.norm, layer.slope)


def invariants(x: Tensor, layer: InvariantFeatures) -> Tensor:
    """(B, C, 3, N) to (B, 6 C, N)."""
    x = torch.cat([x, x.mean(-1, keepdim=True).expand_as(x)], dim=1)
    z = linear(apply(layer.second)(apply(layer.first)(x)), layer.last.weight)
    return torch.einsum("bcjn,bkjn->bckn", x, z).flatten(1, 2)


class PlainVNPointNet(nn.Module):
    """The network around the parts of another one, which it shares."""

    def __init__(self, own: VNPointNet) -> None:
        super().__init__()
        self.own = own

    def forward(self, points: Tensor) -> Tensor:
        """(B, N, 3) to (B, n_classes)."""
        own = self.own
        x = (points - points.mean(1, keepdim=True)).mT.unsqueeze(1)
        x = apply(own.edge)(pairs(x, own.n_neighbours, cross=True)).mean(-1)
        x = apply(own.point)(x)
        cloud = x
        for layer in own.transform.points:
            cloud = apply(layer)(cloud)
        cloud = cloud.mean(-1)
        first, second, last = own.transform.cloud
        cloud = linear(apply(second)(apply(first)(cloud)), last.weight)
        x = apply(own.joined)(torch.cat([x, cloud.unsqueeze(-1).expand_as(x)], dim=1))
        x = length_norm(linear(x, own.wide.weight), own.norm.norm)
        return own.head(invariants(x, own.invariants).amax(-1))


class PlainVNDGCNN(nn.Module):
    """The network around the parts of another one, which it shares."""

    def __init__(self, own: VNDGCNN) -> None:
        super().__init__()
        self.own = own

    def forward(self, points: Tensor) -> Tensor:
        """(B, N, 3) to (B, n_classes)."""
        own, depths = self.own, []
        x = (points - points.mean(1, keepdim=True)).mT.unsqueeze(1)
        for edge in own.edges:
            x = apply(edge)(pairs(x, own.n_neighbours, cross=False)).mean(-1)
            depths.append(x)
        x = invariants(apply(own.wide)(torch.cat(depths, dim=1)), own.invariants)
        return own.head(torch.cat([x.amax(-1), x.mean(-1)], dim=1))
