"""Parity: a compiled force field must give the same numbers as the original, or it is refused.

Both are evaluated on structures that differ in everything a compiler could have assumed: a cluster, the cluster with
an atom without neighbours, a pair, a crystal with more edges per atom, and a lone atom. None of their atoms is a centre
of inversion: features that vanish by symmetry would be rounding errors, which norms amplify to any size.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mdrelax.compiled.recording import LARGEST_DIFFERENCE, Arguments, CompileError
from mdrelax.forces.forcefield import ForceField
from mdrelax.structures.graph import Edges, Graph, edge_vectors
from mdrelax.structures.neighbors import build_graph

__all__ = ["Parity", "arguments_of", "example_graphs", "measure_parity", "require_parity"]

SPACING = 0.4  # of the cluster's atoms, in cut-offs: 2 Angstrom at a cut-off of 5
LATTICE = 0.8  # of the crystal
MOTIF = [[0.05, 0.1, 0.0], [0.45, 0.5, 0.1], [0.2, 0.55, 0.6]]  # its three atoms, in lattice vectors


ROUNDING_ERRORS = 2  # of the original's own rounding: allowed difference of the compiled form if above the limit


class Parity(NamedTuple):
    """Largest differences between compiled and uncompiled, relative to the root mean square of the latter."""

    energies: float
    gradient: float  # with respect to the edge vectors, from which forces and stress are computed


def example_graphs(elements: tuple[int, ...], cutoff: float) -> list[Graph]:
    """The structures of the check, the cluster of 12 atoms first."""
    rng = np.random.default_rng(0)
    numbers = rng.choice(elements, 12)
    grid = np.stack(np.meshgrid(range(3), range(2), range(2), indexing="ij"), axis=-1).reshape(-1, 3)
    cluster = SPACING * cutoff * (grid + rng.uniform(-0.15, 0.15, grid.shape))
    lonely = np.concatenate([cluster, [[9 * cutoff, 0, 0]]])
    cell = LATTICE * cutoff * (np.eye(3) + rng.uniform(-0.05, 0.05, (3, 3)))
    return [
        build_graph(cluster, numbers, cutoff=cutoff),
        build_graph(lonely, [*numbers, elements[-1]], cutoff=cutoff),
        build_graph(cluster[[0, 1]], numbers[[0, 1]], cutoff=cutoff),
        build_graph(MOTIF @ cell, numbers[:3], cell, True, cutoff=cutoff),
        build_graph([[0, 0, 0]], elements[:1], cutoff=cutoff),
    ]


def arguments_of(force_field: ForceField, graph: Graph) -> Arguments:
    """The arguments of the network for a graph."""
    return force_field.species_of(graph.numbers), graph.edge_index, edge_vectors(graph).to(force_field.dtype)


def measure_parity(compiled: ForceField, original: ForceField, graphs: list[Graph]) -> Parity:
    """The differences of the networks' outputs over all structures together."""
    ours, theirs = ([_output(model, graph) for graph in graphs] for model in (compiled, original))
    return Parity(*(_difference([o[k] for o in ours], [t[k] for t in theirs]) for k in range(2)))


def require_parity(parity: Parity, dtype: torch.dtype, *, rounding: Parity | None = None) -> Parity:
    """Return the measured differences if they are small; otherwise raise ``CompileError``.

    ``rounding`` is the difference of the original from itself in a higher precision: the rounding errors of a sharp
    network, far from its training data, exceed the usual limit, and its compiled form may differ by twice as much.
    """
    limit = LARGEST_DIFFERENCE[dtype]
    limits = [limit] * len(parity) if rounding is None else [max(limit, ROUNDING_ERRORS * own) for own in rounding]
    if not all(difference <= most for difference, most in zip(parity, limits, strict=True)):  # NaN is refused, too
        raise CompileError(
            f"The compiled model differs from the original by {parity.energies:.1e} of its energies and "
            f"{parity.gradient:.1e} of their gradient, where {limits[0]:.0e} and {limits[1]:.0e} are allowed in "
            f"{str(dtype).removeprefix('torch.')}; it is refused. Use the model uncompiled, or in another `dtype`."
        )
    return parity


def _output(force_field: ForceField, graph: Graph) -> tuple[Tensor, Tensor]:
    species, index, vectors = arguments_of(force_field, graph)
    return force_field.potential.energies_and_gradient(species, Edges(index, vectors))


def _difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    found, wanted = torch.cat(ours).detach(), torch.cat(theirs).detach()
    scale = wanted.square().mean().sqrt().clamp(min=torch.finfo(wanted.dtype).tiny)
    return float((found - wanted).abs().amax() / scale)
