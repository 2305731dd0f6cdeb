"""Exchange: rows of atoms copied from the ranks that own them to the ranks that see them as ghosts, and summed back.

A rank owns ``n_local`` atoms and needs the features of some that other ranks own: its remote atoms. Behind the rows of
its own atoms come those of the remote ones, sorted by owner and by id; each atom has one row, however many of its
periodic images are ghosts.

    copy   rows (n_local, ...) of every rank -> rows (n_local + n_remote, ...)      owner -> ghost
    add    rows (n_local + n_remote, ...)    -> rows (n_local, ...)                 ghost -> owner, the transpose

``Plan.exchange`` is the copy as a differentiable function; its backward pass is the addition. Both are collective:
every rank calls them in the same order, and a rank without atoms sends and receives nothing.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

__all__ = ["Partner", "Plan", "SharedError", "agree", "make_plan"]

Ids = npt.NDArray[np.int64]
Result = TypeVar("Result")


class SharedError(ValueError):
    """An error that every rank raises at once, so that one may speak for all."""


class Partner(NamedTuple):
    """The rows that are exchanged with one other rank."""

    rank: int
    sent: Tensor  # (S,) own atoms that are ghosts there
    received: slice  # among the remote atoms


class Plan:
    """The copies of one distribution of atoms over the ranks; valid until an atom changes its rank or its place."""

    def __init__(self, comm: "Intracomm", partners: list[Partner], n_local: int, n_remote: int) -> None:
        self.comm, self.partners, self.n_local, self.n_remote = comm, partners, n_local, n_remote
        self._seconds = 0.0

    def exchange(self, rows: Tensor) -> Tensor:
        """Rows (n_local, ...) to (n_local + n_remote, ...), differentiable once."""
        copied: Tensor = _Copy.apply(rows, self)
        return copied

    def copy(self, rows: Tensor) -> Tensor:
        """Rows (n_local, ...) to (n_local + n_remote, ...)."""
        outgoing = [rows.index_select(0, partner.sent) for partner in self.partners]
        incoming = [rows.new_empty(self._n_received(partner), *rows.shape[1:]) for partner in self.partners]
        return torch.cat([rows, *self._swap(outgoing, incoming)])

    def add(self, rows: Tensor) -> Tensor:
        """Rows (n_local + n_remote, ...) to (n_local, ...): those of the remote atoms are added to their owners'."""
        remote = rows[self.n_local :]
        outgoing = [remote[partner.received].contiguous() for partner in self.partners]
        incoming = [rows.new_empty(len(partner.sent), *rows.shape[1:]) for partner in self.partners]
        total = rows[: self.n_local].clone()
        for partner, each in zip(self.partners, self._swap(outgoing, incoming), strict=True):
            total.index_add_(0, partner.sent, each)
        return total

    def take_seconds(self) -> float:
        """The wall time of copies and additions since the last call, waiting for other ranks included."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _n_received(self, partner: Partner) -> int:
        return int(partner.received.stop - partner.received.start)

    def _swap(self, outgoing: list[Tensor], incoming: list[Tensor]) -> list[Tensor]:
        """Send a block of rows to each partner and receive one from each."""
        from mpi4py import MPI

        start = time.perf_counter()
        sent = [block.detach().cpu().numpy() for block in outgoing]
        received = [np.empty(block.shape, each.dtype) for block, each in zip(incoming, sent, strict=True)]
        ranks = [partner.rank for partner in self.partners]
        waiting = [self.comm.Irecv(block, rank) for block, rank in zip(received, ranks, strict=True)]
        waiting += [self.comm.Isend(block, rank) for block, rank in zip(sent, ranks, strict=True)]
        MPI.Request.Waitall(waiting)
        arrived = [torch.from_numpy(block).to(each.device) for block, each in zip(received, incoming, strict=True)]
        self._seconds += time.perf_counter() - start
        return arrived


class _Copy(torch.autograd.Function):
    """``Plan.copy`` with ``Plan.add`` as its backward pass."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, plan: Plan) -> Tensor:
        """See ``Plan.copy``."""
        ctx.plan = plan
        return plan.copy(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """See ``Plan.add``."""
        return ctx.plan.add(gradients[0]), None


def make_plan(comm: "Intracomm", ids: Ids, n_local: int, device: torch.device) -> tuple[Plan, Tensor]:
    """The plan of a rank, and the row (N,) of each of its local and ghost atoms.

    ``ids`` (N,) are distinct among the local atoms of all ranks. Owners are found through a directory that is
    distributed over the ranks by id, so that no rank ever holds a list of all atoms. Collective.
    """
    own, ghosts = ids[:n_local], ids[n_local:]
    order = np.argsort(own)
    place = np.searchsorted(own[order], ghosts)
    place[place == n_local] = 0
    mine = own[order][place] == ghosts if n_local else np.zeros(len(ghosts), np.bool_)
    remote = np.unique(ghosts[~mine])
    owner, index = _owners(comm, own, remote)
    by_owner = np.lexsort((remote, owner))
    remote, owner, index = remote[by_owner], owner[by_owner], index[by_owner]

    rows = np.empty(len(ids), np.int64)
    rows[:n_local] = np.arange(n_local)
    rows[n_local:][mine] = order[place[mine]]
    by_id = np.argsort(remote)
    rows[n_local:][~mine] = n_local + by_id[np.searchsorted(remote[by_id], ghosts[~mine])]

    bounds = np.searchsorted(owner, np.arange(comm.size + 1)).tolist()
    wanted = _swap_ids(comm, [index[bounds[r] : bounds[r + 1]] for r in range(comm.size)])
    partners = [
        Partner(rank, torch.from_numpy(wanted[rank]).to(device), slice(bounds[rank], bounds[rank + 1]))
        for rank in range(comm.size)
        if len(wanted[rank]) or bounds[rank + 1] > bounds[rank]
    ]
    return Plan(comm, partners, n_local, len(remote)), torch.from_numpy(rows).to(device)


def agree(comm: "Intracomm", work: Callable[[], Result]) -> Result:
    """The result of ``work`` on this rank; raises ``SharedError`` on every rank if it failed on any. Collective."""
    try:
        result, failure = work(), ""
    except (ValueError, OSError, RuntimeError) as error:
        failure = str(error) or type(error).__name__
    failures = comm.allgather(failure)
    if any(failures):
        rank = next(rank for rank, each in enumerate(failures) if each)
        raise SharedError(failures[rank] if all(failures) else f"On rank {rank}: {failures[rank]}")
    return result


def _owners(comm: "Intracomm", own: Ids, wanted: Ids) -> tuple[Ids, Ids]:
    """The rank that owns each of the wanted ids, and its place among that rank's atoms.

    Raises ``ValueError`` for an id that nobody owns.
    """
    ranks, places = np.arange(comm.size), np.arange(len(own))
    known = np.stack([own, places], axis=1)  # (n_local, 2)
    listed = _swap_ids(comm, [known[own % comm.size == rank] for rank in ranks])
    asked = _swap_ids(comm, [wanted[wanted % comm.size == rank] for rank in ranks])
    entries = np.concatenate([np.insert(part, 2, rank, axis=1) for rank, part in enumerate(listed)])  # id, place, rank
    entries = entries[np.argsort(entries[:, 0])]
    answers = _swap_ids(comm, [_look_up(entries, ids) for ids in asked])
    found = np.empty((len(wanted), 2), np.int64)
    for rank in ranks:
        found[wanted % comm.size == rank] = answers[rank]
    return found[:, 0], found[:, 1]


def _look_up(entries: Ids, ids: Ids) -> Ids:
    """Rank and place (n, 2) of ids in the sorted entries of a directory."""
    place = np.searchsorted(entries[:, 0], ids)
    if len(ids) and (place.max(initial=0) == len(entries) or not np.array_equal(entries[place, 0], ids)):
        raise ValueError("No rank owns some of the ghost atoms: atom ids are not unique, or LAMMPS has lost atoms.")
    return entries[place][:, [2, 1]]


def _swap_ids(comm: "Intracomm", parts: list[Ids]) -> list[Ids]:
    """Send an array to every rank, and receive one from each."""
    received: list[Ids] = comm.alltoall(parts)
    return received
