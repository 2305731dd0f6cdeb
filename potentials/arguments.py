"""Arguments of networks: a typed section made from a constructor, and checks of the arguments.

A constructor declares each argument once, with its type, default and description:

    n_blocks: Annotated[int, Field(description="Blocks of attention and feed-forward network.")] = 6

so a config's ``potential.arguments`` is checked against it, and ``mdrelax config template`` prints it.
"""

import inspect
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import create_model

from mdrelax.base.sections import Section
from mdrelax.forces.potential import Potential

__all__ = ["check_numbers", "section_of"]

SET_ELSEWHERE = ("cutoff",)  # ``potential.cutoff``: the neighbour lists need it, too


@cache
def section_of(network: type[Potential]) -> type[Section]:
    """The keyword arguments of a network's constructor as a section, with their types, defaults and sentences."""
    parameters = inspect.signature(network).parameters.values()
    fields: dict[str, Any] = {
        each.name: (each.annotation, each.default)
        for each in parameters
        if each.kind is each.KEYWORD_ONLY and each.name not in SET_ELSEWHERE
    }
    return create_model(network.__name__, __base__=Section, **fields)


def check_numbers(sizes: Mapping[str, int], lengths: Mapping[str, float]) -> None:
    """Raise ``ValueError`` for a size below 1 and for a length that is not a finite number above 0."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"`{name}` must be at least 1, got {size}.")
    for name, value in lengths.items():
        if not 0 < value < math.inf:
            raise ValueError(f"`{name}` must be a finite number > 0, got {value}.")
