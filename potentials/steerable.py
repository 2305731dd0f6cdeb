"""Steerable layers on features kept per irrep, channel last: one contiguous tensor (N, D, C) for each irrep.

Differs from e3nn's layers, which work on flat vectors of dimension sum(mul * D), in the layout: an equivariant linear
map is one matrix product per irrep, and nothing is sliced from flat vectors. Irreps, harmonics' phases and the
'component' normalisation are e3nn's.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdrelax.base import o3
from mdrelax.method.sites import Site, irreps_site

__all__ = [
    "SILU_SCALE",
    "Constant",
    "Features",
    "Gate",
    "JointLayerNorm",
    "LayerNorm",
    "Linear",
    "NormKind",
    "SeparableLayerNorm",
    "SphericalHarmonics",
    "distinct",
    "inverse_size",
    "layer_norm",
    "why_rough",
]

Features = tuple[Tensor, ...]  # one (N, D, C) per irrep, in the order of the irreps; layers also take the first few

# Scales that keep the second moment of a unit normal input at 1 (e3nn.math.normalize2mom).
SILU_SCALE = 1.6791767923989418
SIGMOID_SCALE = 1.8467055342154763

SCALAR_EPS = 1e-5  # torch's default of the usual layer norm


def distinct(irreps: o3.Irreps) -> o3.Irreps:
    """The irreps themselves; raises ``ValueError`` if one appears twice (each has one tensor of features)."""
    if len({ir for _, ir in irreps}) != len(irreps):
        raise ValueError(f"Each irrep may appear once, got {irreps}; write 8x0e+4x1e, not 4x0e+4x0e+4x1e.")
    return irreps


class Linear(nn.Module):
    """Equivariant linear map: one matrix per irrep, a bias on the invariant scalars. Weights are (C_in, C_out).

    Each irrep of the output must be in the input; initialised to keep the variance (normal, 1 / C_in).
    """

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, *, bias: bool = True) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = distinct(irreps_in), distinct(irreps_out)
        order = [ir for _, ir in irreps_in]
        missing = [str(ir) for _, ir in irreps_out if ir not in order]
        if missing:
            raise ValueError(f"`Linear` cannot map {irreps_in} to {missing}: no equivariant map exists.")
        self.sources = [order.index(ir) for _, ir in irreps_out]
        self.weights = nn.ParameterList(
            torch.randn(irreps_in[i].mul, mul) / math.sqrt(irreps_in[i].mul)
            for i, (mul, _) in zip(self.sources, irreps_out, strict=True)
        )
        scalars = next((mul for mul, ir in irreps_out if ir.is_scalar()), 0)
        self.bias = nn.Parameter(torch.zeros(scalars)) if bias and scalars else None
        self.bias_at = next((k for k, (_, ir) in enumerate(irreps_out) if ir.is_scalar()), -1)

    def relaxable(self) -> Site:
        """The site of the free map."""
        return irreps_site(self.irreps_in, self.irreps_out, "ir_mul")

    def forward(self, x: Features) -> Features:
        """Features of ``irreps_in`` to features of ``irreps_out``; of the first few, the outputs they determine."""
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


class JointLayerNorm(nn.Module):
    """Equivariant layer norm that divides all irreps by one number, which no symmetry makes vanish.

        x_0 <- x_0 - <x_0>_C        s = mean over irreps of <x^2>_(D,C)        y = w x / sqrt(s + eps), + b on scalars

    | symbol | meaning |
    | --- | --- |
    | x_0 | the invariant scalars (N, 1, C), the only irrep that is centred |
    | s | mean square of a node's features (N, 1, 1), averaged over the irreps, whatever their sizes |
    | w, b | one weight per channel, one bias per scalar channel |

    Where symmetry makes vectors and tensors vanish (a perfect crystal, the C of CH4), y is linear in them, so that
    forces are linear in displacements; compare ``SeparableLayerNorm``. Relatives: the RMS norms of EquiformerV2
    (arXiv 2306.12059) and eSEN (arXiv 2502.12147). ``scalars_only`` takes s from the scalars alone, for a layer whose
    output is read from them.
    """

    def __init__(self, irreps: o3.Irreps, eps: float = 1e-5, *, scalars_only: bool = False) -> None:
        super().__init__()
        self.irreps, self.eps = distinct(irreps), eps
        self.weights, self.bias = _norm_parameters(irreps)
        self.n_measured = 1 if scalars_only else len(irreps)

    def forward(self, x: Features) -> Features:
        """Normalised features of the same irreps; missing ones count as zero."""
        scalars, *others = x
        if self.n_measured == 1:  # for the scalars alone this is the usual layer norm, in one kernel
            normed = functional.layer_norm(scalars, self.bias.shape, self.weights[0], self.bias, self.eps)
            if not others:
                return (normed,)
        # Sums and ``alpha`` instead of means, whose divisions in the backward pass take a seventh of the layer's time.
        centred = (torch.add(scalars, scalars.sum(2, keepdim=True), alpha=-1 / scalars.shape[2]), *others)
        inverse = inverse_size(centred[: self.n_measured], self.eps, n=self.n_measured)
        if self.n_measured > 1:
            normed = torch.addcmul(self.bias, centred[0], inverse * self.weights[0])
        weights = list(self.weights)[1:]
        return (normed, *(block * (inverse * w) for block, w in zip(others, weights, strict=False)))


def inverse_size(blocks: Sequence[Tensor], eps: float, *, n: int) -> Tensor:
    """1 / sqrt(s + eps), (..., 1, 1): s is the mean over n blocks of the mean square of their last two axes.

    Blocks beyond those given are taken as zero.
    """
    mean_square = blocks[0].new_full((), eps)
    for block in blocks:
        share = 1 / (n * block.shape[-2] * block.shape[-1])
        mean_square = torch.add(mean_square, block.square().sum((-2, -1), keepdim=True), alpha=share)
    return mean_square.rsqrt()


class SeparableLayerNorm(nn.Module):
    """The published equivariant layer norm: the usual one on scalars, each other irrep divided by sqrt(<x^2> + eps).

    **Not smooth** where symmetry makes an irrep vanish: a displacement d then reaches the next layer as
    d / sqrt(d^2 + eps), and force constants grow as the displacement shrinks. Kept for published weights and old files.
    """

    def __init__(self, irreps: o3.Irreps, eps: float = 1e-5, *, scalars_only: bool = False) -> None:
        super().__init__()
        self.irreps, self.eps = distinct(irreps), eps
        self.weights, self.bias = _norm_parameters(irreps)

    def forward(self, x: Features) -> Features:
        """Normalised features of the same irreps."""
        return tuple(
            functional.layer_norm(block, weight.shape, weight, self.bias, SCALAR_EPS)
            if ir.is_scalar()
            else block * (torch.rsqrt(block.square().mean((1, 2), keepdim=True) + self.eps) * weight)
            for block, weight, (_, ir) in zip(x, self.weights, self.irreps, strict=False)
        )


def _norm_parameters(irreps: o3.Irreps) -> tuple[nn.ParameterList, nn.Parameter]:
    """Weights, one per channel of each irrep, and the bias of the scalars; the same in both norms."""
    if not irreps or not irreps[0].ir.is_scalar():
        raise ValueError(f"A layer norm needs the invariant scalars first, got {irreps}.")
    return nn.ParameterList(torch.ones(mul) for mul, _ in irreps), nn.Parameter(torch.zeros(irreps[0].mul))


LayerNorm = JointLayerNorm | SeparableLayerNorm
NormKind = Literal["joint", "separable"]
NORMS: dict[str, type[JointLayerNorm] | type[SeparableLayerNorm]] = {
    "joint": JointLayerNorm,
    "separable": SeparableLayerNorm,
}


def layer_norm(kind: str, irreps: o3.Irreps, eps: float = 1e-5, *, scalars_only: bool = False) -> LayerNorm:
    """The layer norm of a kind; raises ``ValueError`` for an unknown one."""
    if kind not in NORMS:
        raise ValueError(f"`norm` must be one of {sorted(NORMS)}, got {kind!r}.")
    return NORMS[kind](irreps, eps, scalars_only=scalars_only)


def why_rough(norm: str) -> str | None:
    """Why the energy of a network with this layer norm is not smooth, as half a sentence; None if it is smooth."""
    if norm != "separable":
        return None
    return (
        "its layer norm is `separable`, which divides vectors by their own size: where symmetry makes them vanish (a "
        "perfect crystal, the C of CH4) force constants grow without bound as the displacement shrinks, so phonons, "
        "vibrations and cold crystals are wrong; train again with `potential.arguments.norm: joint`"
    )


class Gate(nn.Module):
    """Nonlinearity: SiLU on the scalars, every other irrep times the sigmoid of one scalar per channel.

    ``irreps_in`` is ``irreps`` with the gates appended to the scalars' channels.
    """

    def __init__(self, irreps: o3.Irreps) -> None:
        super().__init__()
        self.irreps = distinct(irreps)
        if not irreps or not irreps[0].ir.is_scalar():
            raise ValueError(f"`Gate` needs the invariant scalars first, got {irreps}.")
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
    """A table kept in float64 whatever the module's dtype, so that casting a model does not degrade its symmetry."""

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
        """Y_0, Y_1, ..., concatenated."""
        first = math.sqrt(3) * unit
        harmonics = [torch.ones_like(unit[:, :1]), first][: self.lmax + 1]
        for coupling in self.couplings:
            harmonics.append(_outer(harmonics[-1], first) @ coupling.like(unit))
        return torch.cat(harmonics, dim=1)


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """(E, m), (E, n) -> (E, m n)."""
    return (a.unsqueeze(2) * b.unsqueeze(1)).flatten(1)
