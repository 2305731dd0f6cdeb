"""Steerable layers against plain e3nn, weights mapped one to one; and the symmetry of those that e3nn does not have.

e3nn's features are flat, (N, sum of C D) with the channel first; ours are one (N, D, C) per irrep. Both are compared in
float64 to 1e-12: sums of some hundred terms of order one round at 1e-14.
"""

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from torch import Tensor

from mdrelax.potentials.edge_convolution import EdgeBasis, EdgeConvolution
from mdrelax.potentials.steerable import (
    SIGMOID_SCALE,
    SILU_SCALE,
    Constant,
    Features,
    Gate,
    JointLayerNorm,
    Linear,
    SeparableLayerNorm,
    SphericalHarmonics,
    distinct,
    layer_norm,
)
from molecules import normal

same = partial(torch.testing.assert_close, rtol=0, atol=1e-12)

SYMMETRIES = {
    "SE(3)": ("6x0e+4x1e+3x2e", "1x0e+1x1e+1x2e"),
    "E(3)": ("6x0e+4x1o+3x2e", "1x0e+1x1o+1x2e"),
    "all irreps": ("6x0e+2x0o+4x1o+5x1e+3x2e+2x2o", "1x0e+1x1o+1x2e+1x3o"),
    "degree 3": ("4x0e+4x1o+2x2e+3x3o", "1x0e+1x1o"),
}


@pytest.fixture(params=SYMMETRIES)
def irreps(request: pytest.FixtureRequest) -> tuple[o3.Irreps, o3.Irreps]:
    """Irreps of the features and of the edge's harmonics."""
    features, edge = SYMMETRIES[request.param]
    return o3.Irreps(features), o3.Irreps(edge)


@pytest.fixture
def e3nn_in_float64() -> Iterator[None]:
    """e3nn keeps its tables in the default type of the moment a module is built: float32 rounds them to 1e-7."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def _flat(x: Features) -> Tensor:
    """(N, D, C) per irrep to e3nn's flat (N, dim)."""
    return torch.cat([block.transpose(1, 2).flatten(1) for block in x], dim=1)


def _features(irreps: o3.Irreps, n: int, seed: int) -> Features:
    return tuple(normal(n, ir.dim, mul, seed=seed + k) for k, (mul, ir) in enumerate(irreps))


def _shaken(module: Any) -> Any:
    """The module in float64 with every parameter moved, so that no bias is zero."""
    module = module.double()
    for k, parameter in enumerate(module.parameters()):
        parameter.data = normal(*parameter.shape, seed=100 + k)
    return module


def _other_multiplicities(irreps: o3.Irreps) -> o3.Irreps:
    return o3.Irreps([(mul + 2, ir) for mul, ir in irreps])


def _e3nn_linear(irreps_in: o3.Irreps, irreps_out: o3.Irreps, weight: Callable[[int, int], Tensor]) -> o3.Linear:
    """e3nn's linear map with our ``weight(input, output)``, (C_in, C_out), which e3nn divides by sqrt(fan-in)."""
    reference = o3.Linear(irreps_in, irreps_out).double()
    fan_in = dict.fromkeys(range(len(irreps_out)), 0)
    for instruction in reference.instructions:
        fan_in[instruction.i_out] += irreps_in[instruction.i_in].mul
    with torch.no_grad():
        for view, instruction in zip(reference.weight_views(), reference.instructions, strict=True):
            i, o = instruction.i_in, instruction.i_out
            view.copy_(weight(i, o) * math.sqrt(fan_in[o]))
    return reference


@pytest.mark.parametrize("lmax", range(5))
def test_harmonics_are_those_of_e3nn(lmax: int) -> None:
    """Same basis, phases and 'component' normalisation up to degree 4."""
    vectors = normal(50, 3, seed=0)
    expected = o3.spherical_harmonics(list(range(lmax + 1)), vectors, normalize=True, normalization="component")
    same(SphericalHarmonics(lmax)(vectors / vectors.norm(dim=1, keepdim=True)), expected)


def test_harmonics_of_a_negative_degree_are_refused() -> None:
    """A sentence instead of an empty tensor later."""
    with pytest.raises(ValueError, match="at least 0, got -1"):
        SphericalHarmonics(-1)


def test_linear_is_that_of_e3nn(irreps: tuple[o3.Irreps, o3.Irreps]) -> None:
    """One matrix an irrep, and a bias on the even scalars alone."""
    irreps_in, irreps_out = irreps[0], _other_multiplicities(irreps[0])
    layer, x = _shaken(Linear(irreps_in, irreps_out)), _features(irreps_in, 7, seed=1)
    reference = _e3nn_linear(irreps_in, irreps_out, lambda i, o: layer.weights[o])
    expected = reference(_flat(x))
    expected[:, : irreps_out[0].mul] += layer.bias
    same(_flat(layer(x)), expected)


def test_linear_drops_and_reorders_irreps() -> None:
    """The output may have fewer irreps than the input, in another order; one that the input lacks is refused."""
    irreps_in, irreps_out = o3.Irreps("3x0e+4x1o+2x2e"), o3.Irreps("5x2e+6x0e")
    layer, x = _shaken(Linear(irreps_in, irreps_out)), _features(irreps_in, 7, seed=1)
    same(layer(x)[0], x[2] @ layer.weights[0])
    same(layer(x)[1], x[0] @ layer.weights[1] + layer.bias)
    with pytest.raises(ValueError, match=r"cannot map .* to \['1e'\]"):
        Linear(irreps_in, o3.Irreps("3x0e+2x1e"))


def test_a_folded_map_is_added_to_the_linear_one() -> None:
    """``fold`` adds an equivariant map given per pair of equal irreps, (C_out, C_in)."""
    irreps = o3.Irreps("3x0e+2x1o")
    layer, x = _shaken(Linear(irreps, irreps, bias=False)), _features(irreps, 5, seed=2)
    blocks = {(0, 0): normal(3, 3, seed=3), (1, 1): normal(2, 2, seed=4)}
    folded = copy.deepcopy(layer)
    folded.fold(blocks)
    for k in range(2):
        same(folded(x)[k], layer(x)[k] + torch.einsum("oi,ndi->ndo", blocks[k, k], x[k]))


@pytest.mark.parametrize("scalars_only", [False, True])
def test_the_joint_norm_divides_all_irreps_by_one_number(
    irreps: tuple[o3.Irreps, o3.Irreps], scalars_only: bool
) -> None:
    """The root of the mean over irreps of e3nn's mean square norms, scalars centred; or of the scalars' alone."""
    features, _ = irreps
    layer, x = _shaken(JointLayerNorm(features, scalars_only=scalars_only)), _features(features, 7, seed=1)
    centred = (x[0] - x[0].mean(2, keepdim=True), *x[1:])
    norms = o3.Norm(features, squared=True)(_flat(centred)).split([mul for mul, _ in features], dim=1)
    squares = torch.stack([norm.mean(1) / ir.dim for norm, (_, ir) in zip(norms, features, strict=True)])
    size = torch.sqrt((squares[0] if scalars_only else squares.mean(0)) + 1e-5)[:, None, None]
    found = layer(x)
    same(found[0], centred[0] / size * layer.weights[0] + layer.bias)
    for k in range(1, len(features)):
        same(found[k], x[k] / size * layer.weights[k])


def test_norms_of_scalars_are_the_usual_layer_norm() -> None:
    """Of either kind, against torch's."""
    irreps = o3.Irreps("6x0e")
    (x,) = _features(irreps, 7, seed=1)
    for kind in ("joint", "separable"):
        layer = _shaken(layer_norm(kind, irreps))
        same(layer((x,))[0], torch.nn.functional.layer_norm(x, (6,), layer.weights[0], layer.bias, 1e-5))


def test_the_joint_norm_is_linear_in_vectors_that_vanish() -> None:
    """Vectors of 1e-6 and of 1e-3 are divided by the same number to 1e-4; the published norm blows up the smaller."""
    irreps = o3.Irreps("6x0e+4x1o")
    scalars, vectors = _features(irreps, 7, seed=1)
    gains = {}
    for kind in ("joint", "separable"):
        layer = _shaken(layer_norm(kind, irreps))
        gains[kind] = [layer((scalars, size * vectors))[1] / size for size in (1e-6, 1e-3)]
    torch.testing.assert_close(*gains["joint"], rtol=1e-4, atol=0)
    assert (gains["separable"][0] / gains["separable"][1]).min() > 1.01


def test_an_unknown_norm_is_named() -> None:
    """With the words that are known; and a norm needs scalars to stand on."""
    with pytest.raises(ValueError, match=r"must be one of \['joint', 'separable'\], got 'layer'"):
        layer_norm("layer", o3.Irreps("6x0e"))
    with pytest.raises(ValueError, match="needs the invariant scalars first, got 2x1o"):
        layer_norm("joint", o3.Irreps("2x1o"))


def test_the_separable_norm_divides_by_the_norms_of_e3nn(irreps: tuple[o3.Irreps, o3.Irreps]) -> None:
    """Even scalars: torch's layer norm. Every other irrep: divided by the root mean square of its channels' norms."""
    features, _ = irreps
    layer, x = _shaken(SeparableLayerNorm(features)), _features(features, 7, seed=1)
    norms = o3.Norm(features, squared=True)(_flat(x)).split([mul for mul, _ in features], dim=1)
    found = layer(x)
    same(found[0], torch.nn.functional.layer_norm(x[0], x[0].shape[2:], layer.weights[0], layer.bias, 1e-5))
    for k, (_, ir) in list(enumerate(features))[1:]:
        mean_square = norms[k].mean(1)[:, None, None] / ir.dim
        same(found[k], x[k] / torch.sqrt(mean_square + 1e-5) * layer.weights[k])


@pytest.mark.usefixtures("e3nn_in_float64")
def test_gate_is_that_of_e3nn(irreps: tuple[o3.Irreps, o3.Irreps]) -> None:
    """SiLU on the scalars, a sigmoid a channel on the rest, both scaled to keep the second moment of normal input."""
    features, _ = irreps
    scalars, gated = features[:1], features[1:]
    gates = o3.Irreps([(sum(mul for mul, _ in gated), "0e")])
    reference = e3nn_nn.Gate(scalars, [torch.nn.functional.silu], gates, [torch.sigmoid], gated)
    gate = Gate(features)
    x = _features(gate.irreps_in, 7, seed=1)
    known = [ir for _, ir in gate.irreps_in]
    in_order_of_e3nn = tuple(x[known.index(ir)] for _, ir in reference.irreps_in)
    same(_flat(gate(x)), reference(_flat(in_order_of_e3nn)))


def test_activations_keep_the_second_moment() -> None:
    """The scales against the integral over the normal density; e3nn's are sampled with a million numbers, to 2e-3."""
    z = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    for scale, values in ((SILU_SCALE, torch.nn.functional.silu(z)), (SIGMOID_SCALE, torch.sigmoid(z))):
        exact = torch.trapezoid(density * values.square(), z).rsqrt().item()
        assert scale == pytest.approx(exact, rel=2e-3)


@pytest.mark.usefixtures("e3nn_in_float64")
@pytest.mark.parametrize("with_path_weights", [True, False])
def test_edge_convolution_is_e3nns_tensor_product_and_linear(
    irreps: tuple[o3.Irreps, o3.Irreps], with_path_weights: bool
) -> None:
    """Depthwise ('uvu') product with the harmonics, weighted by path and channel, then a linear map and a bias."""
    features, edge = irreps
    out = _other_multiplicities(features)
    basis = EdgeBasis(features, edge, features)
    layer, x = _shaken(EdgeConvolution(basis, out)), _features(features, 7, seed=1)
    unit = torch.nn.functional.normalize(normal(7, 3, seed=2), dim=1)
    harmonics = SphericalHarmonics(edge.lmax)(unit)
    path_weights = [normal(7, size, seed=3 + k) for k, size in enumerate(basis.weight_sizes)]

    middle, instructions, weights, mixing = [], [], [], []
    for k, coupling in enumerate(basis.couplings):  # e3nn's paths in our order: output, input, degree of the edge
        ir_in, ir_out = features[coupling.source].ir, features[coupling.output].ir
        degrees = [j for j, (_, ir_edge) in enumerate(edge) if ir_out in ir_in * ir_edge]
        assert len(degrees) == coupling.n_paths
        for p, j in enumerate(degrees):
            instructions.append((coupling.source, j, len(middle), "uvu", True))
            middle.append((coupling.channels, ir_out))
            weights.append(path_weights[k].unflatten(1, (coupling.n_paths, -1))[:, p])
            mixing.append(layer.weights[k][p])
    product = o3.TensorProduct(features, edge, middle, instructions, shared_weights=False, internal_weights=False)
    given = torch.cat(weights, dim=1) if with_path_weights else torch.ones(7, product.weight_numel).double()
    linear = _e3nn_linear(o3.Irreps(middle), out, lambda i, o: mixing[i])  # each path goes to one output
    expected = linear(product.double()(_flat(x), harmonics, given))
    expected[:, : out[0].mul] += layer.bias

    found = layer(basis(harmonics), x, path_weights if with_path_weights else None)
    same(_flat(found), expected)


def test_both_orders_of_coupling_and_mixing_are_tested() -> None:
    """The comparison with e3nn above covers the cheap order for small inputs and the one for small outputs."""
    for features, edge in SYMMETRIES.values():
        couplings = EdgeBasis(o3.Irreps(features), o3.Irreps(edge), o3.Irreps(features)).couplings
        assert {coupling.mix_first for coupling in couplings} == {True, False}


def test_no_edges_give_no_features() -> None:
    """Empty tensors go through harmonics, basis and convolution with their shapes."""
    features, edge = (o3.Irreps(text) for text in SYMMETRIES["E(3)"])
    basis = EdgeBasis(features, edge, features)
    layer = EdgeConvolution(basis, features).double()
    matrices = basis(SphericalHarmonics(2)(normal(0, 3, seed=0)))
    weights = [normal(0, size, seed=0) for size in basis.weight_sizes]
    found = layer(matrices, _features(features, 0, seed=0), weights)
    assert [tuple(block.shape) for block in found] == [(0, ir.dim, mul) for mul, ir in features]


def test_a_constant_is_not_blurred_by_casts() -> None:
    """A table that was used in float32 is still exact in float64."""
    table = torch.tensor([1 / 3], dtype=torch.float64)
    constant = Constant(table)
    assert constant.like(torch.zeros(1)).dtype == torch.float32
    assert torch.equal(constant.like(table), table)


def test_irreps_that_appear_twice_and_gates_without_scalars_are_refused() -> None:
    """Each irrep has one tensor of features; a gate needs the even scalars first."""
    with pytest.raises(ValueError, match="Each irrep may appear once"):
        distinct(o3.Irreps("4x0e+4x0e"))
    for wrong in ("4x1o", "4x0o+4x1o", ""):
        with pytest.raises(ValueError, match="scalars first"):
            Gate(o3.Irreps(wrong))
