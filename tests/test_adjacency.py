"""Edges: values handed from atoms to edges and back."""

import pytest
import torch

from mdrelax.potentials.adjacency import RingSelect, fully_connected


@pytest.mark.parametrize("n_atoms", [2, 5])
def test_the_edges_of_full_systems_are_all_ordered_pairs(n_atoms):
    """Every atom receives from each other one of its system, and from nobody else."""
    edges = fully_connected(3, n_atoms, torch.zeros(1, 1))
    found = set(zip(edges.source.tolist(), edges.target.tolist(), strict=True))
    expected = {
        (i, j) for i in range(3 * n_atoms) for j in range(3 * n_atoms) if i != j and i // n_atoms == j // n_atoms
    }
    assert found == expected
    assert len(edges.source) == len(expected)
    assert edges.target.tolist() == sorted(edges.target.tolist())


@pytest.mark.parametrize("n_atoms", [2, 5])
def test_the_sum_of_shifted_rows_is_the_gradient_of_selection_by_index(n_atoms):
    """First and second derivatives of RingSelect are those of index_select."""
    edges = fully_connected(3, n_atoms, torch.zeros(1, 1))
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3 * n_atoms, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(len(edges.source), 2, 3, generator=generator, dtype=torch.float64)
    found = RingSelect.apply(rows, edges.source, edges.edges_per_atom)
    expected = rows.index_select(0, edges.source)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    # rounding of sums in another order
    gradients = [torch.autograd.grad((weight * x.square()).sum(), rows)[0] for x in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-14, atol=1e-14)
    assert torch.autograd.gradgradcheck(
        lambda x: RingSelect.apply(x, edges.source, edges.edges_per_atom).square(), rows
    )
