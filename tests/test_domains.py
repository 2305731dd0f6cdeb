"""Domain decomposition: a potential that is given ghosts computes what it computes without them."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mdrelax.forces.potential import Potential
from mdrelax.structures.graph import Edges, Graph, edge_vectors
from molecules import CUTOFF, ELEMENTS, crystal, graph_of, tiny_equiformer, tiny_equiformer_pytorch, tiny_segnn

NETWORKS = {
    "equiformer": lambda: tiny_equiformer("8x0e+4x1o+4x2e"),
    "equiformer, linear messages": lambda: tiny_equiformer("8x0e+4x1o", nonlinear_messages=False),
    "segnn": tiny_segnn,
    "equiformer-pytorch": tiny_equiformer_pytorch,
}
EXACT = {"rtol": 1e-11, "atol": 1e-12}  # sums in another order


def _species(graph: Graph) -> Tensor:
    return torch.searchsorted(torch.tensor(ELEMENTS), graph.numbers)


def _with_ghosts(graph: Graph) -> tuple[Tensor, Tensor]:
    """Owners (N + ghosts,) of the atoms of a domain, and edges (2, E) that start at a ghost for each image crossed."""
    source, target = graph.edge_index
    n_atoms = len(graph.numbers)
    crossing = graph.edge_shift.any(1)
    images = torch.cat([source[:, None], graph.edge_shift.long()], dim=1)[crossing]
    ghosts, which = torch.unique(images, dim=0, return_inverse=True)
    from_ghosts = source.clone()
    from_ghosts[crossing] = n_atoms + which
    return torch.cat([torch.arange(n_atoms), ghosts[:, 0]]), torch.stack([from_ghosts, target])


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_exchanging_ghosts_gives_the_periodic_energies_and_gradient(build: Callable[[], Potential]) -> None:
    """A crystal whose images are ghosts, rows of their owners in each round; the backward pass adds to the owners."""
    network, graph = build(), graph_of(crystal(), CUTOFF)
    owners, pairs = _with_ghosts(graph)
    n_local, species = len(graph.numbers), _species(graph)
    assert len(owners) > 2 * n_local  # there is something to exchange
    plain = Edges(graph.edge_index, edge_vectors(graph))
    shared = Edges(pairs, plain.vectors, n_local, exchange=lambda x: x.index_select(0, owners))
    expected = network.energies_and_gradient(species, plain)
    found = network.energies_and_gradient(species[owners], shared)
    torch.testing.assert_close(found, expected, **EXACT)
    lonely = replace(shared, exchange=lambda x: torch.cat([x, x.new_zeros(len(owners) - n_local, *x.shape[1:])]))
    assert not torch.allclose(network(species[owners], lonely), expected[0])  # the law can fail


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_a_wide_halo_gives_the_energies_of_the_local_atoms(build: Callable[[], Potential]) -> None:
    """Without an exchange all atoms are computed, and the energies of the first ``n_local`` are returned."""
    network, graph = build(), graph_of(crystal(), CUTOFF)
    edges, species = Edges(graph.edge_index, edge_vectors(graph)), _species(graph)
    torch.testing.assert_close(network(species, replace(edges, n_local=2)), network(species, edges)[:2], rtol=0, atol=0)
