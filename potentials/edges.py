"""Edges: what all layers share about the edges of one evaluation, and how edge values reach their target atoms.

Small molecules of one size are fully connected: every atom has the same number of edges, and sums over neighbours
become sums over a dense axis. Otherwise they are indexed sums over edges sorted by target.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Edges", "make_edges"]


class Edges(NamedTuple):
    """What all blocks share about the edges of one evaluation."""

    source: Tensor  # (E,)
    target: Tensor  # (E,)
    degree: int  # edges per atom when every atom has the same number and they are sorted, else 0
    n_atoms: int
    envelope: Tensor  # (E, 1)
    matrices: list[Tensor]  # B(Y), one (E, rows, D) per coupling

    def sum_at_target(self, x: Tensor) -> Tensor:
        """Sum edge values (E, ...) over the edges into each atom: (N, ...)."""
        if self.degree:
            return x.unflatten(0, (self.n_atoms, self.degree)).sum(1)
        return x.new_zeros(self.n_atoms, *x.shape[1:]).index_add(0, self.target, x)

    def at_target(self, x: Tensor) -> Tensor:
        """Atom values (N, ...) handed to the edges into each atom: (E, ...)."""
        if self.degree:
            return x.unsqueeze(1).expand(-1, self.degree, *x.shape[1:]).flatten(0, 1)
        return x.index_select(0, self.target)

    def max_at_target(self, x: Tensor) -> Tensor:
        """Largest of (E, H) over the edges into each atom, at least 0: (N, H)."""
        if self.degree:
            return x.unflatten(0, (self.n_atoms, self.degree)).amax(1).clamp(min=0)
        index = self.target.unsqueeze(1).expand_as(x)
        return x.new_zeros(self.n_atoms, x.shape[1]).scatter_reduce(0, index, x, "amax")


def make_edges(edge_index: Tensor, n_atoms: int, envelope: Tensor, matrices: list[Tensor]) -> Edges:
    """The edges of one evaluation: ``edge_index`` (2, E), envelope (E,), matrices of the tensor product."""
    source, target = edge_index
    return Edges(source, target, _common_degree(target, n_atoms), n_atoms, envelope.unsqueeze(1), matrices)


def _common_degree(target: Tensor, n_atoms: int) -> int:
    """The number of edges into every atom when it is the same and they are sorted, else 0."""
    degree, rest = divmod(len(target), max(n_atoms, 1))
    if rest or not degree:
        return 0
    expected = torch.arange(n_atoms, device=target.device).repeat_interleave(degree)
    return degree if torch.equal(target, expected) else 0
