"""The loss: its formulas against numpy, and what happens to labels that do not exist."""

from typing import get_args

import numpy as np
import pytest
import torch

from mdrelax.forces.forcefield import Prediction
from mdrelax.forces.loss import LossKind, LossWeights, Targets, task_loss
from mdrelax.structures.graph import Graph
from molecules import normal

SIZES = (2, 3)  # atoms of the two structures
WEIGHTS = LossWeights(energy=0.7, forces=1.3, stress=2.1, delta=0.5)
KINDS = get_args(LossKind)


def graph() -> Graph:
    """Two structures without edges: the loss reads the batch index only."""
    n_atoms = sum(SIZES)
    batch = torch.repeat_interleave(torch.arange(2), torch.tensor(SIZES))
    edges = torch.zeros(2, 0, dtype=torch.int64)
    return Graph(normal(n_atoms, 3, seed=0), torch.ones(n_atoms).long(), torch.zeros(2, 3, 3), edges, edges.T, batch)


def prediction(seed: int = 1) -> Prediction:
    """Differentiable numbers."""
    tensors = [
        normal(*shape, seed=seed + k).requires_grad_() for k, shape in enumerate([(2,), (5,), (5, 3), (2, 3, 3)])
    ]
    return Prediction(*tensors)


def targets(seed: int = 11) -> Targets:
    """Labels for everything."""
    return Targets(normal(2, seed=seed), normal(5, 3, seed=seed + 1), normal(2, 3, 3, seed=seed + 2))


def error(difference: np.ndarray, kind: str, delta: float) -> float:
    """The mean of e(d), written out."""
    if kind == "mse":
        return float((difference**2).mean())
    if kind == "huber":
        size = np.abs(difference)
        return float(np.where(size < delta, size**2 / 2, delta * (size - delta / 2)).mean())
    if kind == "l2norm" and difference.shape[1:] == (3,):
        return float(np.sqrt((difference**2).sum(axis=1)).mean())
    return float(np.abs(difference).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_the_weighted_sum_of_mean_errors(kind):
    """L = w_E <e(dE / n)> + w_F <e(dF)> + w_S <e(dS)>; float64 sums of few numbers, so 1e-12."""
    predicted, wanted = prediction(), targets()
    loss = task_loss(predicted, wanted, graph(), kind=kind, weights=WEIGHTS)
    energy = (predicted.energy - wanted.energy).detach().numpy() / np.array(SIZES)
    forces = (predicted.forces - wanted.forces).detach().numpy()
    stress = (predicted.stress - wanted.stress).detach().numpy()
    expected = 0.7 * error(energy, kind, 0.5) + 1.3 * error(forces, kind, 0.5) + 2.1 * error(stress, kind, 0.5)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_label_is_as_if_its_structure_had_none(kind):
    """NaN labels leave the averages: the second structure's energy and forces count for nothing."""
    predicted, wanted = prediction(), targets()
    energy, forces, stress = (tensor.clone() for tensor in wanted)
    energy[1], forces[2:], stress[0] = torch.nan, torch.nan, torch.nan
    loss = task_loss(predicted, Targets(energy, forces, stress), graph(), kind=kind, weights=WEIGHTS)
    known = [
        (predicted.energy - wanted.energy)[:1].detach().numpy() / SIZES[0],
        (predicted.forces - wanted.forces)[:2].detach().numpy(),
        (predicted.stress - wanted.stress)[1:].detach().numpy(),
    ]
    weights = (0.7, 1.3, 2.1)
    expected = sum(w * error(difference, kind, 0.5) for w, difference in zip(weights, known, strict=True))
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss.backward()
    assert predicted.forces.grad[2:].abs().max() == 0
    assert all(tensor.grad.isfinite().all() for tensor in (predicted.energy, predicted.forces, predicted.stress))


def test_a_nan_prediction_is_not_mistaken_for_a_missing_label():
    """A network that overflows must be heard of: its NaN reaches the loss."""
    predicted = prediction()
    broken = predicted._replace(forces=torch.full((5, 3), torch.nan))
    assert task_loss(broken, targets(), graph(), kind="mae", weights=WEIGHTS).isnan()


def test_a_batch_without_any_label_that_counts_gives_a_gradient_of_zero():
    """Such a batch (energies only, their weight 0) must not end a run in `backward`."""
    predicted = prediction()
    nothing = Targets(torch.zeros(2), torch.full((5, 3), torch.nan), torch.full((2, 3, 3), torch.nan))
    loss = task_loss(predicted, nothing, graph(), kind="l2norm", weights=LossWeights(energy=0.0, forces=1.0))
    loss.backward()
    assert loss.item() == 0.0
    assert predicted.energy.grad.abs().max() == 0


def test_a_term_of_weight_zero_has_no_influence():
    """Weight 0 is the same as no label at all, bit for bit."""
    predicted, wanted = prediction(), targets()
    off = WEIGHTS._replace(stress=0.0)
    without = task_loss(predicted._replace(stress=None), wanted, graph(), kind="mse", weights=WEIGHTS)
    assert task_loss(predicted, wanted, graph(), kind="mse", weights=off).item() == without.item()


def test_has_stress_asks_for_one_label():
    """One stress among the structures is enough to compute stresses."""
    one = torch.full((2, 3, 3), torch.nan)
    assert not targets()._replace(stress=one).has_stress()
    one = torch.cat([one[:1], torch.zeros(1, 3, 3)])
    assert targets()._replace(stress=one).has_stress()
