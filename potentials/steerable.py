"""Steerable layers on features kept per irrep, channel last: one contiguous tensor (N, D, C) for each irrep.

Differs from e3nn's layers, which work on flat vectors of dimension sum(mul * D), in
1. the layout: an equivariant linear map is one matrix product per irrep, and nothing is sliced from flat vectors;
2. the tensor product with the edge's harmonics: the harmonics Y become one small matrix B(Y) per input irrep, shared by
   all layers, and the product is a batched B(Y) x (depthwise: channels do not mix).
Irreps, Clebsch-Gordan coefficients, harmonics' phases and the 'component' normalisation are e3nn's.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "SILU_SCALE",
    "Constant",
    "EdgeBasis",
    "EdgeConvolution",
    "Features",
    "Gate",
    "LayerNorm",
    "Linear",
    "SphericalHarmonics",
    "distinct",
]

Features = tuple[Tensor, ...]  # one (N, D, C) per irrep, in the order of the irreps; layers also take the first few

# Scales that keep the second moment of a unit normal input at 1 (e3nn.math.normalize2mom).
SILU_SCALE = 1.6791767923989418
SIGMOID_SCALE = 1.8467055342154763

SCALAR_EPS = 1e-5  # torch's default of the usual layer norm


def distinct(irreps: o3.Irreps) -> o3.Irreps:
    """The irreps themselves; raises ``ValueError`` when one appears twice (each has one tensor of features)."""
    if len({ir for _, ir in irreps}) != len(irreps):
        raise ValueError(f"Each irrep may appear once, got {irreps}; write 8x0e+4x1e, not 4x0e+4x0e+4x1e.")
    return irreps


class Linear(nn.Module):
    """Equivariant linear map: one matrix per irrep, a bias on the invariant scalars. Weights are (C_in, C_out).

    Each irrep of the output must be in the input; initialised to keep the variance (normal, 1 / C_in).
    """

    feature_layout = "ir_mul"

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, *, bias: bool = True) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = distinct(irreps_in), distinct(irreps_out)
        order = [ir for _, ir in irreps_in]
        missing = [str(ir) for _, ir in irreps_out if ir not in order]
        if missing:
            raise ValueError(f"`Linear` cannot make {missing} from {irreps_in}: no equivariant map exists.")
        self.sources = [order.index(ir) for _, ir in irreps_out]
        self.weights = nn.ParameterList(
            torch.randn(irreps_in[i].mul, mul) / math.sqrt(irreps_in[i].mul)
            for i, (mul, _) in zip(self.sources, irreps_out, strict=True)
        )
        scalars = next((mul for mul, ir in irreps_out if ir.is_scalar()), 0)
        self.bias = nn.Parameter(torch.zeros(scalars)) if bias and scalars else None
        self.bias_at = next((k for k, (_, ir) in enumerate(irreps_out) if ir.is_scalar()), -1)

    def forward(self, x: Features) -> Features:
        """Features of ``irreps_in`` to features of ``irreps_out``; of the first few, what can be made of them."""
        n_out = next((k for k, i in enumerate(self.sources) if i >= len(x)), len(self.sources))
        out = [x[i] @ weight for i, weight in zip(self.sources[:n_out], self.weights, strict=False)]
        if self.bias is not None and self.bias_at < n_out:
            out[self.bias_at] = out[self.bias_at] + self.bias
        return tuple(out)

    @torch.no_grad()
    def fold(self, blocks: dict[tuple[int, int], Tensor]) -> None:
        """Add an equivariant map to the weights: (C_out, C_in) for each pair (output, input) of equal irreps."""
        for o, (i, weight) in enumerate(zip(self.sources, self.weights, strict=True)):
            weight += blocks[o, i].T


class LayerNorm(nn.Module):
    """Equivariant layer norm: the usual one on the scalars, other irreps divided by sqrt(<x^2> + eps) over C and D."""

    def __init__(self, irreps: o3.Irreps, eps: float = 1e-5) -> None:
        super().__init__()
        self.irreps, self.eps = distinct(irreps), eps
        self.weights = nn.ParameterList(torch.ones(mul) for mul, _ in irreps)
        scalars = next((mul for mul, ir in irreps if ir.is_scalar()), 0)
        self.bias = nn.Parameter(torch.zeros(scalars))

    def forward(self, x: Features) -> Features:
        """Normalised features of the same irreps."""
        return tuple(
            functional.layer_norm(block, weight.shape, weight, self.bias, SCALAR_EPS)
            if ir.is_scalar()
            else block * (torch.rsqrt(block.square().mean((1, 2), keepdim=True) + self.eps) * weight)
            for block, weight, (_, ir) in zip(x, self.weights, self.irreps, strict=False)
        )


class Gate(nn.Module):
    """Nonlinearity: SiLU on the scalars, every other irrep times the sigmoid of one scalar a channel.

    ``irreps_in`` is ``irreps`` with the gates appended to the scalars' channels.
    """

    def __init__(self, irreps: o3.Irreps) -> None:
        super().__init__()
        self.irreps = distinct(irreps)
        if not irreps or not irreps[0].ir.is_scalar():
            raise ValueError(f"`Gate` wants the invariant scalars first, got {irreps}.")
        self.sizes = [mul for mul, _ in irreps]
        self.irreps_in = o3.Irreps([(sum(self.sizes), irreps[0].ir), *irreps[1:]])

    def forward(self, x: Features) -> Features:
        """Features of ``irreps_in`` to features of ``irreps``."""
        scalars, gates = x[0].split([self.sizes[0], sum(self.sizes[1:])], dim=2)
        if len(x) == 1:
            return (SILU_SCALE * functional.silu(scalars),)
        opened = (SIGMOID_SCALE * torch.sigmoid(gates)).split(self.sizes[1:], dim=2)
        return (SILU_SCALE * functional.silu(scalars), *(g * block for g, block in zip(opened, x[1:], strict=True)))


class Constant:
    """A table kept in float64 whatever the module's dtype: casting a model up and down must not blur its symmetry."""

    def __init__(self, table: Tensor) -> None:
        self.casts = {(torch.float64, torch.device("cpu")): table.double()}
        self.table = table.double()

    def like(self, other: Tensor) -> Tensor:
        """The table in the dtype and on the device of another tensor."""
        key = (other.dtype, other.device)
        if key not in self.casts:
            self.casts[key] = self.table.to(other.device, other.dtype)
        return self.casts[key]


class SphericalHarmonics(nn.Module):
    """Real harmonics of unit vectors up to ``lmax``: (E, 3) -> (E, (lmax+1)^2), e3nn's basis, |Y_l|^2 = 2l + 1.

    Built by the recursion Y_(l+1) = c_l CG(Y_l, Y_1), which is polynomial: any number of derivatives exist.
    """

    def __init__(self, lmax: int) -> None:
        super().__init__()
        if lmax < 0:
            raise ValueError(f"The largest degree of the harmonics must be at least 0, got {lmax}.")
        self.lmax = lmax
        probe = torch.tensor([[0.6, -0.48, 0.64]], dtype=torch.float64)  # any unit vector
        self.couplings: list[Constant] = []
        for degree in range(1, lmax):
            coupling = o3.wigner_3j(degree, 1, degree + 1, dtype=torch.float64).flatten(0, 1)
            lower, upper = (o3.spherical_harmonics(k, probe, False, "component") for k in (degree, degree + 1))
            raw = _outer(lower, math.sqrt(3) * probe) @ coupling
            self.couplings.append(Constant(coupling * ((raw @ upper.T) / (raw @ raw.T))))

    def forward(self, unit: Tensor) -> Tensor:
        """Y_0, Y_1, ... side by side."""
        first = math.sqrt(3) * unit
        harmonics = [torch.ones_like(unit[:, :1]), first][: self.lmax + 1]
        for coupling in self.couplings:
            harmonics.append(_outer(harmonics[-1], first) @ coupling.like(unit))
        return torch.cat(harmonics, dim=1)


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """(E, m), (E, n) -> (E, m n)."""
    return (a.unsqueeze(2) * b.unsqueeze(1)).flatten(1)


class Coupling(NamedTuple):
    """One pair (input irrep, output irrep) of the tensor product with the harmonics: P paths, one a degree l2."""

    source: int  # position of the input irrep, dimension D_i
    output: int  # position of the output irrep, dimension D_o
    n_paths: int
    channels: int  # C of the input irrep
    mix_first: bool  # cheaper to mix channels on the D_i rows before coupling than on the D_o rows after
    rows: int  # of the matrix B: P D_o when coupling first, D_o a path when mixing first
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
        """Weights an edge needs per coupling: one a path and channel."""
        return [c.n_paths * c.channels for c in self.couplings]


def _coupling(i: int, mul: int, ir_in: o3.Irrep, irreps_edge: o3.Irreps, o: int, ir_out: o3.Irrep) -> Coupling | None:
    """The coupling of one pair of irreps, or None where no harmonic couples them."""
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

    With path weights w and mixing matrices W (the published depthwise product and the linear layer behind it),

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
