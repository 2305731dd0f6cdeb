"""Budget: what the description of a network in a file may make torch allocate, known before anything is allocated.

A file of a few kilobytes can describe a network of terabytes. A network that fits its file has as many numbers as the
file, so each tensor made while it is built is compared with the file's size, and so is every whole number in the
description (no width and no depth is larger).
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["BudgetError", "within_budget"]

SPARE_NUMBERS = 2_000_000  # of one tensor: tables of coupling coefficients, which no file holds
SPARE_CALLS = 200_000  # of torch's functions
SPARE_WIDTH = 1000


class BudgetError(ValueError):
    """A description of a network larger than the file it stands in."""


@contextmanager
def within_budget(arguments: Any, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the context, a network with these ``arguments`` (a JSON document) is built for these ``tensors``.

    Raises ``BudgetError`` as soon as it becomes clear that it is larger than they are.
    """
    size = sum(tensor.numel() for tensor in tensors.values())
    largest = max(_whole_numbers(arguments), default=0)
    if largest > max(size, SPARE_WIDTH):
        raise BudgetError(f"{largest!s:.20} in its arguments is more than the {size} numbers in the file")
    with _Watch(max(size, SPARE_NUMBERS), SPARE_CALLS + 100 * len(tensors)):
        yield


def _whole_numbers(document: Any) -> Iterator[int]:
    """The sizes of the whole numbers in a document, those inside words ("32x0e") included."""
    if isinstance(document, Mapping):
        document = list(document.values())
    if isinstance(document, list):
        for each in document:
            yield from _whole_numbers(each)
    elif isinstance(document, int):
        yield abs(document)
    elif isinstance(document, str):
        yield from (int(word[:300]) for word in re.findall(r"\d+", document))


class _Watch(TorchDispatchMode):
    """Looks at the sizes that torch is asked for, before it makes them."""

    def __init__(self, numbers: int, calls: int) -> None:
        super().__init__()
        self.numbers, self.calls = numbers, calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls -= 1
        shape = args[0] if args and isinstance(args[0], list | tuple) else ()
        wanted = math.prod(side for side in shape if isinstance(side, int))
        if wanted > self.numbers or self.calls < 0:
            raise BudgetError("the network that it describes is larger than the file")
        return func(*args, **(kwargs or {}))
