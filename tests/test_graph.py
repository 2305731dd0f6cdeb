"""Graphs: edge vectors through cells, batches, and rotations, against ASE and scipy."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list
from scipy.spatial.transform import Rotation

from mdrelax.structures.graph import Graph, collate, edge_vectors, neighbor_table
from mdrelax.structures.rotate import rotate
from molecules import CUTOFF, batch_of, crystal, ethanol, graph_of, rattled, tiny_force_field, water


@pytest.mark.parametrize("pbc", [True, False, (True, False, True)])
def test_edge_vectors_are_ases(pbc: bool | tuple[bool, bool, bool]):
    """r = x_j - x_i + S h points from the target i to the source j: ASE's `D` for its pairs (i, j)."""
    atoms = crystal()
    atoms.pbc = pbc
    target, source, vectors = neighbor_list("ijD", atoms, CUTOFF)
    graph = graph_of(atoms)

    def rows(i: np.ndarray, j: np.ndarray, r: np.ndarray) -> list[tuple[float, ...]]:
        return sorted(tuple(row) for row in np.column_stack([i, j, np.round(r, 9)]).tolist())

    found = rows(graph.edge_index[1].numpy(), graph.edge_index[0].numpy(), edge_vectors(graph).numpy())
    assert len(found) > 0
    np.testing.assert_allclose(found, rows(target, source, vectors), atol=1e-8)


def test_edge_vectors_are_float64_and_differentiable():
    """Networks cast them; the positions' gradient of the sum of squares is the analytic one."""
    graph = graph_of(water())
    positions = graph.positions.clone().requires_grad_()
    vectors = edge_vectors(graph._replace(positions=positions))
    assert vectors.dtype == torch.float64
    vectors.square().sum().backward()
    expected = 4 * (3 * positions - positions.sum(0))  # each of the three pairs is two edges
    torch.testing.assert_close(positions.grad, expected.detach(), atol=1e-12, rtol=0)


def test_a_batch_has_the_edges_of_its_parts():
    """Molecules, crystals and a lone atom in one batch: vectors, numbers and membership are those of each alone."""
    structures = [ethanol(), crystal(), Atoms("H"), water()]
    graphs = [graph_of(atoms) for atoms in structures]
    whole = collate(graphs)
    assert whole.n_graphs == 4
    assert torch.equal(edge_vectors(whole), torch.cat([edge_vectors(graph) for graph in graphs]))
    assert whole.numbers.tolist() == [z for atoms in structures for z in atoms.numbers.tolist()]
    assert whole.batch.tolist() == [k for k, atoms in enumerate(structures) for _ in atoms]
    assert torch.equal(whole.batch[whole.edge_index[0]], whole.batch[whole.edge_index[1]])
    assert bool((whole.edge_index[1].diff() >= 0).all())  # still sorted by target


def test_batches_can_be_batched():
    """Collating is associative."""
    a, b, c = (graph_of(atoms) for atoms in (ethanol(), crystal(), water()))
    for nested in (collate([collate([a, b]), c]), collate([a, collate([b, c])])):
        for one, other in zip(nested, collate([a, b, c]), strict=True):
            assert torch.equal(one, other)


def test_one_graph_is_its_own_batch():
    """And no graph is an error, not an empty batch."""
    graph = graph_of(water())
    assert collate([graph]) is graph
    with pytest.raises(ValueError, match="at least one graph"):
        collate([])


def test_structures_are_turned_as_scipy_turns_them():
    """Each by its own matrix: positions and lattice vectors, so that edge vectors turn too."""
    structures = [*rattled(ethanol(), 1, seed=0), crystal()]
    matrices = Rotation.random(2, random_state=0)
    graph = batch_of(*structures)
    turned = rotate(graph, torch.tensor(matrices.as_matrix()))
    positions = [matrix.apply(atoms.positions) for matrix, atoms in zip(matrices, structures, strict=True)]
    np.testing.assert_allclose(turned.positions, np.concatenate(positions), atol=1e-12)
    np.testing.assert_allclose(turned.cell[1], matrices[1].apply(structures[1].cell[:]), atol=1e-12)
    of_edge = graph.batch[graph.edge_index[1]]
    expected = [matrices[int(g)].apply(r) for g, r in zip(of_edge, edge_vectors(graph).numpy(), strict=True)]
    np.testing.assert_allclose(edge_vectors(turned), expected, atol=1e-12)


def test_a_turned_structure_has_the_neighbours_it_had():
    """The graph built anew from turned atoms is the turned graph: edges and shifts are the same."""
    atoms, matrix = crystal(), Rotation.random(random_state=1)
    turned = Atoms(atoms.numbers, matrix.apply(atoms.positions), cell=matrix.apply(atoms.cell[:]), pbc=True)
    before, after = graph_of(atoms), graph_of(turned)
    assert torch.equal(before.edge_index, after.edge_index)
    assert torch.equal(before.edge_shift, after.edge_shift)


def test_every_tensor_moves_to_another_device():
    """`to` forgets none; torch's "meta" device stands in for a GPU."""
    assert {tensor.device.type for tensor in graph_of(crystal()).to("meta")} == {"meta"}


def test_a_graph_does_not_change():
    """It is a tuple: a new one is made with `_replace`, and no one's graph is edited behind their back."""
    graph = graph_of(water())
    with pytest.raises(AttributeError):
        graph.positions = torch.zeros(3, 3)  # type: ignore[misc]
    assert isinstance(graph._replace(positions=torch.zeros(3, 3)), Graph)


def test_a_batch_is_predicted_as_its_parts_are():
    """Energies and forces one by one are those of the batch, to rounding (1e-10 of numbers of order 1 to 10)."""
    structures = [*rattled(ethanol(), 2, seed=0), *rattled(water(), 1, seed=1), Atoms("O")]
    model = tiny_force_field()
    whole, parts = model(batch_of(*structures)), [model(graph_of(atoms)) for atoms in structures]
    torch.testing.assert_close(whole.energy, torch.cat([p.energy for p in parts]), atol=1e-10, rtol=0)
    torch.testing.assert_close(whole.forces, torch.cat([p.forces for p in parts]), atol=1e-10, rtol=0)


@pytest.mark.parametrize("target", [[0, 0, 1, 3], [3, 0, 1, 0, 0], []])
def test_the_neighbor_table_lists_the_edges_into_each_atom(target: list[int]):
    """In any order of the edges, padded with a number that is no edge; atoms without edges have an empty row."""
    table = neighbor_table(torch.tensor(target, dtype=torch.int64), 4)
    found = [[k for k in row if k < len(target)] for row in table.tolist()]
    assert found == [[k for k, atom in enumerate(target) if atom == i] for i in range(4)]
    assert table.shape == (4, max(1, *(len(row) for row in found)))
    assert int(table.max()) <= len(target)
