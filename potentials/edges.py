"""Edges: what all layers share about the edges of one evaluation, and how edge values reach their target atoms.

Small molecules of one size are fully connected: every atom has the same number of edges, and sums over neighbours
become sums over a dense axis. Otherwise they are indexed sums over edges sorted by target.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

__all__ = ["Edges", "fully_connected", "make_edges"]


class Edges(NamedTuple):
    """What all blocks share about the edges of one evaluation."""

    source: Tensor  # (E,)
    target: Tensor  # (E,)
    degree: int  # edges per atom when every atom has the same number and they are sorted, else 0
    n_atoms: int
    envelope: Tensor  # (E, 1)
    matrices: Sequence[Tensor] = ()  # B(Y), one (E, rows, D) per coupling, where a network shares them

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

    def at_source(self, x: Tensor) -> Tensor:
        """Atom values (N, ...) handed to the edges out of each atom: (E, ...)."""
        return x.index_select(0, self.source)

    def sum_of_ends(self, at_target: Tensor, at_source: Tensor) -> Tensor:
        """Values of each edge's target plus values of its source: two (N, ...) to (E, ...)."""
        there = self.at_source(at_source)
        if self.degree:
            return (there.unflatten(0, (self.n_atoms, self.degree)) + at_target.unsqueeze(1)).flatten(0, 1)
        return there + self.at_target(at_target)

    def max_at_target(self, x: Tensor) -> Tensor:
        """Largest of (E, H) over the edges into each atom, at least 0: (N, H)."""
        if self.degree:
            return x.unflatten(0, (self.n_atoms, self.degree)).amax(1).clamp(min=0)
        index = self.target.unsqueeze(1).expand_as(x)
        return x.new_zeros(self.n_atoms, x.shape[1]).scatter_reduce(0, index, x, "amax")


def make_edges(edge_index: Tensor, n_atoms: int, envelope: Tensor) -> Edges:
    """The edges of one evaluation: ``edge_index`` (2, E), envelope (E,)."""
    source, target = edge_index
    return Edges(source, target, _common_degree(edge_index, n_atoms), n_atoms, envelope.unsqueeze(1))


class Piece(NamedTuple):
    """The edges into a run of atoms."""

    n_atoms: int
    edge_index: Tensor  # (2, e): source among all atoms, target among those of the piece
    vectors: Tensor  # (e, 3)


def split_edges(edge_index: Tensor, edge_vectors: Tensor, n_atoms: int | torch.SymInt, at_most: int) -> list[Piece]:
    """Pieces of nearly equal size, with few more than ``at_most`` edges each (an atom's edges stay together).

    One piece where there are no more, where edges are not sorted by target, and while sizes are symbols.
    """
    whole = [Piece(cast(int, n_atoms), edge_index, edge_vectors)]
    if isinstance(n_atoms, torch.SymInt) or edge_index.shape[1] <= at_most:
        return whole
    target = edge_index[1]
    if not bool((target[1:] >= target[:-1]).all()):
        return whole
    ends = torch.bincount(target, minlength=n_atoms).cumsum(0)  # of each atom's edges
    n_pieces = math.ceil(len(target) / at_most)
    goals = torch.arange(1, n_pieces, device=target.device) * len(target) // n_pieces
    cuts = sorted({0, n_atoms, *(torch.searchsorted(ends, goals) + 1).tolist()})  # atoms that begin a piece
    sizes = ends[torch.tensor(cuts[1:], device=ends.device) - 1].diff(prepend=ends.new_zeros(1)).tolist()
    return [
        Piece(last - first, torch.stack([sources, targets - first]), vectors)
        for (first, last), sources, targets, vectors in zip(
            itertools.pairwise(cuts), edge_index[0].split(sizes), target.split(sizes), edge_vectors.split(sizes),
            strict=True,
        )
    ]  # fmt: skip


def fully_connected(n_graphs: int, n_atoms: int, like: Tensor) -> Edges:
    """All ordered pairs of the atoms of each of ``n_graphs`` systems of one size, on the device of a tensor."""
    others = torch.tensor([[j for j in range(n_atoms) if j != i] for i in range(n_atoms)], device=like.device)
    first = n_atoms * torch.arange(n_graphs, device=like.device)
    source = (first[:, None, None] + others).flatten()
    target = torch.arange(n_graphs * n_atoms, device=like.device).repeat_interleave(n_atoms - 1)
    return Edges(source, target, n_atoms - 1, n_graphs * n_atoms, torch.ones_like(like[:1, :1]))


def _common_degree(edge_index: Tensor, n_atoms: int | torch.SymInt) -> int:
    """The number of edges into every atom when it is the same and they are sorted, else 0.

    While a graph is recorded: of fixed edges, outside of the graph; 0 for any number of atoms, when sizes are symbols.
    """
    if isinstance(n_atoms, torch.SymInt):
        return 0
    degree, rest = divmod(edge_index.shape[1], max(n_atoms, 1))
    if rest or not degree:
        return 0
    with disable_proxy_modes_tracing():
        expected = torch.arange(n_atoms, device=edge_index.device).repeat_interleave(degree)
        return degree if torch.equal(edge_index[1], expected) else 0
