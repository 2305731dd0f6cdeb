"""Representations, commutators and spectra, against scipy's rotations, e3nn's harmonics and dense linear algebra."""

import numpy as np
import pytest
import torch
from e3nn import o3
from scipy.linalg import circulant
from scipy.spatial.transform import Rotation
from torch import Tensor

from haar import action, axis_rotation, haar_average, rotations, turned
from mdrelax.method.groups import (
    FiniteRepresentation,
    IrrepsRepresentation,
    Layout,
    cyclic_regular,
)
from molecules import normal

ROUNDING = 1e-12  # sums of some ten products of numbers of order 1 in float64
LAYOUTS: tuple[Layout, Layout] = ("ir_mul", "mul_ir")
PAIRS = [
    ("3x0e+2x1o+2x2e", "2x0e+3x1o+1x2e"),
    ("2x0e+2x1e+1x2e+1x3o", "1x0o+2x1o+2x1e+1x2o"),  # parities that do and do not match
    ("2x1o+1x0e+1x1o", "1x1o+2x0e+1x1o"),  # an irrep twice, and not in order
]


def pair(irreps_out: str, irreps_in: str, layout: Layout) -> tuple[IrrepsRepresentation, IrrepsRepresentation, Tensor]:
    """Two representations and a random W between them."""
    output, source = IrrepsRepresentation(irreps_out, layout), IrrepsRepresentation(irreps_in, layout)
    return output, source, normal(output.dim, source.dim, seed=1)


each_pair = pytest.mark.parametrize(("irreps_out", "irreps_in"), PAIRS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


# --- rotations and reflections ---------------------------------------------------------------------------------------


@each_layout
@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
def test_the_lie_algebra_generates_scipys_rotations(degree: int, layout: Layout):
    """exp(angle drho(A)) is rho of the rotation by that angle about x, y and z, at every l."""
    representation = IrrepsRepresentation([(2, (degree, 1))], layout)
    eye = torch.eye(representation.dim, dtype=torch.float64)
    for axis, generator in enumerate(representation.lie(eye).mT):  # rows are images: transpose to the matrix
        exponential = torch.matrix_exp(0.7 * generator)
        torch.testing.assert_close(exponential, action(representation, axis_rotation(axis, 0.7)), atol=ROUNDING, rtol=0)


@each_layout
def test_the_inversion_multiplies_by_the_parity(layout: Layout):
    """The one discrete element of O(3) is rho(-1): the parity of each irrep, rotations left alone."""
    representation = IrrepsRepresentation("2x0e+1x0o+2x1o+1x1e+1x2o", layout)
    x = normal(5, representation.dim, seed=0)
    expected = x @ action(representation, -torch.eye(3, dtype=torch.float64)).T
    torch.testing.assert_close(representation.elements(x), expected[None], atol=ROUNDING, rtol=0)


@each_layout
def test_features_turn_as_the_lie_algebra_says(layout: Layout):
    """rho(g) of a random rotation is exp(rotvec . drho); of a reflection the parities times that of -g."""
    representation = IrrepsRepresentation("2x0e+1x0o+2x1o+1x1e+1x2o+1x3e", layout)
    x, rotation = normal(5, representation.dim, seed=0), Rotation.random(random_state=3)
    axes = torch.tensor(rotation.as_rotvec())
    generators = representation.lie(torch.eye(representation.dim, dtype=torch.float64)).mT
    expected = x @ torch.matrix_exp(torch.einsum("a,aij->ij", axes, generators)).T
    matrix = torch.tensor(rotation.as_matrix())
    torch.testing.assert_close(representation.turned(x, matrix), expected, atol=ROUNDING, rtol=0)
    flipped = representation.elements(expected)[0]
    torch.testing.assert_close(representation.turned(x, -matrix), flipped, atol=ROUNDING, rtol=0)
    assert cyclic_regular(4).turned(normal(5, 4, seed=0), matrix) is None  # acts on channels, not in space


@each_layout
def test_split_and_join_are_inverse(layout: Layout):
    """Blocks are (..., D, C) in both layouts, and joined they are the vector again, bit for bit."""
    representation = IrrepsRepresentation("3x0e+2x1o+1x2e", layout)
    x = normal(4, 7, representation.dim, seed=0)
    blocks = representation.split(x)
    assert [block.shape for block in blocks] == [(4, 7, 1, 3), (4, 7, 3, 2), (4, 7, 5, 1)]
    assert torch.equal(representation.join(blocks), x)


def test_an_unknown_layout_is_refused():
    """A layout is ir_mul or mul_ir; the error says so."""
    with pytest.raises(ValueError, match="ir_mul or mul_ir, got 'mulir'"):
        IrrepsRepresentation("2x1o", "mulir")  # type: ignore[arg-type]


# --- commutators -----------------------------------------------------------------------------------------------------


@each_layout
@each_pair
def test_commutators_are_derivatives_of_the_groups_action(irreps_out: str, irreps_in: str, layout: Layout):
    """C_A(W) is d/de of rho_out(exp(eA)) W rho_in(exp(eA))^-1 at 0, about x, y and z.

    Central differences with e = 1e-4: an error of e^2 |W'''| / 6 = 1e-7 at these l, and rounding of 1e-11.
    """
    output, source, weight = pair(irreps_out, irreps_in, layout)
    step = 1e-4
    for axis in range(3):
        ahead, behind = (turned(weight, output, source, axis_rotation(axis, e)) for e in (step, -step))
        torch.testing.assert_close(
            output.commutators(weight, source)[axis], (ahead - behind) / (2 * step), atol=2e-6, rtol=0
        )


@each_layout
@each_pair
def test_the_last_commutator_is_the_inversions(irreps_out: str, irreps_in: str, layout: Layout):
    """C_g(W) = rho_out(-1) W rho_in(-1) - W."""
    output, source, weight = pair(irreps_out, irreps_in, layout)
    expected = turned(weight, output, source, -torch.eye(3, dtype=torch.float64)) - weight
    found = output.commutators(weight, source)
    assert found.shape == (4, output.dim, source.dim)
    torch.testing.assert_close(found[3], expected, atol=ROUNDING, rtol=0)


# --- the equivariant part --------------------------------------------------------------------------------------------


@each_layout
@each_pair
def test_the_equivariant_part_is_the_haar_average(irreps_out: str, irreps_in: str, layout: Layout):
    """P(W) is the mean of rho_out(g) W rho_in(g)^-1 over O(3), here by an exact quadrature over Euler angles."""
    output, source, weight = pair(irreps_out, irreps_in, layout)
    part = output.average(weight, source)
    assert part.norm() > 0.1 * weight.norm()  # there is something to find
    torch.testing.assert_close(part, haar_average(weight, output, source), atol=1e-11, rtol=0)


@each_layout
@each_pair
def test_the_equivariant_part_is_an_orthogonal_projection(irreps_out: str, irreps_in: str, layout: Layout):
    """P(P(W)) = P(W), and W - P(W) is orthogonal to P of any other matrix: nothing equivariant is nearer."""
    output, source, weight = pair(irreps_out, irreps_in, layout)
    part = output.average(weight, source)
    other = output.average(normal(*weight.shape, seed=2), source)
    torch.testing.assert_close(output.average(part, source), part, atol=ROUNDING, rtol=0)
    assert abs(((weight - part) * other).sum().item()) < 1e-11


@each_layout
@each_pair
def test_the_equivariant_part_commutes_with_rotations_and_reflections(irreps_out: str, irreps_in: str, layout: Layout):
    """rho_out(g) P(W) = P(W) rho_in(g) for scipy's random rotations and for their mirror images."""
    output, source, weight = pair(irreps_out, irreps_in, layout)
    part = output.average(weight, source)
    for rotation in rotations(2, seed=3):
        for matrix in (rotation, -rotation):
            torch.testing.assert_close(turned(part, output, source, matrix), part, atol=1e-11, rtol=0)


@each_layout
def test_equal_degrees_of_unequal_parity_have_no_equivariant_part(layout: Layout):
    """Schur's lemma in O(3): 1o -> 1e holds nothing, although its rotations are the same."""
    output, source, weight = pair("2x1e", "2x1o", layout)
    assert output.average(weight, source).norm() == 0
    assert output.blocks(weight, source) == {}


def test_representations_of_two_groups_do_not_mix():
    """A map from irreps of O(3) to a fibre of C4 has no average; the error says why, both ways."""
    continuous, finite = IrrepsRepresentation("1x1o+1x0e"), cyclic_regular(4)
    for output, source in ((continuous, finite), (finite, continuous)):
        with pytest.raises(ValueError, match=r"same (finite )?group"):
            output.average(torch.eye(4, dtype=torch.float64), source)


# --- the symmetry spectrum (law 9) -----------------------------------------------------------------------------------


def casimir_spectrum(weight: Tensor, output: IrrepsRepresentation, source: IrrepsRepresentation) -> Tensor:
    """||W_J||^2 from the eigenspaces of the Casimir operator -sum_A C_A C_A on matrices, eigenvalues J(J+1)."""
    basis = torch.eye(weight.numel(), dtype=torch.float64).view(-1, *weight.shape)
    generators = [g.mT for g in output.lie(torch.eye(output.dim, dtype=torch.float64))]
    others = [g.mT for g in source.lie(torch.eye(source.dim, dtype=torch.float64))]
    casimir = torch.zeros_like(basis)
    for a, b in zip(generators, others, strict=True):
        once = a @ basis - basis @ b
        casimir -= a @ once - once @ b
    values, vectors = torch.linalg.eigh(casimir.flatten(1))
    amounts = (vectors.T @ weight.flatten()).square()
    degrees = ((torch.sqrt(1 + 4 * values.clamp(min=0)) - 1) / 2).round().long()
    return torch.zeros(output.irreps.lmax + source.irreps.lmax + 1).double().index_add(0, degrees, amounts)


@each_layout
@each_pair
def test_the_spectrum_is_that_of_the_casimir_operator(irreps_out: str, irreps_in: str, layout: Layout):
    """||W_J||^2 by Clebsch-Gordan is the weight of W in the eigenspace J(J+1), found by a dense diagonalisation."""
    output, source, weight = pair(irreps_out, irreps_in, layout)
    expected = casimir_spectrum(weight, output, source)
    torch.testing.assert_close(output.spectrum(weight, source), expected, atol=1e-10, rtol=0)


@each_layout
@each_pair
def test_the_lie_penalty_is_the_spectrum_weighted_by_the_casimir(irreps_out: str, irreps_in: str, layout: Layout):
    """sum_A ||C_A(W)||^2 = sum_J J(J+1) ||W_J||^2, and the W_J together are W."""
    output, source, weight = pair(irreps_out, irreps_in, layout)
    spectrum = output.spectrum(weight, source)
    degree = torch.arange(len(spectrum))
    lie = output.commutators(weight, source)[:3].square().sum()
    torch.testing.assert_close((degree * (degree + 1) * spectrum).sum(), lie, rtol=ROUNDING, atol=0)
    torch.testing.assert_close(spectrum.sum(), weight.square().sum(), rtol=ROUNDING, atol=0)


@each_layout
@each_pair
def test_half_the_penalty_bounds_the_distance_to_equivariance(irreps_out: str, irreps_in: str, layout: Layout):
    """||W - P(W)||^2 <= penalty / 2, for random W and for W that are nearly equivariant; tight at J = 1."""
    output, source, weight = pair(irreps_out, irreps_in, layout)
    for size in (1.0, 1e-3):
        part = output.average(weight, source)
        near = part + size * (weight - part)
        distance = (near - part).square().sum()
        assert 0 < distance <= output.commutators(near, source).square().sum() / 2


def test_the_bound_is_reached_by_a_map_between_scalars_and_vectors():
    """l = 1 from l = 0 has J = 1 only, where J(J+1) / 2 = 1: the SO(3) bound is an equality."""
    output, source, weight = pair("2x1e", "3x0e", "ir_mul")
    penalty = output.commutators(weight, source).square().sum()
    torch.testing.assert_close(penalty / 2, weight.square().sum(), rtol=ROUNDING, atol=0)


# --- finite groups ---------------------------------------------------------------------------------------------------


def test_the_average_over_c4_is_the_nearest_circulant_matrix():
    """Maps between regular representations of C_n are circulants; the nearest has the means of the diagonals."""
    weight = normal(4, 4, seed=0)
    means = [np.mean([weight[(k + j) % 4, j].item() for j in range(4)]) for k in range(4)]
    found = cyclic_regular(4).average(weight, cyclic_regular(4))
    np.testing.assert_allclose(found, circulant(means), atol=ROUNDING)


@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_the_average_over_a_finite_group_commutes_with_its_generators(n: int):
    """C_g(P(W)) = 0 for many channels, and C_g(W) is not (but for the group of one element)."""
    output, source = cyclic_regular(n, channels=3), cyclic_regular(n, channels=2)
    weight = normal(output.dim, source.dim, seed=1)
    part = output.average(weight, source)
    assert output.commutators(part, source).abs().sum() < 1e-11
    assert (output.commutators(weight, source).square().sum() > 1) == (n > 1)


def test_a_group_of_quarter_turns_in_the_plane_acts_on_vectors():
    """FiniteRepresentation takes any orthogonal matrices: scipy's quarter turns about z, and 3-vectors in channels."""
    turns = torch.tensor(Rotation.from_rotvec(np.pi / 2 * np.outer(range(4), [0, 0, 1])).as_matrix())
    representation = FiniteRepresentation(turns, channels=2, generators=(1,))
    x = normal(5, 6, seed=0)
    expected = (x.view(5, 2, 3) @ turns[1].T).flatten(1)
    torch.testing.assert_close(representation.elements(x)[0], expected, atol=ROUNDING, rtol=0)
    part = representation.average(normal(6, 6, seed=1), representation)
    quarter = torch.block_diag(turns[1], turns[1])
    torch.testing.assert_close(quarter @ part, part @ quarter, atol=ROUNDING, rtol=0)
    assert part.norm() > 0.5


def test_irreps_may_be_given_as_e3nn_irreps():
    """A string and e3nn's own object mean the same representation."""
    assert IrrepsRepresentation(o3.Irreps("2x0e+1x1o")).irreps == IrrepsRepresentation("2x0e+1x1o").irreps


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("irreps_in", "irreps_out"), PAIRS)
def test_the_norm_of_the_commutators_needs_none_of_them(irreps_in: str, irreps_out: str, layout: Layout):
    """The quadratic form block by block is the sum of squares of all commutators, for several matrices at once."""
    source, output = IrrepsRepresentation(irreps_in, layout), IrrepsRepresentation(irreps_out, layout)
    weights = normal(3, output.dim, source.dim, seed=4)
    expected = sum(output.commutators(weight, source).square().sum() for weight in weights)
    torch.testing.assert_close(output.commutator_norm(weights, source), expected, rtol=ROUNDING, atol=0)


def test_the_norm_of_the_commutators_of_a_finite_group():
    """C4 has no irreps here: the commutators themselves are taken."""
    source, output = cyclic_regular(4, 3), cyclic_regular(4, 2)
    weight = normal(8, 12, seed=5)
    assert output.commutator_norm(weight, source) == output.commutators(weight, source).square().sum()
