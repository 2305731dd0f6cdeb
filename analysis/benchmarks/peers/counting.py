"""Operations and bytes of a step, and the rates that the machine can reach.

Floating-point operations are those of matrix products and convolutions (``torch.utils.flop_counter``; a multiply-add is
two). Bytes are the sizes of the tensors that each operation reads and writes, as if there were no cache, without
views. The ceilings are a matrix product and a triad a = b + s c as large as main memory's speed needs.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

__all__ = ["Count", "Limits", "count", "limits"]

MATRIX = 2048  # rows and columns of the product
TRIAD = 2**24  # numbers of each vector: 64 MB in float32, larger than a cache
REPEATS = 7  # the fastest counts


class Count(NamedTuple):
    """The cost of a step."""

    gflop: float  # 1e9 operations
    gbyte: float  # 1e9 bytes read and written


class Limits(NamedTuple):
    """The rates that the machine reaches with the present number of threads."""

    gflop_per_s: float
    gbyte_per_s: float
    threads: int


class _Cost(TorchDispatchMode):
    """Adds up operations of matrix products, and the sizes of the tensors of every operation except views."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.operations += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
        if not _is_view(func):
            self.bytes += sum(_sizes((args, kwargs or {}, result)))
        return result


def count(step: Callable[[], object]) -> Count:
    """Operations and bytes of one call."""
    with _Cost() as cost:
        step()
    return Count(cost.operations / 1e9, cost.bytes / 1e9)


def limits(dtype: str) -> Limits:
    """Matrix product and triad, the fastest of a few."""
    kind = getattr(torch, dtype)
    a, b = torch.ones(MATRIX, MATRIX, dtype=kind), torch.ones(MATRIX, MATRIX, dtype=kind)
    product = _fastest(lambda: torch.mm(a, b))
    x, y, z = (torch.ones(TRIAD, dtype=kind) for _ in range(3))
    triad = _fastest(lambda: torch.add(x, y, alpha=0.5, out=z))
    return Limits(2 * MATRIX**3 / product / 1e9, 3 * TRIAD * kind.itemsize / triad / 1e9, torch.get_num_threads())


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest call."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _is_view(func: Any) -> bool:
    """Whether the result shares the memory of an argument without being written."""
    infos = [each.alias_info for each in func._schema.returns]
    return any(info is not None and not info.is_write for info in infos)


def _sizes(tree: Any) -> Iterator[int]:
    """Bytes of each tensor; an expanded direction counts once."""
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            numbers = 1
            for size, stride in zip(leaf.shape, leaf.stride(), strict=True):
                numbers *= size if stride else min(size, 1)
            yield numbers * leaf.element_size()
