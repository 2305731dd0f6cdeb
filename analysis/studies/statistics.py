"""Statistics: how far the mean of a few differences may be off."""

from typing import Any

import numpy as np
from scipy import stats

__all__ = ["CONFIDENCE", "half_interval"]

CONFIDENCE = 0.95


def half_interval(deviation: Any, number: Any) -> Any:
    """Half of Student's 95 % interval of a mean, from sample standard deviation and number; numbers or arrays.

    NaN for one value, whose deviation is NaN.
    """
    return stats.t.ppf((1 + CONFIDENCE) / 2, np.maximum(number - 1, 1)) * deviation / np.sqrt(number)
