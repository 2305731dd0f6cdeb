"""Recording: the operations of a network as a graph without Python, for any number of atoms or for fixed sizes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, fx

__all__ = [
    "LARGEST_DIFFERENCE",
    "SMALLEST",
    "Arguments",
    "CompileError",
    "first_line",
    "independent_sizes",
    "keep_second_derivatives",
    "record",
    "require_compiler",
]

Arguments = tuple[Tensor, Tensor, Tensor]  # species (N,), edge_index (2, E), edge_vectors (E, 3)
LARGEST_DIFFERENCE = {torch.float32: 1e-4, torch.float64: 1e-10}  # from the uncompiled network, relative
SMALLEST = 2  # atoms and edges: torch compiles sizes of 0 and 1 separately


class CompileError(RuntimeError):
    """A network cannot be compiled, or its compiled form gives other numbers."""


def record(function: Callable[..., Any], arguments: tuple[Any, ...], *, symbolic: bool, network: str) -> fx.GraphModule:
    """The operations of a call as a graph, with symbols in place of sizes or with the example's own sizes.

    Raises ``CompileError``, naming the ``network``, if its operations depend on its data.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    mode: Literal["symbolic", "real"] = "symbolic" if symbolic else "real"
    try:
        with torch.backends.opt_einsum.flags(enabled=False), independent_sizes():  # else the example's sizes count
            return make_fx(function, tracing_mode=mode, _allow_non_fake_inputs=True)(*arguments)
    except Exception as error:  # torch raises many types here, none of them public
        raise CompileError(
            f"The network `{network}` cannot be compiled{' for every number of atoms' if symbolic else ''}: what it "
            f"computes depends on the structure ({first_line(error)}). Use it uncompiled."
        ) from error


@contextmanager
def independent_sizes() -> Iterator[None]:
    """Give every size a symbol of its own while a network is recorded and compiled.

    Torch gives one symbol to sizes that are equal in the example. A first batch of 8 atoms, for a network of 8
    channels, would make code for 8 atoms only, and every other batch would be compiled again.
    """
    from torch.fx.experimental import _config

    with _config.patch(use_duck_shape=False):  # type: ignore[attr-defined]
        yield


def keep_second_derivatives(module: fx.GraphModule) -> None:
    """Remove the detach operations of autograd's saved tensors, which a second derivative must go through.

    Our own are kept: those of the relaxed layers' inputs, and of maxima that keep exponentials from overflowing.
    """
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten.detach.default:
            around = [str(other.target) for other in (*node.users, *node.all_input_nodes)]
            if not any("amax" in name or "scatter_reduce" in name or name == "output" for name in around):
                node.replace_all_uses_with(node.args[0])
                module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()


def require_compiler() -> None:
    """Raise ``CompileError`` if torch finds no C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise CompileError(
            "Compiling needs a C++ compiler, and none was found: install g++ or clang++, or name one in the "
            "environment variable CXX."
        ) from error


def first_line(error: Exception) -> str:
    """The first line of an error message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
