"""Products with a steerable attribute: e3nn's numbers, the same at nodes and on edges, and what a fold means.

Everything is float64; ROUNDING is a few hundred sums of 1e-16.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from e3nn import o3
from torch import Tensor, nn

from mdrelax.potentials.adjacency import Adjacency, fully_connected, make_adjacency
from mdrelax.potentials.attributes import INTEGRAL, Attribute, AttributeBasis, GatedProduct, SteerableProduct
from mdrelax.potentials.steerable import Features, SphericalHarmonics
from molecules import normal

ROUNDING = 1e-12
CASES = [
    ("4x0e+4x1o", 1, "3x0e+5x1o"),
    ("4x0e+3x1o+2x2e", 2, "2x0e+3x1o+2x2e"),
    ("2x0e+3x1o+2x2e+2x3o", 3, "3x0e+2x3o"),
    ("3x0e", 1, "2x0e+2x1o"),
    ("4x0e+4x1o", 2, "2x1o"),
    ("2x1o+1x1e", 1, "3x0e+2x0o+2x1e"),
]


def features(irreps: str, rows: int, seed: int) -> Features:
    """Normal deviates (rows, D, C) of each irrep."""
    return tuple(normal(rows, ir.dim, mul, seed=seed + k) for k, (mul, ir) in enumerate(o3.Irreps(irreps)))


def product(irreps_in: str, irreps_out: str, lmax: int, scalar: float = 1.0) -> SteerableProduct:
    """A product with weights of its own seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SteerableProduct(o3.Irreps(irreps_in), o3.Irreps(irreps_out), lmax, scalar=scalar).double()


def attribute(irreps_in: str, irreps_out: str, lmax: int, rows: int, scalar: float = 1.0) -> tuple[Tensor, Attribute]:
    """Random harmonics (rows, S), each degree of a length of its own, and what the layers make of them."""
    flat = normal(rows, (lmax + 1) ** 2, seed=9)
    flat[:, 0] = scalar
    return flat, AttributeBasis(o3.Irreps(irreps_in) + o3.Irreps(irreps_out), lmax)(flat)


def in_double(build: Callable[[], nn.Module]) -> Any:
    """A module of e3nn built with float64 constants: its coefficients are rounded to the default type."""
    torch.set_default_dtype(torch.float64)
    try:
        return build()
    finally:
        torch.set_default_dtype(torch.float32)


def flattened(x: Features) -> Tensor:
    """e3nn's flat vector, channel first."""
    return torch.cat([block.mT.flatten(1) for block in x], dim=1)


@pytest.mark.parametrize(("irreps_in", "lmax", "irreps_out"), CASES)
@pytest.mark.parametrize("scalar", [1.0, INTEGRAL])
def test_the_product_is_e3nns_fully_connected_tensor_product(irreps_in, lmax, irreps_out, scalar):
    """Path by path the same numbers: e3nn's with its path weight undone, whose sqrt(2 l_o + 1) the layer keeps."""
    layer = product(irreps_in, irreps_out, lmax, scalar)
    flat, a = attribute(irreps_in, irreps_out, lmax, 6, scalar)
    x = features(irreps_in, 6, seed=1)
    theirs = in_double(
        lambda: o3.FullyConnectedTensorProduct(irreps_in, o3.Irreps.spherical_harmonics(lmax), irreps_out)
    )
    assert theirs.weight_numel == sum(weight.numel() for weight in layer.weights)
    paths = {(p.source, p.degree, p.output): w for p, w in zip(layer.paths, layer.weights, strict=True)}
    with torch.no_grad():
        for k, way in enumerate(theirs.instructions):
            scale = math.sqrt(theirs.irreps_out[way.i_out].ir.dim) / way.path_weight
            weight = paths[way.i_in1, way.i_in2, way.i_out]
            theirs.weight_view_for_instruction(k).copy_(scale * weight.unsqueeze(1))
    expected = theirs(flattened(x), flat)
    if layer.bias is not None:
        expected[:, : len(layer.bias)] += layer.bias
    torch.testing.assert_close(flattened(layer(x, a)), expected, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("edges", [fully_connected(2, 3, torch.ones(1, 1)),
                                   make_adjacency(torch.tensor([[1, 2, 3, 0, 5], [0, 0, 1, 2, 2]]), 6, torch.ones(5))],
                         ids=["fully connected", "sparse"])  # fmt: skip
@pytest.mark.parametrize("lmax", [1, 2])
def test_on_pairs_is_the_product_of_both_ends_side_by_side(edges: Adjacency, lmax: int):
    """Mixing at the nodes and handing the result to the edges is handing the features over and mixing there."""
    irreps = "3x0e+3x1o" if lmax == 1 else "3x0e+3x1o+3x2e"
    both = "+".join(f"{6 + 2 * (k == 0)}x{ir}" for k, (_, ir) in enumerate(o3.Irreps(irreps)))
    layer = GatedProduct(o3.Irreps(both), o3.Irreps(irreps), lmax, scalar=INTEGRAL).double()
    x, invariants = features(irreps, 6, seed=2), normal(len(edges.source), 2, seed=5)
    _, a = attribute(irreps, irreps, lmax, len(edges.source))
    joined = [torch.cat([block[edges.target], block[edges.source]], 2) for block in x]
    joined[0] = torch.cat([joined[0], invariants.unsqueeze(1)], 2)
    on_pairs = layer.on_pairs(layer.product.at_ends(x), invariants, edges, a)
    for found, expected in zip(on_pairs, layer(tuple(joined), a), strict=True):
        torch.testing.assert_close(found, expected, rtol=ROUNDING, atol=ROUNDING)


def test_the_product_turns_with_features_and_attribute():
    """f(D x, D a) = D f(x, a) with e3nn's Wigner matrices, harmonics of a direction as the attribute."""
    irreps = "2x0e+3x1o+2x2e"
    layer, basis, harmonics = product(irreps, irreps, 2), AttributeBasis(o3.Irreps(irreps), 2), SphericalHarmonics(2)
    rotation = o3.matrix_x(torch.tensor(0.7)).double() @ o3.matrix_z(torch.tensor(-1.9)).double()
    direction = torch.nn.functional.normalize(normal(5, 3, seed=4), dim=1)
    x = features(irreps, 5, seed=6)
    matrices = [ir.D_from_matrix(rotation.float()).double() for _, ir in o3.Irreps(irreps)]
    turned = layer(tuple(m @ b for m, b in zip(matrices, x, strict=True)), basis(harmonics(direction @ rotation.T)))
    straight = layer(x, basis(harmonics(direction)))
    for found, block, matrix in zip(turned, straight, matrices, strict=True):
        # e3nn's matrices go through float32 angles here: 1e-7, a few sums
        torch.testing.assert_close(found, matrix @ block, rtol=0, atol=2e-5)


@pytest.mark.parametrize("scalar", [1.0, INTEGRAL])
def test_a_fold_adds_the_equivariant_map_whatever_the_attribute(scalar):
    """After the fold, f(x, a) has gained M x exactly: the attribute's first entry is a number the layer knows."""
    irreps = "3x0e+2x1o"
    layer = product(irreps, irreps, 1, scalar)
    _, a = attribute(irreps, irreps, 1, 4)
    x = features(irreps, 4, seed=3)
    blocks = {(k, k): normal(mul, mul, seed=20 + k) for k, (mul, _) in enumerate(o3.Irreps(irreps))}
    expected = [y + block @ blocks[k, k].T for k, (y, block) in enumerate(zip(layer(x, a), x, strict=True))]
    layer.fold(blocks)
    for found, wanted in zip(layer(x, a), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=ROUNDING, atol=ROUNDING)


def test_an_output_that_no_path_reaches_is_an_error():
    """A tensor of degree 3 cannot be made of scalars with an attribute up to degree 1."""
    with pytest.raises(ValueError, match=r"No path leads from 4x0e to \['3o'\] with an attribute up to l = 1"):
        SteerableProduct(o3.Irreps("4x0e"), o3.Irreps("2x3o"), 1)
