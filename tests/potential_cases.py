"""The potentials under contract: what each case builds and claims. A new potential joins by a line in ``CASES``."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from mdrelax.potentials import preset
from molecules import tiny_equiformer, tiny_segnn


class Case(NamedTuple):
    """One potential for H, C and O with a cut-off of 5 A, and what it claims."""

    build: Callable[[], nn.Module]
    reflections: bool = True  # E(3); False for SE(3), where mirror images differ
    unused: Callable[[Any], set[str]] | None = lambda potential: set()  # parameters that cannot reach the energy


def beyond_scalars(potential: Any) -> set[str]:
    """What the last block of an Equiformer computes beside scalars, though it hands only scalars on (as published)."""
    last, irreps = len(potential.blocks) - 1, range(1, len(potential.irreps))
    convolution = "message" if potential.blocks[-1].attention.value is None else "value"
    couplings = [k for k, coupling in enumerate(potential.basis.couplings) if coupling.output > 0]
    names = {f"attention.{convolution}.weights.{k}" for k in couplings}
    names |= {f"{layer}.weights.{k}" for layer in ("attention.out", "norm_2", "feed_forward.up") for k in irreps}
    return {f"blocks.{last}.{name}" for name in names}


def _equiformer(irreps: str, *, reflections: bool = True, deep_enough: bool = True, **arguments: Any) -> Case:
    """``deep_enough`` is False where two blocks cannot fill all irreps with features."""
    return Case(partial(tiny_equiformer, irreps, **arguments), reflections, beyond_scalars if deep_enough else None)


LINEAR, SE3 = {"nonlinear_messages": False}, {"reflections": False}
CASES = {
    "equiformer tiny": _equiformer(**preset("equiformer", "tiny")),
    "equiformer E(3) l=1": _equiformer("8x0e+4x1o"),
    "equiformer E(3) l=2": _equiformer("8x0e+4x1o+4x2e", radial_basis="expnormal"),
    "equiformer E(3) l=3": _equiformer("8x0e+4x1o+4x2e+4x3o", **LINEAR),
    "equiformer SE(3) l=1": _equiformer("8x0e+8x1e", **SE3, **LINEAR),
    "equiformer SE(3) l=2": _equiformer("8x0e+4x1e+4x2e", **SE3, radial_basis="expnormal"),
    "equiformer SE(3) l=3": _equiformer("8x0e+4x1e+4x2e+4x3e", **SE3),
    "equiformer all irreps l=1": _equiformer("8x0e+4x0o+4x1e+4x1o", deep_enough=False),
    "equiformer all irreps l=2": _equiformer("8x0e+4x0o+4x1o+4x1e+4x2e+4x2o", deep_enough=False, **LINEAR),
    "equiformer more edge degrees": _equiformer("8x0e+4x1o", lmax_edge=3),
    "equiformer fewer edge degrees": _equiformer("8x0e+4x1o+4x2e", lmax_edge=1, deep_enough=False),
    "equiformer scalars only": _equiformer("8x0e"),
    "segnn tiny": Case(partial(tiny_segnn, **preset("segnn", "tiny"))),
    "segnn l=1": Case(tiny_segnn),
    "segnn l=2": Case(partial(tiny_segnn, 2)),
    "segnn l=1 with a norm and attributes of l=2": Case(partial(tiny_segnn, lmax_attribute=2, norm="layer")),
    "segnn scalars only": Case(partial(tiny_segnn, 0)),
}
