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
4. energies are per atom, without the division by sqrt(18.03) of the published read-out;
5. the layer norm divides all degrees by one number (``norm="joint"``): the published one (``separable``) divides each
   by its own size, and the energy has a cusp wherever symmetry makes a degree vanish. In the last block, whose
   feed-forward network outputs scalars, the norm before it uses the scalars alone.
"""

import math
from functools import partial
from typing import Annotated, Literal, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mdrelax.base import o3
from mdrelax.forces.potential import Potential
from mdrelax.potentials.adjacency import Adjacency, make_adjacency
from mdrelax.potentials.arguments import check_degree, check_numbers, irreps_of
from mdrelax.potentials.edge_chunks import EdgeChunk, gather_in_chunks, join, split_edges
from mdrelax.potentials.edge_convolution import EdgeBasis, EdgeConvolution
from mdrelax.potentials.equiformer_layers import Block, BlockSizes
from mdrelax.potentials.radial import BesselBasis, ExpNormalBasis, RadialNetworks, polynomial_envelope
from mdrelax.potentials.steerable import (
    SILU_SCALE,
    Features,
    Linear,
    NormKind,
    SphericalHarmonics,
    layer_norm,
    why_rough,
)
from mdrelax.structures.graph import Edges

__all__ = ["Equiformer"]

WEIGHTS_AT_ONCE = 12_000_000  # path weights of all edges of a chunk in all blocks
RADIAL_BASES = {"bessel": BesselBasis, "expnormal": ExpNormalBasis}


class Equiformer(Potential):
    """Per-atom energies from species and edge vectors; the shapes and units are those of ``Potential``.

    ``irreps`` are the node features, scalars first, each irrep once; degrees of one parity (``128x0e+64x1e+32x2e``, as
    published) give SE(3) symmetry, natural parities (``128x0e+64x1o+32x2e``) give E(3). Multiplicities must be
    divisible by ``n_heads``. ``average_neighbors`` is the mean number of edges per atom in the training data. The
    last block passes ``n_features`` scalars to the read-out. ``norm`` is ``joint``, or ``separable`` as published,
    which is not smooth where symmetry makes vectors vanish (see ``steerable.SeparableLayerNorm``); ``norm_eps`` is
    added to the mean square under its root.
    """

    def __init__(
        self,
        n_species: int,
        *,
        irreps: Annotated[
            str, Field(description="Hidden features: even irreps give SE(3), natural parities E(3) symmetry.")
        ] = "128x0e+64x1e+32x2e",
        n_blocks: Annotated[int, Field(description="Blocks of attention and feed-forward network.")] = 6,
        cutoff: float = 5.0,
        n_heads: Annotated[
            int, Field(description="Attention heads; every multiplicity of `irreps` is a multiple of it.")
        ] = 4,
        lmax_edge: Annotated[
            int | None, Field(description="Degree of the edges' harmonics; default: as `irreps`.")
        ] = None,
        nonlinear_messages: Annotated[bool, Field(description="A gate and a second product per message.")] = True,
        expansion: Annotated[int, Field(description="Width of the feed-forward networks over that of `irreps`.")] = 3,
        n_features: Annotated[int, Field(description="Number of scalars from which the energy is computed.")] = 512,
        radial_basis: Annotated[
            Literal["expnormal", "bessel"], Field(description="Functions of the distance.")
        ] = "expnormal",
        n_basis: Annotated[int, Field(description="Number of radial functions.")] = 32,
        radial_hidden: Annotated[int, Field(description="Width of the radial networks.")] = 64,
        average_neighbors: Annotated[float, Field(description="Mean number of edges per atom; measured.")] = 15.58,
        norm: Annotated[NormKind, Field(description="Layer norm; `separable` is as published, not smooth.")] = "joint",
        norm_eps: Annotated[float, Field(description="Added to the mean square under the norm's root.")] = 1e-5,
    ) -> None:
        super().__init__()
        hidden = irreps_of("irreps", irreps)
        sizes = {"n_species": n_species, "n_blocks": n_blocks, "n_heads": n_heads, "expansion": expansion}
        sizes |= {"n_features": n_features, "n_basis": n_basis, "radial_hidden": radial_hidden}
        check_numbers(sizes, {"cutoff": cutoff, "average_neighbors": average_neighbors, "norm_eps": norm_eps})
        _check_names(hidden, n_heads, radial_basis)
        self.cutoff, self.irreps, self.average_neighbors = float(cutoff), hidden, average_neighbors
        self.n_rounds = n_blocks + 1  # the degree embedding is one
        even = all(ir.p == 1 for _, ir in hidden)
        self.symmetry = "SE(3)" if even and hidden.lmax > 0 else "E(3)"
        self.roughness = why_rough(norm) if hidden.lmax > 0 else None
        lmax_edge = hidden.lmax if lmax_edge is None else lmax_edge
        check_degree("lmax_edge", lmax_edge)
        irreps_edge = o3.Irreps([(1, (degree, 1 if even else (-1) ** degree)) for degree in range(lmax_edge + 1)])
        scalars, features = hidden[:1], o3.Irreps([(n_features, "0e")])
        reached = o3.Irreps([(mul, ir) for mul, ir in hidden if ir in [edge for _, edge in irreps_edge]])

        self.harmonics = SphericalHarmonics(lmax_edge)
        self.basis = EdgeBasis(hidden, irreps_edge, hidden)
        self.degree_basis = EdgeBasis(scalars, irreps_edge, reached)
        self.radial_basis = RADIAL_BASES[radial_basis](n_basis, cutoff)
        self._build_radial_networks(n_blocks, n_basis, radial_hidden)
        self.embedding = nn.Parameter(torch.randn(n_species, scalars[0].mul))
        self.degree = EdgeConvolution(self.degree_basis, reached)
        block = BlockSizes(n_heads, expansion, nonlinear_messages, norm, norm_eps)
        outputs = [hidden] * (n_blocks - 1) + [features]
        self.blocks = nn.ModuleList(Block(hidden, output, self.basis, block) for output in outputs)
        self.relax_where = _paper_places(n_blocks)
        self.norm = layer_norm(norm, features)
        self.hidden = Linear(features, features)
        self.energy = Linear(features, o3.Irreps("1x0e"))

    def _build_radial_networks(self, n_blocks: int, n_basis: int, hidden: int) -> None:
        """Weights of the couplings as functions of the distance, those of all blocks in one network."""
        self.radial = RadialNetworks(n_blocks, n_basis, hidden, self.basis.weight_sizes)
        self.degree_radial = RadialNetworks(1, n_basis, hidden, self.degree_basis.weight_sizes)
        self.edges_at_once = WEIGHTS_AT_ONCE // (n_blocks * sum(self.basis.weight_sizes))

    def forward(self, species: Tensor, edges: Edges) -> Tensor:
        """Energies of the atoms; see ``Potential``."""
        (x,) = self.hidden((self.features(species, edges).unsqueeze(1),))
        (energies,) = self.energy((SILU_SCALE * functional.silu(x),))
        return energies.flatten()

    def features(self, species: Tensor, edges: Edges) -> Tensor:
        """The normalised scalars (n_local, ``n_features``) of the last block."""
        trained, n_local = self.embedding.requires_grad, edges.n_local
        species = edges.computed(species)
        chunks = split_edges(edges.index, edges.vectors, species.shape[0], at_most=self.edges_at_once, trained=trained)
        convolutions = [ChunkConvolution(self, chunk) for chunk in chunks]
        both = zip(chunks, convolutions, strict=True)
        x = self._embed(species, join([chunk.run(convolution.degree_embedding) for chunk, convolution in both]))
        for number, block in enumerate(self.blocks):

            def gather(sent: Features, received: Features, n_out: int, number: int = number) -> Features:
                sent = tuple(map(edges.everywhere, sent))
                gather_from = partial(ChunkConvolution.gather, number=number, sent=sent, n_out=n_out)
                return gather_in_chunks(gather_from, chunks, convolutions, received)

            x = block(x, gather)
        (x,) = self.norm(x)
        return x.squeeze(1)[:n_local]

    def _embed(self, species: Tensor, degree_embedding: Features) -> Features:
        """Species embedding plus the degree embedding, a function of the neighbours' directions and distances."""
        known = [ir for _, ir in self.degree.irreps_out]
        x = [
            degree_embedding[known.index(ir)]
            if ir in known
            else self.embedding.new_zeros(species.shape[0], ir.dim, mul)
            for mul, ir in self.irreps
        ]
        return (x[0] + self.embedding[species].unsqueeze(1), *x[1:])

    def edge_features(self, chunk: EdgeChunk) -> "EdgeFeatures":
        """Data on the edges of a chunk for the degree embedding and all blocks."""
        lengths = chunk.vectors.norm(dim=1)
        harmonics = self.harmonics(chunk.vectors / lengths.unsqueeze(1))
        envelope = polynomial_envelope(lengths / self.cutoff)
        edges = make_adjacency(chunk.edge_index, chunk.n_atoms, envelope)._replace(matrices=self.basis(harmonics))
        return EdgeFeatures(edges, harmonics, self.radial_basis(lengths))

    def degree_embedding(self, features: "EdgeFeatures") -> Features:
        """The degree embedding of a chunk's atoms."""
        (weights,) = self.degree_radial(features.basis)
        ones = self.embedding.new_ones(1).expand(features.basis.shape[0], 1, self.embedding.shape[1])
        product = self.degree(self.degree_basis(features.harmonics), (ones,), weights)
        envelope = features.edges.envelope.unsqueeze(2) / math.sqrt(self.average_neighbors)
        return tuple(features.edges.sum_at_target(p * envelope) for p in product)


class EdgeFeatures(NamedTuple):
    """Edges with the blocks' matrices, their harmonics (E, S) and radial basis (E, K)."""

    edges: Adjacency
    harmonics: Tensor
    basis: Tensor


class ChunkConvolution:
    """The convolutions of all blocks over the edges of one chunk."""

    def __init__(self, network: Equiformer, chunk: EdgeChunk) -> None:
        self.network, self.features = network, network.edge_features(chunk)
        self.weights = network.radial(self.features.basis) if chunk.kept else None

    def degree_embedding(self) -> Features:
        """The degree embedding of the chunk's atoms."""
        return self.network.degree_embedding(self.features)

    def gather(self, received: Features, *, number: int, sent: Features, n_out: int) -> Features:
        """``Attention.gather`` of the block of that number."""
        attention = cast(Block, self.network.blocks[number]).attention
        if self.weights:
            weights = self.weights[number]
        else:
            (weights,) = self.network.radial(self.features.basis, number)
        return attention.gather(sent, received, n_out, self.features.edges, weights)


def _paper_places(n_blocks: int) -> tuple[str, ...]:
    """The feed-forward networks of all blocks but the last.

    The last block outputs scalars. A free map there needs inputs that are otherwise unused, and computing them costs
    more than all other free maps together; in a network of one block it is the only site.
    """
    return tuple(f"blocks.{number}.feed_forward" for number in range(max(1, n_blocks - 1)))


def _check_names(irreps: o3.Irreps, n_heads: int, radial_basis: str) -> None:
    if not len(irreps) or not irreps[0].ir.is_scalar():
        raise ValueError(f"`irreps` must begin with the invariant scalars (0e), got {irreps}.")
    if any(mul % n_heads or not mul for mul, _ in irreps):
        raise ValueError(
            f"Each multiplicity of `irreps` must be a positive multiple of n_heads={n_heads}, got {irreps}."
        )
    if radial_basis not in RADIAL_BASES:
        raise ValueError(f"`radial_basis` must be one of {sorted(RADIAL_BASES)}, got {radial_basis!r}.")
