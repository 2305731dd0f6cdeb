"""Pieces: many edges are evaluated a run of target atoms at a time, so that memory grows with atoms, not with edges.

What layers keep of a piece for the backward pass is kept for the first few, which are as many as molecules and small
boxes have; of all others it is forgotten and made again when that pass comes. Small pieces also stay in the cache.
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

__all__ = ["Piece", "gather_in_pieces", "join", "split_edges"]

Result = TypeVar("Result")
Seen = TypeVar("Seen")

EDGES_AT_ONCE, EDGES_AT_ONCE_IN_TRAINING = 8_192, 16_384
EDGES_KEPT = 6_144  # a piece that begins before so many edges is kept


class Piece(NamedTuple):
    """The edges into a run of atoms."""

    n_atoms: int
    edge_index: Tensor  # (2, e): source among all atoms, target among those of the piece
    vectors: Tensor  # (e, 3)
    kept: bool  # whether the backward pass finds what it needs, or it is made again

    def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """``function(*arguments)``, which concerns the edges of this piece, as ``kept`` says."""
        if self.kept:
            return function(*arguments)
        return cast(Result, checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False))


def split_edges(
    edge_index: Tensor, edge_vectors: Tensor, n_atoms: int, *, at_most: int | None = None, trained: bool = False
) -> list[Piece]:
    """Pieces of nearly equal size, few more than ``at_most`` edges each; an atom's edges stay together.

    At most 8,192, or 16,384 where derivatives by parameters are wanted (``trained``), since each piece costs more then.
    One piece where there are no more edges, where they are not sorted by target, and while a graph is recorded.
    """
    at_most = EDGES_AT_ONCE_IN_TRAINING if trained else min(at_most or EDGES_AT_ONCE, EDGES_AT_ONCE)
    whole = [Piece(n_atoms, edge_index, edge_vectors, kept=True)]
    if get_proxy_mode() is not None or edge_index.shape[1] <= at_most:
        return whole
    target = edge_index[1]
    if not bool((target[1:] >= target[:-1]).all()):
        return whole
    ends = torch.bincount(target, minlength=n_atoms).cumsum(0)  # of each atom's edges
    n_pieces = math.ceil(len(target) / at_most)
    goals = torch.arange(1, n_pieces, device=target.device) * len(target) // n_pieces
    cuts = sorted({0, n_atoms, *(torch.searchsorted(ends, goals) + 1).tolist()})  # atoms that begin a piece
    sizes = ends[torch.tensor(cuts[1:], device=ends.device) - 1].diff(prepend=ends.new_zeros(1)).tolist()
    return [
        Piece(last - first, torch.stack([sources, targets - first]), vectors, begin < EDGES_KEPT)
        for (first, last), begin, sources, targets, vectors in zip(
            itertools.pairwise(cuts), itertools.accumulate(sizes[:-1], initial=0),
            edge_index[0].split(sizes), target.split(sizes), edge_vectors.split(sizes), strict=True,
        )
    ]  # fmt: skip


def gather_in_pieces(
    function: Callable[[Seen, Features], Features], pieces: Sequence[Piece], views: Sequence[Seen], received: Features
) -> Features:
    """Features of all atoms, from what is seen of each piece and the rows of ``received`` that its atoms have."""
    if len(pieces) == 1:
        return pieces[0].run(function, views[0], received)
    atoms = [piece.n_atoms for piece in pieces]
    parts = zip(*(each.split(atoms) for each in received), strict=True)
    return join([piece.run(function, view, part) for piece, view, part in zip(pieces, views, parts, strict=True)])


def join(parts: Sequence[Features]) -> Features:
    """The features of the atoms of all pieces."""
    return parts[0] if len(parts) == 1 else tuple(torch.cat(each) for each in zip(*parts, strict=True))
