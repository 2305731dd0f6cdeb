"""Vector-neuron layers: equivariant to rotations and reflections, equal to the plain form, and neighbours are right."""

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.func import functional_call

from haar import rotations
from mdrelax.packs.modelnet.edges import edge_sum, nearest_neighbours, neighbours_of, sum_at_ends
from mdrelax.packs.modelnet.vector_neurons import (
    CloudActivation,
    EdgeActivation,
    LengthNorm,
    VectorActivation,
    VectorLinear,
    VectorMaxPool,
    inner_products,
)
from molecules import normal

ROUNDING = 1e-12  # of float64, after sums of some dozen numbers of order one


def turned(x: Tensor, matrix: Tensor) -> Tensor:
    """Every 3-vector of (C, 3, ...) turned."""
    return torch.einsum("ij,cj...->ci...", matrix, x)


LAYERS = {
    "linear": (VectorLinear(4, 5), (4, 3, 2, 6)),
    "norm": (LengthNorm(4), (4, 3, 2, 6)),
    "activation": (VectorActivation(4, 5, slope=0.2), (4, 3, 2, 6)),
    "one direction": (VectorActivation(4, 5, slope=0.0, one_direction=True), (4, 3, 2, 6)),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_commute_with_rotations_and_the_inversion(name: str, training: bool):
    """f(R x) = R f(x) for rotations and for -1, with the statistics of the batch and with running ones."""
    layer, shape = LAYERS[name]
    layer = layer.double().train(training)
    x = normal(*shape, seed=0)
    for matrix in (*rotations(3, seed=1), -torch.eye(3, dtype=torch.float64)):
        torch.testing.assert_close(layer(turned(x, matrix)), turned(layer(x), matrix), atol=ROUNDING, rtol=0)


def test_layers_of_pairs_commute_with_rotations():
    """Edges, clouds, max-pool and inner products."""
    (matrix,), x, cloud = rotations(1, seed=2), normal(4, 3, 2, 9, seed=3), normal(6, 3, 2, seed=4)
    edge, pair = EdgeActivation(4, 5, slope=0.2).double(), CloudActivation(4, 6, 5, slope=0.2).double()
    pool, neighbours = VectorMaxPool(5).double(), nearest_neighbours(x, 3)
    of_edges = edge(x, neighbours)
    assert torch.equal(nearest_neighbours(turned(x, matrix), 3).sort(0).values, neighbours.sort(0).values)
    torch.testing.assert_close(edge(turned(x, matrix), neighbours), turned(of_edges, matrix), atol=ROUNDING, rtol=0)
    torch.testing.assert_close(
        pool(turned(of_edges, matrix), dim=2), turned(pool(of_edges, dim=2), matrix), atol=ROUNDING, rtol=0
    )
    other = pair(turned(x, matrix), turned(cloud, matrix))
    torch.testing.assert_close(other, turned(pair(x, cloud), matrix), atol=ROUNDING, rtol=0)
    z = normal(3, 3, 2, 9, seed=5)
    invariants = inner_products(turned(x, matrix), turned(z, matrix))
    torch.testing.assert_close(invariants, torch.einsum("cj...,kj...->ck...", x, z), atol=ROUNDING, rtol=0)


def test_max_pool_takes_one_of_the_vectors_per_channel():
    """The one with the largest product with its direction, found by a loop."""
    pool, x = VectorMaxPool(4).double(), normal(4, 3, 7, seed=6)
    found, directions = pool(x, dim=2).detach(), pool.direction(x).detach()
    for c in range(4):
        best = max(range(7), key=lambda k: (x[c, :, k] @ directions[c, :, k]).item())
        assert torch.equal(found[c], x[c, :, best])


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_the_fused_steps_are_those_of_finite_differences(training: bool):
    """The norm of lengths, the ReLU of points, of edges and of pairs, and inner products, by ``gradcheck``."""
    x, z = (normal(3, 3, 2, 5, seed=seed).requires_grad_() for seed in (0, 1))
    cloud, neighbours = normal(2, 3, 2, seed=2).requires_grad_(), nearest_neighbours(x, 3)
    for layer, given in (
        (LengthNorm(3), (x,)),
        (VectorActivation(3, 4, slope=0.2), (x,)),
        (VectorActivation(3, 4, slope=0.1, one_direction=True), (x,)),
        (EdgeActivation(3, 4, slope=0.2), (x, neighbours)),
        (CloudActivation(3, 2, 4, slope=0.2), (x, cloud)),
    ):
        own = layer.double().train(training)
        names, weights = zip(*own.named_parameters(), strict=True)

        def function(*values: Tensor, own: nn.Module = own, names=names, given=given) -> Tensor:
            return functional_call(own, dict(zip(names, values[len(given) :], strict=True)), values[: len(given)])

        assert torch.autograd.gradcheck(function, (*given, *weights), atol=1e-6)
    assert torch.autograd.gradcheck(inner_products, (x, z))


def test_a_vector_of_no_length_has_a_finite_gradient():
    """A point at the centre of its cloud, or an edge from a point to itself, is nothing unusual."""
    layer, x = VectorActivation(2, 3, slope=0.2).double(), torch.zeros(2, 3, 1, 4, dtype=torch.float64).requires_grad_()
    layer(x).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in layer.parameters())
    assert torch.isfinite(x.grad).all()


def test_running_statistics_are_those_of_torchs_batch_norm():
    """The norm is a ``BatchNorm1d`` of lengths, and moves its averages as one."""
    layer, x = LengthNorm(4).double(), normal(4, 3, 2, 6, seed=7)
    twin = nn.BatchNorm1d(4).double()
    for _ in range(3):
        layer(x)
        twin((x.norm(dim=1) + 1e-6).flatten(1).T)
    torch.testing.assert_close(layer.norm.running_mean, twin.running_mean)
    torch.testing.assert_close(layer.norm.running_var, twin.running_var)
    assert layer.norm.num_batches_tracked == twin.num_batches_tracked == 3


@pytest.mark.parametrize(("n_points", "k"), [(50, 8), (20, 20), (5, 1)])
def test_neighbours_are_those_of_a_tree(n_points: int, k: int):
    """Against scipy's k-d tree in three dimensions, the point itself among them."""
    x = normal(1, 3, 4, n_points, seed=8) + 3
    found = nearest_neighbours(x, k)
    assert found.shape == (k, 4, n_points)
    for b in range(4):
        points = x[0, :, b].T.numpy()
        _, expected = cKDTree(points).query(points, k=[*range(1, k + 1)])
        assert np.array_equal(np.sort(found[:, b].T.numpy() - b * n_points), np.sort(expected))


def test_too_few_points_are_refused():
    """A cloud cannot have more neighbours than points."""
    with pytest.raises(ValueError, match="A cloud of 5 points has no 6 neighbours; give it at least 6 points"):
        nearest_neighbours(normal(1, 3, 2, 5, seed=0), 6)


def test_sums_at_edges_and_their_transpose():
    """<edge_sum(a, c), g> = <a, .> + <c, .> of the transpose; and autograd agrees with it."""
    a, c, g = normal(2, 3, 2, 6, seed=1), normal(2, 3, 2, 6, seed=2), normal(2, 3, 4, 2, 6, seed=3)
    neighbours = nearest_neighbours(a, 4)
    at_neighbour, at_centre = sum_at_ends(g, neighbours)
    edges = edge_sum(a, c, neighbours)
    assert torch.equal(edges, neighbours_of(a, neighbours) + c.unsqueeze(-3))
    torch.testing.assert_close((edges * g).sum(), (a * at_neighbour).sum() + (c * at_centre).sum())
    a.requires_grad_()
    (edge_sum(a, c, neighbours) * g).sum().backward()
    torch.testing.assert_close(a.grad, at_neighbour)
