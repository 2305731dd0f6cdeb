"""Large systems are evaluated chunk by chunk: the same numbers, with less memory. Everything is float64."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdrelax.forces.forcefield import ForceField
from mdrelax.potentials import edge_chunks
from mdrelax.potentials.edge_chunks import split_edges
from mdrelax.potentials.segnn import SEGNNPotential
from mdrelax.structures.graph import Edges
from molecules import ELEMENTS, batch_of, crystal, ethanol, normal, rattled, tiny_equiformer, water

SAME = 1e-12  # rounding of sums in another order; they agree to some 1e-15


def results(network: nn.Module) -> list[Tensor]:
    """Energies, forces, stress, and the gradient of a loss of forces by all parameters."""
    graph = batch_of(crystal(), *rattled(ethanol(), 2, seed=0), water())
    prediction = ForceField(network, elements=ELEMENTS)(graph, stress=True, create_graph=True)
    loss = prediction.forces.square().sum() + prediction.energy.square().sum()
    gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    assert prediction.stress is not None
    together = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
    return [prediction.energies, prediction.forces, prediction.stress, together]


NETWORKS = {
    "equiformer": tiny_equiformer,
    "equiformer with linear messages": lambda: tiny_equiformer(nonlinear_messages=False),
    "segnn": lambda: tiny_segnn(),
    "segnn with norms": lambda: tiny_segnn(norm="joint"),
}


def tiny_segnn(**arguments: Any) -> SEGNNPotential:
    """Two layers with seeded weights in float64."""
    torch.manual_seed(0)
    return SEGNNPotential(len(ELEMENTS), channels=4, n_layers=2, cutoff=4.0, **arguments).double()


def limit(monkeypatch: pytest.MonkeyPatch, at_once: int, kept: int) -> None:
    """So many edges at once, in training too, and so many that are kept."""
    monkeypatch.setattr(edge_chunks, "EDGES_AT_ONCE", at_once)
    monkeypatch.setattr(edge_chunks, "EDGES_AT_ONCE_IN_TRAINING", at_once)
    monkeypatch.setattr(edge_chunks, "EDGES_KEPT", kept)


@pytest.mark.parametrize("name", NETWORKS)
def test_pieces_give_the_numbers_of_the_whole(monkeypatch, name):
    """Energies, forces, stress and the double backward pass, in chunks of some 50 of 346 edges and atom by atom."""
    network = NETWORKS[name]()
    whole = results(network)
    for at_once, kept in ((50, 0), (50, 120), (50, 1000), (1, 0)):
        limit(monkeypatch, at_once, kept)
        for ours, theirs in zip(results(network), whole, strict=True):
            assert (ours - theirs).abs().max() < SAME * theirs.abs().max()


def test_pieces_hold_every_edge_once_and_whole_atoms():
    """Their atoms follow one another, their edges and vectors are those of the whole, none is much too large."""
    target = torch.tensor([0, 0, 0, 2, 2, 3, 3, 3, 3, 5])  # atoms 1 and 4 have no edges, nor has 6
    index, vectors = torch.stack([torch.arange(10) % 7, target]), normal(10, 3, seed=0)
    found = split_edges(index, vectors, 7, at_most=4)
    assert len(found) == 3
    assert sum(chunk.n_atoms for chunk in found) == 7
    assert max(chunk.edge_index.shape[1] for chunk in found) <= 4 + 3  # at most, and all but one edge of an atom
    first, again = 0, []
    for chunk in found:
        assert chunk.edge_index[1].min() >= 0
        assert chunk.edge_index[1].max() < chunk.n_atoms
        again.append(chunk.edge_index + torch.tensor([[0], [first]]))
        first += chunk.n_atoms
    assert torch.equal(torch.cat(again, dim=1), index)
    assert torch.equal(torch.cat([chunk.vectors for chunk in found]), vectors)


def test_the_first_pieces_are_kept_and_training_has_larger_ones():
    """20,000 edges: kept are those that begin before the 6,144th; trained networks split beyond 16,384 edges only."""
    index = torch.arange(20_000).repeat(2, 1) // 20
    vectors = torch.ones(20_000, 3)
    assert [chunk.kept for chunk in split_edges(index, vectors, 1000, at_most=2_000)] == [True] * 4 + [False] * 6
    assert [chunk.kept for chunk in split_edges(index, vectors, 1000)] == [True, False, False]
    assert [chunk.kept for chunk in split_edges(index, vectors, 1000, at_most=2_000, trained=True)] == [True, False]
    assert len(split_edges(index[:, :16_000], vectors[:16_000], 800, trained=True)) == 1


@pytest.mark.parametrize("target", [[0, 0, 1, 1], [1, 0, 1, 0]])
def test_few_or_unsorted_edges_stay_together(target):
    """Sorted ones up to the limit; unsorted ones always, since a chunk is a run of atoms."""
    index = torch.tensor([[1, 2, 0, 2], target])
    (chunk,) = split_edges(index, normal(4, 3, seed=0), 3, at_most=4 if target[0] == 0 else 1)
    assert torch.equal(chunk.edge_index, index)


@pytest.mark.parametrize("name", ["equiformer", "segnn"])
def test_pieces_need_less_memory(monkeypatch, name):
    """What the backward pass keeps of a frozen network, counted: an eighth of the edges at once need less than half."""
    network, graph = NETWORKS[name]().requires_grad_(False), batch_of(*rattled(ethanol(), 16, seed=0))
    kept = []
    for at_once in (10**6, len(graph.edge_index[1]) // 8):
        limit(monkeypatch, at_once, kept=0)
        sizes: dict[int, int] = {}

        def count(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        vectors = normal(graph.edge_index.shape[1], 3, seed=1).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            network(torch.zeros_like(graph.numbers), Edges(graph.edge_index, vectors))
        kept.append(sum(sizes.values()))
    assert kept[1] < kept[0] / 2
