"""Optimisers, learning-rate schedule and exponential moving average of the weights.

| optimiser | a step at rate eta | decay |
| --- | --- | --- |
| adamw | Adam | decoupled, weights with two or more dimensions |
| adam | Adam | classic: d p is added to the gradient of every parameter |
| muon | matrices: Muon with momentum beta_1; the rest: AdamW at a fraction of eta | decoupled, matrices |
| soap | matrices: Adam in the eigenbasis of Shampoo's preconditioner; the rest: AdamW | decoupled, matrices |
| normalised | Adam's, each block divided by its norm (``mdrelax.training.matrix_optimizers``) | decoupled, matrices |

Learning rate at step s of n, with w warm-up steps, peak p and final fraction f:

    warm-up   p (s + 1) / w                 s < w
    cosine    p (f + (1 - f) (1 + cos(pi x)) / 2)          x = (s - w) / (n - 1 - w)
    constant  p
    plateau   p * factor^k        k: how often the validation error did not improve for ``patience`` validations
"""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mdrelax.base.names import nearest_name
from mdrelax.method.relaxation import relaxed_layers
from mdrelax.training.matrix_optimizers import Muon, NormalisedAdam, is_matrix

__all__ = [
    "OPTIMIZERS",
    "Ema",
    "LearningRate",
    "LearningRateKind",
    "Optimizer",
    "Parts",
    "make_optimizer",
    "set_rate",
]

LearningRateKind = Literal["constant", "cosine", "plateau"]


VECTOR_FRACTION = 0.2  # Muon moves the entries of a matrix of C channels by eta / sqrt(C), Adam moves an entry by eta


class Optimizer(Protocol):
    """What the trainer asks of an optimiser; torch's have it."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups with their "lr", see ``set_rate``."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""

    def step(self) -> Any:
        """Move the parameters."""

    def state_dict(self) -> dict[str, Any]:
        """Primitives and tensors for a checkpoint."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Restore from ``state_dict``."""


class MakeOptimizer(Protocol):
    """How an entry of ``OPTIMIZERS`` is called."""

    def __call__(
        self, parameters: list[Tensor], *, lr: float, weight_decay: float, betas: tuple[float, float]
    ) -> Optimizer:
        """An optimiser of the parameters; ``muon`` also takes a ``vector_fraction``."""


def make_optimizer(
    model: nn.Module,
    *,
    kind: str = "adamw",
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    vector_fraction: float = VECTOR_FRACTION,
    free_kind: str | None = None,
    free_fraction: float = 1.0,
) -> Optimizer:
    """The optimiser ``kind`` of the trainable parameters.

    Raises ``ValueError`` for a name not in ``OPTIMIZERS``, or where the library that makes it is not installed.

    Muon's AdamW, for what is no matrix, has ``vector_fraction`` of the rate. The free maps of a relaxed model move by
    ``free_kind``, or the same one, at ``free_fraction`` of the rate.
    """
    free_kind = free_kind or kind
    for name in (kind, free_kind):
        if name not in OPTIMIZERS:
            raise ValueError(f"Unknown optimizer `{name}`; {nearest_name(name, OPTIMIZERS)}")
    make = {**OPTIMIZERS, "muon": partial(_muon, vector_fraction=vector_fraction)}
    settings: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "betas": betas}
    parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    free: list[Tensor] = [layer.free.weight for layer in relaxed_layers(model).values()]
    if (free_kind == kind and free_fraction == 1) or not free:
        return make[kind](parameters, **settings)
    known = {id(p) for p in free}
    trunk = [p for p in parameters if id(p) not in known]
    parts = {"trunk": make[kind](trunk, **settings), "free": make[free_kind](free, **settings)}
    for group in parts["free"].param_groups:
        group["lr_fraction"] = free_fraction * group.get("lr_fraction", 1.0)
    return Parts(parts)


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group the rate, or its own fraction of it ("lr_fraction")."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_fraction", 1.0)


def _adamw(
    parameters: list[Tensor], *, lr: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """AdamW; weights with two or more dimensions decay, biases, norms and offsets do not."""
    groups = [
        {"params": [p for p in parameters if _decays(p)], "weight_decay": weight_decay},
        {"params": [p for p in parameters if not _decays(p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=True)


def _adam(parameters: list[Tensor], *, lr: float, weight_decay: float, betas: tuple[float, float]) -> torch.optim.Adam:
    """Adam with classic L2 decay of all parameters, as in published N-body and point-cloud recipes."""
    return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, betas=betas, fused=True)


class Parts:
    """Several optimisers, each with parameters of its own, as one."""

    def __init__(self, parts: dict[str, Any]) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts, in their order."""
        return [group for part in self.parts.values() for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for part in self.parts.values():
            part.zero_grad(set_to_none)

    def step(self) -> None:
        """Move the parameters, part by part."""
        for part in self.parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Primitives and tensors for a checkpoint."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Restore from ``state_dict``."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def _muon(
    parameters: list[Tensor], *, lr: float, weight_decay: float, betas: tuple[float, float],
    vector_fraction: float = VECTOR_FRACTION,
) -> Parts:  # fmt: skip
    """Muon for matrices and AdamW, at a fraction of its rate, for vectors; either may have nothing to do."""
    matrices, vectors = _split(parameters)
    muon = Muon(matrices, lr=lr, momentum=betas[0], weight_decay=weight_decay)
    return _with_vectors({"muon": muon}, vectors, lr=lr, betas=betas, fraction=vector_fraction)


def _soap(parameters: list[Tensor], *, lr: float, weight_decay: float, betas: tuple[float, float]) -> Parts:
    """SOAP (Vyas et al., arXiv 2409.11321) for matrices and AdamW, at the same rate, for vectors."""
    try:
        from pytorch_optimizer import SOAP
    except ImportError as error:
        raise ValueError("The optimizer `soap` needs pytorch-optimizer: pip install 'mdrelax[soap]'.") from error
    matrices, vectors = _split(parameters)
    parts = {"soap": SOAP(matrices, lr=lr, betas=betas, weight_decay=weight_decay)} if matrices else {}
    return _with_vectors(parts, vectors, lr=lr, betas=betas)


def _with_vectors(
    parts: dict[str, Any], vectors: list[Tensor], *, lr: float, betas: tuple[float, float], fraction: float = 1.0
) -> Parts:
    """Optimisers of matrices, and AdamW at a fraction of the rate for the vectors where there are any."""
    if vectors:
        group = {"params": vectors, "lr_fraction": fraction}
        parts["adamw"] = torch.optim.AdamW([group], lr=fraction * lr, betas=betas, weight_decay=0.0, fused=True)
    return Parts(parts)


def _split(parameters: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Matrices (also stacks of them) and the rest."""
    return [p for p in parameters if is_matrix(p)], [p for p in parameters if not is_matrix(p)]


OPTIMIZERS: dict[str, MakeOptimizer] = {
    "adam": _adam,
    "adamw": _adamw,
    "muon": _muon,
    "normalised": NormalisedAdam,
    "soap": _soap,
}


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
        saved = state["average"]
        for average, name in zip(self.average, self.names, strict=True):
            older = name.replace("free.weight", "weight")  # the free maps' name in checkpoints of older versions
            average.copy_(saved[name] if name in saved else saved[older])
