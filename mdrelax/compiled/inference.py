"""Compiler: a network and its backward pass as one graph for any number of atoms and edges, compiled ahead of time.

    network  --make_fx-->  graph of energies and gradient  --torch.export-->  program  --AOTInductor-->  shared library

The network runs once on an example with symbols in place of N and E; the recorded graph contains the forward pass
and the derivative with respect to the edge vectors, but no Python. torch assumes symbols of at least 2, so
``CompiledPotential`` adds a pair of atoms out of reach of each other if there are fewer atoms or edges. The neighbour
table of networks that use one is made outside of the graph, since its width depends on the structure.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mdrelax.compiled.recording import SMALLEST, Arguments, CompileError, first_line, record, require_compiler
from mdrelax.forces.potential import Potential, energies_and_gradient
from mdrelax.structures.graph import Edges, neighbor_table

__all__ = ["Arguments", "CompileError", "CompiledPotential", "compile_potential", "load_library"]


class CompiledPotential(Potential):
    """A potential that is one compiled function; it cannot be trained, cast or moved.

    ``run`` takes the ``Arguments`` as a list, with at least two atoms and two edges, then a weight (N,) of each atom's
    energy, and if ``takes_table`` the neighbour table; it returns the weighted energies (N,) and the gradient (E, 3)
    of their sum. Weights of zero leave out the ghosts of a wide halo.
    """

    precision: Tensor  # empty, of the compiled dtype and on the compiled device

    differentiable_twice = False

    def __init__(
        self,
        run: Callable[[list[Tensor]], Sequence[Tensor]],
        *,
        cutoff: float,
        dtype: torch.dtype,
        takes_table: bool = False,
        n_rounds: int | None = None,
        roughness: str | None = None,
    ) -> None:
        super().__init__()
        self.run, self.cutoff, self.takes_table = run, cutoff, takes_table
        self.n_rounds, self.roughness = n_rounds, roughness
        self.register_buffer("precision", torch.empty(0, dtype=dtype), persistent=False)

    def forward(self, species: Tensor, edges: Edges) -> Tensor:
        """Energies (N,) of the atoms; see ``Potential``."""
        return self.energies_and_gradient(species, edges)[0]

    def energies_and_gradient(
        self, species: Tensor, edges: Edges, *, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        """See ``Potential``; raises ``ValueError`` for ``create_graph`` and for an exchange between domains."""
        if create_graph:
            raise ValueError("A compiled potential cannot be trained: train the network it was made from.")
        if edges.exchange is not None:
            raise ValueError(
                "A compiled potential cannot exchange features with other ranks: use a wide halo, or the model file "
                "it was made from."
            )
        n_atoms, n_edges = len(species), len(edges.vectors)
        n_local = n_atoms if edges.n_local is None else edges.n_local
        arguments = species, edges.index, edges.vectors
        if min(n_atoms, n_edges) < SMALLEST:
            arguments = _with_a_pair_out_of_reach(*arguments, 2 * self.cutoff)
        weights = (torch.arange(len(arguments[0]), device=species.device) < n_local).to(edges.vectors)
        table = [_table(arguments)] if self.takes_table else []
        energies, gradient = self.run([*arguments, weights, *table])
        return energies[:n_local], gradient[:n_edges]

    def __deepcopy__(self, memo: dict[int, Any]) -> "CompiledPotential":
        return self  # its parameters cannot change

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CompiledPotential":
        """Called by ``to``, ``double`` and ``cuda``."""
        wanted = fn(self.precision)
        if (wanted.dtype, wanted.device) != (self.precision.dtype, self.precision.device):
            raise ValueError(
                f"This model was compiled for {str(self.precision.dtype).removeprefix('torch.')} on the CPU and runs "
                "as nothing else; compile the model file again with another `dtype`, or use it uncompiled."
            )
        return self


def _with_a_pair_out_of_reach(species: Tensor, edge_index: Tensor, edge_vectors: Tensor, length: float) -> Arguments:
    """Add two atoms joined by two edges longer than the cut-off, which do not change the results."""
    first, second = len(species), len(species) + 1
    pair = edge_vectors.new_tensor([[length, 0.0, 0.0], [-length, 0.0, 0.0]])
    return (
        torch.cat([species, species.new_zeros(2)]),
        torch.cat([edge_index, edge_index.new_tensor([[second, first], [first, second]])], dim=1),
        torch.cat([edge_vectors, pair]),
    )


def _table(arguments: Arguments) -> Tensor:
    """The neighbour table, at least two entries wide."""
    species, edge_index, _ = arguments
    table = neighbor_table(edge_index[1], len(species))
    return functional.pad(table, (0, max(0, SMALLEST - table.shape[1])), value=edge_index.shape[1])


def compile_potential(potential: Potential, example: Arguments, path: Path) -> None:
    """Write the compiled network to ``path`` (``.pt2``); the example needs more edges than atoms, and two atoms.

    Raises ``CompileError`` without a working C++ compiler, and for a network whose operations depend on its data.
    """
    require_compiler()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about its own inner deprecations
        program = _capture(potential, example)
        try:
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
        except Exception as error:  # torch's own types, and the compiler's messages
            raise CompileError(f"torch or the C++ compiler failed ({first_line(error)}).") from error


def load_library(path: Path) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    """The compiled function of a package. This runs the code in the package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch._inductor.aoti_load_package(str(path)).loader.boxed_run


def _capture(potential: Potential, example: Arguments) -> torch.export.ExportedProgram:
    """Energies and gradient as a program without Python, for any N and E of at least 2."""

    def function(
        species: Tensor, index: Tensor, vectors: Tensor, weights: Tensor, *table: Tensor
    ) -> tuple[Tensor, Tensor]:
        edges = Edges(index, vectors, table=table[0] if table else None)
        energies, gradient = energies_and_gradient(lambda s, e: potential(s, e) * weights, species, edges)
        return energies.detach(), gradient.detach()

    atoms, edges, places = (torch.export.Dim(name, min=SMALLEST) for name in ("atoms", "edges", "places"))
    arguments: tuple[Tensor, ...] = (*example, torch.ones_like(example[0], dtype=example[2].dtype))
    sizes: tuple[dict[int, torch.export.Dim], ...] = ({0: atoms}, {1: edges}, {0: edges}, {0: atoms})
    if potential.takes_table:
        arguments, sizes = (*arguments, _table(example)), (*sizes, {0: atoms, 1: places})
    function(*arguments)  # fills the caches of constants, which must not keep a symbolic tensor
    graph = record(function, arguments, symbolic=True, network=type(potential).__name__)
    try:
        return torch.export.export(graph, arguments, dynamic_shapes=sizes)
    except Exception as error:  # torch raises many types here, none of them public
        raise CompileError(
            f"The network `{type(potential).__name__}` cannot be compiled for every number of atoms: what it computes "
            f"depends on the structure ({first_line(error)}). Use it uncompiled."
        ) from error
