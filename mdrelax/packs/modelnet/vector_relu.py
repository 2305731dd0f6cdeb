"""The norm of lengths and the leaky ReLU of vectors as one step, with backward passes that keep little.

With p features and d directions (C, 3, ...), BN batch norm, s the slope and g the gradient of the result:

    l = |p| + eps         scale = BN(l) / l         t = <p, d>        w = |d|^2 + eps
    r = (1 - s) min(scale t, 0) / w                 out = scale p - r d

    dr = -<g, d>          dw = -r dr / w            d(scale t) = (1 - s) dr / w where scale t < 0

torch's own chain of these would keep some ten tensors for its backward pass; here it is p and d, and between edges
neither of them: they are sums of features of points, and are made again.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mdrelax.packs.modelnet.edges import edge_sum, sum_at_ends

__all__ = ["EPS", "edge_vector_relu", "length_scale", "vector_relu"]

EPS = 1e-6  # of lengths and squared lengths, as published


class _Norm(NamedTuple):
    """What batch norm needs: its parameters, running statistics and mode."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    training: bool
    momentum: float
    eps: float

    @classmethod
    def of(cls, norm: nn.BatchNorm1d) -> "_Norm":
        """Of a module; raises ``ValueError`` for one that keeps a mean over all calls or no statistics."""
        if norm.momentum is None or norm.running_mean is None or norm.running_var is None:
            raise ValueError("The norm of lengths needs a `momentum` and running statistics.")
        if norm.training and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        return cls(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.training, norm.momentum, norm.eps)

    def scale(self, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """scale (C, ...), and mean and inverse deviation of the batch (empty in evaluation mode)."""
        lengths = _lengths(p)
        normed, mean, inverse = torch.native_batch_norm(
            lengths.flatten(1).unsqueeze(0), self.weight, self.bias, self.running_mean, self.running_var,
            self.training, self.momentum, self.eps,
        )  # fmt: skip
        return normed.view_as(lengths).div_(lengths), mean, inverse

    def again(self, p: Tensor, mean: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
        """Lengths and scale in the backward pass, from the statistics of the forward pass."""
        lengths = _lengths(p)
        if not self.training:
            mean, inverse = self.running_mean, (self.running_var + self.eps).rsqrt()
        slope = self.weight * inverse
        shape = (-1, *[1] * (lengths.ndim - 1))
        normed = lengths * slope.view(shape)
        return lengths, normed.add_((self.bias - mean * slope).view(shape)).div_(lengths)

    def backward(
        self, of_scale: Tensor, p: Tensor, lengths: Tensor, scale: Tensor, statistics: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The factor of p in its gradient (C, ...), and the gradients of weight and bias."""
        of_normed = of_scale / lengths
        of_lengths, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            of_normed.flatten(1).unsqueeze(0), lengths.flatten(1).unsqueeze(0), self.weight, self.running_mean,
            self.running_var, *statistics, self.training, self.eps, [True, True, True],
        )  # fmt: skip
        factor = of_lengths.view_as(lengths).addcmul_(of_normed, scale, value=-1)
        return factor.div_((lengths - EPS).clamp_(min=torch.finfo(p.dtype).tiny)), of_weight, of_bias


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of (C, 3, ...), component by component: no tensor of the products is made."""
    return (a[:, 0] * b[:, 0]).addcmul_(a[:, 1], b[:, 1]).addcmul_(a[:, 2], b[:, 2])


def _lengths(p: Tensor) -> Tensor:
    """|p| + eps; torch's ``vector_norm`` takes many times longer over an axis that is not the last."""
    return _dot(p, p).sqrt_().add_(EPS)


def _relu(p: Tensor, scale: Tensor, d: Tensor, slope: float) -> Tensor:
    r = (scale * _dot(p, d)).clamp_(max=0).mul_(1 - slope).div_(_dot(d, d).add_(EPS))
    return (p * scale.unsqueeze(1)).addcmul_(d, r.unsqueeze(1), value=-1)


def _backward(
    g: Tensor, p: Tensor, d: Tensor, norm: _Norm, statistics: tuple[Tensor, Tensor], slope: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of p, d, and the norm's weight and bias."""
    lengths, scale = norm.again(p, *statistics)
    t, w = _dot(p, d), _dot(d, d).add_(EPS)
    q = scale * t
    outside = q < 0
    r = q.clamp_(max=0).mul_(1 - slope).div_(w)
    of_r = _dot(g, d).neg_().div_(w)
    of_q = (of_r * outside).mul_(1 - slope)
    of_t = of_q * scale
    of_d = (p * of_t.unsqueeze(1)).addcmul_(g, r.unsqueeze(1), value=-1)
    of_d.addcmul_(d, r.mul_(of_r).unsqueeze(1), value=-2)
    of_scale = _dot(g, p).addcmul_(of_q, t)
    factor, of_weight, of_bias = norm.backward(of_scale, p, lengths, scale, statistics)
    of_p = (g * scale.unsqueeze(1)).addcmul_(d, of_t.unsqueeze(1)).addcmul_(p, factor.unsqueeze(1))
    return of_p, of_d, of_weight, of_bias


class _VectorReLU(torch.autograd.Function):
    """Keeps p and d."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, d: Tensor, slope: float, *norm: Any) -> Tensor:
        """See ``vector_relu``."""
        norm = _Norm(*norm)
        scale, *statistics = norm.scale(p)
        ctx.save_for_backward(p, d, *norm[:4], *statistics)
        ctx.slope, ctx.mode = slope, norm[4:]
        return _relu(p, scale, d, slope)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """See the module."""
        p, d, *norm, mean, inverse = ctx.saved_tensors
        of_p, of_d, *of_norm = _backward(gradient, p, d, _Norm(*norm, *ctx.mode), (mean, inverse), ctx.slope)
        return (of_p, of_d, None, *of_norm, *[None] * 5)


class _EdgeVectorReLU(torch.autograd.Function):
    """Keeps the features of points that p and d are sums of."""

    @staticmethod
    def forward(ctx: Any, neighbours: Tensor, slope: float, *rest: Any) -> Tensor:
        """See ``edge_vector_relu``."""
        points, norm = rest[:4], _Norm(*rest[4:])
        p, d = edge_sum(points[0], points[1], neighbours), edge_sum(points[2], points[3], neighbours)
        scale, *statistics = norm.scale(p)
        ctx.save_for_backward(neighbours, *points, *norm[:4], *statistics)
        ctx.slope, ctx.mode = slope, norm[4:]
        return _relu(p, scale, d, slope)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """See the module."""
        neighbours, *rest, mean, inverse = ctx.saved_tensors
        points, norm = rest[:4], rest[4:]
        p, d = edge_sum(points[0], points[1], neighbours), edge_sum(points[2], points[3], neighbours)
        of_p, of_d, *of_norm = _backward(gradient, p, d, _Norm(*norm, *ctx.mode), (mean, inverse), ctx.slope)
        ends = [*sum_at_ends(of_p, neighbours), *sum_at_ends(of_d, neighbours)]
        return (None, None, *ends, *of_norm, *[None] * 5)


class _LengthScale(torch.autograd.Function):
    """Keeps p."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, *norm: Any) -> Tensor:
        """See ``length_scale``."""
        norm = _Norm(*norm)
        scale, *statistics = norm.scale(p)
        ctx.save_for_backward(p, *norm[:4], *statistics)
        ctx.mode = norm[4:]
        return scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """See the module."""
        p, *norm, mean, inverse = ctx.saved_tensors
        own = _Norm(*norm, *ctx.mode)
        factor, *of_norm = own.backward(gradient, p, *own.again(p, mean, inverse), (mean, inverse))
        return (p * factor.unsqueeze(1), *of_norm, *[None] * 5)


def length_scale(p: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    """The factor of each vector (C, ...) of p (C, 3, ...) that gives it its new length."""
    return _LengthScale.apply(p, *_Norm.of(norm))


def vector_relu(p: Tensor, d: Tensor, norm: nn.BatchNorm1d, *, slope: float) -> Tensor:
    """Normed and cut off, (C, 3, ...): features p along directions d (C or 1, 3, ...)."""
    return _VectorReLU.apply(p, d.expand_as(p), slope, *_Norm.of(norm))


def edge_vector_relu(
    p: Sequence[Tensor], d: Sequence[Tensor], neighbours: Tensor, norm: nn.BatchNorm1d, *, slope: float
) -> Tensor:
    """The same of edges (C, 3, k, B, N), where p and d are ``edge_sum`` of features of neighbour and centre."""
    return _EdgeVectorReLU.apply(neighbours, slope, *p, *d, *_Norm.of(norm))
