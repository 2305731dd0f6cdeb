"""Layers of equiformer-pytorch that a force field needs changed; parameters and their names are the library's.

| library layer | problem for molecular dynamics | here |
| --- | --- | --- |
| MLPAttention | neighbours are cut hard: the energy jumps at the cut-off | the softmax carries the envelope |
| MLPAttention | leaky ReLU: forces jump where its input changes sign | its smooth form |
| L2DistAttention | no mask for degree 0; 1e-6 added to differences of vectors | masked, nothing added |
| Norm | small vectors are scaled to unit size: the energy jumps where one vanishes | all degrees by one number |
| DTP | inputs gathered and rotated, and radial networks evaluated, path by path | once for all paths |
| Linear | cannot be relaxed | has a site, can absorb a folded map |

``smooth=False`` keeps the library's own functions (envelope: a mask), for comparison.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import equiformer_pytorch.equiformer_pytorch as library
import torch
from torch import Tensor, nn
from torch.nn import functional

from mdrelax.base import o3
from mdrelax.method.sites import Site, irreps_site
from mdrelax.potentials.equiformer_layers import smooth_leaky_relu
from mdrelax.potentials.steerable import inverse_size
from mdrelax.structures.graph import Exchange

__all__ = ["DistanceAttention", "MLPAttention", "Neighbourhood", "adopt"]

Fibers = dict[int, Tensor]  # degree -> (1, N, C, 2l+1), or (1, N, J, C, 2l+1) for values of edges
SMALLEST_DISTANCE = 0.1  # smooths the cusp of |q - k|


class Neighbourhood(NamedTuple):
    """Data on the neighbours of the atoms for all layers, padded to J of them."""

    sources: Tensor  # (1, N, J) int64
    envelope: Tensor  # (1, N, J), 0 in empty slots
    frames: Sequence[Tensor]  # of degree l: (1, N, J, 2l+1, 2l+1)
    radial: Tensor  # (1, N, J, K): input of the radial networks
    couplings: Mapping[tuple[int, int], tuple[Tensor, Tensor]]  # degrees in, out -> factors of entries m and -m
    everywhere: Exchange  # rows of the atoms that have features here to rows of all atoms; see ``Edges``

    @property
    def tokens(self) -> Tensor:
        """The envelope preceded by that of the atom itself, 1: (1, N, 1 + J)."""
        return functional.pad(self.envelope, (1, 0), value=1.0)


class Linear(library.Linear):
    """Declares the irreps it maps between, so that it can be relaxed, and can absorb a folded map in its weights."""

    @property
    def irreps_in(self) -> o3.Irreps:
        """Degrees as even irreps: the network is SE(3) equivariant."""
        return o3.Irreps([(w.shape[0], (degree, 1)) for degree, w in zip(self.degrees, self.weights, strict=True)])

    @property
    def irreps_out(self) -> o3.Irreps:
        """See ``irreps_in``."""
        return o3.Irreps([(w.shape[1], (degree, 1)) for degree, w in zip(self.degrees, self.weights, strict=True)])

    def relaxable(self) -> Site:
        """The site of the free map."""
        return irreps_site(self.irreps_in, self.irreps_out, "mul_ir")

    @torch.no_grad()
    def fold(self, blocks: dict[tuple[int, int], Tensor]) -> None:
        """Add an equivariant map, one (C_out, C_in) per degree."""
        for k, weight in enumerate(self.weights):
            weight.add_(blocks[k, k].T)

    def forward(self, x: Fibers) -> Fibers:
        """As the library's, one matrix product per degree."""
        return {degree: (x[degree].mT @ w).mT for degree, w in zip(self.degrees, self.weights, strict=True)}


class JointNorm(library.Norm):
    """Root-mean-square norm of all degrees together: each divided by one number, ``steerable.JointLayerNorm``'s s.

    Nothing is centred, as in the library.
    """

    def forward(self, features: Fibers) -> Fibers:
        """Features of about unit size, linear in those that symmetry makes vanish."""
        inverse = inverse_size(list(features.values()), self.eps, n=len(features))
        return {d: x * (inverse * scale) for scale, (d, x) in zip(self.transforms, features.items(), strict=True)}


class SeparableNorm(library.Norm):
    """Root-mean-square norm per degree with eps under the root: the library's, without its jump, and still rough."""

    def forward(self, features: Fibers) -> Fibers:
        """Features of about unit size."""
        normed = {}
        for scale, (degree, x) in zip(self.transforms, features.items(), strict=True):
            square = x.square().sum((-2, -1), keepdim=True) / x.shape[-2]
            normed[degree] = x * (square + self.eps).rsqrt() * scale
        return normed


class DTP(library.DTP):
    """The library's tensor product: gathered and rotated once per degree, empty slots never summed."""

    def forward(self, features: Fibers, neighbours: Neighbourhood) -> Fibers:
        """The atom's own value (``self_interact``), then the values of the edges into each atom: (1, N, 1+J, C, D)."""
        received, sent = self.to_xi(features), self.to_xj(features)
        turned = [_turn(received[d], sent[d], neighbours, d) for d in range(len(self.fiber_in))]
        kernels = self._kernels(neighbours.radial)
        outputs = {}
        for degree in range(len(self.fiber_out)):
            parts = [_product(kernels[d, degree], x, d, degree, neighbours) for d, x in enumerate(turned)]
            outputs[degree] = torch.cat(parts, dim=-2)
            if degree:
                outputs[degree] = outputs[degree] @ neighbours.frames[degree].mT
        outputs, own = self.to_out(outputs), self.self_interact(features)
        if own.keys() != outputs.keys():  # from scalars alone: higher degrees come from neighbours only
            own = {d: own[d] if d in own else torch.zeros_like(x[:, :, 0]) for d, x in outputs.items()}
        return {d: torch.cat([own[d].unsqueeze(2), x], dim=2) for d, x in outputs.items()}

    def _kernels(self, radial: Tensor) -> dict[tuple[int, int], Tensor]:
        """The library's radial networks, all paths at once: (degree in, degree out) -> (1, N, J, C_out, C_in)."""
        paths = {(p.degree_in, p.degree_out): p for p in self.kernel_unary.values()}
        networks = [path.rp for path in paths.values()]
        x = radial.flatten(0, -2).expand(len(networks), -1, -1)  # (P, edges, K)
        for k in (0, 3):  # linear, SiLU, layer norm
            weights = torch.stack([network[k].weight for network in networks])
            biases = torch.stack([network[k].bias for network in networks]).unsqueeze(1)
            gains = torch.stack([network[k + 2].gamma for network in networks]).unsqueeze(1)
            x = functional.silu(torch.baddbmm(biases, x, weights.mT))
            x = functional.layer_norm(x, x.shape[-1:]) * gains
        return {
            key: path.rp[6](hidden).view(*radial.shape[:-1], path.nc_out, path.nc_in)
            for (key, path), hidden in zip(paths.items(), x, strict=True)
        }


def _product(kernel: Tensor, x: Tensor, degree_in: int, degree_out: int, neighbours: Neighbourhood) -> Tensor:
    """One path in the edge's frame: (1, N, J, C_in, D_in) -> (1, N, J, C_out, D_out)."""
    least = min(degree_in, degree_out)
    x = x[..., degree_in - least : degree_in + least + 1]
    if least:
        even, odd = neighbours.couplings[degree_in, degree_out]
        x = x * even + x.flip(-1) * odd
    pad = degree_out - least
    return functional.pad(kernel @ x, (pad, pad))


def _turn(received: Tensor, sent: Tensor, neighbours: Neighbourhood, degree: int) -> Tensor:
    """Target plus source of each edge in the edge's frame: (1, N, J, C, D)."""
    x = neighbours.everywhere(sent[0])[neighbours.sources] + received.unsqueeze(2)
    return x @ neighbours.frames[degree] if degree else x


class MLPAttention(library.MLPAttention):
    """Attention whose logits come from a network of the message; the softmax carries the envelope."""

    smooth = True

    def forward(self, features: Fibers, neighbours: Neighbourhood) -> Fibers:
        """An update of the features."""
        features = self.prenorm(features)
        messages = self.to_attn_and_v(features, neighbours)
        *for_logits, scalars = messages[0].split(self.intermediate_type0_split, dim=-2)
        values = self.to_values({**messages, 0: scalars})
        gates = _gates(self, features)
        summed = {}
        for degree, (activation, linear) in enumerate(self.to_attn_logits):
            x = for_logits[degree].squeeze(-1)
            x = smooth_leaky_relu(x, activation.negative_slope) if self.smooth else activation(x)
            weights = _softmax(linear(x) * self.scale[degree], neighbours.tokens)
            summed[degree] = _sum_heads(weights, values[degree], gates[degree])
        return self.to_out(summed)


class DistanceAttention(library.L2DistAttention):
    """Attention with the logit -|q - k|; masked in every degree, with a smooth distance at its cusp."""

    smooth = True

    def forward(self, features: Fibers, neighbours: Neighbourhood) -> Fibers:
        """An update of the features."""
        features = self.prenorm(features)
        queries, keys_values = self.to_q(features), self.to_kv(features, neighbours)
        gates = _gates(self, features)
        summed = {}
        for degree, n_heads in enumerate(self.heads):
            query = queries[degree].unflatten(-2, (n_heads, -1)).unsqueeze(2)
            key, value = keys_values[degree].unflatten(-2, (n_heads, -1)).chunk(2, dim=-2)
            square = (query - key).square().sum(-2 if degree == 0 else -1)  # (1, N, 1+J, H, 1) or (.., H, d)
            rounding = SMALLEST_DISTANCE**2 if self.smooth else torch.finfo(square.dtype).tiny
            distance = (square + rounding).sqrt().sum(-1)
            weights = _softmax(-distance * self.scale[degree], neighbours.tokens)
            summed[degree] = _sum_heads(weights, value.flatten(-3, -2), gates[degree])
        return self.to_out(summed)


def _gates(attention: Any, features: Fibers) -> list[Tensor]:
    """One number per head and atom, for each degree: (1, N, H, 1, 1)."""
    linear = attention.attn_head_gates[1]
    gates = torch.sigmoid(linear(features[0].squeeze(-1)))[..., None, None]
    return list(gates.split(attention.heads, dim=2))


def _softmax(logits: Tensor, envelope: Tensor) -> Tensor:
    """f exp(a) / sum f exp(a) over the tokens of an atom: (1, N, 1+J, H); the atom itself keeps the sum above 0."""
    envelope = envelope.unsqueeze(-1)
    logits = logits.masked_fill(envelope == 0, -torch.inf)
    raised = envelope * torch.exp(logits - logits.amax(2, keepdim=True).detach())
    return raised / raised.sum(2, keepdim=True)


def _sum_heads(weights: Tensor, values: Tensor, gates: Tensor) -> Tensor:
    """Weighted sum over tokens, gated: weights (1, N, T, H), values (1, N, T, H d, D) -> (1, N, H d, D)."""
    values = values.unflatten(-2, (weights.shape[-1], -1))
    return ((weights[..., None, None] * values).sum(2) * gates).flatten(2, 3)


REPLACED: dict[type, type] = {library.Linear: Linear, library.DTP: DTP}
NORMS: dict[str, type] = {"joint": JointNorm, "separable": SeparableNorm}


def adopt(network: nn.Module, *, norm: str | None, norm_eps: float) -> None:
    """Give every layer of the library in ``network`` the forward of this module.

    Norms get that of ``NORMS``; if ``norm`` is None, they and the kinks of attention remain the library's. Parameters,
    their names and values do not change, nor do other modules built by the library's constructors.
    """
    module: Any
    for module in network.modules():
        if type(module) in REPLACED:
            module.__class__ = REPLACED[type(module)]
        elif type(module) is library.Norm and norm is not None:
            module.__class__ = NORMS[norm]
            module.eps = norm_eps
        elif isinstance(module, MLPAttention | DistanceAttention):
            module.smooth = norm is not None
