"""Graph: atoms and the edges between them, as one immutable tuple of tensors.

Letters used in the whole package: N atoms, E edges, G graphs (molecules or cells of a batch), C channels, D = 2l+1.

An edge goes from a source atom j to a target atom i, which collects messages: ``edge_index[0]`` is j,
``edge_index[1]`` is i, and the edge vector is

    r = x_j - x_i + S h

with the integer cell shift ``S`` and the cell ``h`` whose rows are the lattice vectors (ASE's convention). Edges are
sorted by target. Lengths are in Angstrom.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Edges", "Exchange", "Graph", "collate", "edge_vectors", "neighbor_table"]

Exchange = Callable[[Tensor], Tensor]  # rows of the local atoms (n_local, ...) to rows of all atoms (N, ...)


class Graph(NamedTuple):
    """A batch of structures. Every tensor of lengths is float64; the networks cast the edge vectors themselves."""

    positions: Tensor  # (N, 3) Angstrom
    numbers: Tensor  # (N,) atomic numbers, int64
    cell: Tensor  # (G, 3, 3) Angstrom, rows are lattice vectors, zeros where not periodic
    edge_index: Tensor  # (2, E) source j, target i; int64, sorted by target
    edge_shift: Tensor  # (E, 3) cell shifts S, whole numbers as floats
    batch: Tensor  # (N,) the graph each atom belongs to, int64, sorted

    @property
    def n_graphs(self) -> int:
        """G, the number of structures."""
        return self.cell.shape[0]

    def clone(self) -> "Graph":
        """A copy with its own tensors."""
        return Graph(*(tensor.clone() for tensor in self))

    def to(self, device: torch.device | str) -> "Graph":
        """The same graph on another device."""
        return Graph(*(tensor.to(device) for tensor in self))


@dataclass(frozen=True, slots=True)
class Edges:
    """The edges of one evaluation, as a potential takes them.

    In a domain of a decomposed system the first ``n_local`` atoms are the domain's own and those after them are ghosts,
    copies of atoms that other domains own. Without ``exchange`` the ghosts' features are computed here as well, from
    their own edges (a wide halo). With it, features are computed for local atoms alone, all edges end at local atoms,
    and ``exchange`` returns the rows of all atoms; its backward pass adds the ghosts' gradients to their owners'.
    """

    index: Tensor  # (2, E) source j, target i; int64, sorted by target
    vectors: Tensor  # (E, 3) Angstrom, from target to source
    n_local: int | None = None  # None: every atom is local
    exchange: Exchange | None = None
    table: Tensor | None = None  # (N, J), ``neighbor_table`` if already known

    def computed(self, x: Tensor) -> Tensor:
        """The rows of the atoms whose features are computed here."""
        return x if self.exchange is None else x[: self.n_local]

    def everywhere(self, x: Tensor) -> Tensor:
        """Rows of the computed atoms to rows of all atoms, the sources of the edges."""
        return x if self.exchange is None else self.exchange(x)


def edge_vectors(graph: Graph) -> Tensor:
    """Vectors (E, 3) from target to source, in Angstrom, through the cell's periodic images."""
    source, target = graph.edge_index
    vectors = graph.positions.index_select(0, source) - graph.positions.index_select(0, target)
    if not graph.cell.any():
        return vectors
    cells = graph.cell[graph.batch[target]]  # (E, 3, 3)
    return vectors + (graph.edge_shift.unsqueeze(1) @ cells).squeeze(1)


def neighbor_table(target: Tensor, n_atoms: int) -> Tensor:
    """The edges into each atom, padded: (N, J) numbers of edges, with E (one past the last) in empty slots.

    J is the largest number of edges into an atom, but at least 1; edges need not be sorted.
    """
    counts = torch.bincount(target, minlength=n_atoms)
    order = torch.argsort(target, stable=True)
    rank = torch.arange(len(target), device=target.device) - (counts.cumsum(0) - counts)[target[order]]
    width = int(counts.max()) if len(target) else 1
    table = target.new_full((n_atoms, width), len(target))
    table[target[order], rank] = order
    return table


def collate(graphs: Sequence[Graph]) -> Graph:
    """Several graphs as one; raises ``ValueError`` if there are none."""
    if not graphs:
        raise ValueError("`collate` needs at least one graph.")
    if len(graphs) == 1:
        return graphs[0]
    n_atoms = [len(graph.numbers) for graph in graphs]
    n_graphs = [graph.n_graphs for graph in graphs]
    atom_offset = [sum(n_atoms[:k]) for k in range(len(graphs))]
    graph_offset = [sum(n_graphs[:k]) for k in range(len(graphs))]
    return Graph(
        positions=torch.cat([graph.positions for graph in graphs]),
        numbers=torch.cat([graph.numbers for graph in graphs]),
        cell=torch.cat([graph.cell for graph in graphs]),
        edge_index=torch.cat([g.edge_index + k for g, k in zip(graphs, atom_offset, strict=True)], dim=1),
        edge_shift=torch.cat([graph.edge_shift for graph in graphs]),
        batch=torch.cat([g.batch + k for g, k in zip(graphs, graph_offset, strict=True)]),
    )
