"""VN-PointNet and VN-DGCNN (Deng et al., ICCV 2021, arXiv 2104.12229): invariant class scores of point clouds.

    points -> vector features of points -> (features, their mean) -> inner products with three learnt vectors -> head

Every network here and in ``plain_networks`` maps points (B, N, 3) to scores (B, n_classes). Published sizes have
1,972,745 and 2,899,830 parameters for 40 classes, as these have. It differs from the published code in
1. the cloud: it is centred first, which makes the network invariant to translations too;
2. the order of axes and of sums (``edges``, ``vector_neurons``), not the results.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdrelax.packs.modelnet.edges import nearest_neighbours, neighbours_of
from mdrelax.packs.modelnet.vector_neurons import (
    CloudActivation,
    EdgeActivation,
    LengthNorm,
    VectorActivation,
    VectorLinear,
    VectorMaxPool,
    inner_products,
)

__all__ = ["VNDGCNN", "Head", "InvariantFeatures", "VNPointNet", "centred"]

DGCNN_SLOPE = 0.2


def centred(points: Tensor) -> Tensor:
    """Points (B, N, 3) about the mean of each cloud, as features (1, 3, B, N)."""
    return (points - points.mean(1, keepdim=True)).permute(2, 0, 1).contiguous().unsqueeze(0)


class Head(nn.Module):
    """Scores from invariants (B, F): two hidden layers with batch norm and dropout, as in PointNet and in DGCNN.

    PointNet's (slope 0) drops before the second norm and nowhere else, DGCNN's after both.
    """

    def __init__(
        self, n_in: int, hidden: tuple[int, int], n_classes: int, *, slope: float, dropout: float, bias: bool = True
    ) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(n_in, hidden[0], bias=bias), nn.Linear(*hidden)
        self.last = nn.Linear(hidden[1], n_classes)
        self.norms = nn.ModuleList(nn.BatchNorm1d(n) for n in hidden)
        self.slope, self.dropout = slope, dropout

    def forward(self, x: Tensor) -> Tensor:
        """(B, F) to (B, n_classes)."""
        one, two = self.norms
        if self.slope:
            x = self._drop(functional.leaky_relu(one(self.first(x)), self.slope))
            return self.last(self._drop(functional.leaky_relu(two(self.second(x)), self.slope)))
        x = functional.relu(one(self.first(x)))
        return self.last(functional.relu(two(self._drop(self.second(x)))))

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)


class InvariantFeatures(nn.Module):
    """Inner products of the vectors of each point, and of their mean, with three vectors made from both."""

    def __init__(self, n: int, *, slope: float) -> None:
        super().__init__()
        self.first = CloudActivation(n, n, n, slope=slope)
        self.second = VectorActivation(n, n // 2, slope=slope)
        self.last = VectorLinear(n // 2, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(C, 3, B, N) to the invariants of the points and of the mean, both (3 C, B, N)."""
        mean = x.mean(-1)
        vectors = self.last(self.second(self.first(x, mean)))
        spread = mean.unsqueeze(-1).expand_as(x)
        return inner_products(x, vectors).flatten(0, 1), inner_products(spread, vectors).flatten(0, 1)


class Pool(nn.Module):
    """Neighbours or points pooled by their mean, or by ``VectorMaxPool``."""

    def __init__(self, kind: str, n: int) -> None:
        super().__init__()
        if kind not in ("mean", "max"):
            raise ValueError(f"`pooling` must be mean or max, got `{kind}`.")
        self.largest = VectorMaxPool(n) if kind == "max" else None

    def forward(self, x: Tensor, *, dim: int) -> Tensor:
        """(C, 3, ...) without the axis ``dim``."""
        return x.mean(dim) if self.largest is None else self.largest(x, dim=dim)


class VNPointNet(nn.Module):
    """Equivariant to rotations, not to reflections: edge features are (x_j - x_i, x_i, x_j x x_i).

    Args:
        n_classes: Number of scores.
        channels: Vectors of the first layers, of the middle one, and of the last; published 21, 42, 341.
        hidden: Widths of the head; published 512, 256.
        n_neighbours: k of the edge features; published 20.
        dropout: In the head; published 0.4.
        pooling: Of neighbours and of the transform's points: mean (published default) or max.
    """

    symmetry = "SE(3)"

    def __init__(
        self,
        n_classes: int,
        *,
        channels: tuple[int, int, int] = (21, 42, 341),
        hidden: tuple[int, int] = (512, 256),
        n_neighbours: int = 20,
        dropout: float = 0.4,
        pooling: str = "mean",
    ) -> None:
        super().__init__()
        narrow, middle, wide = channels
        self.n_neighbours = n_neighbours
        self.edge = VectorActivation(3, narrow, slope=0.0)
        self.pool = Pool(pooling, narrow)
        self.point = VectorActivation(narrow, narrow, slope=0.0)
        self.transform = Transform(narrow, middle, wide, pooling=pooling)
        self.joined = CloudActivation(narrow, narrow, middle, slope=0.0)
        self.wide, self.norm = VectorLinear(middle, wide), LengthNorm(wide)
        self.invariants = InvariantFeatures(wide, slope=0.0)
        self.head = Head(6 * wide, hidden, n_classes, slope=0.0, dropout=dropout)

    def forward(self, points: Tensor) -> Tensor:
        """(B, N, 3) to (B, n_classes)."""
        x = centred(points)
        x = self.point(self.pool(self.edge(self._edges(x)), dim=2))
        x = self.joined(x, self.transform(x))
        x = self.norm(self.wide(x))
        largest = torch.cat([features.amax(-1) for features in self.invariants(x)])
        return self.head(largest.T)

    def _edges(self, x: Tensor) -> Tensor:
        """(1, 3, B, N) to (3, 3, k, B, N)."""
        neighbours = nearest_neighbours(x, self.n_neighbours)
        there, here = neighbours_of(x, neighbours), x.unsqueeze(2)
        here = here.expand_as(there)
        return torch.cat([there - here, here, torch.linalg.cross(there, here, dim=1)])


class Transform(nn.Module):
    """Vectors of the whole cloud (C, 3, B) from those of its points: what PointNet's feature transform becomes."""

    def __init__(self, narrow: int, middle: int, wide: int, *, pooling: str) -> None:
        super().__init__()
        widths = (narrow, narrow, middle, wide)
        self.points = nn.Sequential(*(VectorActivation(a, b, slope=0.0) for a, b in pairwise(widths)))
        self.pool = Pool(pooling, wide)
        self.cloud = nn.Sequential(
            VectorActivation(wide, wide // 2, slope=0.0),
            VectorActivation(wide // 2, wide // 4, slope=0.0),
            VectorLinear(wide // 4, narrow),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(C, 3, B, N) to (C, 3, B)."""
        return self.cloud(self.pool(self.points(x), dim=-1))


class VNDGCNN(nn.Module):
    """Equivariant to rotations and reflections; neighbours are found anew in the features of each layer.

    Args:
        n_classes: Number of scores.
        channels: Vectors after each edge layer; published 21, 21, 42, 85.
        wide: Vectors before the invariants; published 341.
        hidden: Widths of the head; published 512, 256.
        n_neighbours: k; published 20.
        dropout: In the head; published 0.5.
        pooling: Of neighbours: mean (published default) or max.
    """

    symmetry = "E(3)"

    def __init__(
        self,
        n_classes: int,
        *,
        channels: tuple[int, ...] = (21, 21, 42, 85),
        wide: int = 341,
        hidden: tuple[int, int] = (512, 256),
        n_neighbours: int = 20,
        dropout: float = 0.5,
        pooling: str = "mean",
    ) -> None:
        super().__init__()
        self.n_neighbours = n_neighbours
        widths = (1, *channels)
        self.edges = nn.ModuleList(EdgeActivation(a, b, slope=DGCNN_SLOPE) for a, b in pairwise(widths))
        self.pools = nn.ModuleList(Pool(pooling, n) for n in channels)
        self.wide = VectorActivation(sum(channels), wide, slope=DGCNN_SLOPE, one_direction=True)
        self.invariants = InvariantFeatures(wide, slope=DGCNN_SLOPE)
        self.head = Head(12 * wide, hidden, n_classes, slope=DGCNN_SLOPE, dropout=dropout)

    def forward(self, points: Tensor) -> Tensor:
        """(B, N, 3) to (B, n_classes)."""
        x, depths = centred(points), []
        for edge, pool in zip(self.edges, self.pools, strict=True):
            x = pool(edge(x, nearest_neighbours(x, self.n_neighbours)), dim=2)
            depths.append(x)
        features = self.invariants(self.wide(torch.cat(depths)))
        pooled = [each.amax(-1) for each in features] + [each.mean(-1) for each in features]
        return self.head(torch.cat(pooled).T)
