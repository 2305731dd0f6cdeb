"""Layers of the Equiformer: attention, feed-forward network and the block of both; equations in ``equiformer``."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdrelax.base import o3
from mdrelax.method.relaxation import is_relaxed
from mdrelax.method.sites import Site, irreps_site
from mdrelax.potentials.adjacency import Adjacency
from mdrelax.potentials.edge_convolution import EdgeBasis, EdgeConvolution
from mdrelax.potentials.steerable import Features, Gate, Linear, layer_norm

__all__ = ["Attention", "Block", "BlockSizes", "FeedForward", "smooth_leaky_relu"]

Gather = Callable[[Features, Features, int], Features]  # source and target features, n_out: ``Attention.gather``


class Attention(nn.Module):
    """Equivariant graph attention over the neighbours with H heads.

    Nonlinear messages pass through a gate and a second tensor product before they are summed; linear ones (the paper's
    ablation, half the cost) are summed directly after the first.
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
        self.message = EdgeConvolution(basis, message)  # the logits' scalars first, then the input of the gate
        self.logit = nn.Parameter(_glorot(n_heads, scalars // n_heads))
        self.value = EdgeConvolution(basis, irreps) if nonlinear else None
        self.out = Linear(irreps, irreps)
        self.n_logit_scalars = scalars

    def forward(self, x: Features, gather: Gather, n_out: int) -> Features:
        """Node features (N, D, C) per irrep to an update of the first ``n_out`` irreps.

        ``gather`` is this layer's own ``gather`` for all edges, at once or chunk by chunk.
        """
        return self.out(gather(self.source(x), self.target(x), n_out))

    def gather(
        self, sent: Features, received: Features, n_out: int, edges: Adjacency, radial_weights: Sequence[Tensor]
    ) -> Features:
        """Attended values (N, D, C) of the first ``n_out`` irreps at the edges' targets.

        ``sent`` are features of all atoms, ``received`` of the targets; radial weights are one (E, W) per coupling.
        """
        message = tuple(
            s.index_select(0, edges.source) + edges.at_target(t) for s, t in zip(sent, received, strict=True)
        )
        mixed = self.message(edges.matrices, message, radial_weights, n_out if self.gate is None else None)
        for_logits, scalars = mixed[0].split([self.n_logit_scalars, mixed[0].shape[2] - self.n_logit_scalars], dim=2)
        weights = self._softmax(for_logits, edges)  # (E, 1, H, 1)
        value: Features = (scalars, *mixed[1:])
        if self.gate is not None and self.value is not None:
            value = self.value(edges.matrices, self.gate(value), None, n_out)
        return tuple(edges.sum_at_target((v.unflatten(2, (self.n_heads, -1)) * weights).flatten(2)) for v in value)

    def _softmax(self, scalars: Tensor, edges: Adjacency) -> Tensor:
        """Attention weights (E, 1, H, 1): softmax with envelope and a null neighbour (difference 1 of the module)."""
        activated = smooth_leaky_relu(scalars.view(scalars.shape[0], *self.logit.shape))
        logits = (activated * self.logit).sum(2)  # (E, H)
        largest = edges.max_at_target(logits.detach())
        raised = edges.envelope * torch.exp(logits - edges.at_target(largest))
        total = torch.exp(-largest) + edges.sum_at_target(raised)
        return (raised / edges.at_target(total))[:, None, :, None]


class FeedForward(nn.Module):
    """Equivariant feed-forward network: linear - gate - linear, atom by atom."""

    def __init__(self, irreps_in: o3.Irreps, irreps_middle: o3.Irreps, irreps_out: o3.Irreps) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = irreps_in, irreps_out
        self.gate = Gate(irreps_middle)
        self.up = Linear(irreps_in, self.gate.irreps_in)
        self.down = Linear(irreps_middle, irreps_out)

    def relaxable(self) -> Site:
        """The site of the free map."""
        return irreps_site(self.irreps_in, self.irreps_out, "ir_mul")

    def forward(self, x: Features) -> Features:
        """Features of ``irreps_in`` to features of ``irreps_out``."""
        return self.down(self.gate(self.up(x)))


class BlockSizes(NamedTuple):
    """The arguments of ``Equiformer`` that a block needs."""

    n_heads: int
    expansion: int
    nonlinear_messages: bool
    norm: str
    norm_eps: float


class Block(nn.Module):
    """Attention and feed-forward network, each with a pre-norm and a residual connection."""

    def __init__(self, irreps: o3.Irreps, irreps_out: o3.Irreps, basis: EdgeBasis, sizes: BlockSizes) -> None:
        super().__init__()
        middle = o3.Irreps([(sizes.expansion * mul, ir) for mul, ir in irreps])
        self.makes_scalars = all(ir.is_scalar() for _, ir in irreps_out)
        self.norm_1 = layer_norm(sizes.norm, irreps, sizes.norm_eps)
        self.attention = Attention(irreps, basis, sizes.n_heads, sizes.nonlinear_messages)
        self.norm_2 = layer_norm(sizes.norm, irreps, sizes.norm_eps, scalars_only=self.makes_scalars)
        self.feed_forward = FeedForward(irreps, middle, irreps_out)
        self.shortcut = None if irreps == irreps_out else Linear(irreps, irreps_out)

    def forward(self, x: Features, gather: Gather) -> Features:
        """Map node features of one block to those of the next; ``gather`` as in ``Attention``."""
        # Scalars depend on scalars alone (the first irrep), but a free map reads all irreps.
        n_read = 1 if self.makes_scalars and not is_relaxed(self) else len(x)
        x = _add(x[:n_read], self.attention(self.norm_1(x), gather, n_read))
        residual = x if self.shortcut is None else self.shortcut(x)
        return _add(residual, self.feed_forward(self.norm_2(x)))


def _add(x: Features, y: Features) -> Features:
    return tuple(a + b for a, b in zip(x, y, strict=True))


def smooth_leaky_relu(x: Tensor, slope: float = 0.2) -> Tensor:
    """(1+a)/2 x + (1-a)/2 x (2 sigmoid(x) - 1): a leaky ReLU with all derivatives."""
    return slope * x + (1 - slope) * functional.silu(x)


def _glorot(n_heads: int, size: int) -> Tensor:
    bound = math.sqrt(6 / (n_heads + size))
    return torch.empty(n_heads, size).uniform_(-bound, bound)
