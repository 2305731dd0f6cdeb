"""equiformer-pytorch as a potential: the library's parameters and layers, adapted for molecular dynamics.

The network is `equiformer_pytorch.Equiformer` (0.5, by Phil Wang, MIT licence): the same modules under the same names,
so state dicts are interchangeable. Differs from it in
1. neighbours come from our list, padded per atom: memory grows with the number of atoms, not with its square;
2. edge frames and Wigner matrices can be differentiated (the library computes them under ``no_grad``, and forces
   miss the angular part); see ``alignment``;
3. the envelope f(r) multiplies every neighbour's weight, and the sum over neighbours in the first layer is divided by
   their mean number: energy, forces and their gradient are continuous when an atom crosses the cut-off;
4. layers that are not smooth, or not masked, are replaced; see ``equiformer_pytorch_layers``;
5. the library's halving of the gradient of the embedding is omitted, so that gradients are exact;
6. the couplings along the edge come from e3nn's exact coefficients: the library computes them by a singular value
   decomposition, prints while it does, and keeps them in the user's home directory.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import equiformer_pytorch.equiformer_pytorch as library
import torch
from equiformer_pytorch.reversible import SequentialSequence
from pydantic import Field
from torch import Tensor, nn

from mdrelax.forces.potential import Potential
from mdrelax.potentials.alignment import axial_couplings, edge_frames, wigner_matrices
from mdrelax.potentials.arguments import check_numbers
from mdrelax.potentials.equiformer_pytorch_layers import (
    NORMS,
    DistanceAttention,
    Fibers,
    MLPAttention,
    Neighbourhood,
    adopt,
)
from mdrelax.potentials.radial import BesselBasis, polynomial_envelope
from mdrelax.potentials.steerable import NormKind, why_rough
from mdrelax.structures.graph import Edges, neighbor_table

__all__ = ["EquiformerPytorch"]

ATTENTION = {"mlp": MLPAttention, "distance": DistanceAttention}
KINKED = (
    "it keeps the library's hard cut-off and kinks (`smooth: false`), so the energy jumps; train with `smooth: true`"
)


class EquiformerPytorch(Potential):
    """Per-atom energies from species and edge vectors; the shapes and units are those of ``Potential``.

    ``dim`` are the channels of the degrees 0, 1, ... and ``dim_head`` those of each attention head. The radial networks
    read the distance alone, as in the library, or also ``n_basis`` Bessel functions of it (the library's ``edges``).
    ``average_neighbors`` is the mean number of edges per atom in the training data. ``forces="direct"`` takes forces
    from the output of degree 1: faster, and **not** the gradient of the energy. ``norm`` is ``joint`` or ``separable``
    (see ``steerable``), with ``norm_eps`` under its root. ``smooth=False`` keeps the library's hard cut-off, its norm
    and its layers' kinks, for comparison only: the energy jumps.
    """

    relax_where = ("layers.blocks.*.1.project_in", "layers.blocks.*.1.project_out")  # the feed-forward networks
    takes_table = True

    def __init__(
        self,
        n_species: int,
        *,
        dim: Annotated[Sequence[int], Field(description="Channels of the degrees 0, 1, ...")] = (128, 64, 32),
        depth: Annotated[int, Field(description="Blocks of attention and feed-forward network.")] = 6,
        heads: Annotated[int, Field(description="Attention heads.")] = 4,
        dim_head: Annotated[int | Sequence[int], Field(description="Channels of each head, per degree.")] = (32, 16, 8),
        radial_hidden: Annotated[int, Field(description="Width of the radial networks.")] = 64,
        n_basis: Annotated[int, Field(description="Bessel functions that they read in addition to the distance.")] = 0,
        attention: Annotated[
            Literal["mlp", "distance"], Field(description="Logits from a network, or minus a distance.")
        ] = "mlp",
        forces: Annotated[
            Literal["gradient", "direct"], Field(description="Of the energy, or from an output: not conservative.")
        ] = "gradient",
        cutoff: float = 5.0,
        average_neighbors: Annotated[
            float, Field(description="Mean number of edges per atom; a run measures it on its training set.")
        ] = 10.0,
        norm: Annotated[NormKind, Field(description="Layer norm: `joint` is smooth, `separable` is not.")] = "joint",
        norm_eps: Annotated[float, Field(description="Added to the mean square under the norm's root.")] = 1e-5,
        smooth: Annotated[
            bool, Field(description="False keeps the library's hard cut-off and kinks, for comparison.")
        ] = True,
    ) -> None:
        super().__init__()
        dim = tuple(dim)
        dim_head = (dim_head,) * len(dim) if isinstance(dim_head, int) else tuple(dim_head)
        sizes = {"n_species": n_species, "depth": depth, "heads": heads, "radial_hidden": radial_hidden}
        sizes |= {f"dim[{k}]": size for k, size in enumerate(dim)}
        sizes |= {f"dim_head[{k}]": size for k, size in enumerate(dim_head)}
        check_numbers(sizes, {"cutoff": cutoff, "average_neighbors": average_neighbors, "norm_eps": norm_eps})
        _check_choices(dim, dim_head, attention=attention, forces=forces, norm=norm, n_basis=n_basis)
        self.cutoff, self.average_neighbors = float(cutoff), average_neighbors
        self.conservative, self.smooth = forces == "gradient", smooth
        self.n_rounds = depth + 1  # the first layer gathers once more
        self.symmetry = "SE(3)" if len(dim) > 1 else "E(3)"
        self.roughness = (why_rough(norm) if len(dim) > 1 else None) if smooth else KINKED
        self.library_arguments: dict[str, Any] = {
            "num_tokens": n_species, "dim": dim, "dim_in": (dim[0],), "num_degrees": len(dim), "depth": depth,
            "heads": heads, "dim_head": dim_head, "radial_hidden_dim": radial_hidden, "edge_dim": n_basis or None,
            "valid_radius": self.cutoff, "reduce_dim_out": True, "attend_self": True,
            "l2_dist_attention": attention == "distance",
        }  # fmt: skip
        self.radial_basis = BesselBasis(n_basis, cutoff) if n_basis else None
        self._build(n_species, dim, depth, ATTENTION[attention], n_basis)
        adopt(self, norm=norm if smooth else None, norm_eps=norm_eps)

    def _build(self, n_species: int, dim: tuple[int, ...], depth: int, attention: type, n_basis: int) -> None:
        """The modules of ``equiformer_pytorch.Equiformer``, under its names."""
        arguments = self.library_arguments
        of_edges = {"edge_dim": n_basis, "radial_hidden_dim": arguments["radial_hidden_dim"]}
        of_heads = {name: arguments[name] for name in ("heads", "dim_head", "attend_self")}
        self.token_emb = nn.Embedding(n_species, dim[0])  # of unit size, not the library's 0.01
        self.tp_in = library.DTP((dim[0],), dim, **of_edges)
        self.layers = SequentialSequence(
            [
                (attention(dim, **of_edges, **of_heads), library.FeedForward(dim, include_htype_norms=False))
                for _ in range(depth)
            ]
        )
        self.norm = library.Norm(dim)
        self.ff_out = library.Linear(dim, (1,) * len(dim))
        above_scalars = range(1, len(dim))  # along scalars there is nothing to couple
        self.coupled = [(i, o) for i in above_scalars for o in above_scalars]
        for i, o in self.coupled:
            self.register_buffer(f"basis:({i},{o})", axial_couplings(i, o).float())

    def forward(self, species: Tensor, edges: Edges) -> Tensor:
        """Energies of the atoms; see ``Potential``."""
        return self._outputs(species, edges)[0].flatten()[: edges.n_local]

    def energies_and_forces(self, species: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        """Energies (N,) and direct forces (N, 3), which are not a gradient of them (1/A times the energies' unit)."""
        outputs = self._outputs(species, edges)
        return outputs[0].flatten()[: edges.n_local], outputs[1].view(-1, 3)[: edges.n_local]

    def features(self, species: Tensor, edges: Edges) -> Tensor:
        """The normalised scalars (n_local, ``dim[0]``) of the last block."""
        return self._last_features(species, edges)[0][0, : edges.n_local, :, 0]

    def _outputs(self, species: Tensor, edges: Edges) -> Fibers:
        """The library's outputs, one (1, N, 1, 2l+1) per degree."""
        return self.ff_out(self._last_features(species, edges))

    def _last_features(self, species: Tensor, edges: Edges) -> Fibers:
        """Normalised features of the last block, (1, N, C, 2l+1) per degree."""
        species = edges.computed(species)
        neighbours = self._neighbourhood(edges, n_atoms=len(species))
        features = self._gather({0: self.token_emb(species)[None, :, :, None]}, neighbours)
        return self.norm(self.layers(features, neighbours=neighbours))

    def _neighbourhood(self, edges: Edges, *, n_atoms: int) -> Neighbourhood:
        table = neighbor_table(edges.index[1], n_atoms) if edges.table is None else edges.table
        nobody = edges.vectors.new_tensor([[0.0, self.cutoff, 0.0]])  # fills empty slots; its envelope is 0
        vectors = torch.cat([-edges.vectors, nobody])[table]  # the library's point from neighbour to atom
        sources = torch.cat([edges.index[0], edges.index.new_zeros(1)])[table]
        lengths = vectors.norm(dim=-1)
        frames = wigner_matrices(edge_frames(vectors / lengths.unsqueeze(-1)), len(self.library_arguments["dim"]) - 1)
        envelope = polynomial_envelope(lengths / self.cutoff)
        if not self.smooth:
            envelope = (table < edges.index.shape[1]).to(envelope)
        radial = [lengths.unsqueeze(-1)]
        if self.radial_basis is not None:
            radial.insert(0, self.radial_basis(lengths.flatten()).unflatten(0, lengths.shape))
        return Neighbourhood(
            sources[None], envelope[None], [frame[None] for frame in frames], torch.cat(radial, dim=-1)[None],
            {(i, o): _even_and_odd(getattr(self, f"basis:({i},{o})")) for i, o in self.coupled}, edges.everywhere,
        )  # fmt: skip

    def _gather(self, features: Fibers, neighbours: Neighbourhood) -> Fibers:
        """The first layer: the atom's species embedding plus the mean message of its neighbours."""
        weights = neighbours.envelope[..., None, None]
        count = self.average_neighbors if self.smooth else weights.sum(2).clamp(min=1)
        tokens = self.tp_in(features, neighbours)
        return {degree: x[:, :, 0] + (weights * x[:, :, 1:]).sum(2) / count for degree, x in tokens.items()}


def _even_and_odd(coupling: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of entries m and -m of the input; see ``axial_couplings``."""
    return coupling[:, ::2].sum(1), coupling[:, 1::2].sum(1)


def _check_choices(
    dim: tuple[int, ...], dim_head: tuple[int, ...], *, attention: str, forces: str, norm: str, n_basis: int
) -> None:
    if not dim or len(dim_head) != len(dim):
        raise ValueError(f"`dim` and `dim_head` need one number per degree, got {dim} and {dim_head}.")
    if attention not in ATTENTION:
        raise ValueError(f"`attention` must be mlp or distance, got {attention!r}.")
    if norm not in NORMS:
        raise ValueError(f"`norm` must be joint or separable, got {norm!r}.")
    if forces not in ("gradient", "direct"):
        raise ValueError(f"`forces` must be gradient or direct, got {forces!r}.")
    if forces == "direct" and len(dim) < 2:
        raise ValueError(f"`forces: direct` needs features of degree 1, got dim={dim}.")
    if n_basis < 0:
        raise ValueError(f"`n_basis` must be at least 0, got {n_basis}.")
