"""Equiformer: equivariant graph attention with nonlinear messages (Liao & Smidt, ICLR 2023, arXiv 2206.11990).

Each block is, with pre-norm and residuals (their figure 1),

    x <- x + Attention(Norm(x))        x <- x + FeedForward(Norm(x))

and a message from source j to target i (their eqs. 4 to 7) with the edge's harmonics Y and radial weights w(r) is

    m = DTP_w(r)(L_s x_j + L_t x_i, Y)     a = v . lrelu(L_a m)     u = L_u DTP(Gate(L_m m), Y)
    x_i += L_o sum_j softmax_j(a) u

Differs from the published network in
1. the softmax over neighbours carries the envelope f(r) and a null neighbour of logit 0,
   alpha_j = f_j exp(a_j) / (1 + sum_k f_k exp(a_k)): energy and forces stay C2 when an atom crosses the cut-off, and an
   atom without neighbours needs no special case; the degree embedding carries f(r) too;
2. of its 3,496,001 parameters, the 73,280 of the degree embedding that always multiply zeros are left out, and so are
   the 6,144 that only repeat a neighbouring one (path weights before a mixing matrix, biases on embeddings);
3. one embedding row per element of the model instead of 64;
4. energies are per atom, without the division by sqrt(18.03) of the published read-out.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from e3nn import o3
from torch import Tensor, nn
from torch.nn import functional

from mdrelax.potentials.arguments import check_numbers
from mdrelax.potentials.edge_convolution import EdgeBasis, EdgeConvolution
from mdrelax.potentials.edges import Edges, make_edges
from mdrelax.potentials.radial import BesselBasis, ExpNormalBasis, RadialNetworks, polynomial_envelope
from mdrelax.potentials.steerable import (
    SILU_SCALE,
    Features,
    Gate,
    LayerNorm,
    Linear,
    SphericalHarmonics,
)

__all__ = ["Equiformer", "smooth_leaky_relu"]

RADIAL_BASES = {"bessel": BesselBasis, "expnormal": ExpNormalBasis}


class Attention(nn.Module):
    """Equivariant graph attention over the neighbours with H heads.

    Nonlinear messages pass a gate and a second tensor product before they are summed; linear ones (the paper's
    ablation, half the cost) are summed as they come out of the first.
    """

    def __init__(self, irreps: o3.Irreps, basis: EdgeBasis, n_heads: int, nonlinear: bool) -> None:
        super().__init__()
        self.n_heads = n_heads
        scalars = irreps[0].mul
        self.gate = Gate(irreps) if nonlinear else None
        value = self.gate.irreps_in if self.gate else irreps
        message = o3.Irreps([(scalars + value[0].mul, irreps[0].ir), *irreps[1:]])
        self.source = Linear(irreps, irreps)
        self.target = Linear(irreps, irreps, bias=False)
        self.message = EdgeConvolution(basis, message)  # the logits' scalars first, then what the gate takes
        self.logit = nn.Parameter(_glorot(n_heads, scalars // n_heads))
        self.value = EdgeConvolution(basis, irreps) if nonlinear else None
        self.out = Linear(irreps, irreps)
        self.n_logit_scalars = scalars

    def forward(self, x: Features, edges: Edges, radial_weights: Sequence[Tensor], n_out: int) -> Features:
        """Node features (N, D, C) per irrep to an update of the first ``n_out`` irreps; (E, W) weights per coupling."""
        sent, received = self.source(x), self.target(x)
        message = tuple(
            s.index_select(0, edges.source) + edges.at_target(t) for s, t in zip(sent, received, strict=True)
        )
        mixed = self.message(edges.matrices, message, radial_weights, n_out if self.gate is None else None)
        for_logits, scalars = mixed[0].split([self.n_logit_scalars, mixed[0].shape[2] - self.n_logit_scalars], dim=2)
        weights = self._softmax(for_logits, edges)  # (E, 1, H, 1)
        value: Features = (scalars, *mixed[1:])
        if self.gate is not None and self.value is not None:
            value = self.value(edges.matrices, self.gate(value), None, n_out)
        summed = tuple(edges.sum_at_target((v.unflatten(2, (self.n_heads, -1)) * weights).flatten(2)) for v in value)
        return self.out(summed)

    def _softmax(self, scalars: Tensor, edges: Edges) -> Tensor:
        """Attention weights (E, 1, H, 1): softmax with envelope and a null neighbour (difference 1 of the module)."""
        activated = smooth_leaky_relu(scalars.view(scalars.shape[0], *self.logit.shape))
        logits = (activated * self.logit).sum(2)  # (E, H)
        largest = edges.max_at_target(logits.detach())
        raised = edges.envelope * torch.exp(logits - edges.at_target(largest))
        total = torch.exp(-largest) + edges.sum_at_target(raised)
        return (raised / edges.at_target(total))[:, None, :, None]


class FeedForward(nn.Module):
    """Equivariant feed-forward network: linear - gate - linear, atom by atom.

    Its output depends on the first ``n_read`` irreps of the input: scalars come from scalars alone.
    """

    feature_layout = "ir_mul"

    def __init__(self, irreps_in: o3.Irreps, irreps_middle: o3.Irreps, irreps_out: o3.Irreps) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = irreps_in, irreps_out
        self.gate = Gate(irreps_middle)
        self.n_read = len(irreps_in) if any(not ir.is_scalar() for _, ir in irreps_out) else 1
        self.up = Linear(irreps_in, self.gate.irreps_in)
        self.down = Linear(irreps_middle, irreps_out)

    def forward(self, x: Features) -> Features:
        """Features of ``irreps_in`` to features of ``irreps_out``."""
        return self.down(self.gate(self.up(x)))


class BlockSizes(NamedTuple):
    """The arguments of ``Equiformer`` that a block needs."""

    n_heads: int
    expansion: int
    nonlinear_messages: bool
    norm_eps: float


class Block(nn.Module):
    """Attention and feed-forward network, each behind a norm and beside a residual."""

    def __init__(self, irreps: o3.Irreps, irreps_out: o3.Irreps, basis: EdgeBasis, sizes: BlockSizes) -> None:
        super().__init__()
        middle = o3.Irreps([(sizes.expansion * mul, ir) for mul, ir in irreps])
        self.norm_1 = LayerNorm(irreps, sizes.norm_eps)
        self.attention = Attention(irreps, basis, sizes.n_heads, sizes.nonlinear_messages)
        self.norm_2 = LayerNorm(irreps, sizes.norm_eps)
        self.feed_forward = FeedForward(irreps, middle, irreps_out)
        self.shortcut = None if irreps == irreps_out else Linear(irreps, irreps_out)

    def forward(self, x: Features, edges: Edges, radial_weights: Sequence[Tensor]) -> Features:
        """Node features of one depth to those of the next."""
        n_read = getattr(self.feed_forward, "n_read", len(x))  # a free map reads everything
        x = _add(x[:n_read], self.attention(self.norm_1(x), edges, radial_weights, n_read))
        residual = x if self.shortcut is None else self.shortcut(x)
        return _add(residual, self.feed_forward(self.norm_2(x)))


class Equiformer(nn.Module):
    """Per-atom energies from species and edge vectors; the shapes and units are those of ``forcefield.Potential``.

    ``irreps`` are the node features, scalars first, each irrep once; degrees of one parity (``128x0e+64x1e+32x2e``, as
    published) give SE(3) symmetry, natural parities (``128x0e+64x1o+32x2e``) give E(3). Multiplicities must be
    divisible by ``n_heads``. ``average_neighbors`` is the mean number of edges an atom has in the training data. The
    last block gives ``n_features`` scalars to the read-out. ``norm_eps`` (published: 1e-5) is added to the mean square
    of a node's vectors and tensors before they are divided by its root: where symmetry makes them vanish (crystals)
    they grow by at most norm_eps^(-1/2), and forces with them, so condensed matter wants 1e-2.
    """

    relax_where = ("blocks.*.feed_forward",)  # the paper's place: beside the feed-forward network of each block

    def __init__(
        self,
        n_species: int,
        *,
        irreps: str | o3.Irreps = "128x0e+64x1e+32x2e",
        n_blocks: int = 6,
        cutoff: float = 5.0,
        n_heads: int = 4,
        lmax_edge: int | None = None,
        nonlinear_messages: bool = True,
        expansion: int = 3,
        n_features: int = 512,
        radial_basis: Literal["expnormal", "bessel"] = "expnormal",
        n_basis: int = 32,
        radial_hidden: int = 64,
        average_neighbors: float = 15.58,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        irreps = o3.Irreps(irreps)
        sizes = {"n_species": n_species, "n_blocks": n_blocks, "n_heads": n_heads, "expansion": expansion}
        sizes |= {"n_features": n_features, "n_basis": n_basis, "radial_hidden": radial_hidden}
        check_numbers(sizes, {"cutoff": cutoff, "average_neighbors": average_neighbors, "norm_eps": norm_eps})
        _check_names(irreps, n_heads, radial_basis)
        lmax_edge = irreps.lmax if lmax_edge is None else lmax_edge
        self.cutoff, self.irreps, self.average_neighbors = float(cutoff), irreps, average_neighbors
        even = all(ir.p == 1 for _, ir in irreps)
        self.symmetry = "SE(3)" if even and irreps.lmax > 0 else "E(3)"
        irreps_edge = o3.Irreps([(1, (degree, 1 if even else (-1) ** degree)) for degree in range(lmax_edge + 1)])
        scalars, features = irreps[:1], o3.Irreps([(n_features, "0e")])

        self.harmonics = SphericalHarmonics(lmax_edge)
        self.basis = EdgeBasis(irreps, irreps_edge, irreps)
        reached = o3.Irreps([(mul, ir) for mul, ir in irreps if ir in [edge for _, edge in irreps_edge]])
        self.degree_basis = EdgeBasis(scalars, irreps_edge, reached)
        self.radial_basis = RADIAL_BASES[radial_basis](n_basis, cutoff)
        self.radial = RadialNetworks(n_blocks, n_basis, radial_hidden, self.basis.weight_sizes)
        self.degree_radial = RadialNetworks(1, n_basis, radial_hidden, self.degree_basis.weight_sizes)

        self.embedding = nn.Parameter(torch.randn(n_species, scalars[0].mul))
        self.degree = EdgeConvolution(self.degree_basis, reached)
        self.blocks = nn.ModuleList(
            Block(irreps, output, self.basis, BlockSizes(n_heads, expansion, nonlinear_messages, norm_eps))
            for output in [irreps] * (n_blocks - 1) + [features]
        )
        self.norm = LayerNorm(features)
        self.hidden = Linear(features, features)
        self.energy = Linear(features, o3.Irreps("1x0e"))

    def forward(self, species: Tensor, edge_index: Tensor, edge_vectors: Tensor) -> Tensor:
        """Energies (N,) of the atoms; see ``forcefield.Potential``."""
        lengths = edge_vectors.norm(dim=1)
        unit = edge_vectors / lengths.unsqueeze(1)
        harmonics = self.harmonics(unit)
        basis = self.radial_basis(lengths)
        edges = make_edges(
            edge_index, species.shape[0], polynomial_envelope(lengths / self.cutoff), self.basis(harmonics)
        )
        x = self._embed(species, edges, self.degree_basis(harmonics), self.degree_radial(basis)[0])
        for block, radial_weights in zip(self.blocks, self.radial(basis), strict=True):
            x = block(x, edges, radial_weights)
        (x,) = self.hidden(self.norm(x))
        (energies,) = self.energy((SILU_SCALE * functional.silu(x),))
        return energies.flatten()

    def _embed(self, species: Tensor, edges: Edges, matrices: list[Tensor], weights: Sequence[Tensor]) -> Features:
        """Species embedding plus the degree embedding: what the neighbours' directions and distances tell."""
        ones = self.embedding.new_ones(1).expand(edges.source.shape[0], 1, self.embedding.shape[1])
        product = self.degree(matrices, (ones,), weights)
        scale = 1 / math.sqrt(self.average_neighbors)
        summed = [edges.sum_at_target(p * (scale * edges.envelope.unsqueeze(2))) for p in product]
        known = [ir for _, ir in self.degree.irreps_out]
        x = [
            summed[known.index(ir)] if ir in known else self.embedding.new_zeros(species.shape[0], ir.dim, mul)
            for mul, ir in self.irreps
        ]
        return (x[0] + self.embedding[species].unsqueeze(1), *x[1:])


def _check_names(irreps: o3.Irreps, n_heads: int, radial_basis: str) -> None:
    if not len(irreps) or not irreps[0].ir.is_scalar():
        raise ValueError(f"`irreps` must begin with the invariant scalars (0e), got {irreps}.")
    if any(mul % n_heads or not mul for mul, _ in irreps):
        raise ValueError(
            f"Each multiplicity of `irreps` must be a positive multiple of n_heads={n_heads}, got {irreps}."
        )
    if radial_basis not in RADIAL_BASES:
        raise ValueError(f"`radial_basis` must be one of {sorted(RADIAL_BASES)}, got {radial_basis!r}.")


def _add(x: Features, y: Features) -> Features:
    return tuple(a + b for a, b in zip(x, y, strict=True))


def smooth_leaky_relu(x: Tensor, slope: float = 0.2) -> Tensor:
    """(1+a)/2 x + (1-a)/2 x (2 sigmoid(x) - 1): a leaky ReLU with all derivatives."""
    return slope * x + (1 - slope) * x * torch.sigmoid(x)


def _glorot(n_heads: int, size: int) -> Tensor:
    bound = math.sqrt(6 / (n_heads + size))
    return torch.empty(n_heads, size).uniform_(-bound, bound)
