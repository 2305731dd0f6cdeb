"""Edges: the nearest neighbours of every point, and features of pairs made from features of points.

Features of points are (..., B, N): channels, and for vector neurons the components, stand first; B clouds of N points.
Features of edges are (..., k, B, N). A linear map of the published edge features (x_j - x_i, x_i) is

    W [x_j - x_i; x_i]  =  (W_n x)_j + (W_c x - W_n x)_i            W = [W_n, W_c]

so both maps act on points, k times fewer than edges, and only sums are made for each edge.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["edge_sum", "nearest_neighbours", "neighbours_of"]


@torch.no_grad()
def nearest_neighbours(features: Tensor, k: int) -> Tensor:
    """The k nearest points of each (k, B, N), itself among them, in any order; as places among all B N points.

    Distances are those of the features (..., B, N), all leading axes taken together. They are measured from the mean
    of each cloud, which costs less precision. Raises ``ValueError`` for clouds of fewer than k points.
    """
    n_clouds, n_points = features.shape[-2:]
    if n_points < k:
        raise ValueError(f"A cloud of {n_points} points has no {k} neighbours; give it at least {k} points.")
    x = features.detach().reshape(-1, n_clouds, n_points).transpose(0, 1)  # (B, D, N)
    x = x - x.mean(2, keepdim=True)
    distances = torch.baddbmm(x.square().sum(1, keepdim=True), x.mT, x, alpha=-2)  # less the square of the row's own
    nearest = distances.topk(k, dim=2, largest=False, sorted=False).indices  # (B, N, k)
    first = n_points * torch.arange(n_clouds, device=x.device)
    return (nearest + first[:, None, None]).permute(2, 0, 1).contiguous()


class _EdgeSum(torch.autograd.Function):
    """Keeps nothing but the places for its backward pass."""

    @staticmethod
    def forward(ctx: Any, at_neighbour: Tensor, at_centre: Tensor | None, neighbours: Tensor) -> Tensor:
        """See ``edge_sum``."""
        ctx.save_for_backward(neighbours)
        ctx.of_centre = at_centre is not None
        rows = at_neighbour.reshape(-1, neighbours[0].numel())
        gathered = rows.gather(1, neighbours.flatten().expand(len(rows), -1))
        gathered = gathered.view(*at_neighbour.shape[:-2], *neighbours.shape)
        return gathered if at_centre is None else gathered.add_(at_centre.unsqueeze(-3))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """Summed over the edges that a point stands at the end of, and over those that it is the centre of."""
        (neighbours,) = ctx.saved_tensors
        points = gradient.shape[:-3] + gradient.shape[-2:]
        rows = gradient.reshape(-1, neighbours.numel())
        sums = gradient.new_zeros(len(rows), neighbours[0].numel())
        sums.scatter_add_(1, neighbours.flatten().expand(len(rows), -1), rows)
        return sums.view(points), gradient.sum(-3) if ctx.of_centre else None, None


def edge_sum(at_neighbour: Tensor, at_centre: Tensor, neighbours: Tensor) -> Tensor:
    """a_j + c_i for every point i and neighbour j: two (..., B, N) and places (k, B, N) to (..., k, B, N)."""
    return _EdgeSum.apply(at_neighbour, at_centre, neighbours)


def neighbours_of(features: Tensor, neighbours: Tensor) -> Tensor:
    """x_j for every point i and neighbour j: (..., B, N) and places (k, B, N) to (..., k, B, N)."""
    return _EdgeSum.apply(features, None, neighbours)
