"""Optimiser, learning-rate schedule and exponential moving average of the weights.

Learning rate at step s of n, with w warm-up steps, peak p and final fraction f:

    warm-up   p (s + 1) / w                 s < w
    cosine    p (f + (1 - f) (1 + cos(pi x)) / 2)          x = (s - w) / (n - 1 - w)
    constant  p
    plateau   p * factor^k        k: how often the validation error did not improve for ``patience`` validations
"""

import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Ema", "LearningRate", "LearningRateKind", "make_optimizer"]

LearningRateKind = Literal["constant", "cosine", "plateau"]


def make_optimizer(
    model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """AdamW; weights with two or more dimensions decay, biases, norms and offsets do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if _decays(p)], "weight_decay": weight_decay},
        {"params": [p for p in parameters if not _decays(p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=True)


def _decays(parameter: Tensor) -> bool:
    return parameter.squeeze().ndim >= 2


class LearningRate(NamedTuple):
    """The learning rate as a function of the step; the plateau's count of reductions is the trainer's to keep."""

    peak: float
    kind: LearningRateKind = "cosine"
    warmup_steps: int = 0
    final_fraction: float = 0.0
    factor: float = 0.5
    patience: int = 10

    def at_step(self, step: int, *, n_steps: int, reductions: int = 0) -> float:
        """The learning rate of step 0 .. n_steps - 1."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return self.peak
        if self.kind == "plateau":
            return self.peak * self.factor**reductions
        progress = (step - self.warmup_steps) / max(1, n_steps - 1 - self.warmup_steps)
        shape = (1 + math.cos(math.pi * min(1.0, progress))) / 2
        return self.peak * (self.final_fraction + (1 - self.final_fraction) * shape)


class Ema:
    """Exponential moving average of a model's parameters, with the usual early correction d_s = min(d, s / (s + 10)).

    ``decay`` = 0 follows the weights themselves.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"`ema` must lie in [0, 1), got {decay}.")
        self.decay, self.steps = decay, 0
        self.names = [name for name, _ in model.named_parameters()]
        self.average = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def update(self, parameters: Iterable[Tensor]) -> None:
        """Move the average towards the parameters by one step."""
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        torch._foreach_lerp_(self.average, [p.detach() for p in parameters], 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the model's parameters with the average."""
        for parameter, average in zip(model.parameters(), self.average, strict=True):
            parameter.copy_(average)

    def state_dict(self) -> dict[str, Any]:
        """Primitives and tensors for a checkpoint."""
        return {"steps": self.steps, "average": dict(zip(self.names, self.average, strict=True))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from ``state_dict``."""
        self.steps = state["steps"]
        for average, name in zip(self.average, self.names, strict=True):
            average.copy_(state["average"][name])
