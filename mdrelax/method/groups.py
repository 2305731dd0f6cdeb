"""Representations of rotations, reflections and finite groups, and the equivariance of matrices W between them.

A representation acts on feature vectors (..., dim). For a continuous group it provides the action of the Lie algebra's
basis, for discrete elements the action of the elements themselves. For all groups,

    C_A(W) = drho_out(A) W - W drho_in(A)           A over the Lie algebra's basis
    C_g(W) = rho_out(g) W rho_in(g)^-1 - W          g over the discrete generators

and W is equivariant exactly when every commutator C vanishes. For irreps l_i -> l_o of SO(3) a block of W splits into
components W_J, J = |l_o - l_i| .. l_o + l_i, and sum_A ||C_A(W)||^2 = sum_J J(J+1) ||W_J||^2 (Casimir).

The methods that analyse W belong to the representation of the output and take that of the input (``source``).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from mdrelax.base import o3

__all__ = [
    "Blocks",
    "FiniteRepresentation",
    "IrrepsRepresentation",
    "Representation",
    "cyclic_regular",
    "cyclic_vectors",
]

Layout = Literal["ir_mul", "mul_ir"]
Blocks = dict[tuple[int, int], Tensor]  # mixing matrices (C_out, C_in) of an equivariant map, by (output, input) irrep


class Representation(ABC):
    """An orthogonal action of a group on vectors (..., dim)."""

    dim: int

    @property
    @abstractmethod
    def key(self) -> Hashable:
        """Equal for equal representations."""

    @property
    @abstractmethod
    def is_trivial(self) -> bool:
        """True if every element of the group leaves every vector unchanged."""

    @abstractmethod
    def lie(self, x: Tensor) -> Tensor:
        """Each basis element of the Lie algebra applied to x (..., dim): (A, ..., dim), A = 0 for a finite group."""

    @abstractmethod
    def elements(self, x: Tensor) -> Tensor:
        """Each discrete generator applied to x (..., dim): (G, ..., dim)."""

    @abstractmethod
    def average(self, weight: Tensor, source: "Representation") -> Tensor:
        """P(W), the nearest equivariant map (Frobenius) to ``weight`` (self.dim, source.dim)."""

    @abstractmethod
    def spectrum(self, weight: Tensor, source: "Representation") -> Tensor:
        """Squared norms of the components of ``weight``, ||W||^2 in sum; only the first can be equivariant."""

    def blocks(self, weight: Tensor, source: "Representation") -> Blocks | None:
        """P(W) as mixing matrices between equal irreps, or None if the representation is not given as irreps."""
        return None

    def turned(self, x: Tensor, matrix: Tensor) -> Tensor | None:
        """rho(g) x of vectors x (..., dim), g being the rotation or reflection of space with the ``matrix`` (3, 3).

        None for groups that do not act in space. Used by audits only, not by training or projection.
        """
        return None

    def commutators(self, weight: Tensor, source: "Representation") -> Tensor:
        """All commutators C_A(W) and C_g(W) of ``weight`` (..., dim_out, dim_in): (A + G, ..., dim_out, dim_in)."""
        columns = weight.mT
        lie = self.lie(columns).mT + source.lie(weight)  # antisymmetric generators: W drho = -drho applied to rows
        turned = source.elements(weight)  # W rho_in(g)^-1
        discrete = [self.elements(t.mT)[k].mT - weight for k, t in enumerate(turned)]
        return torch.cat([lie, torch.stack(discrete)]) if discrete else lie

    def commutator_norm(self, weight: Tensor, source: "Representation") -> Tensor:
        """The sum of squares of ``commutators``, a scalar."""
        return self.commutators(weight, source).square().sum()


@lru_cache
def rotation_generators(degree: int) -> Tensor:
    """The generators of rotations about x, y and z in irrep l: (3, 2l+1, 2l+1), antisymmetric, float64.

    e3nn's ``so3_generators`` are rounded to float32 and missing from its older versions; these are the same matrices
    from its exact Clebsch-Gordan coefficients, scaled by sum_a X_a^2 = -l(l+1), with the sign of [X_x, X_y] = X_z.
    """
    coupling = o3.wigner_3j(degree, degree, 1, dtype=torch.float64).permute(2, 0, 1)
    x, y, z = math.sqrt(degree * (degree + 1) * (2 * degree + 1)) * coupling
    return torch.stack([x, y, z]) * torch.sign(((x @ y - y @ x) * z).sum())


def wigner_matrix(degree: int, rotation: Tensor) -> Tensor:
    """D of irrep l for a rotation matrix (3, 3): (2l+1, 2l+1), float64.

    Computed from e3nn's harmonics at points of the sphere, Y(R x) = D(R) Y(x). e3nn's own ``D_from_matrix`` goes
    through angles that are rounded to float32.
    """
    points = torch.randn(4 * (2 * degree + 1), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    there, here = points @ rotation.to(points).T, points
    after, before = (o3.spherical_harmonics(degree, x, normalize=True) for x in (there, here))
    return torch.linalg.lstsq(before, after).solution.T


class IrrepsRepresentation(Representation):
    """O(3) acting on irreps: rotations by their three generators, the inversion as a discrete element.

    ``layout`` defines how a vector is flattened, irrep by irrep: ``ir_mul`` is (D, C), channel last; ``mul_ir`` is (C,
    D), e3nn's own. For irreps of even parity only, the inversion does nothing and the group is SO(3).
    """

    def __init__(self, irreps: o3.Irreps | str, layout: Layout = "ir_mul") -> None:
        if layout not in ("ir_mul", "mul_ir"):
            raise ValueError(f"`layout` must be ir_mul or mul_ir, got {layout!r}.")
        self.irreps, self.layout = o3.Irreps(irreps), layout
        self.dim = self.irreps.dim

    @property
    def key(self) -> Hashable:
        """Irreps and layout."""
        return self.irreps, self.layout

    @property
    def is_trivial(self) -> bool:
        """True for even scalars."""
        return all(ir.l == 0 and ir.p == 1 for _, ir in self.irreps)

    def split(self, x: Tensor) -> list[Tensor]:
        """x (..., dim) as one (..., D, C) per irrep."""
        blocks = x.split([mul * ir.dim for mul, ir in self.irreps], dim=-1)
        if self.layout == "ir_mul":
            return [b.unflatten(-1, (ir.dim, mul)) for b, (mul, ir) in zip(blocks, self.irreps, strict=True)]
        return [b.unflatten(-1, (mul, ir.dim)).mT for b, (mul, ir) in zip(blocks, self.irreps, strict=True)]

    def join(self, blocks: list[Tensor]) -> Tensor:
        """The inverse of ``split``."""
        ordered = blocks if self.layout == "ir_mul" else [block.mT for block in blocks]
        return torch.cat([block.flatten(-2) for block in ordered], dim=-1)

    def lie(self, x: Tensor) -> Tensor:
        """The generators of the rotations about x, y and z applied per irrep: (3, ..., dim)."""
        out = []
        for block, (_, ir) in zip(self.split(x), self.irreps, strict=True):
            if ir.l == 0:
                out.append(torch.zeros_like(block).expand(3, *block.shape))
            else:
                out.append(torch.einsum("aij,...jc->a...ic", rotation_generators(ir.l).to(x), block))
        return self.join(out)

    def elements(self, x: Tensor) -> Tensor:
        """The inversion applied to x: (1, ..., dim)."""
        return self.join([ir.p * b for b, (_, ir) in zip(self.split(x), self.irreps, strict=True)]).unsqueeze(0)

    def turned(self, x: Tensor, matrix: Tensor) -> Tensor:
        """By ``wigner_matrix``, and by the parities for a reflection."""
        sign = torch.det(matrix).sign()
        turns = [(wigner_matrix(ir.l, sign * matrix), ir.p if sign < 0 else 1) for _, ir in self.irreps]
        blocks = zip(self.split(x), turns, strict=True)
        return self.join([parity * turn.to(block) @ block for block, (turn, parity) in blocks])

    def average(self, weight: Tensor, source: Representation) -> Tensor:
        """P(W): by Schur's lemma, multiples of the identity between equal irreps and zero elsewhere."""
        source = _irreps(source)
        rows = []
        blocks = self.blocks(weight, source)
        for o, (mul_out, ir_out) in enumerate(self.irreps):
            row = []
            for i, (mul_in, ir_in) in enumerate(source.irreps):
                block = weight.new_zeros(ir_out.dim, mul_out, ir_in.dim, mul_in)
                if (o, i) in blocks:
                    block[:] = torch.einsum("de,oi->doei", torch.eye(ir_out.dim).to(weight), blocks[o, i])
                row.append(block.flatten(2) if source.layout == "ir_mul" else block.mT.flatten(2))
            whole = torch.cat(row, dim=2)  # (D, C, dim_in)
            rows.append((whole if self.layout == "ir_mul" else whole.transpose(0, 1)).flatten(0, 1))
        return torch.cat(rows)

    def blocks(self, weight: Tensor, source: Representation) -> Blocks:
        """P(W) as mixing matrices (C_out, C_in), one for each pair (output, input) of equal irreps."""
        source = _irreps(source)
        return {
            (o, i): torch.einsum("dcdk->ck", block) / block.shape[0]
            for (o, i), block in _blocks(weight, self, source).items()
            if self.irreps[o].ir == source.irreps[i].ir
        }

    def spectrum(self, weight: Tensor, source: Representation) -> Tensor:
        """||W_J||^2 for J = 0, 1, ...: the weight of each degree.

        Only the part of the J = 0 entry between irreps of equal parity is equivariant.
        """
        source = _irreps(source)
        largest = max(ir.l for _, ir in self.irreps) + max(ir.l for _, ir in source.irreps)
        spectrum = weight.new_zeros(largest + 1)
        for (o, i), block in _blocks(weight, self, source).items():
            l_out, l_in = self.irreps[o].ir.l, source.irreps[i].ir.l
            for degree in range(abs(l_out - l_in), l_out + l_in + 1):
                coupling = o3.wigner_3j(l_out, l_in, degree, dtype=torch.float64).to(weight)
                component = torch.einsum("ocik,oiM->Mck", block, coupling)
                spectrum[degree] += (2 * degree + 1) * component.square().sum()
        return spectrum

    def commutator_norm(self, weight: Tensor, source: Representation) -> Tensor:
        """The sum of squares of ``commutators``, a scalar, without computing them.

        A block W_oi of irreps, as a vector w over its components for each pair of channels, contributes ||F w||^2 with
        one small matrix F, F^T F = sum_A C_A^T C_A; for l = 0 on one side F is a number (Casimir).
        """
        source = _irreps(source)
        total = weight.new_zeros(())
        for (o, i), block in _blocks(weight, self, source).items():
            ir_out, ir_in = self.irreps[o].ir, source.irreps[i].ir
            if min(ir_out.l, ir_in.l) == 0:
                degree = max(ir_out.l, ir_in.l)
                number = degree * (degree + 1) + (4 if ir_out.p != ir_in.p else 0)
                total = total + number * block.square().sum()
            else:
                flat = block.movedim(-2, -3).flatten(-2).flatten(-3, -2)  # (..., D_o D_i, C_o C_i)
                total = total + (_commutator_root(ir_out, ir_in).to(flat) @ flat).square().sum()
        return total


class FiniteRepresentation(Representation):
    """A finite group acting on C channels of a small fibre: vectors are (C, d) flattened.

    ``matrices`` (|G|, d, d) are all the elements, orthogonal; ``generators`` the positions of those that generate it.
    A group with one generator is C_n: element k is the turn by 2 pi k / n, also of grids, where a quarter turn is
    ``torch.rot90(x, 1, (-2, -1))`` (counter-clockwise in an image whose first row is on top).
    """

    def __init__(self, matrices: Tensor, channels: int, generators: tuple[int, ...]) -> None:
        self.matrices, self.channels, self.generators = matrices.double(), channels, generators
        self.dim = channels * matrices.shape[1]

    @property
    def key(self) -> Hashable:
        """Every matrix, and the channels."""
        return self.channels, self.generators, *self.matrices.flatten().tolist()

    @property
    def is_trivial(self) -> bool:
        """True if every matrix is the identity."""
        return torch.equal(self.matrices, torch.eye(self.matrices.shape[1]).double().expand_as(self.matrices))

    def lie(self, x: Tensor) -> Tensor:
        """A finite group has no Lie algebra: (0, ..., dim)."""
        return x.new_zeros(0, *x.shape)

    def elements(self, x: Tensor) -> Tensor:
        """The generators applied to x: (G, ..., dim)."""
        return self._apply(self.matrices[list(self.generators)], x)

    def average(self, weight: Tensor, source: Representation) -> Tensor:
        """The mean of rho_out(g) W rho_in(g)^-1 over the group."""
        return self._orbit(weight, source).mean(0)

    def spectrum(self, weight: Tensor, source: Representation) -> Tensor:
        """||W_f||^2 per irrep of the group, see ``orbit_spectrum``."""
        return orbit_spectrum(self._orbit(weight, source), cyclic=len(self.generators) < 2)

    def orbit_of_kernel(self, weight: Tensor, source: Representation) -> Tensor:
        """rho_out(g) K(g^-1 .) rho_in(g)^-1 of a convolution's kernel (dim_out, dim_in, k, k) for each g: (|G|, ...).

        Raises ``ValueError`` for groups other than C_1, C_2 and C_4, which do not turn the grid onto itself.
        """
        n = len(self.matrices)
        if len(self.generators) > 1 or n not in (1, 2, 4):
            raise ValueError(f"A square grid is turned by C_1, C_2 and C_4 only, got a group of {n} elements.")
        points = weight.permute(2, 3, 0, 1)  # (k, k, dim_out, dim_in)
        turned = self._orbit(points, source).permute(0, 3, 4, 1, 2)
        return torch.stack([torch.rot90(w, 4 * k // n, (-2, -1)) for k, w in enumerate(turned)])

    def _orbit(self, weight: Tensor, source: Representation) -> Tensor:
        """rho_out(g) W rho_in(g)^-1 for every g: (|G|, ..., dim_out, dim_in)."""
        if not isinstance(source, FiniteRepresentation) or len(source.matrices) != len(self.matrices):
            raise ValueError("Both representations must be of the same finite group.")
        turned = source._apply(source.matrices, weight)  # W rho_in(g)^-1, rho orthogonal
        return torch.stack([self._apply(m[None], w.mT)[0].mT for m, w in zip(self.matrices, turned, strict=True)])

    def _apply(self, matrices: Tensor, x: Tensor) -> Tensor:
        fibres = x.unflatten(-1, (self.channels, -1))
        return torch.einsum("gij,...cj->g...ci", matrices.to(x), fibres).flatten(-2)


def orbit_spectrum(orbit: Tensor, *, cyclic: bool) -> Tensor:
    """||W_f||^2 of a map from its orbit (n, ...) under a finite group.

    For C_n, f = 0 .. n/2 is the frequency of W_f along the orbit, f and n - f together; for other groups the spectrum
    has two entries, the equivariant part and the rest.
    """
    if not cyclic:
        part = orbit.mean(0)
        return torch.stack([part.square().sum(), (orbit[0] - part).square().sum()])
    squares = torch.fft.fft(orbit, dim=0, norm="forward").abs().square().flatten(1).sum(1)
    n = len(squares)
    return torch.stack([squares[f] + (squares[n - f] if 0 < f < n - f else 0) for f in range(n // 2 + 1)])


def cyclic_regular(n: int, channels: int = 1) -> FiniteRepresentation:
    """The regular representation of C_n (rotations by 2 pi / n): element k shifts the fibre's entries by k."""
    shifts = torch.stack([torch.roll(torch.eye(n, dtype=torch.float64), k, dims=0) for k in range(n)])
    return FiniteRepresentation(shifts, channels, generators=(1,) if n > 1 else ())


def cyclic_vectors(n: int, channels: int = 1) -> FiniteRepresentation:
    """Vectors (right, up) of the plane under C_n: element k turns them counter-clockwise by 2 pi k / n."""
    angles = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    c, s = angles.cos(), angles.sin()
    turns = torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)
    return FiniteRepresentation(turns, channels, generators=(1,) if n > 1 else ())


@lru_cache
def _commutator_root(ir_out: o3.Irrep, ir_in: o3.Irrep) -> Tensor:
    """F over the entries (m_o, m_i) of a block without channels: (rank, D_o D_i), float64."""
    sides = IrrepsRepresentation(o3.Irreps([(1, ir_out)])), IrrepsRepresentation(o3.Irreps([(1, ir_in)]))
    units = torch.eye(ir_out.dim * ir_in.dim, dtype=torch.float64).view(-1, ir_out.dim, ir_in.dim)
    images = sides[0].commutators(units, sides[1]).transpose(0, 1).flatten(1)  # (D_o D_i, entries of all commutators)
    values, vectors = torch.linalg.eigh(images @ images.T)  # 0, or J(J+1) >= 2, or those + 4
    kept = values > 1
    return values[kept].sqrt().unsqueeze(1) * vectors.T[kept]


def _blocks(
    weight: Tensor, output: IrrepsRepresentation, source: IrrepsRepresentation
) -> dict[tuple[int, int], Tensor]:
    """W (..., dim_out, dim_in) as blocks (..., D_out, C_out, D_in, C_in) per pair of irreps."""
    pairs = {}
    for i, columns in enumerate(source.split(weight)):  # (..., dim_out, D_in, C_in)
        for o, block in enumerate(output.split(columns.movedim(-3, -1))):  # (..., D_in, C_in, D_out, C_out)
            pairs[o, i] = block.movedim((-2, -1), (-4, -3))
    return pairs


def _irreps(representation: Representation) -> IrrepsRepresentation:
    if not isinstance(representation, IrrepsRepresentation):
        raise ValueError("Both representations must be of the same group; one is of O(3), the other is not.")
    return representation
