"""SEGNN in the ordinary e3nn way: the same N-body network on flat irreps vectors with o3.FullyConnectedTensorProduct.

It is the reference of the parity tests, and represents the published code in the speed benchmark, which is written in
this way and not available as a package. Weights map one to one (``from_fast``); the numbers agree to rounding.
"""

import math
from typing import cast

import torch
from e3nn.nn import Gate
from torch import Tensor, nn

from mdrelax.base import o3
from mdrelax.packs.nbody.networks import NBodySEGNN
from mdrelax.potentials.attributes import GatedProduct, SteerableProduct
from mdrelax.potentials.segnn import SEGNN, Layer

__all__ = ["E3nnNBodySEGNN", "gate"]


class Product(nn.Module):
    """e3nn's fully connected tensor product plus a bias on the scalars, and an optional gate."""

    def __init__(self, irreps_in: o3.Irreps, irreps_attribute: o3.Irreps, irreps_out: o3.Irreps, gated: bool) -> None:
        super().__init__()
        self.gate = gate(irreps_out) if gated else None
        out = self.gate.irreps_in.simplify() if self.gate is not None else irreps_out
        self.product = o3.FullyConnectedTensorProduct(irreps_in, irreps_attribute, out)
        self.n_scalars = out.count(o3.Irrep("0e"))
        self.bias = nn.Parameter(torch.zeros(self.n_scalars)) if self.n_scalars else None

    def forward(self, x: Tensor, attribute: Tensor) -> Tensor:
        """Flat features (M, dim) and attributes (M, S) to flat features."""
        y = self.product(x, attribute)
        if self.bias is not None:
            y[:, : self.n_scalars] += self.bias
        return y if self.gate is None else self.gate(y)

    @torch.no_grad()
    def copy_from(self, fast: SteerableProduct) -> None:
        """Take the weights of a fast layer: e3nn's path weight contains sqrt(2 l_o + 1) and 1 / sqrt(fan_in)."""
        for number, instruction in enumerate(self.product.instructions):
            path = next(
                k
                for k, p in enumerate(fast.paths)
                if (p.source, p.degree, p.output) == (instruction.i_in1, instruction.i_in2, instruction.i_out)
            )
            dim = self.product.irreps_out[instruction.i_out].ir.dim
            view = self.product.weight_view_for_instruction(number)
            view.copy_(fast.weights[path].unsqueeze(1) * math.sqrt(dim) / instruction.path_weight)
        if self.bias is not None and fast.bias is not None:
            self.bias.copy_(fast.bias)


def gate(irreps: o3.Irreps) -> Gate:
    """The published gate: SiLU on scalars, the sigmoid of one scalar for each other irrep."""
    scalars, others = irreps[:1], irreps[1:]
    gates = o3.Irreps([(others.num_irreps, "0e")]) if others.num_irreps else o3.Irreps("")
    activations = [torch.sigmoid] if others.num_irreps else []
    return Gate(scalars, [nn.functional.silu], gates, activations, others)


class E3nnLayer(nn.Module):
    """One round of messages on flat vectors."""

    def __init__(self, irreps: o3.Irreps, attribute: o3.Irreps) -> None:
        super().__init__()
        both = o3.Irreps([(2 * mul, ir) for mul, ir in irreps])
        pair = o3.Irreps([(2 * mul + 2 * (ir.l == 0), ir) for mul, ir in irreps])
        self.irreps = irreps
        self.message_1 = Product(pair, attribute, irreps, True)
        self.message_2 = Product(irreps, attribute, irreps, True)
        self.update_1 = Product(both, attribute, irreps, True)
        self.update_2 = Product(irreps, attribute, irreps, False)

    def forward(self, x: Tensor, edge_index: Tensor, of_edge: Tensor, of_node: Tensor, invariants: Tensor) -> Tensor:
        """Map node features of one layer to those of the next."""
        source, target = edge_index
        message = self.message_1(self._join([x[target], x[source]], invariants), of_edge)
        message = self.message_2(message, of_edge)
        summed = torch.zeros_like(x).index_add(0, target, message)
        return x + self.update_2(self.update_1(self._join([x, summed]), of_node), of_node)

    def _join(self, parts: list[Tensor], invariants: Tensor | None = None) -> Tensor:
        """Concatenate flat vectors irrep by irrep, with invariants after the scalars."""
        split = [[part[:, where] for part in parts] for where in self.irreps.slices()]
        if invariants is not None:
            split[0].append(invariants)
        return torch.cat([piece for pieces in split for piece in pieces], dim=1)


class E3nnNBodySEGNN(nn.Module):
    """The N-body network; same arguments, inputs and outputs as ``NBodySEGNN`` with l = 1 features and attributes."""

    def __init__(self, *, channels: int = 32, n_layers: int = 4) -> None:
        super().__init__()
        irreps, self.attribute = o3.Irreps(f"{channels}x0e+{channels}x1o"), o3.Irreps("1x0e+1x1o")
        self.embedding = Product(o3.Irreps("1x0e+2x1o"), self.attribute, irreps, False)
        self.layers = nn.ModuleList(E3nnLayer(irreps, self.attribute) for _ in range(n_layers))
        self.hidden = Product(irreps, self.attribute, irreps, True)
        self.output = Product(irreps, self.attribute, o3.Irreps("1x1o"), False)

    @classmethod
    def from_fast(cls, fast: NBodySEGNN) -> "E3nnNBodySEGNN":
        """The plain form of a fast network, with the same weights."""
        segnn: SEGNN = fast.segnn
        plain = cls(channels=segnn.embedding.irreps_out[0].mul, n_layers=len(segnn.layers))
        plain.to(next(fast.parameters()).dtype)
        plain.embedding.copy_from(segnn.embedding)
        plain.hidden.copy_from(segnn.hidden.product)
        plain.output.copy_from(segnn.output)
        for mine, theirs in zip(plain.layers, segnn.layers, strict=True):
            layer = cast(Layer, theirs)
            for name in ("message_1", "message_2", "update_1", "update_2"):
                product = getattr(layer, name)
                getattr(mine, name).copy_from(product.product if isinstance(product, GatedProduct) else product)
        return plain

    def forward(self, positions: Tensor, velocities: Tensor, charges: Tensor) -> Tensor:
        """Displacements (M, n, 3); see ``NBodySEGNN``."""
        n_systems, n, _ = positions.shape
        pairs = torch.tensor([(j, i) for i in range(n) for j in range(n) if i != j]).T
        edge_index = (pairs[:, None] + n * torch.arange(n_systems)[:, None]).flatten(1)
        source, target = edge_index
        x, v, q = positions.flatten(0, 1), velocities.flatten(0, 1), charges.flatten()
        vectors = x[source] - x[target]
        of_edge = o3.spherical_harmonics(self.attribute, vectors, True, "integral")
        total = torch.zeros(len(x), of_edge.shape[1], dtype=x.dtype).index_add(0, target, of_edge)
        of_node = total / (n - 1) + o3.spherical_harmonics(self.attribute, v, True, "integral")
        of_node[:, 0] = 1.0
        invariants = torch.cat([vectors.norm(dim=1, keepdim=True), (q[source] * q[target]).unsqueeze(1)], dim=1)
        centred = (positions - positions.mean(1, keepdim=True)).flatten(0, 1)
        h = self.embedding(torch.cat([v.norm(dim=1, keepdim=True), centred, v], dim=1), of_node)
        for layer in self.layers:
            h = layer(h, edge_index, of_edge, of_node, invariants)
        return self.output(self.hidden(h, of_node), of_node).view(n_systems, n, 3)
