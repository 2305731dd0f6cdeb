"""The parts of ``e3nn.o3`` that we use, from any version since 0.4.4, imported without loading torch's compiler.

e3nn decorates one function with ``torch.compiler.disable``, and that decorator loads all of ``torch._dynamo``: a
third of the time that a calculator takes to import, in a process that compiles nothing. Here, while e3nn is imported,
the decorator only marks its function as one that Dynamo must not trace; the function is actually disabled when it is
called in a process that has loaded the compiler. (e3nn 0.5.6 loads the compiler in another place, too.) Every module of
the package takes o3 from here.

e3nn below 0.5.6 reads its Clebsch-Gordan coefficients from a file that contains Python slices, which ``torch.load``
refuses since torch 2.6; while e3nn is imported, slices are allowed.
"""

import functools
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

__all__ = [
    "ElementwiseTensorProduct",
    "FullyConnectedTensorProduct",
    "Irrep",
    "Irreps",
    "Linear",
    "Norm",
    "TensorProduct",
    "spherical_harmonics",
    "wigner_3j",
]


def _disable_when_compiling(fn: Any = None, recursive: bool = True, *, reason: str | None = None) -> Any:
    """``torch.compiler.disable``, without loading the compiler for it."""
    if fn is None:  # a decorator with arguments
        return functools.partial(_disable_when_compiling, recursive=recursive, reason=reason)

    @functools.wraps(fn)
    def call(*args: object, **kwargs: object) -> object:
        compiler_is_loaded = "torch._dynamo" in sys.modules
        function = torch.compiler.disable(fn, recursive, reason=reason) if compiler_is_loaded else fn
        return function(*args, **kwargs)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]  # what Dynamo asks of a function before it traces it
    return call


@contextmanager
def _compiler_left_alone() -> Iterator[None]:
    """Inside the context, ``torch.compiler.disable`` does not load the compiler."""
    disable = torch.compiler.disable
    torch.compiler.disable = _disable_when_compiling
    try:
        yield
    finally:
        torch.compiler.disable = disable


def _slices_are_data() -> AbstractContextManager[None]:
    """Inside the context, ``torch.load`` accepts slices; afterwards only if the user had allowed them before."""
    if slice in torch.serialization.get_safe_globals():
        return nullcontext()
    return torch.serialization.safe_globals([slice])


with _compiler_left_alone(), _slices_are_data():
    from e3nn.o3 import (
        ElementwiseTensorProduct,
        FullyConnectedTensorProduct,
        Irrep,
        Irreps,
        Linear,
        Norm,
        TensorProduct,
        spherical_harmonics,
        wigner_3j,
    )
