"""Compiled training step: a network's energies and their gradient as one recorded graph without Python.

Training on forces differentiates twice, and torch.compile does not look into the inner derivative. So the network and
its backward pass are recorded once as a plain function of the parameters,

    (parameters, thetas, species, edge_index, edge_vectors)  ->  energies, gradient, inputs of the relaxed layers

which torch.compile differentiates and fuses like any other (as in NequIP, Tan et al., arXiv 2504.16068). The numbers
are those of the uncompiled network, to rounding; both are compared before the first step.
"""

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mdrelax.compiled.recording import (
    LARGEST_DIFFERENCE,
    SMALLEST,
    Arguments,
    CompileError,
    first_line,
    independent_sizes,
    keep_second_derivatives,
    record,
    require_compiler,
)
from mdrelax.forces.potential import Potential, energies_and_gradient
from mdrelax.method.penalty import record_inputs
from mdrelax.method.relaxation import relaxed_layers
from mdrelax.structures.graph import Edges

__all__ = ["CompiledTrainingStep"]

PROBE_THETA = 0.5  # of relaxed layers while both forms are compared; at 0 the free maps would have no effect


class CompiledTrainingStep(Potential):
    """A potential in training mode whose differentiable ``energies_and_gradient`` is compiled at its first call.

    It shares the parameters of the network it was made from.

    With ``edge_index`` (2, E), the code is specialised to these edges, which is fastest; batches with other edges run
    uncompiled. Without it, the code is for any number of atoms and edges, and fewer than two run uncompiled.
    Parameters keep their identity, device and dtype after the first call. ``backend`` is torch.compile's.

    The first call takes minutes, and raises ``CompileError`` if there is no working C++ compiler, if the network cannot
    be recorded, or if energies, gradient or the derivatives with respect to the parameters differ.
    """

    def __init__(self, potential: Potential, edge_index: Tensor | None = None, *, backend: str = "inductor") -> None:
        super().__init__()
        self.potential, self.edge_index, self.backend = potential, edge_index, backend
        self.cutoff, self.symmetry, self.roughness = potential.cutoff, potential.symmetry, potential.roughness
        self.conservative = potential.conservative
        self.layers = list(relaxed_layers(potential).values())
        self.calls: list[int] = []  # of each layer, while the network was recorded
        self.controlled = False  # whether derivatives with respect to theta are needed
        self.compiled: Callable[..., Sequence[Tensor]] | None = None

    def forward(self, species: Tensor, edges: Edges) -> Tensor:
        """Energies (N,) of the atoms, uncompiled; see ``Potential``."""
        return self.potential(species, edges)

    def energies_and_gradient(
        self, species: Tensor, edges: Edges, *, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        """See ``Potential``; compiled if ``create_graph`` is set and the edges are those it was compiled for."""
        arguments = species, edges.index, edges.vectors
        if not create_graph or not self._covers(*arguments):
            return self.potential.energies_and_gradient(species, edges, create_graph=create_graph)
        return self._run(arguments)

    def energies_and_forces(self, species: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        """See ``Potential``; uncompiled."""
        return self.potential.energies_and_forces(species, edges)

    def _covers(self, species: Tensor, edge_index: Tensor, edge_vectors: Tensor) -> bool:
        if self.edge_index is None:
            return min(species.shape[0], edge_vectors.shape[0]) >= SMALLEST
        return torch.equal(edge_index, self.edge_index)

    def _run(self, arguments: Arguments) -> tuple[Tensor, Tensor]:
        compiled = self._compile(arguments) if self.compiled is None else self.compiled
        energies, gradient, *inputs = compiled(*self._inputs(arguments))
        given = iter(inputs)
        for layer, n_calls in zip(self.layers, self.calls, strict=True):
            for x in itertools.islice(given, n_calls):
                layer.note(x)
        return energies, gradient

    def _inputs(self, arguments: Arguments) -> tuple[Any, ...]:
        """The arguments of the graph; fixed edges are part of it."""
        species, edge_index, edge_vectors = arguments
        as_tensor = partial(torch.as_tensor, dtype=edge_vectors.dtype, device=edge_vectors.device)
        thetas = edge_vectors.new_zeros(0)
        if self.layers:
            thetas = torch.stack([as_tensor(layer.theta) for layer in self.layers])
        if self.controlled and not thetas.requires_grad:  # set to 0 by its controller: the code is for derivatives
            thetas.requires_grad_()
        edges = () if self.edge_index is not None else (edge_index,)
        return list(self.potential.parameters()), thetas, species, edge_vectors, *edges

    def _compile(self, arguments: Arguments) -> Callable[..., Sequence[Tensor]]:
        """Record, compile and compare with the uncompiled network, which also fills its caches of constants."""
        if arguments[2].device.type == "cpu":
            require_compiler()
        self.controlled = any(isinstance(layer.theta, Tensor) for layer in self.layers)
        theta = arguments[2].new_full((), PROBE_THETA).requires_grad_(self.controlled)
        probe = partial(self._probe, theta=theta)
        with self._theta([theta] * len(self.layers)), record_inputs(self.potential):  # which the penalty must not see
            species, edge_index, vectors = arguments
            edges = Edges(edge_index, vectors)
            wanted = probe(self.potential.energies_and_gradient(species, edges, create_graph=True))
            with warnings.catch_warnings(), independent_sizes():
                warnings.simplefilter("ignore")  # torch's, about its own inner deprecations
                name, symbolic = type(self.potential).__name__, self.edge_index is None
                graph = record(self._function(), self._inputs(arguments), symbolic=symbolic, network=name)
                keep_second_derivatives(graph)
                module: Any = torch.compile(graph, fullgraph=True, dynamic=symbolic, backend=self.backend)
                self.compiled = module.forward  # the function only, not a submodule of this one
                try:
                    found = probe(self._run(arguments))
                except Exception as error:  # torch's own types, and the compiler's words
                    raise CompileError(f"torch or the C++ compiler failed ({first_line(error)}).") from error
        _require_parity(found, wanted)
        return self.compiled

    def _function(self) -> Callable[..., tuple[Tensor, ...]]:
        """The recorded function of ``_inputs``."""
        names = [name for name, _ in self.potential.named_parameters()]

        def function(parameters: list[Tensor], thetas: Tensor, species: Tensor, vectors: Tensor, *edges: Tensor) -> Any:
            edge_index = edges[0] if self.edge_index is None else self.edge_index
            state = dict(zip(names, parameters, strict=True))

            def potential(species: Tensor, edges: Edges) -> Tensor:
                return torch.func.functional_call(self.potential, state, (species, edges))

            with self._theta(thetas.unbind()), record_inputs(self.potential) as recorded:
                result = energies_and_gradient(potential, species, Edges(edge_index, vectors), create_graph=True)
            self.calls = [len(calls) for calls in recorded.values()]
            return *result, *(x for calls in recorded.values() for x in calls)

        return function

    def _probe(self, output: tuple[Tensor, Tensor], *, theta: Tensor) -> list[Tensor]:
        """Both outputs, and the derivatives of a fixed combination of their entries by all parameters, and by theta."""
        combined = torch.stack([(y * torch.linspace(-1, 1, y.numel()).to(y).view_as(y)).sum() for y in output]).sum()
        parameters = [*self.potential.parameters(), *([theta] if self.controlled else [])]
        slopes = torch.autograd.grad(combined, parameters, materialize_grads=True, allow_unused=True)
        return [*(y.detach() for y in output), torch.cat([slope.flatten() for slope in slopes])]

    @contextmanager
    def _theta(self, thetas: Sequence[Tensor]) -> Iterator[None]:
        """Set theta of each relaxed layer to a tensor, which is recorded as an input."""
        before = [layer.theta for layer in self.layers]
        for layer, theta in zip(self.layers, thetas, strict=True):
            layer.theta = theta
        try:
            yield
        finally:
            for layer, value in zip(self.layers, before, strict=True):
                layer.theta = value


def _require_parity(found: list[Tensor], wanted: list[Tensor]) -> None:
    limit = LARGEST_DIFFERENCE[wanted[0].dtype]
    for ours, theirs, what in zip(found, wanted, ("energies", "gradient", "derivatives"), strict=True):
        difference = ((ours - theirs).norm() / theirs.norm().clamp(min=torch.finfo(theirs.dtype).tiny)).item()
        if not difference <= limit:  # NaN is refused, too
            raise CompileError(
                f"The {what} of the compiled training step differ from the network's by {difference:.1e}, where "
                f"{limit:.0e} is allowed; it is refused. Train uncompiled (`training.compile: false`)."
            )
