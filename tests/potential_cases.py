"""The potentials under contract: what each case builds and claims. A new potential joins by a line in ``CASES``."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch

from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.potential import Potential
from mdrelax.potentials import preset
from molecules import ELEMENTS, REFERENCES, normal, tiny_equiformer, tiny_equiformer_pytorch, tiny_segnn


class Case(NamedTuple):
    """One potential for H, C and O with a cut-off of 5 A, and what it claims."""

    build: Callable[[], Potential]
    reflections: bool = True  # E(3); False for SE(3), where mirror images differ
    smooth: bool = True  # where symmetry makes vectors vanish; the published norms are not
    unused: Callable[[Any], set[str]] | None = lambda potential: set()  # parameters that cannot reach the energy


def beyond_scalars(potential: Any) -> set[str]:
    """What the last block of an Equiformer computes beside scalars, though it hands only scalars on (as published)."""
    last, irreps = len(potential.blocks) - 1, range(1, len(potential.irreps))
    convolution = "message" if potential.blocks[-1].attention.value is None else "value"
    couplings = [k for k, coupling in enumerate(potential.basis.couplings) if coupling.output > 0]
    names = {f"attention.{convolution}.weights.{k}" for k in couplings}
    names |= {f"{layer}.weights.{k}" for layer in ("attention.out", "norm_2", "feed_forward.up") for k in irreps}
    return {f"blocks.{last}.{name}" for name in names}


def beyond_the_norm(potential: Any) -> set[str]:
    """What an equiformer-pytorch computes behind its last norm for degrees that no energy is read from."""
    above_scalars = range(1, len(potential.norm.transforms))
    return {f"{name}.{k}" for name in ("ff_out.weights", "norm.transforms") for k in above_scalars}


def above_degree_zero(potential: Any) -> set[str]:
    """The same where norms keep degrees apart: what the last block and the read-out compute above degree 0."""
    last = f"layers.blocks.{len(potential.layers.blocks) - 1}"
    parts = [  # where the name continues with a degree, or with a path "(in,out)"
        "ff_out.weights", "norm.transforms", f"{last}.1.prenorm.transforms", f"{last}.1.project_in.weights",
        f"{last}.1.project_out.weights", f"{last}.0.to_out.weights", f"{last}.0.to_values.1.weights",
        f"{last}.0.to_attn_logits", f"{last}.0.to_q.weights",
        *(f"{last}.0.{product}.{linear}.weights" for product in ("to_attn_and_v", "to_kv")
          for linear in ("to_out", "self_interact")),
    ]  # fmt: skip
    starts = [f"{part}.{degree}" for part in parts for degree in range(1, len(potential.norm.transforms))]
    starts += [f"{last}.0.{product}.kernel_unary.({i},{o})" for product in ("to_attn_and_v", "to_kv")
               for i in range(4) for o in range(1, 4)]  # fmt: skip
    return {name for name, _ in potential.named_parameters() if name.startswith(tuple(starts))}


def _equiformer_pytorch(*dim: int, reflections: bool = False, smooth: bool = True, **arguments: Any) -> Case:
    unused = beyond_the_norm if smooth else above_degree_zero
    return Case(partial(tiny_equiformer_pytorch, dim, **arguments), reflections, smooth, unused)


def _equiformer(
    irreps: str, *, reflections: bool = True, smooth: bool = True, deep_enough: bool = True, **arguments: Any
) -> Case:
    """``deep_enough`` is False where two blocks cannot fill all irreps with features."""
    unused = beyond_scalars if deep_enough else None
    return Case(partial(tiny_equiformer, irreps, **arguments), reflections, smooth, unused)


LINEAR, SE3 = {"nonlinear_messages": False}, {"reflections": False}
PUBLISHED_NORM = {"norm": "separable", "norm_eps": 1e-2, "smooth": False}
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
    "equiformer with the published norm": _equiformer("8x0e+4x1o+4x2e", **PUBLISHED_NORM),
    "segnn tiny": Case(partial(tiny_segnn, **preset("segnn", "tiny"))),
    "segnn l=1": Case(tiny_segnn),
    "segnn l=2": Case(partial(tiny_segnn, 2)),
    "segnn l=1 with a norm and attributes of l=2": Case(partial(tiny_segnn, lmax_attribute=2, norm="joint")),
    "segnn scalars only": Case(partial(tiny_segnn, 0)),
    "equiformer-pytorch tiny": Case(
        partial(tiny_equiformer_pytorch, **preset("equiformer-pytorch", "tiny")), False, unused=beyond_the_norm
    ),
    "equiformer-pytorch l=1": _equiformer_pytorch(16, 8),
    "equiformer-pytorch l=2": _equiformer_pytorch(16, 8, 4, n_basis=6),
    "equiformer-pytorch l=3": _equiformer_pytorch(16, 4, 4, 2),
    "equiformer-pytorch distance attention": _equiformer_pytorch(16, 8, 4, attention="distance"),
    "equiformer-pytorch with the library's norm": _equiformer_pytorch(16, 8, 4, **PUBLISHED_NORM),
    "equiformer-pytorch scalars only": _equiformer_pytorch(16, reflections=True),
}


@cache
def force_field_of(name: str) -> ForceField:
    """The network of a case, every parameter moved off its initial value; made once, so no test may change it."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        potential = CASES[name].build().double()
    for k, parameter in enumerate(potential.parameters()):
        parameter.data += 0.1 * normal(*parameter.shape, seed=k)
    return ForceField(potential, elements=ELEMENTS, reference_energies=torch.tensor(REFERENCES), scale=0.7)
