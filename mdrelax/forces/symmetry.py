"""Equivariance error of a force field: the one measure that tests, certificates and reports use.

For a symmetry operation g of a structure x, with forces F and energy E,

    rotation, reflection   max |F(g x) - g F(x)| / F_sum      and      |E(g x) - E(x)| / E_sum
    translation            the same with g F = F
    permutation            the same with the atoms reordered

where F_sum and E_sum are the sizes of the terms that forces and energies are summed from (``forcefield.Magnitudes``):
rounding is relative to these. Forces may vanish by symmetry (a perfect crystal) or be tiny (an energy-volume curve),
and energies grow with the number of atoms; reference energies, which no symmetry operation changes, are excluded. The
larger of the two numbers counts.
"""

import copy

import torch
from torch import Tensor

from mdrelax.base.ambient import out_of_inference_mode
from mdrelax.base.seeds import generator
from mdrelax.forces.forcefield import ForceField, Magnitudes, Prediction
from mdrelax.method.certificate import Certificate, EquivarianceError, certificate_of
from mdrelax.method.projection import LayerRecord
from mdrelax.structures.graph import Graph
from mdrelax.structures.rotate import random_rotations, rotate

__all__ = ["certify", "equivariance_error", "network_in", "relative_error"]


@out_of_inference_mode
def equivariance_error(
    force_field: ForceField, graph: Graph, *, dtype: torch.dtype = torch.float64, n_operations: int = 4, seed: int = 0
) -> EquivarianceError:
    """Measure a force field on the structures of ``graph`` with its network in ``dtype``.

    ``n_operations`` operations of each kind are drawn from ``seed``, one rotation per structure. The force field itself
    is not changed. Errors are infinite if the network returns NaN.
    """
    model, graph = network_in(force_field, dtype), graph.clone()
    stream = generator(seed, "operations")
    reference, scale = model(graph), model.magnitudes(graph)
    errors = torch.zeros(4, dtype=torch.float64)
    for _ in range(n_operations):
        rotations = random_rotations(graph.n_graphs, stream).to(graph.positions)
        shifts = 10 * torch.randn(graph.n_graphs, 3, dtype=torch.float64, generator=stream).to(graph.positions)
        moved = graph._replace(positions=graph.positions + shifts[graph.batch])
        permuted, order = _permute(graph, stream)
        tried = [
            relative_error(reference, model(rotate(graph, rotations)), scale, rotations[graph.batch]),
            relative_error(reference, model(rotate(graph, -rotations)), scale, -rotations[graph.batch]),
            relative_error(reference, model(moved), scale, None),
            relative_error(_take(reference, order), model(permuted), scale, None),
        ]
        errors = torch.maximum(errors, torch.stack(tried).cpu())
    return EquivarianceError(*errors.tolist())


def certify(
    force_field: ForceField,
    graph: Graph,
    *,
    layers: list[LayerRecord] | None = None,
    n_operations: int = 8,
    seed: int = 0,
) -> Certificate:
    """Measure a projected force field on real structures; raises ``ValueError`` if it still has free maps.

    The certificate may not pass; ``mdrelax.method.certificate.require`` raises in that case.
    """

    def measure(dtype: torch.dtype) -> EquivarianceError:
        return equivariance_error(force_field, graph, dtype=dtype, n_operations=n_operations, seed=seed)

    symmetry = force_field.potential.symmetry
    return certificate_of(force_field, measure, symmetry=symmetry, n_structures=graph.n_graphs, layers=layers)


def network_in(force_field: ForceField, dtype: torch.dtype) -> ForceField:
    """A copy to measure: the network in ``dtype``, without reference energies."""
    model = copy.deepcopy(force_field).to_dtype(dtype).eval()
    model.reference_energies.zero_()
    return model


def relative_error(before: Prediction, after: Prediction, scale: Magnitudes, matrices: Tensor | None) -> Tensor:
    """The larger error of forces and energies relative to ``scale``, infinite for NaN.

    ``after`` is the prediction for the transformed structures, ``matrices`` (N, 3, 3) the expected transformation of
    each atom's force (None: the identity).
    """
    expected = before.forces if matrices is None else (matrices @ before.forces.unsqueeze(2)).squeeze(2)
    forces = (after.forces - expected).abs().max() / scale.forces
    energies = ((after.energy - before.energy).abs() / scale.energy).max()
    return torch.nan_to_num(torch.maximum(forces, energies), nan=torch.inf, posinf=torch.inf)


def _permute(graph: Graph, stream: torch.Generator) -> tuple[Graph, Tensor]:
    """The graph with the atoms of each structure in another order; new atom k is old atom ``order[k]``."""
    shuffled = torch.rand(len(graph.numbers), dtype=torch.float32, generator=stream).to(graph.positions.device)
    order = torch.argsort(graph.batch + 0.5 * shuffled)
    new_place = torch.argsort(order)
    source, target = new_place[graph.edge_index]
    by_target = torch.argsort(target, stable=True)
    permuted = graph._replace(
        positions=graph.positions[order],
        numbers=graph.numbers[order],
        edge_index=torch.stack([source, target])[:, by_target],
        edge_shift=graph.edge_shift[by_target],
    )
    return permuted, order


def _take(prediction: Prediction, order: Tensor) -> Prediction:
    return prediction._replace(forces=prediction.forces[order], energies=prediction.energies[order])
