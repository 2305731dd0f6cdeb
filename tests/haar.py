"""Rotations as dense matrices, and exact averages over them: the outside truth of the tests about symmetry.

Wigner's matrices are read off e3nn's spherical harmonics, Y(R x) = D(R) Y(x), at points turned by scipy's rotations:
float64 to rounding, and none of the package's own algebra.
"""

from itertools import product

import numpy as np
import torch
from e3nn import o3
from scipy.spatial.transform import Rotation
from torch import Tensor

from mdrelax.method.groups import IrrepsRepresentation

POINTS = Rotation.random(30, random_state=0).as_matrix()[:, 0]  # on the unit sphere


def rotations(n: int, seed: int) -> Tensor:
    """``n`` random rotation matrices (n, 3, 3), scipy's."""
    return torch.tensor(Rotation.random(n, random_state=seed).as_matrix())


def axis_rotation(axis: int, angle: float) -> Tensor:
    """The rotation by ``angle`` about x, y or z, scipy's."""
    return torch.tensor(Rotation.from_rotvec(angle * np.eye(3)[axis]).as_matrix())


def wigner(degree: int, rotation: Tensor) -> Tensor:
    """D of one rotation matrix, (2l+1, 2l+1)."""
    points = torch.tensor(POINTS)
    before = o3.spherical_harmonics(degree, points, normalize=False)
    after = o3.spherical_harmonics(degree, points @ rotation.T, normalize=False)
    return torch.linalg.lstsq(before, after).solution.T


def action(representation: IrrepsRepresentation, matrix: Tensor) -> Tensor:
    """rho(g) as a dense matrix (dim, dim), for a rotation or a rotation times the inversion."""
    sign = torch.det(matrix).sign()
    blocks = []
    for mul, ir in representation.irreps:
        turn = wigner(ir.l, sign * matrix) * (ir.p if sign < 0 else 1)
        eye = torch.eye(mul, dtype=torch.float64)
        blocks.append(torch.kron(turn, eye) if representation.layout == "ir_mul" else torch.kron(eye, turn))
    return torch.block_diag(*blocks)


def turned(weight: Tensor, output: IrrepsRepresentation, source: IrrepsRepresentation, matrix: Tensor) -> Tensor:
    """rho_out(g) W rho_in(g)^-1 by dense matrices."""
    return action(output, matrix) @ weight @ action(source, matrix).T


def haar_average(weight: Tensor, output: IrrepsRepresentation, source: IrrepsRepresentation) -> Tensor:
    """The mean of rho_out(g) W rho_in(g)^-1 over all of O(3), exactly: a product quadrature over Euler angles."""
    band = output.irreps.lmax + source.irreps.lmax  # the integrand is a polynomial of this degree
    around = 2 * np.pi * np.arange(band + 1) / (band + 1)
    cosines, shares = np.polynomial.legendre.leggauss(band // 2 + 1)
    total = torch.zeros_like(weight)
    for (cosine, share), first, last in product(zip(cosines, shares, strict=True), around, around):
        matrix = torch.tensor(Rotation.from_euler("ZYZ", [first, np.arccos(cosine), last]).as_matrix())
        for signed in (matrix, -matrix):
            total += share / 2 * turned(weight, output, source, signed) / 2
    return total / len(around) ** 2
