"""Products of features with a steerable attribute: the layers of SEGNN, fast for a precomputed attribute.

An attribute a is a vector of harmonics of an edge or a node, a_l of dimension 2l + 1 for l = 0 .. L, where a_0 is a
fixed number. The layer is the fully connected tensor product (Brandstetter et al., ICLR 2022, arXiv 2110.02905, eq. 3)

    y_o = sum over paths (i, l, o) of  sqrt(2 l_o + 1) CG[x_i, a_l] W_ilo        + bias on the invariant scalars

Gives the same numbers as e3nn's FullyConnectedTensorProduct, and differs in
1. the layout: features per irrep, channel last, (M, D, C); mixing channels is a matrix product, all paths at once;
2. the order: channels are mixed before the coupling where that has fewer rows, after it elsewhere;
3. the coupling: l = 0 is a number, l_i = 0 an outer product, l_o = 0 an inner product; only the rest needs a matrix;
4. edges: terms that depend on one end only are mixed at the nodes and then copied to the edges (``on_pairs``), which
   reduces the largest matrix products from M = E rows to M = N.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mdrelax.base import o3
from mdrelax.method.sites import Site, irreps_site
from mdrelax.potentials.adjacency import Adjacency
from mdrelax.potentials.radial import uniform
from mdrelax.potentials.steerable import Constant, Features, Gate, distinct

__all__ = ["Attribute", "AttributeBasis", "Ends", "GatedProduct", "SteerableProduct", "product_paths"]

INTEGRAL = 1 / math.sqrt(4 * math.pi)  # e3nn's 'integral' harmonics are the 'component' ones times this

Triple = tuple[int, int, int]  # degrees (l_i, l, l_o) of a path


class Attribute(NamedTuple):
    """The attribute of M edges or nodes, ready to be coupled."""

    degrees: tuple[Tensor, ...]  # a_1 .. a_L, each (M, 2l+1, 1)
    matrices: dict[Triple, Tensor]  # (M, D_o, D_i) for the paths other than scale, outer and inner


class Ends(NamedTuple):
    """Contributions of nodes to a product on their edges, one (N, D, C) per input irrep."""

    received: Features  # to the edges that end at the node
    sent: Features  # to the edges that begin there


class AttributeBasis(nn.Module):
    """Harmonics to an ``Attribute``: made once for all layers. ``irreps`` are the features on both sides."""

    def __init__(self, irreps: o3.Irreps, lmax: int) -> None:
        super().__init__()
        self.lmax = lmax
        self.tables = {
            (ir_in.l, degree, ir_out.l): Constant(_table(ir_in.l, degree, ir_out.l))
            for _, ir_in in irreps
            for _, ir_out in irreps
            for degree in range(1, lmax + 1)
            if min(ir_in.l, ir_out.l) > 0 and ir_out in ir_in * _harmonic(degree)
        }

    def forward(self, harmonics: Tensor) -> Attribute:
        """(M, (L+1)^2) with degree 0 first, which is ignored: it is a constant known to the layers."""
        parts = harmonics.split([2 * degree + 1 for degree in range(self.lmax + 1)], dim=1)
        matrices = {
            path: (parts[path[1]] @ table.like(harmonics)).view(-1, 2 * path[2] + 1, 2 * path[0] + 1)
            for path, table in self.tables.items()
        }
        return Attribute(tuple(part.unsqueeze(2) for part in parts[1:]), matrices)


def _harmonic(degree: int) -> o3.Irrep:
    return o3.Irrep(degree, (-1) ** degree)


def _table(l_in: int, degree: int, l_out: int) -> Tensor:
    """(2l+1, D_o D_i): an attribute of one degree to its matrix, 'component' normalisation."""
    coupling = o3.wigner_3j(l_in, degree, l_out, dtype=torch.float64)
    return math.sqrt(2 * l_out + 1) * coupling.permute(1, 2, 0).flatten(1)


class Path(NamedTuple):
    """One path of the product: input i, degree l of the attribute, output o."""

    source: int
    degree: int
    output: int
    kind: Literal["scale", "outer", "inner", "full"]
    factor: float  # of an inner product: sqrt(2 l_o + 1) CG = 1 / sqrt(2l + 1)
    triple: Triple

    @property
    def mix_first(self) -> bool:
        """Whether channels are mixed before the coupling: on fewer rows, or as many."""
        return self.triple[0] <= self.triple[2]


def product_paths(irreps_in: o3.Irreps, lmax: int, irreps_out: o3.Irreps) -> list[Path]:
    """All paths, ordered by output, then input, then degree of the attribute."""
    kinds = {(False, False): "full", (True, False): "outer", (False, True): "inner", (True, True): "scale"}
    return [
        Path(
            i, degree, o,
            "scale" if degree == 0 else kinds[ir_in.l == 0, ir_out.l == 0],  # type: ignore[arg-type]
            1 / math.sqrt(2 * degree + 1) if ir_out.l == 0 else 1.0,
            (ir_in.l, degree, ir_out.l),
        )
        for o, (_, ir_out) in enumerate(irreps_out)
        for i, (_, ir_in) in enumerate(irreps_in)
        for degree in range(lmax + 1)
        if ir_out in ir_in * _harmonic(degree)
    ]  # fmt: skip


def _couple(path: Path, attribute: Attribute, x: Tensor) -> Tensor:
    """(M, D_i, C) to (M, D_o, C); the number a_0 of a 'scale' path is in the weights already."""
    if path.kind == "scale":
        return x
    if path.kind == "full":
        return torch.bmm(attribute.matrices[path.triple], x)
    product = attribute.degrees[path.degree - 1] * x
    return product if path.kind == "outer" else product.sum(1, keepdim=True)


class SteerableProduct(nn.Module):
    """The tensor product of features with an attribute whose a_0 is the number ``scalar``; weights per path.

    ``weights`` are (C_in, C_out), in the order of ``product_paths``; weights and bias start uniform within
    1 / sqrt(fan_in), which is the published initialisation.
    """

    def __init__(
        self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, lmax: int, *, scalar: float = 1.0, on_pairs: bool = False
    ) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out, self.scalar = distinct(irreps_in), distinct(irreps_out), scalar
        self.only_on_pairs = on_pairs
        self.scalars_at = [i for i, (_, ir) in enumerate(irreps_in) if ir.is_scalar()]
        self.paths = product_paths(irreps_in, lmax, irreps_out)
        fan_in = [sum(irreps_in[p.source].mul for p in self.paths if p.output == o) for o in range(len(irreps_out))]
        lost = [str(ir) for (_, ir), size in zip(irreps_out, fan_in, strict=True) if not size]
        if lost:
            raise ValueError(f"No path leads from {irreps_in} to {lost} with an attribute up to l = {lmax}.")
        self.weights = nn.ParameterList(
            uniform(irreps_in[p.source].mul, irreps_out[p.output].mul, fan_in=fan_in[p.output]) for p in self.paths
        )
        self.bias_at = next((k for k, (_, ir) in enumerate(irreps_out) if ir.is_scalar()), -1)
        n_scalars = irreps_out[self.bias_at].mul if self.bias_at >= 0 else 0
        self.bias = nn.Parameter(uniform(n_scalars, fan_in=fan_in[self.bias_at])) if n_scalars else None

    def relaxable(self) -> Site | None:
        """The site of the free map; None if the layer is only used through ``on_pairs``."""
        return None if self.only_on_pairs else irreps_site(self.irreps_in, self.irreps_out, "ir_mul")

    def forward(self, x: Features, attribute: Attribute) -> Features:
        """Features (M, D, C) of ``irreps_in`` to features of ``irreps_out``."""
        out = self._start()
        for i, block in enumerate(x):
            first = [k for k, p in enumerate(self.paths) if p.source == i and p.mix_first]
            for k, mixed in zip(first, self._mix(block, first), strict=True):
                self._add(out, k, _couple(self.paths[k], attribute, mixed))
        for k, path in enumerate(self.paths):
            if not path.mix_first:
                self._add(out, k, _couple(path, attribute, x[path.source]) @ self._weight(k))
        return tuple(out)  # type: ignore[arg-type]

    def at_ends(self, x: Features) -> Ends:
        """Contributions of nodes to the product on their edges (``on_pairs``), as targets and as sources.

        ``x`` are node features (N, D, C) with half the channels of ``irreps_in``, not counting the invariants among the
        scalars. Channels are mixed here, at the nodes.
        """
        received, sent = [], []
        for i, block in enumerate(x):
            weight, _ = self._joined(self._from(i))
            channels = block.shape[2]
            received.append(block @ weight[:channels])
            sent.append(block @ weight[channels : 2 * channels])
        return Ends(tuple(received), tuple(sent))

    def on_pairs(self, ends: Ends, invariants: Tensor, edges: Adjacency, attribute: Attribute) -> Features:
        """The same product for edges, whose input is (x_i, x_j, invariants), concatenated: (E, D, C) per output.

        ``ends`` are ``at_ends(x)``; the invariants (E, K) are scalars.
        """
        out = self._start()
        for i, (received, sent) in enumerate(zip(*ends, strict=True)):
            indices = self._from(i)
            mixed = edges.sum_of_ends(received, sent)
            if i in self.scalars_at:
                of_edge = torch.cat([self._weight(k)[-invariants.shape[1] :] for k in indices], dim=1)
                mixed = mixed + (invariants @ of_edge).unsqueeze(1)
            sizes = [self.weights[k].shape[1] for k in indices]
            for k, part in zip(indices, mixed.split(sizes, dim=2), strict=True):
                self._add(out, k, _couple(self.paths[k], attribute, part))
        return tuple(out)  # type: ignore[arg-type]

    @torch.no_grad()
    def fold(self, blocks: dict[tuple[int, int], Tensor]) -> None:
        """Add an equivariant map to the weights: (C_out, C_in) for each pair (output, input) of equal irreps."""
        for path, weight in zip(self.paths, self.weights, strict=True):
            if path.degree == 0:
                weight += blocks[path.output, path.source].T / self.scalar

    def _from(self, i: int) -> list[int]:
        """The paths from one input."""
        return [k for k, path in enumerate(self.paths) if path.source == i]

    def _start(self) -> list[Tensor | None]:
        out: list[Tensor | None] = [None] * len(self.irreps_out)
        if self.bias is not None:
            out[self.bias_at] = self.bias.view(1, 1, -1)
        return out

    def _add(self, out: list[Tensor | None], k: int, term: Tensor) -> None:
        o = self.paths[k].output
        so_far = out[o]
        out[o] = term if so_far is None else so_far + term

    def _weight(self, k: int) -> Tensor:
        """The weight of a path, including the constants that its coupling omits."""
        path = self.paths[k]
        factor = path.factor * (self.scalar if path.degree == 0 else 1.0)
        return self.weights[k] if factor == 1.0 else factor * self.weights[k]

    def _joined(self, indices: Sequence[int]) -> tuple[Tensor, list[int]]:
        """The concatenated weights of several paths from one input, and their numbers of columns."""
        parts = [self._weight(k) for k in indices]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)), [part.shape[1] for part in parts]

    def _mix(self, block: Tensor, indices: Sequence[int]) -> Sequence[Tensor]:
        if not indices:
            return ()
        weight, sizes = self._joined(indices)
        return (block @ weight).split(sizes, dim=2)


class GatedProduct(nn.Module):
    """The product followed by the gate: SiLU on scalars, other irreps times the sigmoid of their own scalar."""

    def __init__(
        self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, lmax: int, *, scalar: float = 1.0, on_pairs: bool = False
    ) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = irreps_in, irreps_out
        self.only_on_pairs = on_pairs
        self.gate = Gate(irreps_out)
        self.product = SteerableProduct(irreps_in, self.gate.irreps_in, lmax, scalar=scalar, on_pairs=on_pairs)

    def relaxable(self) -> Site | None:
        """The site of the free map; None if the layer is only used through ``on_pairs``."""
        return None if self.only_on_pairs else irreps_site(self.irreps_in, self.irreps_out, "ir_mul")

    def forward(self, x: Features, attribute: Attribute) -> Features:
        """Features of ``irreps_in`` to features of ``irreps_out``."""
        return self.gate(self.product(x, attribute))

    def on_pairs(self, ends: Ends, invariants: Tensor, edges: Adjacency, attribute: Attribute) -> Features:
        """The same for the two ends of edges, ``product.at_ends(x)``; see ``SteerableProduct.on_pairs``."""
        return self.gate(self.product.on_pairs(ends, invariants, edges, attribute))
