"""Loss: weighted errors of energy (per atom), forces and stress, plus lambda times the penalty.

    L = w_E <e(dE / n_atoms)> + w_F <e(dF)> + w_S <e(dS)>

with e one of ``mae`` |d|, ``mse`` d^2, ``huber`` (delta as given) over components, or ``l2norm``, the mean length of
the force error of an atom (for energy and stress as ``mae``). Averages run over the labels that exist: a missing label
is NaN in ``Targets``. A prediction that is NaN makes the loss NaN.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mdrelax.forces.forcefield import Prediction
from mdrelax.structures.graph import Graph

__all__ = ["LossKind", "LossWeights", "Targets", "task_loss"]

LossKind = Literal["huber", "l2norm", "mae", "mse"]


class Targets(NamedTuple):
    """Labels of a batch, float64; NaN where a structure has none."""

    energy: Tensor  # (G,) eV
    forces: Tensor  # (N, 3) eV/A
    stress: Tensor  # (G, 3, 3) eV/A^3

    def n_labels(self) -> list[int]:
        """The numbers of structures with an energy, atoms with a force, and structures with a stress."""
        return [int(_known(target).sum()) for target in self]

    def has_stress(self) -> bool:
        """Whether any structure has a stress label."""
        return not bool(self.stress.isnan().all())


class LossWeights(NamedTuple):
    """Weights of energy per atom (1/eV), forces (A/eV) and stress (A^3/eV), and the Huber loss's delta."""

    energy: float = 1.0
    forces: float = 1.0
    stress: float = 0.0
    delta: float = 0.01

    def for_part(self, part: Targets, whole: Targets) -> "LossWeights":
        """The weights with which the losses of a batch's parts add up to the loss of the whole."""
        if part is whole:
            return self
        energy, forces, stress = (
            weight * n / max(n_all, 1)
            for weight, n, n_all in zip(self[:3], part.n_labels(), whole.n_labels(), strict=True)
        )
        return LossWeights(energy, forces, stress, self.delta)


def task_loss(
    prediction: Prediction,
    targets: Targets,
    graph: Graph,
    *,
    kind: LossKind,
    weights: LossWeights,
    of_structures: Tensor | None = None,
) -> Tensor:
    """The weighted sum, a scalar; terms of weight 0 and labels that no structure has contribute nothing.

    The errors of a structure, of its energy, atoms and stress, are multiplied by its weight ``of_structures`` (G,). The
    averages still run over the numbers of labels, so that a weight of 2 counts as if the structure were there twice.
    """
    n_atoms = torch.bincount(graph.batch, minlength=graph.n_graphs)
    terms = [
        (weights.energy, (prediction.energy - targets.energy) / n_atoms, targets.energy),
        (weights.forces, prediction.forces - targets.forces, targets.forces),
    ]
    if prediction.stress is not None:
        terms.append((weights.stress, prediction.stress - targets.stress, targets.stress))
    total = 0.0 * prediction.energy.sum()  # differentiable even if a batch has no label of nonzero weight
    for weight, difference, target in terms:
        known = _known(target)
        if weight and known.any():
            factors = None
            if of_structures is not None:
                factors = (of_structures if len(target) == graph.n_graphs else of_structures[graph.batch])[known]
            total = total + weight * _mean_error(difference[known], kind, weights.delta, factors)
    return total


def _known(target: Tensor) -> Tensor:
    """Which rows have a label."""
    return ~target.isnan().reshape(len(target), -1).any(1)


def _mean_error(difference: Tensor, kind: LossKind, delta: float, factors: Tensor | None) -> Tensor:
    """The mean over rows; with ``factors`` (R,), of each row's mean error times its own."""
    if factors is not None:
        return (factors * _row_errors(difference, kind, delta)).mean()
    if kind == "mse":
        return difference.square().mean()
    if kind == "huber":
        return torch.nn.functional.huber_loss(difference, torch.zeros_like(difference), delta=delta)
    if kind == "l2norm" and difference.shape[1:] == (3,):
        return difference.norm(dim=1).mean()
    return difference.abs().mean()


def _row_errors(difference: Tensor, kind: LossKind, delta: float) -> Tensor:
    """The mean error (R,) of each row."""
    if kind == "mse":
        errors = difference.square()
    elif kind == "huber":
        errors = torch.nn.functional.huber_loss(difference, torch.zeros_like(difference), delta=delta, reduction="none")
    elif kind == "l2norm" and difference.shape[1:] == (3,):
        errors = difference.norm(dim=1)
    else:
        errors = difference.abs()
    return errors.reshape(len(difference), -1).mean(1)
