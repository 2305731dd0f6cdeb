"""Common edges: one list of edges for many structures of a molecule, so that code is compiled for that list alone.

The list contains every edge that any of the structures has. In a structure where such an edge is longer than the
cut-off, its envelope is 0 with two derivatives, so energies, forces and training are unchanged.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mdrelax.structures.graph import Graph

__all__ = ["common_edges", "with_edges"]

LARGEST_GROWTH = 1.5  # largest ratio of common edges to the edges of an average structure: the extra work


def common_edges(graphs: Sequence[Graph]) -> Tensor | None:
    """The edges (2, E) that any of the structures has, sorted by target; ``graphs`` have one structure each.

    None if they differ in the number of atoms, if one is periodic, and if there would be 1.5 times as many edges as a
    structure has on average, or none at all.
    """
    n_atoms = {len(graph.numbers) for graph in graphs}
    if len(n_atoms) != 1 or any(bool(graph.cell.any()) for graph in graphs):
        return None
    (n,) = n_atoms
    known = torch.zeros(n, n, dtype=torch.bool)  # [target, source]
    for graph in graphs:
        source, target = graph.edge_index.cpu()
        known[target, source] = True
    target, source = known.nonzero(as_tuple=True)
    average = sum(graph.edge_index.shape[1] for graph in graphs) / len(graphs)
    return torch.stack([source, target]) if 0 < len(source) <= LARGEST_GROWTH * average else None


def with_edges(graph: Graph, edges: Tensor) -> Graph:
    """A batch of structures that are not periodic, each with the same ``edges`` (2, E) instead of its own."""
    n_atoms = len(graph.numbers) // graph.n_graphs
    firsts = n_atoms * torch.arange(graph.n_graphs, device=graph.numbers.device)
    repeated = (edges.to(firsts.device).unsqueeze(1) + firsts.unsqueeze(1)).flatten(1)
    return graph._replace(edge_index=repeated, edge_shift=graph.positions.new_zeros(repeated.shape[1], 3))
