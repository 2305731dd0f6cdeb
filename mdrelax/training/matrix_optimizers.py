"""Optimisers that move every matrix of weights by the same distance: the learning rate is a length, not a sensitivity.

In an equivariant network each irrep (and path) has its own matrix, with gradients of a different size. Here a matrix W
with the gradient G moves, at the rate eta, by

    normalised   eta * dW / ||dW||_2              dW = Adam's step for G, ||.||_2 the largest singular value
    Muon         eta * U V^T                      U S V^T = the momentum of G: all singular values become 1

so both change W by eta in the spectral norm. A parameter with three dimensions is a stack of matrices, each a separate
block; one with four or more is a convolution kernel (C_out, everything else); a vector is a block whose norm is its
length. Neither method depends on whether matrices are stored as (C_in, C_out) or (C_out, C_in).

Muon is Keller Jordan's (https://kellerjordan.github.io/posts/muon/) and differs from ``torch.optim.Muon`` in
1. stacks: matrices of one shape are orthogonalised together, those of a stack separately;
2. precision: the parameters' own, not bfloat16;
3. tall matrices: no factor sqrt(rows / columns), which would depend on the order of storage.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Muon", "NormalisedAdam", "is_matrix"]

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Keller Jordan's coefficients: singular values end within about 0.7 to 1.2
NEWTON_SCHULZ_STEPS = 5
SQUARINGS = (3, 3)  # of D D^T, rescaled after each group to stay in the range of float32: the 64th power
TINY = 1e-12  # below it a step is zero


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter is a matrix, a stack of them or a kernel, and not effectively a vector, such as (1, C, 1)."""
    return min(_block_shape(parameter)) > 1


def _block_shape(parameter: Tensor) -> tuple[int, int]:
    """(rows, columns) of a parameter's blocks."""
    if parameter.ndim >= 4:
        return parameter.shape[0], parameter.shape[1:].numel()
    return (1, parameter.numel()) if parameter.ndim < 2 else (parameter.shape[-2], parameter.shape[-1])


class _Blocks:
    """Parameters sorted into stacks (K, rows, columns) of equal blocks, in a reproducible order."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        groups: dict[Any, list[Tensor]] = {}
        for p in parameters:
            groups.setdefault((_block_shape(p), p.dtype, p.device), []).append(p)
        self.shapes = [key[0] for key in groups]
        self.groups = list(groups.values())
        self.parameters = [p for group in self.groups for p in group]
        self.counts = [[p.numel() // math.prod(s) for p in g] for s, g in zip(self.shapes, self.groups, strict=True)]

    def zeros(self) -> list[Tensor]:
        """One stack of zeros for each shape."""
        sizes = zip(self.shapes, self.counts, self.groups, strict=True)
        return [group[0].new_zeros(sum(counts), *shape).detach() for shape, counts, group in sizes]

    def gradients(self) -> list[Tensor]:
        """The gradients as stacks; zero for a parameter that has none."""
        return [
            torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1, *shape) for p in group])
            for shape, group in zip(self.shapes, self.groups, strict=True)
        ]

    def subtract(self, stacks: Sequence[Tensor], *, times: float) -> None:
        """Subtract the stacks, times a number, from the parameters."""
        parts = [part for stack, counts in zip(stacks, self.counts, strict=True) for part in stack.split(counts)]
        if parts:
            steps = [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]
            torch._foreach_add_(self.parameters, steps, alpha=-times)

    def decay(self, amount: float) -> None:
        """Shrink the matrices by a fraction of themselves."""
        matrices = [p for p in self.parameters if is_matrix(p)] if amount else []
        if matrices:
            torch._foreach_mul_(matrices, 1 - amount)


class Muon:
    """Orthogonalised Nesterov momentum; ``weight_decay`` is decoupled. For matrices and stacks of matrices only.

    Raises ``ValueError`` for any other parameter.
    """

    def __init__(self, parameters: Sequence[Tensor], *, lr: float, momentum: float, weight_decay: float) -> None:
        others = [tuple(p.shape) for p in parameters if not is_matrix(p)]
        if others:
            raise ValueError(f"Muon is for matrices; these shapes are none: {others}.")
        self.param_groups: list[dict[str, Any]] = [{"params": list(parameters), "lr": lr}]
        self.momentum, self.weight_decay = momentum, weight_decay
        self.blocks = _Blocks(parameters)
        self.averages = self.blocks.zeros()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        _zero_grad(self.blocks.parameters, set_to_none)

    @torch.no_grad()
    def step(self) -> None:
        """Move every matrix by the learning rate."""
        lr, gradients = self.param_groups[0]["lr"], self.blocks.gradients()
        if gradients:
            torch._foreach_lerp_(self.averages, gradients, 1 - self.momentum)
            torch._foreach_lerp_(gradients, self.averages, self.momentum)
        self.blocks.decay(lr * self.weight_decay)
        self.blocks.subtract([orthogonalise(each) for each in gradients], times=lr)

    def state_dict(self) -> dict[str, Any]:
        """Tensors for a checkpoint."""
        return {"averages": self.averages}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Restore from ``state_dict``."""
        _copy(self.averages, state["averages"])


class NormalisedAdam:
    """Adam's step, divided by the norm of each block; ``weight_decay`` is decoupled and for matrices only."""

    def __init__(
        self, parameters: Sequence[Tensor], *, lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": list(parameters), "lr": lr}]
        self.weight_decay = weight_decay
        self.blocks = _Blocks(parameters)
        self.steps = self.blocks.zeros()  # optimised by torch's Adam, from zero in every step: minus dW
        self.adam = torch.optim.Adam(self.steps, lr=1.0, betas=betas, fused=True)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        _zero_grad(self.blocks.parameters, set_to_none)

    @torch.no_grad()
    def step(self) -> None:
        """Move every block by the learning rate."""
        lr = self.param_groups[0]["lr"]
        torch._foreach_zero_(self.steps)
        for step, gradient in zip(self.steps, self.blocks.gradients(), strict=True):
            step.grad = gradient
        self.adam.step()
        scaled = [step / largest_singular_value(step).clamp(min=TINY) for step in self.steps]
        self.blocks.decay(lr * self.weight_decay)
        self.blocks.subtract(scaled, times=-lr)

    def state_dict(self) -> dict[str, Any]:
        """Primitives and tensors for a checkpoint."""
        return {"adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Restore from ``state_dict``."""
        self.adam.load_state_dict(state["adam"])


def orthogonalise(stack: Tensor) -> Tensor:
    """Approximate U V^T of each matrix U S V^T of a stack (K, rows, columns), by Newton-Schulz iteration.

    Singular values below about 1e-3 of the matrix's norm stay below 1.
    """
    a, b, c = NEWTON_SCHULZ
    x = stack.mT if stack.shape[1] > stack.shape[2] else stack
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=TINY)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if stack.shape[1] > stack.shape[2] else x


def largest_singular_value(stack: Tensor) -> Tensor:
    """||D||_2 of each block D of a stack (K, rows, columns), as (K, 1, 1).

    Exact for vectors. For matrices the root mean square of the singular values, weighted with the 64th powers of their
    squares: typically too small by about 0.1 %, and by 2.2 % in the worst case of 128 rows or columns.
    """
    length = torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True)
    if min(stack.shape[1:]) == 1:
        return length
    x = stack / length.clamp(min=TINY)
    gram = x.mT @ x if stack.shape[1] > stack.shape[2] else x @ x.mT
    power, smallest = gram, torch.finfo(stack.dtype).tiny
    for squarings in SQUARINGS:
        for _ in range(squarings):
            power = power @ power
        trace = power.diagonal(dim1=1, dim2=2).sum(1).view(-1, 1, 1)
        power = power / trace.clamp(min=smallest)
    return length * (gram * power).sum((1, 2), keepdim=True).sqrt()


def _zero_grad(parameters: Iterable[Tensor], set_to_none: bool) -> None:
    for parameter in parameters:
        if set_to_none:
            parameter.grad = None
        elif parameter.grad is not None:
            parameter.grad.zero_()


def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        if target.shape != source.shape:
            raise ValueError(f"A tensor of the optimiser is {tuple(source.shape)}, not {tuple(target.shape)}.")
        target.copy_(source)
