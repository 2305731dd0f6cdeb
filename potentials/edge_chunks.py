"""Edge chunks: edges are evaluated a run of target atoms at a time, so that memory grows with atoms, not with edges.

The intermediate results of the first few chunks, as many as molecules and small boxes have, are kept for the backward
pass; those of all others are recomputed in the backward pass (activation checkpointing). Small chunks also stay in the
processor's cache.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils.checkpoint import checkpoint

from mdrelax.potentials.steerable import Features

__all__ = ["EdgeChunk", "gather_in_chunks", "join", "split_edges"]

Result = TypeVar("Result")
ChunkFeatures = TypeVar("ChunkFeatures")

EDGES_AT_ONCE, EDGES_AT_ONCE_IN_TRAINING = 8_192, 16_384
EDGES_KEPT = 6_144  # chunks that begin before this many edges are kept


class EdgeChunk(NamedTuple):
    """The edges into a run of atoms."""

    n_atoms: int
    edge_index: Tensor  # (2, e): source among all atoms, target among those of the chunk
    vectors: Tensor  # (e, 3)
    kept: bool  # False: intermediate results are recomputed in the backward pass

    def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """``function(*arguments)`` on the edges of this chunk, checkpointed unless ``kept``."""
        if self.kept:
            return function(*arguments)
        return cast(Result, checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False))


def split_edges(
    edge_index: Tensor, edge_vectors: Tensor, n_atoms: int, *, at_most: int | None = None, trained: bool = False
) -> list[EdgeChunk]:
    """Edge chunks of nearly equal size, of about ``at_most`` edges each; the edges of an atom stay together.

    At most 8,192, or 16,384 if derivatives with respect to parameters are needed (``trained``), since each chunk then
    costs more. A single chunk if there are no more edges, if they are not sorted by target, and while a graph is
    recorded.
    """
    at_most = EDGES_AT_ONCE_IN_TRAINING if trained else min(at_most or EDGES_AT_ONCE, EDGES_AT_ONCE)
    whole = [EdgeChunk(n_atoms, edge_index, edge_vectors, kept=True)]
    if get_proxy_mode() is not None or edge_index.shape[1] <= at_most:
        return whole
    target = edge_index[1]
    if not bool((target[1:] >= target[:-1]).all()):
        return whole
    ends = torch.bincount(target, minlength=n_atoms).cumsum(0)  # of each atom's edges
    n_chunks = math.ceil(len(target) / at_most)
    goals = torch.arange(1, n_chunks, device=target.device) * len(target) // n_chunks
    cuts = sorted({0, n_atoms, *(torch.searchsorted(ends, goals) + 1).tolist()})  # first atom of each chunk
    sizes = ends[torch.tensor(cuts[1:], device=ends.device) - 1].diff(prepend=ends.new_zeros(1)).tolist()
    return [
        EdgeChunk(last - first, torch.stack([sources, targets - first]), vectors, begin < EDGES_KEPT)
        for (first, last), begin, sources, targets, vectors in zip(
            itertools.pairwise(cuts), itertools.accumulate(sizes[:-1], initial=0),
            edge_index[0].split(sizes), target.split(sizes), edge_vectors.split(sizes), strict=True,
        )
    ]  # fmt: skip


def gather_in_chunks(
    function: Callable[[ChunkFeatures, Features], Features],
    chunks: Sequence[EdgeChunk],
    chunk_features: Sequence[ChunkFeatures],
    received: Features,
) -> Features:
    """Features of all atoms: ``function`` of each chunk's edge features and the rows of ``received`` for its atoms."""
    if len(chunks) == 1:
        return chunks[0].run(function, chunk_features[0], received)
    atoms = [chunk.n_atoms for chunk in chunks]
    parts = zip(*(each.split(atoms) for each in received), strict=True)
    both = zip(chunks, chunk_features, parts, strict=True)
    return join([chunk.run(function, features, part) for chunk, features, part in both])


def join(parts: Sequence[Features]) -> Features:
    """The features of the atoms of all chunks."""
    return parts[0] if len(parts) == 1 else tuple(torch.cat(each) for each in zip(*parts, strict=True))
