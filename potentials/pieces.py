"""Pieces: large systems are evaluated a run of target atoms at a time, so that memory grows with atoms, not with edges.

A layer that sums over edges is given as a function of one piece and of what its target atoms have; what it keeps for
the backward pass is forgotten and made anew when that comes.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mdrelax.potentials.steerable import Features

__all__ = ["Piece", "gather_in_pieces", "split_edges"]

EDGES_AT_ONCE = 16_384  # more are evaluated in pieces


class Piece(NamedTuple):
    """The edges into a run of atoms."""

    n_atoms: int
    edge_index: Tensor  # (2, e): source among all atoms, target among those of the piece
    vectors: Tensor  # (e, 3)


def split_edges(
    edge_index: Tensor, edge_vectors: Tensor, n_atoms: int | torch.SymInt, at_most: int | None = None
) -> list[Piece]:
    """Pieces of nearly equal size, few more than ``at_most`` (16,384) edges each; an atom's edges stay together.

    One piece where there are no more, where edges are not sorted by target, and while sizes are symbols.
    """
    at_most = at_most or EDGES_AT_ONCE
    whole = [Piece(cast(int, n_atoms), edge_index, edge_vectors)]
    if isinstance(n_atoms, torch.SymInt) or edge_index.shape[1] <= at_most:
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
        Piece(last - first, torch.stack([sources, targets - first]), vectors)
        for (first, last), sources, targets, vectors in zip(
            itertools.pairwise(cuts), edge_index[0].split(sizes), target.split(sizes), edge_vectors.split(sizes),
            strict=True,
        )
    ]  # fmt: skip


def gather_in_pieces(
    function: Callable[[Piece, Features], Features], pieces: Sequence[Piece], received: Features = ()
) -> Features:
    """The function's features of all atoms, from each piece and the rows of ``received`` that its atoms have."""
    atoms = [piece.n_atoms for piece in pieces]
    parts = zip(*(each.split(atoms) for each in received), strict=True) if received else [()] * len(pieces)
    done = [_forget(function, piece, tuple(part)) for piece, part in zip(pieces, parts, strict=True)]
    return tuple(torch.cat(each) for each in zip(*done, strict=True))


def _forget(function: Callable[..., Features], *arguments: Any) -> Features:
    """The function's values; what it kept for the backward pass is made again when that comes."""
    return cast(Features, checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False))
