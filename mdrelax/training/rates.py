"""Learning rate as a function of the step.

At step s of n, in epoch e, with w warm-up steps, peak p and final fraction f:

    warm-up       p (s + 1) / w times the schedule       s < w
    constant      p
    cosine        p (f + (1 - f) (1 + cos(pi x)) / 2)    x = (s - w) / (n - 1 - w), 0 before
    plateau       p r^k                                  k: reductions so far, which the trainer counts
    step          p d^floor(t / m)                       t: steps (s) or finished epochs (e), from the start of training
    exponential   p d^(t / m)
"""

import math
from typing import Literal, NamedTuple

__all__ = ["LearningRate", "LearningRateKind", "RateUnit"]

LearningRateKind = Literal["constant", "cosine", "exponential", "plateau", "step"]
RateUnit = Literal["steps", "epochs"]


class LearningRate(NamedTuple):
    """The learning rate as a function of the step; the trainer keeps the plateau's count of reductions.

    >>> from mdrelax.training.rates import LearningRate
    >>> rate = LearningRate(0.8, "step", decay_factor=0.5, decay_every=3)
    >>> [rate.at_step(step, n_steps=8) for step in range(8)]
    [0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2, 0.2]
    """

    peak: float
    kind: LearningRateKind = "cosine"
    warmup_steps: int = 0
    final_fraction: float = 0.0  # f
    plateau_factor: float = 0.5  # r
    decay_factor: float = 0.5  # d
    decay_every: int = 1  # m
    decay_unit: RateUnit = "steps"  # of t and m

    def at_step(self, step: int, *, n_steps: int, epoch: int = 0, reductions: int = 0) -> float:
        """The learning rate of step 0 .. n_steps - 1, which lies in ``epoch`` 0, 1, ..."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps * self._shape(step, n_steps, epoch, reductions)
        return self.peak * self._shape(step, n_steps, epoch, reductions)

    def _shape(self, step: int, n_steps: int, epoch: int, reductions: int) -> float:
        """The rate without warm-up as a fraction of the peak."""
        done = step if self.decay_unit == "steps" else epoch
        if self.kind == "constant":
            return 1.0
        if self.kind == "plateau":
            return self.plateau_factor**reductions
        if self.kind == "step":
            return self.decay_factor ** (done // self.decay_every)
        if self.kind == "exponential":
            return self.decay_factor ** (done / self.decay_every)
        progress = (step - self.warmup_steps) / max(1, n_steps - 1 - self.warmup_steps)
        wave = (1 + math.cos(math.pi * min(1.0, max(0.0, progress)))) / 2
        return self.final_fraction + (1 - self.final_fraction) * wave
