"""The networks, compiled: what they give on structures they were not captured on is what they give uncompiled."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from ase import Atoms
from torch import nn
from torch.nn import functional

from mdrelax.compiled import compile_force_field
from mdrelax.compiled.parity import measure_parity
from mdrelax.forces.forcefield import ForceField
from mdrelax.structures.graph import Edges, edge_vectors, neighbor_table
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

NETWORKS = {
    "equiformer E(3), linear messages": lambda: tiny_equiformer(nonlinear_messages=False),
    "equiformer SE(3), as published": lambda: tiny_equiformer("8x0e+4x1e+4x2e", radial_basis="expnormal", n_blocks=1),
    "equiformer-pytorch": lambda: tiny_equiformer_pytorch(depth=1),
    "segnn": tiny_segnn,
    "segnn with a norm and attributes of l=2": lambda: tiny_segnn(lmax_attribute=2, norm="joint"),
}


@pytest.mark.slow
@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_a_compiled_network_gives_its_own_numbers(build: Callable[[], nn.Module]) -> None:
    """Molecules, a crystal with many edges an atom, a lone atom and a batch of them: float64, rounding apart."""
    model = ForceField(build(), elements=ELEMENTS, scale=0.5)
    structures = [*rattled(ethanol(), 2, 0), water(), crystal(), Atoms("C")]
    graphs = [*map(graph_of, structures), batch_of(*structures)]
    compiled = compile_force_field(model)
    assert max(measure_parity(compiled, model, graphs)) < 1e-11
    assert compiled.dtype == torch.float64


def test_a_given_neighbor_table_changes_nothing() -> None:
    """However wide: a compiled network is handed one at least two places wide."""
    network = tiny_equiformer_pytorch()
    graph = batch_of(ethanol(), water(), Atoms("C"))
    species = torch.tensor([ELEMENTS.index(z) for z in graph.numbers.tolist()])
    edges = Edges(graph.edge_index, edge_vectors(graph))
    table = functional.pad(neighbor_table(graph.edge_index[1], len(species)), (0, 3), value=graph.edge_index.shape[1])
    # Sums over the padded axis may go in another order.
    torch.testing.assert_close(
        network(species, replace(edges, table=table)), network(species, edges), atol=1e-13, rtol=1e-13
    )
