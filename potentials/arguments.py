"""Checks of what a network is built from: one sentence with the name, the range and the value."""

import math
from collections.abc import Mapping

__all__ = ["check_numbers"]


def check_numbers(sizes: Mapping[str, int], lengths: Mapping[str, float]) -> None:
    """Raise ``ValueError`` for a size below 1 and for a length that is not a finite number above 0."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"`{name}` must be at least 1, got {size}.")
    for name, value in lengths.items():
        if not 0 < value < math.inf:
            raise ValueError(f"`{name}` must be a finite number > 0, got {value}.")
