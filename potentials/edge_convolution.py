"""Depthwise tensor product of edge features with the edge's harmonics, followed by an equivariant linear map.

Differs from e3nn's tensor product in that the harmonics Y of an edge become one small matrix B(Y) for each pair of an
input and an output irrep, shared by all layers, and the product is a batched B(Y) x (depthwise: channels do not mix).
Features are those of ``steerable``; Clebsch-Gordan coefficients are e3nn's.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mdrelax.base import o3
from mdrelax.potentials.steerable import Constant, Features, distinct

__all__ = ["EdgeBasis", "EdgeConvolution"]


class Coupling(NamedTuple):
    """One pair (input irrep, output irrep) of the tensor product with the harmonics: P paths, one per degree l2."""

    source: int  # position of the input irrep, dimension D_i
    output: int  # position of the output irrep, dimension D_o
    n_paths: int
    channels: int  # C of the input irrep
    mix_first: bool  # cheaper to mix channels on the D_i rows before coupling than on the D_o rows after
    rows: int  # of the matrix B: P D_o if coupling first, D_o per path if mixing first
    table: Constant  # (S, rows D_i): harmonics to B(Y)


class EdgeBasis(nn.Module):
    """The matrices B(Y) of the tensor product with the edge's harmonics Y, made once and shared by all layers.

    For an input irrep l1 and an output irrep l3, each l2 of the harmonics that couples them is a path p, and

        B_p[m3, m1] = sum_m2 sqrt(2 l3 + 1) CG[m1, m2, m3] Y_(l2, m2)                       ('component' normalisation)
    """

    def __init__(self, irreps_in: o3.Irreps, irreps_edge: o3.Irreps, irreps_out: o3.Irreps) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = distinct(irreps_in), distinct(irreps_out)
        self.irreps_edge = irreps_edge
        self.couplings = [
            coupling
            for o, (_, ir_out) in enumerate(irreps_out)
            for i, (mul, ir_in) in enumerate(irreps_in)
            if (coupling := _coupling(i, mul, ir_in, irreps_edge, o, ir_out)) is not None
        ]

    def forward(self, harmonics: Tensor) -> list[Tensor]:
        """Harmonics (E, S) to one matrix (E, rows, D_i) per coupling; (E, P D_o, D_i) with rows m3 p or p m3."""
        return [
            (harmonics @ c.table.like(harmonics)).view(harmonics.shape[0], c.rows, self.irreps_in[c.source].ir.dim)
            for c in self.couplings
        ]

    @property
    def weight_sizes(self) -> list[int]:
        """Number of weights per edge for each coupling: one per path and channel."""
        return [c.n_paths * c.channels for c in self.couplings]


def _coupling(i: int, mul: int, ir_in: o3.Irrep, irreps_edge: o3.Irreps, o: int, ir_out: o3.Irrep) -> Coupling | None:
    """The coupling of one pair of irreps, or None if no harmonic couples them."""
    tables = []
    for (_, ir_edge), where in zip(irreps_edge, irreps_edge.slices(), strict=True):
        if ir_out in ir_in * ir_edge:
            table = torch.zeros(irreps_edge.dim, ir_out.dim, ir_in.dim, dtype=torch.float64)
            clebsch_gordan = o3.wigner_3j(ir_in.l, ir_edge.l, ir_out.l, dtype=torch.float64)
            table[where] = math.sqrt(ir_out.dim) * clebsch_gordan.permute(1, 2, 0)
            tables.append(table)
    if not tables:
        return None
    mix_first = ir_in.dim < ir_out.dim
    stacked = torch.stack(tables, dim=1 if mix_first else 2)  # (S, P, D_o, D_i) or (S, D_o, P, D_i)
    return Coupling(i, o, len(tables), mul, mix_first, len(tables) * ir_out.dim, Constant(stacked.flatten(1)))


class EdgeConvolution(nn.Module):
    """Depthwise tensor product with the edge's harmonics, weighted by path and channel, then an equivariant linear map.

    With path weights w and mixing matrices W (the published depthwise product and the linear layer after it),

        y_o = sum_i sum_p B_p (w_p * x_i) W_p + bias

    ``irreps_out`` has the irreps of ``basis.irreps_out`` with any multiplicities.
    """

    def __init__(self, basis: EdgeBasis, irreps_out: o3.Irreps) -> None:
        super().__init__()
        self.basis, self.irreps_out = basis, distinct(irreps_out)
        fan_in = [sum(c.n_paths * c.channels for c in basis.couplings if c.output == o) for o in range(len(irreps_out))]
        self.weights = nn.ParameterList(
            torch.randn(c.n_paths, c.channels, irreps_out[c.output].mul) / math.sqrt(fan_in[c.output])
            for c in basis.couplings
        )
        self.bias = nn.Parameter(torch.zeros(irreps_out[0].mul))

    def forward(
        self, matrices: list[Tensor], x: Features, path_weights: Sequence[Tensor] | None, n_out: int | None = None
    ) -> Features:
        """Edge features x of ``basis.irreps_in`` to edge features of ``irreps_out``, or of its first ``n_out`` irreps.

        ``matrices`` is ``basis(harmonics)``; ``path_weights`` one (E, P C) per coupling, or None for all ones.
        """
        n_edges = x[0].shape[0]
        out: list[Tensor | None] = [None] * len(self.irreps_out[:n_out])
        out[0] = self.bias.expand(n_edges, 1, -1)
        weights = [None] * len(matrices) if path_weights is None else path_weights
        for coupling, matrix, weight, mixing in zip(self.basis.couplings, matrices, weights, self.weights, strict=True):
            if coupling.output >= len(out):
                continue
            add = _mix_then_couple if coupling.mix_first else _couple_then_mix
            out[coupling.output] = add(out[coupling.output], coupling, matrix, x[coupling.source], weight, mixing)
        return tuple(block for block in out if block is not None)


def _couple_then_mix(
    total: Tensor | None, coupling: Coupling, matrix: Tensor, x: Tensor, weight: Tensor | None, mixing: Tensor
) -> Tensor:
    """total + sum_p (w_p * B_p x) W_p; x is (E, D_i, C), the result (E, D_o, C_out)."""
    coupled = _couple(matrix, x)  # (E, D_o P, C)
    n_edges, dim = x.shape[0], matrix.shape[1] // coupling.n_paths
    if weight is not None:
        coupled = coupled.view(n_edges, dim, weight.shape[1]) * weight.unsqueeze(1)
    rows, mixing = coupled.view(n_edges * dim, mixing.shape[0] * mixing.shape[1]), mixing.flatten(0, 1)
    mixed = rows @ mixing if total is None else torch.addmm(total.flatten(0, 1), rows, mixing)
    return mixed.view(n_edges, dim, mixing.shape[1])


def _mix_then_couple(
    total: Tensor | None, coupling: Coupling, matrix: Tensor, x: Tensor, weight: Tensor | None, mixing: Tensor
) -> Tensor:
    """The same sum with the channels mixed before B is applied: fewer rows when D_i < D_o."""
    dim = matrix.shape[1] // coupling.n_paths
    matrices = matrix.split(dim, dim=1) if coupling.n_paths > 1 else (matrix,)
    weights = [None] if weight is None else weight.split(coupling.channels, dim=1)
    for p, part in enumerate(matrices):
        weighted = x if weight is None else x * weights[p].unsqueeze(1)  # type: ignore[union-attr]
        mixed = weighted @ mixing[p]  # (E, D_i, C_out)
        total = _couple(part, mixed) if total is None else _add_coupled(total, part, mixed)
    return total  # type: ignore[return-value]  # there is at least one path


def _couple(matrix: Tensor, x: Tensor) -> Tensor:
    """B x for each edge, (E, R, D) and (E, D, C) to (E, R, C): a batched product, or faster where R or D is 1."""
    if matrix.shape[2] == 1:
        return matrix * x
    if matrix.shape[1] == 1:
        return (matrix.mT * x).sum(1, keepdim=True)
    return torch.bmm(matrix, x)


def _add_coupled(total: Tensor, matrix: Tensor, x: Tensor) -> Tensor:
    """total + B x."""
    return torch.addcmul(total, matrix, x) if matrix.shape[2] == 1 else torch.baddbmm(total, matrix, x)
