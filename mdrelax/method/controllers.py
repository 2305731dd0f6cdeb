"""Controllers: who moves theta during training. A schedule does so by the clock, ACE by the gradient of the loss.

ACE (Manolache, Chamon, Niepert, arXiv 2505.13631) makes symmetry a constraint with a dual variable per relaxed place,

    f_i(x) = f_e,i(x) + gamma_i W_i x        gamma_i -> 0

| form | dJ/dgamma_i is increased by | dual variable | deployed with |
| --- | --- | --- | --- |
| equality | lambda_i + rho gamma_i | lambda_i <- lambda_i + eta_d gamma_i | gamma = 0 |
| resilient | (lambda_i + rho [v_i]_+) sign gamma_i | lambda_i <- [lambda_i + eta_d v_i]_+ | its gamma |

with v_i = abs(gamma_i) - u_i, and u_i = lambda_i / r the slack that minimises J + r/2 sum u_i^2. Updates are Adam's.
gamma starts at 1 and lambda at 0. dJ/dgamma_i comes from the backward pass of the training step: gamma_i is a leaf.

Differs from the release in
1. rates: those of gamma and lambda are their own, 4 / steps by default (at most, Adam goes from 1 to 0 in a quarter of
   the training);
2. damping: the term with rho (augmented Lagrangian). Without it, primal and dual variable are an undamped oscillator
   unless the loss itself has curvature in gamma;
3. the end: in the equality form gamma is exactly 0 in the last steps;
4. resilience: u enters once. The release subtracts it twice.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor, nn

from mdrelax.base.names import nearest_name
from mdrelax.method.relaxation import relaxed_layers, set_theta
from mdrelax.method.schedule import Schedule

__all__ = ["Ace", "AceForm", "AceSettings", "Controller", "Scheduled"]

AceForm = Literal["equality", "resilient"]
TRAVEL = 4.0  # the default rates times the number of steps


class Controller(Protocol):
    """Moves theta of a relaxed model: call ``begin_step``, the backward pass and ``after_backward`` in every step."""

    def begin_step(self, model: nn.Module, *, step: int) -> float:
        """Set theta of every relaxed layer for a step; returns the largest |theta|."""

    def leaves(self) -> Sequence[Tensor]:
        """The tensors whose gradients ``after_backward`` uses; several processes sum them before."""

    def after_backward(self, model: nn.Module) -> None:
        """Use what the backward pass of this step found."""

    def duals(self) -> dict[str, float]:
        """The dual variable of each relaxed layer; empty if there are none."""

    def theta_at_end(self) -> float:
        """The largest |theta| of the last step, or of the step before theta was set to 0 for good."""

    def state_dict(self) -> dict[str, Any]:
        """Primitives and tensors for a checkpoint."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Restore from ``state_dict``."""


class Scheduled:
    """theta by the clock: the same for all layers, and nothing to save."""

    def __init__(self, schedule: Schedule, *, n_steps: int) -> None:
        self.schedule, self.n_steps, self.theta = schedule, n_steps, 0.0

    def begin_step(self, model: nn.Module, *, step: int) -> float:
        """Set the schedule's theta."""
        self.theta = self.schedule.at_step(step, n_steps=self.n_steps)
        set_theta(model, self.theta)
        return self.theta

    def leaves(self) -> Sequence[Tensor]:
        """None."""
        return ()

    def after_backward(self, model: nn.Module) -> None:
        """Nothing: a schedule does not look at gradients."""

    def duals(self) -> dict[str, float]:
        """None."""
        return {}

    def theta_at_end(self) -> float:
        """theta of the last step."""
        return self.schedule(1.0)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a schedule is a pure function."""
        return {}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Nothing; raises ``ValueError`` for the state of another controller."""
        if state:
            raise ValueError("a schedule has no state, and this is one of another controller")


class AceSettings(NamedTuple):
    """The settings of ``Ace``; rates of None are 4 / steps."""

    form: AceForm = "equality"
    rate: float | None = None  # eta_p, of gamma
    dual_rate: float | None = None  # eta_d, of lambda
    damping: float = 4.0  # rho; 0: as published
    resilience: float = 1.0  # r
    end: float = 0.9  # equality: fraction of the training after which gamma is 0; 1: never
    betas: tuple[float, float] = (0.9, 0.99)  # of both Adams

    def check(self) -> None:
        """Raise ``ValueError`` for an unknown form or a number outside its range."""
        if self.form not in get_args(AceForm):
            raise ValueError(f"Unknown form `{self.form}` of ACE; {nearest_name(self.form, get_args(AceForm))}")
        for name in ("rate", "dual_rate", "resilience"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"`AceSettings({name}=...)` must be positive, got {value}.")
        if not self.damping >= 0:
            raise ValueError(f"`AceSettings(damping=...)` must be 0 or positive, got {self.damping}.")
        if not 0 < self.end <= 1:
            raise ValueError(f"`AceSettings(end=...)` must lie in (0, 1], got {self.end}.")


class Ace:
    """One gamma per relaxed layer in place of theta, and its dual variable; see the module.

    Args:
        model: A relaxed model on its device; its layers' ``theta`` become leaf scalars.
        n_steps: The length of the training.
        settings: Form, rates, damping and end.

    Raises ``ValueError`` for a model without relaxed layers and for settings out of range.

    >>> import torch
    >>> from torch import nn
    >>> from mdrelax.base import o3
    >>> from mdrelax.method.controllers import Ace
    >>> from mdrelax.method.relaxation import relax_constraints
    >>> _ = torch.manual_seed(0)
    >>> model, x = nn.Sequential(o3.Linear("1o", "1o")), torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    >>> relax_constraints(model, initial_std=0.1, generator=torch.Generator().manual_seed(0)).names
    ['0']
    >>> ace, optimizer = Ace(model, n_steps=301), torch.optim.Adam(model.parameters(), lr=0.01)
    >>> for step in range(301):
    ...     gamma = ace.begin_step(model, step=step)
    ...     if step % 75 == 0:
    ...         print(step, round(gamma, 2))
    ...     optimizer.zero_grad()
    ...     (model(x) - x).square().mean().backward()
    ...     ace.after_backward(model)
    ...     optimizer.step()
    0 1.0
    75 0.14
    150 0.19
    225 0.07
    300 0.0
    """

    def __init__(self, model: nn.Module, *, n_steps: int, settings: AceSettings | None = None) -> None:
        settings = settings or AceSettings()
        settings.check()
        layers = relaxed_layers(model)
        if not layers:
            raise ValueError("No layer of the model is relaxed; call `relax_constraints` first.")
        self.names, self.settings = list(layers), settings
        ends = settings.form == "equality" and settings.end < 1
        self.last = min(math.ceil(settings.end * n_steps), n_steps - 1) if ends else n_steps  # first step at gamma = 0
        like = [next(layer.free.parameters()) for layer in layers.values()]
        self.gammas = [torch.ones((), dtype=w.dtype, device=w.device, requires_grad=True) for w in like]
        self.lambdas = [torch.zeros_like(gamma) for gamma in self.gammas]
        rate, dual_rate = (TRAVEL / n_steps if own is None else own for own in (settings.rate, settings.dual_rate))
        self.primal = torch.optim.Adam(self.gammas, lr=rate, betas=settings.betas)
        self.dual = torch.optim.Adam(self.lambdas, lr=dual_rate, betas=settings.betas, maximize=True)
        self.ended, self.at_end = False, 1.0

    def begin_step(self, model: nn.Module, *, step: int) -> float:
        """Put the gammas into the layers; from step ``end * n_steps`` on they are 0, and W is not read."""
        self.ended = step >= self.last
        if not self.ended:
            self.at_end = self._largest()
        for layer, gamma in zip(relaxed_layers(model).values(), self.gammas, strict=True):
            gamma.grad = None
            layer.control(gamma)
            if self.ended:
                layer.set_theta(0.0)
        return self._largest()

    def leaves(self) -> Sequence[Tensor]:
        """The gammas."""
        return self.gammas

    @torch.no_grad()
    def after_backward(self, model: nn.Module) -> None:
        """One step of both variables; a layer that was not called has dJ/dgamma = 0."""
        if self.ended:
            return
        own = self.settings
        for gamma, dual in zip(self.gammas, self.lambdas, strict=True):
            task = torch.zeros_like(gamma) if gamma.grad is None else gamma.grad
            if own.form == "equality":
                gamma.grad, dual.grad = task + dual + own.damping * gamma, gamma.clone()
            else:
                excess = gamma.abs() - dual / own.resilience
                gamma.grad = task + (dual + own.damping * excess.clamp(min=0)) * gamma.sign()
                dual.grad = excess
        self.primal.step()
        self.dual.step()
        if own.form == "resilient":
            for dual in self.lambdas:
                dual.clamp_(min=0)

    def duals(self) -> dict[str, float]:
        """lambda of each layer."""
        return {name: dual.item() for name, dual in zip(self.names, self.lambdas, strict=True)}

    def theta_at_end(self) -> float:
        """The largest |gamma| before it was set to 0, in the resilient form that of the last step."""
        return self.at_end if self.ended else self._largest()

    def in_words(self) -> str:
        """The end of a training as the rest of a sentence: the largest |gamma|, and whether it was set to 0."""
        if self.ended:
            how = "at the end, before it was set to 0 (equality form)"
        elif self.settings.form == "equality":  # ``end`` is 1, or the training stopped early
            how = "in the last step, and was not set to 0 before the projection (equality form)"
        else:
            how = "in the last step (resilient form, in which it need not be 0)"
        return f"the largest |gamma| was {self.theta_at_end():.3g} {how}"

    def state_dict(self) -> dict[str, Any]:
        """gammas, lambdas and both optimisers."""
        return {
            "gammas": [gamma.detach().clone() for gamma in self.gammas],
            "lambdas": [dual.clone() for dual in self.lambdas],
            "primal": self.primal.state_dict(), "dual": self.dual.state_dict(),
            "ended": self.ended, "at_end": self.at_end,
        }  # fmt: skip

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Restore from ``state_dict``; raises ``KeyError`` for the state of another controller."""
        for own, saved in zip(self.gammas + self.lambdas, state["gammas"] + state["lambdas"], strict=True):
            own.copy_(saved)
        self.primal.load_state_dict(state["primal"])
        self.dual.load_state_dict(state["dual"])
        self.ended, self.at_end = state["ended"], state["at_end"]

    def _largest(self) -> float:
        return torch.stack(self.gammas).detach().abs().max().item()
