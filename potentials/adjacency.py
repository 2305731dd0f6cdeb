"""Adjacency: data on the edges of one evaluation, shared by all layers, and sums of edge values over target atoms.

Small molecules of one size are fully connected: every atom has the same number of edges, and sums over neighbours
become sums over a dense axis. Otherwise they are indexed sums over edges sorted by target.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

__all__ = ["Adjacency", "fully_connected", "make_adjacency"]


class Adjacency(NamedTuple):
    """Data on the edges of one evaluation, shared by all blocks."""

    source: Tensor  # (E,)
    target: Tensor  # (E,)
    edges_per_atom: int  # edges per atom, if equal for all atoms and sorted by target, else 0
    n_atoms: int
    envelope: Tensor  # (E, 1)
    matrices: Sequence[Tensor] = ()  # B(Y), one (E, rows, D) per coupling, where a network shares them
    in_rings: bool = False  # True if the neighbours of atom i are listed cyclically: i+1, i+2, ... (mod n)

    def sum_at_target(self, x: Tensor) -> Tensor:
        """Sum edge values (E, ...) over the edges into each atom: (N, ...)."""
        if self.edges_per_atom:
            return x.unflatten(0, (self.n_atoms, self.edges_per_atom)).sum(1)
        return IndexedSum.apply(x, self.target, self.n_atoms)

    def at_target(self, x: Tensor) -> Tensor:
        """Atom values (N, ...) at the edges into each atom: (E, ...)."""
        if self.edges_per_atom:
            return x.unsqueeze(1).expand(-1, self.edges_per_atom, *x.shape[1:]).flatten(0, 1)
        return x.index_select(0, self.target)

    def at_source(self, x: Tensor) -> Tensor:
        """Atom values (N, ...) at the edges out of each atom: (E, ...)."""
        if self.in_rings and torch.compiler.is_compiling():
            return RingSelect.apply(x, self.source, self.edges_per_atom)
        return x.index_select(0, self.source)

    def sum_of_ends(self, at_target: Tensor, at_source: Tensor) -> Tensor:
        """Values of each edge's target plus values of its source: two (N, ...) to (E, ...)."""
        there = self.at_source(at_source)
        if self.edges_per_atom:
            return (there.unflatten(0, (self.n_atoms, self.edges_per_atom)) + at_target.unsqueeze(1)).flatten(0, 1)
        return there + self.at_target(at_target)

    def max_at_target(self, x: Tensor) -> Tensor:
        """Largest of (E, H) over the edges into each atom, at least 0: (N, H)."""
        if self.edges_per_atom:
            return x.unflatten(0, (self.n_atoms, self.edges_per_atom)).amax(1).clamp(min=0)
        index = self.target.unsqueeze(1).expand_as(x)
        return x.new_zeros(self.n_atoms, x.shape[1]).scatter_reduce(0, index, x, "amax")


class IndexedSum(torch.autograd.Function):
    """Rows summed by index. torch's ``index_add`` keeps the rows for its backward pass, which needs none of them."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, n: int) -> Tensor:
        """The sums (n, ...) of rows (E, ...) of equal index (E,)."""
        ctx.save_for_backward(index)
        return rows.new_zeros(n, *rows.shape[1:]).index_add(0, index, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of the sums, at the rows."""
        (index,) = ctx.saved_tensors
        return gradient.index_select(0, index), None, None


class RingSelect(torch.autograd.Function):
    """``index_select`` for cyclically listed neighbours, whose backward pass sums shifted rows instead of a scatter.

    A compiler fuses the shifts with neighbouring operations, but turns a scatter into atomic additions. Without a
    compiler the scatter is faster.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, edges_per_atom: int) -> Tensor:
        """Rows (N, ...) of the sources (E,) of ``fully_connected`` edges."""
        ctx.edges_per_atom = edges_per_atom
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """For each atom, sum the gradients on the edges out of it: the k-th of them ends k + 1 places before it."""
        of_system = gradient.unflatten(0, (-1, ctx.edges_per_atom + 1, ctx.edges_per_atom))
        total = sum(of_system[:, :, k].roll(k + 1, 1) for k in range(ctx.edges_per_atom))
        return total.flatten(0, 1), None, None


def make_adjacency(edge_index: Tensor, n_atoms: int, envelope: Tensor) -> Adjacency:
    """The edges of one evaluation: ``edge_index`` (2, E), envelope (E,)."""
    source, target = edge_index
    return Adjacency(source, target, _common_number(edge_index, n_atoms), n_atoms, envelope.unsqueeze(1))


def fully_connected(n_graphs: int, n_atoms: int, like: Tensor) -> Adjacency:
    """All ordered pairs of the atoms of each of ``n_graphs`` systems of one size, on the device of a tensor."""
    atoms = torch.arange(n_atoms, device=like.device)
    others = (atoms[:, None] + atoms[1:]) % n_atoms  # the atoms that follow each atom
    first = n_atoms * torch.arange(n_graphs, device=like.device)
    source = (first[:, None, None] + others).flatten()
    target = torch.arange(n_graphs * n_atoms, device=like.device).repeat_interleave(n_atoms - 1)
    return Adjacency(source, target, n_atoms - 1, n_graphs * n_atoms, torch.ones_like(like[:1, :1]), in_rings=True)


def _common_number(edge_index: Tensor, n_atoms: int | torch.SymInt) -> int:
    """The number of edges into every atom, if equal for all atoms and sorted by target, else 0.

    While a graph is recorded, it is evaluated outside of the graph for fixed edges, and is 0 if sizes are symbols.
    """
    if isinstance(n_atoms, torch.SymInt):
        return 0
    number, rest = divmod(edge_index.shape[1], max(n_atoms, 1))
    if rest or not number:
        return 0
    with disable_proxy_modes_tracing():
        expected = torch.arange(n_atoms, device=edge_index.device).repeat_interleave(number)
        return number if torch.equal(edge_index[1], expected) else 0
