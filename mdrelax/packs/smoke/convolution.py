"""Convolutions whose kernels are assembled from weights: one convolution per layer, one assembly per training step.

A kernel may be a sum over a basis, with a residual and a free map: all of this is added up before images are convolved.
Inside ``with assembled_once() as kernels`` every layer assembles its kernel at its first call and uses it in all others
(a rollout calls a network once per frame). The loss may then be computed in parts, each with its own backward pass that
ends at the kernels; ``kernels.loss`` returns their sum, whose backward pass continues from there.

3 x 3 kernels between many channels are applied by ``winograd`` while a gradient is wanted.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdrelax.packs.smoke import winograd

__all__ = ["AssembledKernels", "KernelConv", "PlainConv", "assembled_once", "initial_std"]

FEWEST_CHANNELS = 96  # on both sides, from which Winograd's convolution is faster on a CPU
Free = tuple[float | Tensor, Tensor]  # theta, and the free kernel


class AssembledKernels:
    """The kernels of one step, by layer: assembled with their graph, and as leaves of the passes that use them."""

    def __init__(self) -> None:
        self._kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._transformed: dict[nn.Module, Tensor] = {}

    def leaf(self, layer: nn.Module, assemble: Callable[[], Tensor]) -> Tensor:
        """The kernel of a layer."""
        if layer not in self._kept:
            whole = assemble()
            self._kept[layer] = whole, whole.detach().requires_grad_(whole.requires_grad)
        return self._kept[layer][1]

    def transformed(self, layer: nn.Module, kernel: Tensor) -> Tensor:
        """The form of a layer's kernel that ``winograd`` applies."""
        if layer not in self._transformed:
            self._transformed[layer] = winograd.transform(kernel)
        return self._transformed[layer]

    def loss(self, value: Tensor) -> Tensor:
        """A loss with this value, the sum of parts whose backward passes have been made."""
        pairs = [(whole, leaf.grad) for whole, leaf in self._kept.values() if leaf.grad is not None]
        anchor = value.new_zeros(()).requires_grad_(), value.new_zeros(())  # for networks without assembled kernels
        wholes, gradients = zip(anchor, *pairs, strict=True)
        return _KnownGradient.apply(value.detach(), gradients, *wholes)


class _KnownGradient(torch.autograd.Function):
    """A number, and its gradient with respect to some tensors."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor, ...], *wholes: Tensor) -> Tensor:
        """The number."""
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients that are known; they are scaled in place, so that this can be done once."""
        return (None, None, *(known.mul_(gradient) for known in ctx.gradients))


_KERNELS: ContextVar[AssembledKernels | None] = ContextVar("kernels", default=None)


@contextmanager
def assembled_once() -> Iterator[AssembledKernels]:
    """Inside the ``with`` statement weights and theta must stay as they are: each layer assembles its kernel once."""
    kernels = AssembledKernels()
    token = _KERNELS.set(kernels)
    try:
        yield kernels
    finally:
        _KERNELS.reset(token)


def initial_std(fan_in: int, *, before_relu: bool) -> float:
    """Standard deviation of a kernel's entries that keeps the size of features (He et al., arXiv 1502.01852)."""
    return math.sqrt((2 if before_relu else 1) / fan_in)


class KernelConv(nn.Module, ABC):
    """Images (B, dim_in, H, W) to (B, dim_out, H, W), with zeros around them; the base of all convolutions here.

    Args:
        kernel_size: Pixels along a side, odd.
        groups: Of channels that are convolved separately.
    """

    joins_kernels = True  # a free kernel is added to the layer's own: ``forward(x, free=(theta, W))``

    def __init__(self, kernel_size: int, *, groups: int = 1) -> None:
        super().__init__()
        self.kernel_size, self.groups = kernel_size, groups

    @abstractmethod
    def kernel(self) -> Tensor:
        """The kernel (dim_out, dim_in / groups, k, k), assembled from the weights."""

    @abstractmethod
    def whole_bias(self) -> Tensor | None:
        """The bias (dim_out,)."""

    def constraint(self) -> Tensor | None:
        """How far the layer's weights are from those of a symmetric one, for layers that are not exactly symmetric."""
        return None

    def forward(self, x: Tensor, *, free: Free | None = None) -> Tensor:
        """The images convolved with the kernel, plus theta times the free one."""
        kernels = _KERNELS.get()

        def assemble() -> Tensor:
            return self.kernel() if free is None else self.kernel() + free[0] * free[1]

        kernel, bias = assemble() if kernels is None else kernels.leaf(self, assemble), self.whole_bias()
        if self._is_fast(x):
            transformed = winograd.transform(kernel) if kernels is None else kernels.transformed(self, kernel)
            y = winograd.convolve(x, kernel, transformed)
            return y if bias is None else y.add_(bias.view(-1, 1, 1))
        return functional.conv2d(x, kernel, bias, padding=self.kernel_size // 2, groups=self.groups)

    def _is_fast(self, x: Tensor) -> bool:
        sides_fit = all(side % winograd.TILE == 0 for side in x.shape[-2:])
        return (
            torch.is_grad_enabled() and self.kernel_size == 3 and self.groups == 1 and sides_fit
            and x.device.type == "cpu" and min(x.shape[1], self.n_out) >= FEWEST_CHANNELS
        )  # fmt: skip

    @property
    @abstractmethod
    def n_out(self) -> int:
        """dim_out."""


class PlainConv(KernelConv):
    """A free kernel and a bias, no symmetry."""

    def __init__(self, dim_in: int, dim_out: int, kernel_size: int, *, before_relu: bool = True) -> None:
        super().__init__(kernel_size)
        std = initial_std(dim_in * kernel_size**2, before_relu=before_relu)
        self.weight = nn.Parameter(std * torch.randn(dim_out, dim_in, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(dim_out))

    @property
    def n_out(self) -> int:
        """dim_out."""
        return len(self.bias)

    def kernel(self) -> Tensor:
        """The weight."""
        return self.weight

    def whole_bias(self) -> Tensor:
        """The bias."""
        return self.bias
