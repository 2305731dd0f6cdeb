"""Shared edges: the edges of all structures of a molecule in one list, and networks that do not notice the rest."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from ase import Atoms
from torch import nn

from mdrelax.forces.forcefield import ForceField
from mdrelax.structures.common_edges import common_edges, with_edges
from molecules import (
    ELEMENTS,
    batch_of,
    crystal,
    ethanol,
    graph_of,
    rattled,
    tiny_equiformer,
    tiny_equiformer_pytorch,
    tiny_segnn,
    water,
)

REACH = 2.6  # A, within ethanol: some pairs of atoms are nearer in some of the structures only
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "equiformer, linear messages": partial(
        tiny_equiformer, "8x0e+4x1o", nonlinear_messages=False, radial_basis="bessel", cutoff=REACH
    ),
    "equiformer, as published": partial(tiny_equiformer, "8x0e+4x1e+4x2e", radial_basis="expnormal", cutoff=REACH),
    "segnn": partial(tiny_segnn, cutoff=REACH),
    "equiformer-pytorch": partial(tiny_equiformer_pytorch, cutoff=REACH),
}


def structures() -> list[Atoms]:
    """Five ethanols that have not the same neighbours."""
    return rattled(ethanol(), 5, seed=0)


def test_every_edge_of_a_structure_is_shared_and_no_other() -> None:
    """Counted pair by pair from the distances, and sorted by target as all edges are."""
    edges = common_edges([graph_of(atoms, REACH) for atoms in structures()])
    assert edges is not None
    near = torch.stack([torch.from_numpy(atoms.get_all_distances() < REACH) for atoms in structures()]).any(0)
    near.fill_diagonal_(False)
    assert {tuple(pair) for pair in edges.T.tolist()} == {tuple(pair) for pair in near.nonzero().tolist()}
    assert (edges[1].diff() >= 0).all()
    assert edges.shape[1] > min(graph_of(atoms, REACH).edge_index.shape[1] for atoms in structures())


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_edges_beyond_the_cutoff_change_nothing(build: Callable[[], nn.Module]) -> None:
    """Energies, forces and the gradient of a loss of both by all weights; float64, sums in another order."""
    model = ForceField(build(), elements=ELEMENTS).train()
    batch = batch_of(*structures(), cutoff=REACH)
    edges = common_edges([graph_of(atoms, REACH) for atoms in structures()])
    assert edges is not None
    found = []
    for graph in (batch, with_edges(batch, edges)):
        prediction = model(graph, create_graph=True)
        loss = prediction.energy.square().sum() + prediction.forces.square().sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
        found.append([prediction.energy.detach(), prediction.forces.detach(), *gradients])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    assert with_edges(batch, edges).edge_index.shape[1] > batch.edge_index.shape[1]


@pytest.mark.parametrize(
    "others",
    [[water()], [crystal()], [Atoms("C2H6O", [[10.0 * k, 0, 0] for k in range(9)])] * 5],
    ids=["of another size", "periodic", "with far fewer edges"],
)
def test_structures_that_are_not_one_molecule_share_none(others: list[Atoms]) -> None:
    """One code for all sizes is better there."""
    assert common_edges([graph_of(atoms) for atoms in [ethanol(), *others]]) is None


def test_atoms_out_of_reach_share_none() -> None:
    """A list without an edge is nothing to compile for."""
    assert common_edges([graph_of(Atoms("He2", [[0, 0, 0], [9, 0, 0]]))]) is None
