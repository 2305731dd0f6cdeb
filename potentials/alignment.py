"""Rotation of edges to the y axis: differentiable Wigner matrices, and the couplings in that frame.

In a frame whose y axis (e3nn's axis of m) is the edge, an equivariant kernel commutes with the rotations about y: from
degree l_i to degree l_o it has one number for each pair (m, +-m) only (Passaro & Zitnick, arXiv 2302.03655). The frame
is any rotation R with R y = r / |r|: neither the kernel nor its derivatives depend on the angle about the edge.

    R = 2 b b^T / |b|^2 - 1,   b = r/|r| + y      on the half sphere around y
    R = F R(F r),              F = diag(1,-1,-1)  on the other half

so |b|^2 >= 2 everywhere and no direction is a pole. D_l(R) follows without angles, from D_1(R) = R and the
Clebsch-Gordan series D_(l+1) = C^T (D_l x D_1) C: polynomials in the entries of R.
"""

from functools import lru_cache

import torch
from torch import Tensor

from mdrelax.base import o3

__all__ = ["axial_couplings", "edge_frames", "wigner_matrices"]


def edge_frames(unit: Tensor) -> Tensor:
    """Rotations R (..., 3, 3) with R y = ``unit`` (..., 3), smooth in every direction."""
    flip = unit.new_tensor([1.0, -1.0, -1.0])
    behind = (unit[..., 1] < 0).unsqueeze(-1)
    half = torch.where(behind, unit * flip, unit)
    b = half + unit.new_tensor([0.0, 1.0, 0.0])
    outer = b.unsqueeze(-1) * b.unsqueeze(-2)
    frame = outer / (1 + half[..., 1])[..., None, None] - torch.eye(3).to(unit)  # |b|^2 = 2 (1 + half_y)
    return torch.where(behind.unsqueeze(-1), flip.unsqueeze(-1) * frame, frame)


def wigner_matrices(rotations: Tensor, lmax: int) -> list[Tensor]:
    """D_l (..., 2l+1, 2l+1) for l = 0..lmax of rotation matrices (..., 3, 3), in e3nn's basis."""
    matrices = [rotations.new_ones(*rotations.shape[:-2], 1, 1), rotations]
    for degree in range(1, lmax):
        coupling = _series(degree).to(rotations)
        left = torch.einsum("...ij,iaM->...jaM", matrices[degree], coupling)
        matrices.append(torch.einsum("...jaM,...ab,jbK->...MK", left, rotations, coupling))
    return matrices[: lmax + 1]


@lru_cache
def _series(degree: int) -> Tensor:
    """The isometry from degree l+1 into the product of degrees l and 1: (2l+1, 3, 2l+3), float64."""
    return (2 * degree + 3) ** 0.5 * o3.wigner_3j(degree, 1, degree + 1, dtype=torch.float64)


def axial_couplings(degree_in: int, degree_out: int) -> Tensor:
    """The kernel's basis along the edge: (2 min + 1, 2 min + 1) numbers, float64; column J - |l_o - l_i|.

    Row m: for even columns the factor of entry m of the input, for odd ones that of entry -m.
    """
    least = min(degree_in, degree_out)
    rows = slice(degree_out - least, degree_out + least + 1)
    columns = slice(degree_in - least, degree_in + least + 1)
    return torch.stack(
        [
            o3.wigner_3j(degree_out, degree_in, total, dtype=torch.float64)[rows, columns, total].sum(0)
            for total in range(abs(degree_in - degree_out), degree_in + degree_out + 1)
        ],
        dim=1,
    )
