"""Ranks: several processes that train one network together, each on its part of every batch.

`torchrun` starts them (torch.distributed; gloo between processors, nccl between GPUs). Every rank holds the whole
network and all data, and sees the same batches. Of a batch of structures i it takes its own part, and

    loss = sum over ranks of the part's share          gradient = sum over ranks, before it is clipped

are those of one process to rounding, because shares are divided by the counts of the whole batch, not of the part. The
first rank, rank 0, alone writes and speaks.

A rank that ends early closes its connections, so that the others fail in their next exchange with
``LostRankError`` instead of waiting; torchrun ends them too.
"""

import contextlib
import datetime
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mdrelax.base.sections import ConfigError

__all__ = ["ALONE", "EVERYTHING", "Divisible", "LostRankError", "Ranks", "joined", "launched", "use_gpu"]

EVERYTHING = slice(None)
JOINING = datetime.timedelta(minutes=5)  # for all ranks to start
WAITING = datetime.timedelta(days=1)  # of one rank for another: for data that rank 0 fetches, or a step that compiles
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets, and some clusters' own scripts
OTHER_LAUNCHERS = {  # the number of processes, as launchers set it that do not say how these reach each other
    "OMPI_COMM_WORLD_SIZE": "mpirun (Open MPI)",
    "PMI_SIZE": "mpirun (MPICH)",
    "MV2_COMM_WORLD_SIZE": "mpirun (MVAPICH)",
    "SLURM_STEP_NUM_TASKS": "srun",
}
TORCHRUN = "`torchrun --nproc-per-node N -m mdrelax ...`"

Value = TypeVar("Value")
ModelIn = TypeVar("ModelIn", bound=nn.Module, contravariant=True)


class LostRankError(RuntimeError):
    """Another rank ended, or cannot be reached: this one cannot continue, and is not the cause."""


class Ranks:
    """The processes that train together, as one of them sees them; ``ALONE`` for a process of its own.

    All ranks call the same methods in the same order. Raises ``LostRankError`` in the place of another rank's failure.
    """

    def __init__(self, rank: int = 0, size: int = 1, *, local_rank: int = 0, group: Any = None) -> None:
        self.rank, self.size, self.local_rank, self._group = rank, size, local_rank, group

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which alone writes and speaks."""
        return self.rank == 0

    # --- parts of a batch ---

    def part(self, sizes: Sequence[int]) -> slice:
        """The consecutive items of this rank, such that the largest sum of ``sizes`` of any rank is smallest.

        A rank gets none if there are too few; rank 0 always gets some.
        """
        bounds = _balanced(sizes, self.size)
        return slice(bounds[self.rank], bounds[self.rank + 1])

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum over ranks, without gradient."""
        if self.size == 1:
            return numbers.detach()
        total = numbers.detach().clone()
        with self._exchange():
            dist.all_reduce(total, group=self._group)
        return total

    def total(self, own: Tensor) -> Tensor:
        """The sum over ranks, whose gradient is that of this rank's own term: gradients are summed afterwards."""
        return own if self.size == 1 else _Total.apply(own, self)

    def gather(self, numbers: Tensor) -> Tensor:
        """The numbers (n,) of all ranks, (size, n)."""
        places = numbers.new_zeros(self.size, *numbers.shape)
        places[self.rank] = numbers
        return self.sum(places)

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by the sum over ranks; one that no rank has stays None.

        One exchange per dtype: all gradients in a row, and for each the number of ranks that have it.
        """
        if self.size == 1:
            return
        groups: dict[Any, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.requires_grad:
                groups.setdefault((parameter.dtype, parameter.device), []).append(parameter)
        for own in groups.values():
            gradients = [p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in own]
            known = own[0].new_tensor([p.grad is not None for p in own])
            *summed, counts = self.sum(torch.cat([*gradients, known])).split([*(p.numel() for p in own), len(own)])
            for parameter, gradient, count in zip(own, summed, counts.tolist(), strict=True):
                parameter.grad = gradient.view_as(parameter) if count else None

    def average(self, buffers: Sequence[Tensor], *, weight: float = 1.0) -> None:
        """Replace buffers by their means over ranks, with a weight per rank."""
        if self.size > 1 and buffers:
            total = self.sum(torch.tensor([weight], dtype=torch.float64)).item()
            for buffer in buffers:
                buffer.copy_(self.sum(weight / total * buffer))

    # --- agreement ---

    def share(self, value: Value) -> Value:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box: list[Any] = [value if self.first else None]
        with self._exchange():
            dist.broadcast_object_list(box, src=0, group=self._group, device=torch.device("cpu"))
        return box[0]

    def one_sentence(self, error: Exception) -> Exception:
        """The error that all ranks found together on rank 0, and a reference to it on the others."""
        return error if self.first else LostRankError(f"Rank {self.rank} ends with rank 0, which says why.")

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Rank 0 is the first in the block, then one rank of each other machine, then the rest.

        What the first fetches or makes is there for the others; if it fails, they do not begin.
        """
        turn = 0 if self.first else 1 if self.local_rank == 0 else 2
        for _ in range(turn):
            self._meet()
        yield
        for _ in range(turn, 2):
            self._meet()

    def _meet(self) -> None:
        self.sum(torch.zeros(1))

    @contextlib.contextmanager
    def _exchange(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise LostRankError(
                f"Rank {self.rank} of {self.size} ends, because another rank ended or cannot be reached "
                f"({_reason(error)}): its own message says why, or torchrun's if it was killed. `--restart auto` "
                "resumes the run."
            ) from error


ALONE = Ranks()
_present: list[Ranks] = []  # those joined by this process, innermost last


@runtime_checkable
class Divisible(Protocol[ModelIn]):
    """A ``Task`` whose batches can be divided among ranks."""

    def sizes(self, batch: Any) -> Sequence[int]:
        """The cost of each structure of a batch, in any unit."""

    def loss(self, model: ModelIn, batch: Any, *, step: int, part: slice = EVERYTHING) -> tuple[Tensor, list[Tensor]]:
        """The shares that the structures ``part`` of a batch have in its loss and in its ``train_columns``.

        Over all parts they add up to those of the batch, whose random numbers do not depend on the part.
        """

    def validate(self, model: ModelIn, *, ranks: Ranks = ALONE) -> dict[str, float]:
        """The errors on all validation data, of which each rank evaluates its part."""


def launched(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Rank and number of ranks as the launcher of this process set them; (0, 1) without one.

    Raises ``ConfigError`` if a launcher started several processes without saying how they reach each other: each would
    train the same network, and write the same files.
    """
    missing = [name for name in NEEDED if name not in environment]
    if not missing:
        return int(environment["RANK"]), int(environment["WORLD_SIZE"])
    if "RANK" in environment:
        raise ConfigError(
            f"RANK is {environment['RANK']}, but {' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not "
            f"set, so that the ranks cannot reach each other: start them with {TORCHRUN}, or unset RANK to train with "
            "one process."
        )
    for name, launcher in OTHER_LAUNCHERS.items():
        size = environment.get(name, "1")
        if size.isdigit() and int(size) > 1:
            raise ConfigError(
                f"This is one of {size} processes that {launcher} started, each of which would train the same network: "
                f"start them with {TORCHRUN}, or one process only."
            )
    return 0, 1


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that this process belongs to, connected until the block ends; ``ALONE`` if it was started by itself.

    A process group that exists already is used. Raises ``ConfigError`` as ``launched``, and ``LostRankError`` if the
    other ranks do not come.
    """
    if _present:
        yield _present[-1]
        return
    rank, size = launched()
    if size == 1:
        yield ALONE
        return
    with _process_group(rank, size) as group:
        local_rank = int(os.environ.get("LOCAL_RANK", rank))
        _present.append(Ranks(rank, size, local_rank=local_rank, group=group))
        try:
            yield _present[-1]
        finally:
            _present.pop()


@contextlib.contextmanager
def _process_group(rank: int, size: int) -> Iterator[Any]:
    """A group of all ranks whose exchanges may take long; destroying it wakes ranks that wait for this one."""
    if not dist.is_available():
        raise ConfigError("This torch has no torch.distributed: train with one process, or install another torch.")
    ours = not dist.is_initialized()
    try:
        if ours:
            dist.init_process_group("gloo", timeout=JOINING)
        group = dist.new_group(timeout=WAITING, backend=_backend())
    except (RuntimeError, ValueError) as error:
        raise LostRankError(
            f"Rank {rank} of {size} did not find the others at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} "
            f"({_reason(error)}); all of them have to be started within {JOINING.seconds // 60} minutes."
        ) from error
    try:
        yield group
    finally:
        if ours:
            dist.destroy_process_group()


def _backend() -> str:
    """nccl between GPUs if every rank of this machine has its own; gloo for everything else."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    own_gpu = torch.cuda.is_available() and ranks_here <= torch.cuda.device_count()
    return "cpu:gloo,cuda:nccl" if own_gpu else "gloo"


def use_gpu(device: str, ranks: Ranks) -> None:
    """Let `cuda` mean a GPU of its own for each rank of a machine; raises ``ConfigError`` for a GPU by number."""
    if ranks.size == 1 or not device.startswith("cuda"):
        return
    if device != "cuda":
        raise ConfigError(
            f"`training.device: {device}` puts all {ranks.size} ranks on one GPU; `cuda` gives each its own."
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(ranks.local_rank % torch.cuda.device_count())


class _Total(torch.autograd.Function):
    """The sum over ranks; backward, each rank passes the gradient on to its own term."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, ranks: Ranks) -> Tensor:
        """See ``Ranks.total``."""
        return ranks.sum(own)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient itself."""
        return gradient, None


def _balanced(sizes: Sequence[int], n_parts: int) -> list[int]:
    """The bounds of consecutive parts whose largest sum is as small as possible: (n_parts + 1,)."""
    ends = list(accumulate(sizes))

    def fill(limit: int) -> list[int]:
        bounds = [0]
        for _ in range(n_parts):
            before = ends[bounds[-1] - 1] if bounds[-1] else 0
            bounds.append(bisect_right(ends, before + limit))
        return bounds

    low, high = max(sizes, default=0), ends[-1] if ends else 0
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fill(middle)[-1] == len(ends) else (middle + 1, high)
    return fill(low)


def _reason(error: BaseException) -> str:
    """The first sentence of an error of torch's, without the place in its source and without the full stop."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line.partition("] ")[2].partition(". ")[0].rstrip(".") or line
