"""Hessian: exact second derivatives of the energy, for vibrations and phonons.

    H[k, a, l, b] = d2E / dx_ka dx_lb = -dF_ka / dx_lb            eV/A^2, float64

A potential is a function of the edge vectors r = x_j - x_i + S h, which are linear in the positions. So a row of H is
the gradient of one force component with respect to the edge vectors (a second backward pass), summed over the edges of
each atom.

    symbol   argument   shape
    k, a     ``rows``   (R,), and its three directions
    l, b                N atoms, 3 directions
    r        vectors    (E, 3)

One row costs about as much as two evaluations of the forces, as central differences do, and has no step size. So does
the product of H with any one direction. Several rows of a small structure share a pass, which saves Python
overhead; `mdrelax bench hessians` measures both.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mdrelax.base.ambient import undisturbed
from mdrelax.forces.forcefield import ForceField
from mdrelax.modelfile import frozen_copy
from mdrelax.structures.graph import Edges, Graph, edge_vectors

__all__ = ["hessian", "hessian_products"]

ROWS_TIMES_EDGES = 2048  # that share a pass; larger batches were measured to be no faster, and need more memory

Array = npt.NDArray[np.float64]


def hessian(force_field: ForceField, graph: Graph, rows: Sequence[int] | None = None) -> Array:
    """Second derivatives (R, 3, N, 3) of the energy for the atoms ``rows`` (default: all), in eV/A^2.

    Computed in a float64 copy of the network, repulsion included, dispersion not. In a periodic structure ``x_l``
    moves every image of atom l, so this is the sum over images that a phonon calculation of a supercell needs.

    Raises ``ValueError`` for a batch of several structures, for rows that are not atoms, and for a model without
    second derivatives: one with direct forces, or a compiled one. ``UnknownElementError`` as in ``ForceField``.
    """
    n_atoms = len(graph.numbers)
    chosen = list(range(n_atoms)) if rows is None else [int(row) for row in rows]
    if not all(0 <= row < n_atoms for row in chosen):
        raise ValueError(f"`rows` must be atoms from 0 to {n_atoms - 1}, got {chosen}.")
    found = _minus_gradients(force_field, graph, lambda forces: forces[chosen].flatten(), 3 * len(chosen))
    return found.reshape(len(chosen), 3, n_atoms, 3)


def hessian_products(force_field: ForceField, graph: Graph, directions: npt.ArrayLike) -> Array:
    """Products H u (R, N, 3) with directions u (R, N, 3): minus the derivative of the forces along u.

    In eV/A^2; errors as in ``hessian``.
    """
    given = np.asarray(directions)
    if given.shape[1:] != tuple(graph.positions.shape) or given.dtype.kind not in "iuf":
        raise ValueError(
            f"`directions` must be real numbers of shape (R, {len(graph.numbers)}, 3), got {given.dtype} of shape "
            f"{given.shape}."
        )
    if not np.isfinite(given).all():
        raise ValueError("`directions` contains values that are NaN or infinite.")
    u = torch.as_tensor(given.astype(float), device=graph.positions.device)
    return _minus_gradients(force_field, graph, lambda forces: torch.einsum("rnx,nx->r", u, forces), len(u))


def _minus_gradients(force_field: ForceField, graph: Graph, combine: Callable[[Tensor], Tensor], count: int) -> Array:
    """-df/dx (count, N, 3) of combinations f (count,) of the forces (N, 3), from a float64 copy of the network."""
    _check(force_field, graph)
    with undisturbed(graph.positions.device), torch.enable_grad():
        graph = graph.clone()
        forces, vectors = _differentiable_forces(frozen_copy(force_field, "float64"), graph)
        if vectors is None or not forces.requires_grad:
            return np.zeros((count, len(graph.numbers), 3))
        parts = [_by_positions(graph, slopes) for slopes in _slopes(combine(forces), vectors)]
    return torch.cat(parts).cpu().numpy()


def _check(force_field: ForceField, graph: Graph) -> None:
    if not force_field.conservative:
        raise ValueError(
            "This model predicts forces directly (`forces: direct`): they are no gradient of an energy, so there is "
            "no Hessian. Use finite differences (`--method finite`), or train with `forces: gradient`."
        )
    if not force_field.potential.differentiable_twice:
        raise ValueError(
            "A compiled model has no second derivatives: use the model that it was made from (the .safetensors file, "
            "without `compile`), or finite differences."
        )
    if graph.n_graphs != 1:
        raise ValueError(f"`hessian` takes one structure at a time, got a batch of {graph.n_graphs}.")


def _differentiable_forces(force_field: ForceField, graph: Graph) -> tuple[Tensor, Tensor | None]:
    """Forces (N, 3) as a differentiable function of the edge vectors (E, 3), and these; None without edges."""
    species, vectors = force_field.species_of(graph.numbers), edge_vectors(graph).requires_grad_()
    energies = force_field.potential(species, Edges(graph.edge_index, vectors))
    if not len(vectors):
        return torch.zeros_like(graph.positions), None
    slope = torch.zeros_like(vectors)
    if energies.requires_grad:
        (slope,) = torch.autograd.grad(energies.sum(), vectors, create_graph=True)
    return force_field.finish(graph, species, vectors, energies, slope, stress=False).forces, vectors


def _slopes(wanted: Tensor, vectors: Tensor) -> Iterator[Tensor]:
    """Gradients (r, E, 3) of combinations of forces (R,) with respect to the edge vectors, a few at a time."""
    at_once = max(1, ROWS_TIMES_EDGES // len(vectors))
    for part in wanted.split(at_once):
        if len(part) == 1:
            (slope,) = torch.autograd.grad(part, vectors, retain_graph=True)
            yield slope.unsqueeze(0)
        else:
            one_each = torch.eye(len(part), dtype=part.dtype, device=part.device)
            yield torch.autograd.grad(part, vectors, one_each, retain_graph=True, is_grads_batched=True)[0]


def _by_positions(graph: Graph, slopes: Tensor) -> Tensor:
    """-dF/dx (r, N, 3) of gradients dF/dr (r, E, 3): r grows with its source's position and falls with its target's."""
    source, target = graph.edge_index
    zeros = slopes.new_zeros(len(slopes), len(graph.numbers), 3)
    return zeros.index_add_(1, target, slopes).index_add_(1, source, slopes, alpha=-1)
