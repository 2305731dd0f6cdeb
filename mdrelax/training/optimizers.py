"""Optimisers by name. A new one is a function or class as ``MakeOptimizer`` says, in ``OPTIMIZERS``.

| optimiser | a step at rate eta | decay |
| --- | --- | --- |
| adamw | Adam | decoupled, weights with two or more dimensions |
| adam | Adam | classic: d p is added to the gradient of every parameter |
| sgd | gradient descent with momentum beta_1 (heavy ball, not Nesterov's) | classic |
| rmsprop | the gradient divided by the root of its mean square (decay beta_2); no momentum | classic |
| muon | matrices: Muon with momentum beta_1; the rest: AdamW at a fraction of eta | decoupled, matrices |
| soap | matrices: Adam in the eigenbasis of Shampoo's preconditioner; the rest: AdamW | decoupled, matrices |
| normalised | Adam's, each block divided by its norm (``mdrelax.training.matrix_optimizers``) | decoupled, matrices |
"""

from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from mdrelax.base.names import nearest_name
from mdrelax.method.relaxation import relaxed_layers
from mdrelax.training.matrix_optimizers import Muon, NormalisedAdam, is_matrix

__all__ = [
    "OPTIMIZERS",
    "Optimizer",
    "OptimizerKind",
    "Parts",
    "fractions_of",
    "make_optimizer",
    "moving",
    "name_fits",
    "set_rate",
]

OptimizerKind = Literal["adam", "adamw", "muon", "normalised", "rmsprop", "sgd", "soap"]
VECTOR_FRACTION = 0.2  # Muon moves the entries of a matrix of C channels by eta / sqrt(C), Adam moves an entry by eta


class Optimizer(Protocol):
    """The interface that the trainer needs; torch's optimisers have it."""

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
    """The signature of an entry of ``OPTIMIZERS``."""

    def __call__(
        self, parameters: list[Tensor], *, lr: float, weight_decay: float, betas: tuple[float, float]
    ) -> Optimizer:
        """An optimiser of the parameters; ``muon`` also takes a ``vector_fraction``."""


def make_optimizer(
    model: nn.Module,
    *,
    kind: OptimizerKind = "adamw",
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    vector_fraction: float = VECTOR_FRACTION,
    free_kind: OptimizerKind | None = None,
    free_fraction: float = 1.0,
    fractions: Mapping[str, float] = MappingProxyType({}),
) -> Optimizer:
    """The optimiser ``kind`` of the trainable parameters.

    Raises ``ValueError`` for a name not in ``OPTIMIZERS``, if the library that provides it is not installed, or for a
    pattern of ``fractions`` that no parameter has.

    ``fractions`` are learning rates relative to ``lr`` by name pattern of parameters or modules, of which the first
    that fits counts; at 0 a parameter does not move.

    With Muon, parameters that are not matrices are updated by AdamW at ``vector_fraction`` times the learning rate. The
    free maps of a relaxed model are updated by ``free_kind`` (default: ``kind``) at ``free_fraction`` times the rate.
    """
    free_kind = free_kind or kind
    for name in (kind, free_kind):
        if name not in OPTIMIZERS:
            raise ValueError(f"Unknown optimizer `{name}`; {nearest_name(name, OPTIMIZERS)}")
    make: dict[OptimizerKind, MakeOptimizer] = {**OPTIMIZERS, "muon": partial(_muon, vector_fraction=vector_fraction)}
    settings: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "betas": betas}
    parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    free: list[Tensor] = [p for layer in relaxed_layers(model).values() for p in layer.free.parameters()]
    if not fractions and ((free_kind == kind and free_fraction == 1) or not free):
        return make[kind](parameters, **settings)
    known = {id(p) for p in free}
    trunk = [p for p in parameters if id(p) not in known]
    parts = _slower(model, trunk, fractions, lambda chosen: make[kind](chosen, **settings))
    if free:
        parts["free"] = _at_fraction(make[free_kind](free, **settings), free_fraction)
    return Parts(parts)


def _slower(
    model: nn.Module,
    parameters: list[Tensor],
    fractions: Mapping[str, float],
    make: Callable[[list[Tensor]], Optimizer],
) -> dict[str, Any]:
    """An optimiser for each fraction of the learning rate that some of the parameters have."""
    of_parameter = fractions_of(model, fractions)
    groups: dict[float, list[Tensor]] = {}
    for parameter in parameters:
        groups.setdefault(of_parameter[id(parameter)], []).append(parameter)
    return {
        "trunk" if fraction == 1 else f"trunk * {fraction:g}": _at_fraction(make(chosen), fraction)
        for fraction, chosen in groups.items()
    }


def _at_fraction(optimizer: Optimizer, fraction: float) -> Optimizer:
    for group in optimizer.param_groups:
        group["lr_fraction"] = fraction * group.get("lr_fraction", 1.0)
    return optimizer


def fractions_of(model: nn.Module, fractions: Mapping[str, float]) -> dict[int, float]:
    """The fraction of each parameter by its ``id``; see ``make_optimizer``.

    Names are those of the network without free maps and without the prefix ``potential.``; a pattern fits a parameter
    or a module that holds it. Raises ``ValueError`` for a pattern that fits nothing.
    """
    names = dict(_plain_names(model))
    unused = [pattern for pattern in fractions if not any(name_fits(name, pattern) for name in names)]
    if unused:
        modules = {name.partition(".")[0] for name in names}
        raise ValueError(f"No parameter fits the name pattern `{unused[0]}`; {nearest_name(unused[0], modules)}")
    return {
        id(parameter): next((f for pattern, f in fractions.items() if name_fits(name, pattern)), 1.0)
        for name, parameter in names.items()
    }


def name_fits(name: str, pattern: str) -> bool:
    """Whether a pattern fits the name of a parameter, or of a module that holds it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _plain_names(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters with the names that they have without free maps, relative to the potential."""
    relaxed = list(relaxed_layers(model))
    for name, parameter in model.named_parameters():
        for layer in relaxed:
            if name.startswith(f"{layer}.layer."):
                name = name.replace(f"{layer}.layer.", f"{layer}.", 1)
        yield name.removeprefix("potential."), parameter


def moving(model: nn.Module, optimizer: Optimizer) -> list[Tensor]:
    """The parameters of the model that the optimiser moves, in the model's order."""
    still = {id(p) for group in optimizer.param_groups if group.get("lr_fraction") == 0 for p in group["params"]}
    return [parameter for parameter in model.parameters() if id(parameter) not in still]


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of every group, times its own fraction ("lr_fraction")."""
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


def _sgd(parameters: list[Tensor], *, lr: float, weight_decay: float, betas: tuple[float, float]) -> torch.optim.SGD:
    """Gradient descent with the first beta as momentum, in torch's form v <- beta v + g, p <- p - lr v."""
    return torch.optim.SGD(parameters, lr=lr, momentum=betas[0], weight_decay=weight_decay)


def _rmsprop(
    parameters: list[Tensor], *, lr: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.RMSprop:
    """RMSprop without momentum; the second beta is the decay of the mean square."""
    return torch.optim.RMSprop(parameters, lr=lr, alpha=betas[1], weight_decay=weight_decay)


class Parts:
    """Several optimisers, each with its own parameters, combined into one."""

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
    """Muon for matrices and AdamW, at a fraction of its rate, for vectors; either set may be empty."""
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
    """Optimisers of matrices, and AdamW at a fraction of the rate for the vectors, if there are any."""
    if vectors:
        group = {"params": vectors, "lr_fraction": fraction}
        parts["adamw"] = torch.optim.AdamW([group], lr=fraction * lr, betas=betas, weight_decay=0.0, fused=True)
    return Parts(parts)


def _split(parameters: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Matrices (also stacks of them) and the rest."""
    return [p for p in parameters if is_matrix(p)], [p for p in parameters if not is_matrix(p)]


OPTIMIZERS: dict[OptimizerKind, MakeOptimizer] = {
    "adam": _adam,
    "adamw": _adamw,
    "muon": _muon,
    "normalised": NormalisedAdam,
    "rmsprop": _rmsprop,
    "sgd": _sgd,
    "soap": _soap,
}


def _decays(parameter: Tensor) -> bool:
    return parameter.squeeze().ndim >= 2
