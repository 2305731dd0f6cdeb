"""Edge frames and Wigner matrices: exact, the same as e3nn's, and without poles."""

import pytest
import torch
from e3nn import o3

from mdrelax.potentials.alignment import axial_couplings, edge_frames, wigner_matrices
from molecules import normal

Y = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
ROUNDING = 1e-13  # a few products of numbers of size 1, each 1e-16


def _directions() -> torch.Tensor:
    """Random ones, the axes both ways, and some close to -y."""
    axes = torch.eye(3, dtype=torch.float64)
    near = -Y + torch.tensor([[1e-4, 0, 0], [1e-8, 0, 1e-9], [0, 0, -1e-12]], dtype=torch.float64)
    vectors = torch.cat([normal(50, 3, seed=0), axes, -axes, near])
    return vectors / vectors.norm(dim=1, keepdim=True)


def test_frames_are_rotations_that_take_y_to_the_edge():
    """R y = r / |r|, R R^T = 1, det R = 1; along every axis and beside the pole of a single chart."""
    unit = _directions()
    frames = edge_frames(unit)
    torch.testing.assert_close(frames @ Y, unit, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(frames @ frames.mT, torch.eye(3).double().expand_as(frames), rtol=0, atol=ROUNDING)
    torch.testing.assert_close(torch.linalg.det(frames), torch.ones(len(unit)).double(), rtol=0, atol=ROUNDING)


def test_wigner_matrices_represent_rotations():
    """D(R S) = D(R) D(S) and D D^T = 1 up to l = 4; they are e3nn's, whose own are rounded to about 1e-6."""
    one, two = edge_frames(_directions()[:20]), edge_frames(_directions()[20:40])
    for degree, (a, b, both) in enumerate(
        zip(wigner_matrices(one, 4), wigner_matrices(two, 4), wigner_matrices(one @ two, 4), strict=True)
    ):
        torch.testing.assert_close(a @ b, both, rtol=0, atol=ROUNDING)
        torch.testing.assert_close(a @ a.mT, torch.eye(2 * degree + 1).double().expand_as(a), rtol=0, atol=ROUNDING)
        torch.testing.assert_close(a, o3.Irrep(degree, 1).D_from_matrix(one), rtol=0, atol=1e-5)


def test_harmonics_of_an_edge_are_those_of_y_turned():
    """Y_l(r) = D_l(R) Y_l(y), to the rounding of e3nn's own harmonics (1e-6)."""
    unit = _directions()
    for degree, matrices in enumerate(wigner_matrices(edge_frames(unit), 3)):
        expected = o3.spherical_harmonics(degree, unit, normalize=True)
        found = matrices @ o3.spherical_harmonics(degree, Y, normalize=True)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def _kernel(vectors: torch.Tensor, degree_in: int, degree_out: int, radial: torch.Tensor) -> torch.Tensor:
    """D_out K D_in^T with K of the couplings and one number for each of them."""
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    matrices = wigner_matrices(edge_frames(unit), max(degree_in, degree_out))
    coupling, least = axial_couplings(degree_in, degree_out) * radial, min(degree_in, degree_out)
    core = torch.diag(coupling[:, ::2].sum(1)) + torch.diag(coupling[:, 1::2].sum(1)).flip(1)
    cut = slice(degree_in - least, degree_in + least + 1)
    middle = matrices[degree_out][:, :, degree_out - least : degree_out + least + 1] @ core
    return middle @ matrices[degree_in].mT[:, cut]


@pytest.mark.parametrize(("degree_in", "degree_out"), [(1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 2)])
def test_kernels_turn_with_the_edge(degree_in: int, degree_out: int):
    """K(S r) = D_out(S) K(r) D_in(S)^T for a random rotation S, with any numbers in front of the couplings."""
    vectors = _directions()
    radial = normal(2 * min(degree_in, degree_out) + 1, seed=2)
    rotation = edge_frames(_directions()[:1])[0] @ edge_frames(_directions()[1:2])[0]
    turn = wigner_matrices(rotation, 3)
    expected = turn[degree_out] @ _kernel(vectors, degree_in, degree_out, radial) @ turn[degree_in].T
    found = _kernel(vectors @ rotation.T, degree_in, degree_out, radial)
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)


def test_kernels_and_their_slopes_have_no_pole():
    """d K / d r along y and -y agrees with a central difference to 1e-8 (steps of 1e-5 err by their square)."""
    radial, h = normal(3, seed=3), 1e-5
    for vector in (Y, -Y):
        for direction in torch.eye(3, dtype=torch.float64):
            ends = torch.stack([vector + h * direction, vector - h * direction])
            plus, minus = _kernel(ends, 1, 2, radial)
            _, slope = torch.autograd.functional.jvp(
                lambda v: _kernel(v, 1, 2, radial)[0], vector[None], direction[None], strict=False
            )
            torch.testing.assert_close(slope, (plus - minus) / (2 * h), rtol=0, atol=1e-8)
