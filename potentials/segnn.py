"""SEGNN: steerable E(3)-equivariant message passing (Brandstetter et al., ICLR 2022, arXiv 2110.02905).

With edge attributes a_ij (harmonics of the edge's direction) and node attributes a_i, a layer is (their eqs. 5 to 7)

    m_ij = P2(P1((x_i, x_j, s_ij), a_ij), a_ij)        x_i <- x_i + U2(U1((x_i, sum_j m_ij), a_i), a_i)

where P1, P2 and U1 are gated tensor products with the attribute, U2 has no gate, and s_ij are invariants of the edge.
Free maps are added to U1 and U2, as in the relaxation paper's N-body experiment.

`SEGNN` is the trunk; `mdrelax.packs.nbody.networks` predicts displacements of particles with it, as published.
`SEGNNPotential` is the same trunk with an energy. It differs from the published network in
1. every message carries the envelope f(r), and so does the mean of the harmonics that is a node's attribute: energy,
   forces and their gradient stay continuous when an atom crosses the cut-off;
2. the sum over neighbours is divided by the root of their mean number;
3. distances enter as Bessel functions; species are one-hot scalars;
4. the optional norm is an equivariant layer norm, node by node (``joint``; ``separable`` is not smooth): with the
   published instance norm, fragments out of reach would affect each other.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from mdrelax.base import o3
from mdrelax.forces.potential import Potential
from mdrelax.potentials.adjacency import Adjacency, make_adjacency
from mdrelax.potentials.arguments import check_degree, check_numbers
from mdrelax.potentials.attributes import INTEGRAL, Attribute, AttributeBasis, Ends, GatedProduct, SteerableProduct
from mdrelax.potentials.edge_chunks import EdgeChunk, gather_in_chunks, split_edges
from mdrelax.potentials.radial import BesselBasis, polynomial_envelope
from mdrelax.potentials.steerable import Features, SphericalHarmonics, layer_norm, why_rough
from mdrelax.structures.graph import Edges

__all__ = ["SEGNN", "SEGNNPotential"]

NormKind = Literal["none", "joint", "separable"]
RELAXED_PLACES = ("layers.*.update_1", "layers.*.update_2")


def natural_irreps(channels: int, lmax: int) -> o3.Irreps:
    """The weight-balanced irreps: as many channels of every degree, natural parities; 32x0e+32x1o+..."""
    return o3.Irreps([(channels, (degree, (-1) ** degree)) for degree in range(lmax + 1)])


class EdgeFeatures(NamedTuple):
    """The edges with the inputs of all layers: attributes and invariants."""

    edges: Adjacency
    attribute: Attribute
    invariants: Tensor  # (E, K)


Gather = Callable[[Ends], Features]  # ``Layer.gather`` for all edges


class Layer(nn.Module):
    """One round of messages; see the module."""

    def __init__(self, irreps: o3.Irreps, lmax: int, n_invariants: int, sum_scale: float, norm: NormKind) -> None:
        super().__init__()
        both = o3.Irreps([(2 * mul, ir) for mul, ir in irreps])
        pair = o3.Irreps([(2 * mul + (n_invariants if ir.is_scalar() else 0), ir) for mul, ir in irreps])
        self.sum_scale = sum_scale
        self.message_1 = GatedProduct(pair, irreps, lmax, scalar=INTEGRAL, on_pairs=True)
        self.message_2 = GatedProduct(irreps, irreps, lmax, scalar=INTEGRAL)
        self.update_1 = GatedProduct(both, irreps, lmax)
        self.update_2 = SteerableProduct(irreps, irreps, lmax)
        self.norm = None if norm == "none" else layer_norm(norm, irreps)

    def forward(self, x: Features, gather: Gather, of_node: Attribute) -> Features:
        """Map node features (N, D, C) of one layer to those of the next.

        ``gather`` is this layer's own ``gather`` for all edges, at once or chunk by chunk.
        """
        normed = x if self.norm is None else self.norm(x)
        summed = gather(self.message_1.product.at_ends(normed))
        joined = tuple(torch.cat([a, b], dim=2) for a, b in zip(normed, summed, strict=True))
        update = self.update_2(self.update_1(joined, of_node), of_node)
        return tuple(a + b for a, b in zip(x, update, strict=True))

    def gather(self, ends: Ends, edge_features: EdgeFeatures) -> Features:
        """The messages' sums (N, D, C) at the edges' targets."""
        messages = self.message_1.on_pairs(ends, edge_features.invariants, edge_features.edges, edge_features.attribute)
        weight = (self.sum_scale * edge_features.edges.envelope).unsqueeze(2)
        return tuple(
            edge_features.edges.sum_at_target(m * weight) for m in self.message_2(messages, edge_features.attribute)
        )


class SEGNN(nn.Module):
    """The trunk: features of ``irreps_in`` and attributes to features of ``irreps_out``, node by node.

    Hidden features are ``channels`` of every degree up to ``lmax``; attributes go up to ``lmax_attribute``.
    """

    def __init__(
        self,
        irreps_in: o3.Irreps,
        irreps_out: o3.Irreps,
        *,
        channels: int,
        lmax: int,
        lmax_attribute: int,
        n_layers: int,
        n_invariants: int,
        sum_scale: float = 1.0,
        norm: NormKind = "none",
    ) -> None:
        super().__init__()
        _check(channels=channels, n_layers=n_layers, lmax=lmax, lmax_attribute=lmax_attribute, norm=norm)
        hidden = natural_irreps(channels, lmax)
        self.basis = AttributeBasis(hidden, lmax_attribute)
        self.embedding = SteerableProduct(irreps_in, hidden, lmax_attribute)
        self.layers = nn.ModuleList(
            Layer(hidden, lmax_attribute, n_invariants, sum_scale, norm) for _ in range(n_layers)
        )
        self.norm = None if norm == "none" else layer_norm(norm, hidden)
        self.hidden = GatedProduct(hidden, hidden, lmax_attribute)
        self.output = SteerableProduct(hidden, irreps_out, lmax_attribute)

    def forward(self, x: Features, of_node: Tensor, gathers: Sequence[Gather]) -> Features:
        """``of_node`` (N, S) are 'integral' harmonics, whose first column is ignored; one gather per layer."""
        node = self.basis(of_node)
        return self.output(self.last_features(x, node, gathers), node)

    def last_features(self, x: Features, node: Attribute, gathers: Sequence[Gather]) -> Features:
        """The hidden features from which the output is made; arguments as for ``forward``."""
        x = self.embedding(x, node)
        for layer, gather in zip(self.layers, gathers, strict=True):
            x = layer(x, gather, node)
        return self.hidden(x if self.norm is None else self.norm(x), node)

    def edge_features(self, edges: Adjacency, of_edge: Tensor, invariants: Tensor) -> EdgeFeatures:
        """Features of edges with 'integral' harmonics (E, S) and invariants (E, K)."""
        return EdgeFeatures(edges, self.basis(of_edge), invariants)

    def gathers(self, edge_features: EdgeFeatures) -> list[Gather]:
        """The gather of each layer for all edges at once."""
        return [partial(cast(Layer, layer).gather, edge_features=edge_features) for layer in self.layers]


class SEGNNPotential(Potential):
    """Per-atom energies from species and edge vectors; the shapes and units are those of ``Potential``.

    ``average_neighbors`` is the mean number of edges per atom in the training data. ``norm`` is ``none``, ``joint``,
    or ``separable``, which is not smooth where symmetry makes vectors vanish.
    """

    relax_where = RELAXED_PLACES
    symmetry = "E(3)"

    def __init__(
        self,
        n_species: int,
        *,
        channels: Annotated[int, Field(description="Channels of every degree.")] = 32,
        lmax: Annotated[int, Field(description="Largest degree of the hidden features.")] = 1,
        lmax_attribute: Annotated[
            int | None, Field(description="Largest degree of the attributes; none: `lmax`.")
        ] = None,
        n_layers: Annotated[int, Field(description="Rounds of messages.")] = 3,
        cutoff: float = 5.0,
        n_basis: Annotated[int, Field(description="Number of Bessel functions of the distance.")] = 8,
        average_neighbors: Annotated[
            float, Field(description="Mean number of edges per atom; a run measures it on its training set.")
        ] = 10.0,
        norm: Annotated[
            NormKind, Field(description="Layer norm: `none`, `joint` or `separable`, which is not smooth.")
        ] = "none",
    ) -> None:
        super().__init__()
        check_numbers(
            {"n_species": n_species, "n_basis": n_basis}, {"cutoff": cutoff, "average_neighbors": average_neighbors}
        )
        lmax_attribute = lmax if lmax_attribute is None else lmax_attribute
        check_degree("lmax_attribute", lmax_attribute)
        self.cutoff, self.average_neighbors, self.n_species = float(cutoff), average_neighbors, n_species
        self.n_rounds = n_layers + 1  # the attributes of the atoms are one
        self.roughness = why_rough(norm) if lmax > 0 else None
        self.radial_basis = BesselBasis(n_basis, cutoff)
        self.harmonics = SphericalHarmonics(lmax_attribute)
        self.segnn = SEGNN(
            o3.Irreps([(n_species, "0e")]), o3.Irreps("1x0e"), channels=channels, lmax=lmax,
            lmax_attribute=lmax_attribute, n_layers=n_layers, n_invariants=n_basis,
            sum_scale=1 / math.sqrt(average_neighbors), norm=norm,
        )  # fmt: skip

    def forward(self, species: Tensor, edges: Edges) -> Tensor:
        """Energies of the atoms; see ``Potential``."""
        (energies,) = self.segnn(*self._inputs(species, edges))
        return energies.flatten()[: edges.n_local]

    def features(self, species: Tensor, edges: Edges) -> Tensor:
        """The scalars (n_local, ``channels``) among the hidden features that the energy is made from."""
        one_hot, of_node, gathers = self._inputs(species, edges)
        features = self.segnn.last_features(one_hot, self.segnn.basis(of_node), gathers)
        return features[0].squeeze(1)[: edges.n_local]

    def _inputs(self, species: Tensor, edges: Edges) -> tuple[Features, Tensor, list[Gather]]:
        """The arguments of the trunk."""
        trained = next(self.parameters()).requires_grad
        species = edges.computed(species)
        chunks = split_edges(edges.index, edges.vectors, species.shape[0], trained=trained)
        one_hot = nn.functional.one_hot(species, self.n_species).to(edges.vectors).unsqueeze(1)
        chunk_features, of_nodes = zip(*(self._edge_features(chunk) for chunk in chunks), strict=True)

        def gather(layer: Layer, ends: Ends) -> Features:
            sent = tuple(map(edges.everywhere, ends.sent))

            def gather_from(features: EdgeFeatures, received: Features) -> Features:
                return layer.gather(Ends(received, sent), features)

            return gather_in_chunks(gather_from, chunks, chunk_features, ends.received)

        gathers: list[Gather] = [partial(gather, cast(Layer, layer)) for layer in self.segnn.layers]
        return (one_hot,), torch.cat(of_nodes), gathers

    def _edge_features(self, chunk: EdgeChunk) -> tuple[EdgeFeatures, Tensor]:
        """Features of the edges of a chunk, and the attribute (n, S) of its atoms."""
        lengths = chunk.vectors.norm(dim=1)
        edges = make_adjacency(chunk.edge_index, chunk.n_atoms, polynomial_envelope(lengths / self.cutoff))
        of_edge = INTEGRAL * self.harmonics(chunk.vectors / lengths.unsqueeze(1))
        of_node = edges.sum_at_target(of_edge * (edges.envelope / math.sqrt(self.average_neighbors)))
        return self.segnn.edge_features(edges, of_edge, self.radial_basis(lengths)), of_node


def _check(*, channels: int, n_layers: int, lmax: int, lmax_attribute: int, norm: str) -> None:
    check_numbers({"channels": channels, "n_layers": n_layers}, {})
    if not 0 <= lmax <= lmax_attribute:
        raise ValueError(
            f"`lmax` must lie in [0, lmax_attribute], got {lmax} and {lmax_attribute}: a feature can only be made "
            "with an attribute of its degree."
        )
    if norm not in ("none", "joint", "separable"):
        raise ValueError(f"`norm` must be none, joint or separable, got {norm!r}.")
