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

from mdrelax.base import o3
from mdrelax.base.sections import Section
from mdrelax.forces.potential import Potential

__all__ = ["check_degree", "check_numbers", "irreps_of", "section_of"]

LARGEST_SIZE = 10_000  # of a width or depth: one matrix of that size already has 400 MB
LARGEST_DEGREE = 12  # of e3nn's spherical harmonics
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
    """Raise ``ValueError`` for a size outside [1, 10,000] and for a length that is not a finite number above 0."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"`{name}` must be at least 1, got {size}.")
        if size > LARGEST_SIZE:
            raise ValueError(f"`{name}` must be at most {LARGEST_SIZE:,}, got {size:,}.")
    for name, value in lengths.items():
        if not 0 < value < math.inf:
            raise ValueError(f"`{name}` must be a finite number > 0, got {value}.")


def check_degree(name: str, degree: int) -> None:
    """Raise ``ValueError`` for a degree above that of the spherical harmonics."""
    if degree > LARGEST_DEGREE:
        raise ValueError(f"The largest degree in `{name}` may be {LARGEST_DEGREE}, got {degree}.")


def irreps_of(name: str, text: str) -> o3.Irreps:
    """The irreps that an argument spells; raises ``ValueError`` for other words, sizes and degrees out of range."""
    try:
        irreps = o3.Irreps(text)
    except ValueError as error:
        raise ValueError(
            f"`{name}` must be irreps, each with degree and parity (e or o), such as 64x0e+32x1o, got `{text}`."
        ) from error
    if (largest := max((mul for mul, _ in irreps), default=0)) > LARGEST_SIZE:
        raise ValueError(f"Each multiplicity of `{name}` must be at most {LARGEST_SIZE:,}, got {largest:,}.")
    check_degree(name, irreps.lmax if len(irreps) else 0)
    return irreps
