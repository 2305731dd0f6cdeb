"""Edges: the nearest neighbours of every point, and features of pairs made from features of points.

Features of points are (..., B, N): channels, and for vector neurons the components, stand first; B clouds of N points.
Features of edges are (..., k, B, N). A linear map of the published edge features (x_j - x_i, x_i) is

    W [x_j - x_i; x_i]  =  (W_n x)_j + (W_c x - W_n x)_i            W = [W_n, W_c]

so both maps act on points, k times fewer than edges, and only sums are made for each edge.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

__all__ = [
    "edge_sum",
    "given_neighbours",
    "nearest_neighbours",
    "neighbours_of",
    "recorded_neighbours",
    "sum_at_ends",
]


_FOUND: ContextVar[list[Tensor] | None] = ContextVar("found", default=None)
_GIVEN: ContextVar[Iterator[Tensor] | None] = ContextVar("given", default=None)


@contextmanager
def recorded_neighbours() -> Iterator[list[Tensor]]:
    """Record what ``nearest_neighbours`` finds inside the ``with`` statement, call by call."""
    found: list[Tensor] = []
    token = _FOUND.set(found)
    try:
        yield found
    finally:
        _FOUND.reset(token)


@contextmanager
def given_neighbours(places: Iterable[Tensor]) -> Iterator[None]:
    """Inside the ``with`` statement ``nearest_neighbours`` returns these instead, one for each call."""
    token = _GIVEN.set(iter(places))
    try:
        yield
    finally:
        _GIVEN.reset(token)


@torch.no_grad()
def nearest_neighbours(features: Tensor, k: int) -> Tensor:
    """The k nearest points of each (k, B, N), itself among them, in any order; as places among all B N points.

    Distances are those of the features (..., B, N), all leading axes taken together. They are measured from the mean
    of each cloud, which costs less precision. Raises ``ValueError`` for clouds of fewer than k points.
    """
    if (given := _GIVEN.get()) is not None:
        return next(given)
    n_clouds, n_points = features.shape[-2:]
    if n_points < k:
        raise ValueError(f"A cloud of {n_points} points has no {k} neighbours; give it at least {k} points.")
    x = features.detach().reshape(-1, n_clouds, n_points).transpose(0, 1)  # (B, D, N)
    x = x - x.mean(2, keepdim=True)
    distances = torch.baddbmm(x.square().sum(1, keepdim=True), x.mT, x, alpha=-2)  # less the square of the row's own
    nearest = distances.topk(k, dim=2, largest=False, sorted=False).indices  # (B, N, k)
    first = n_points * torch.arange(n_clouds, device=x.device)
    places = (nearest + first[:, None, None]).permute(2, 0, 1).contiguous()
    if (found := _FOUND.get()) is not None:
        found.append(places)
    return places


def edge_sum(at_neighbour: Tensor, at_centre: Tensor, neighbours: Tensor) -> Tensor:
    """a_j + c_i for every point i and neighbour j: two (..., B, N) and places (k, B, N) to (..., k, B, N)."""
    return neighbours_of(at_neighbour, neighbours).add_(at_centre.unsqueeze(-3))


def neighbours_of(features: Tensor, neighbours: Tensor) -> Tensor:
    """x_j for every point i and neighbour j: (..., B, N) and places (k, B, N) to (..., k, B, N)."""
    rows = features.reshape(-1, neighbours[0].numel())
    gathered = rows.gather(1, neighbours.flatten().expand(len(rows), -1))
    return gathered.view(*features.shape[:-2], *neighbours.shape)


def sum_at_ends(edges: Tensor, neighbours: Tensor) -> tuple[Tensor, Tensor]:
    """The transpose of ``edge_sum``: values of edges summed at their neighbours and at their centres, (..., B, N)."""
    rows = edges.reshape(-1, neighbours.numel())
    sums = rows.new_zeros(len(rows), neighbours[0].numel())
    sums.scatter_add_(1, neighbours.flatten().expand(len(rows), -1), rows)
    return sums.view(*edges.shape[:-3], *edges.shape[-2:]), edges.sum(-3)
