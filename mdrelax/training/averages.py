"""Averages: the moving average of the weights, and a network's own batch-norm statistics.

With averaged weights, or without its free maps, a network has other activations than the trained network, so the
running means and variances of the latter do not apply. Its own statistics are means over training batches,

    mean_k = (1 - 1/k) mean_(k-1) + (1/k) mean of call k        k = 1, 2, ...

as in ``torch.optim.swa_utils.update_bn``, which differs from ``own_statistics`` in
1. modules: any with a ``momentum`` and buffers ``running_...``, so e3nn's batch norm too;
2. mode: only these modules are in training mode, so that dropout does not increase the variances.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Ema", "has_running_statistics", "own_statistics", "running_statistics"]


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
        """Restore from ``state_dict``; raises ``KeyError`` or ``ValueError`` for the average of another network."""
        saved = state["average"]
        for average, name in zip(self.average, self.names, strict=True):
            older = name.replace("free.weight", "weight")  # the free maps' name in checkpoints of older versions
            own = saved[name] if name in saved else saved[older]
            if (own.dtype, own.shape) != (average.dtype, average.shape):  # copying would round, or repeat
                raise ValueError(f"the average of `{name}` has another dtype or shape")
            average.copy_(own)
        self.steps = state["steps"]


def has_running_statistics(model: nn.Module) -> bool:
    """True if the network has batch norms, or modules like them, with running means or variances."""
    return bool(_norms(model))


def running_statistics(model: nn.Module) -> list[Tensor]:
    """The running means and variances of a network's norms."""
    return [buffer for norm in _norms(model) for buffer in _statistics(norm) if buffer.is_floating_point()]


def own_statistics(model: nn.Module, forward: Callable[[Any, int], object], batches: Iterable[Any]) -> None:
    """Replace the running statistics of a network by their means over the batches; ``forward(batch, k)`` runs it.

    Modes and momenta are restored afterwards. A norm that is never called keeps its statistics.
    """
    norms = _norms(model)
    modes = [module.training for module in model.modules()]
    model.eval()
    try:
        with _means_over_calls(norms):
            for k, batch in enumerate(batches):
                forward(batch, k)
    finally:
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode


@contextmanager
def _means_over_calls(norms: list[Any]) -> Iterator[None]:
    """Training mode for the norms with momentum 1/k in call k: running values become means over all calls."""
    momenta, calls = [norm.momentum for norm in norms], [0] * len(norms)

    def begin(place: int) -> Callable[[Any, Any], None]:
        def count(norm: Any, _: Any) -> None:
            calls[place] += 1
            if calls[place] == 1:
                for buffer in _statistics(norm):
                    buffer.zero_()
            norm.momentum = 1 / calls[place]

        return count

    hooks = [norm.train().register_forward_pre_hook(begin(place)) for place, norm in enumerate(norms)]
    try:
        yield
    finally:
        for norm, momentum, hook in zip(norms, momenta, hooks, strict=True):
            norm.momentum = momentum
            hook.remove()


def _norms(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "momentum") and _statistics(module)]


def _statistics(module: nn.Module) -> list[Tensor]:
    """Running means, variances and the like; also the number of batches that nn's norms count."""
    named = module.named_buffers(recurse=False)
    return [buffer for name, buffer in named if name.startswith("running_") or name == "num_batches_tracked"]
