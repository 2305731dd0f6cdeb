"""Schedule: how far the constraint is relaxed, theta(t) in [0, 1], over the training time t in [0, 1].

| kind | theta(t) / peak |
| --- | --- |
| triangle | 2t up to t = 1/2, then 2 - 2t (the paper's) |
| linear | 1 - t |
| cosine | (1 + cos(pi t)) / 2 |
| trapezoid | t / ramp, 1 in the middle, (1 - t) / ramp at the end |
| constant | 1 |
| off | 0 |

With ``end`` below 1 the whole schedule is compressed into that fraction of the training, and theta is 0 for the rest. A
schedule is a pure function; nothing has to be saved to resume it.
"""

import math
from typing import Literal, NamedTuple, get_args

from mdrelax.base.names import nearest_name

__all__ = ["Schedule", "ScheduleKind"]

ScheduleKind = Literal["constant", "cosine", "linear", "off", "trapezoid", "triangle"]


class Schedule(NamedTuple):
    """theta as a function of training time; raises ``ValueError`` for a time outside [0, 1].

    >>> from mdrelax import Schedule
    >>> [Schedule("triangle").at_step(step, n_steps=5) for step in range(5)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    kind: ScheduleKind = "triangle"
    peak: float = 1.0
    ramp: float = 0.2
    end: float = 1.0

    def __call__(self, time: float) -> float:
        """theta at ``time`` in [0, 1]."""
        self.check()
        if not 0 <= time <= 1:
            raise ValueError(f"`time` must lie in [0, 1], got {time}.")
        if time >= self.end < 1:
            return 0.0
        time /= self.end
        shapes = {
            "triangle": 2 * min(time, 1 - time),
            "linear": 1 - time,
            "cosine": (1 + math.cos(math.pi * time)) / 2,
            "trapezoid": min(1.0, time / self.ramp, (1 - time) / self.ramp),
            "constant": 1.0,
            "off": 0.0,
        }
        return self.peak * shapes[self.kind]

    def at_step(self, step: int, *, n_steps: int) -> float:
        """theta of optimiser step 0 .. n_steps - 1; the last step has t = 1 exactly."""
        return self(1.0 if n_steps == 1 else step / (n_steps - 1))

    def check(self) -> None:
        """Raise ``ValueError`` on an unknown kind, a peak or an end outside (0, 1], or a ramp outside (0, 0.5]."""
        if self.kind not in get_args(ScheduleKind):
            raise ValueError(f"Unknown schedule `{self.kind}`; {nearest_name(self.kind, get_args(ScheduleKind))}")
        if not 0 < self.peak <= 1:
            raise ValueError(f"`Schedule(peak=...)` must lie in (0, 1], got {self.peak}.")
        if not 0 < self.end <= 1:
            raise ValueError(f"`Schedule(end=...)` must lie in (0, 1], got {self.end}.")
        if not 0 < self.ramp <= 0.5:
            raise ValueError(f"`Schedule(ramp=...)` must lie in (0, 0.5], got {self.ramp}.")
