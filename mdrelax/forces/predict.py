"""A force field's predictions on many labelled frames, alone or with their labels."""

from collections.abc import Sequence

import torch

from mdrelax.forces.forcefield import ForceField, Prediction
from mdrelax.forces.loader import Batch, join
from mdrelax.forces.metrics import Predictions

__all__ = ["predict", "predictions_of"]

EVALUATION_EDGES = 20_000  # edges evaluated at once if gradients of the weights are not needed


def predict(force_field: ForceField, frames: Sequence[Batch], *, stress: bool = False) -> tuple[Prediction, Batch]:
    """Predictions on many frames, evaluated a few thousand edges at a time, and the frames as one batch."""
    device = force_field.reference_energies.device
    batch_size = max(1, EVALUATION_EDGES // max(1, max(f.graph.edge_index.shape[1] for f in frames)))
    parts = [
        force_field(join(frames[k : k + batch_size]).graph.to(device), stress=stress)
        for k in range(0, len(frames), batch_size)
    ]
    joined = Prediction.join(parts)
    return Prediction(*(None if t is None else t.cpu() for t in joined)), join(frames)  # type: ignore[arg-type]


def predictions_of(force_field: ForceField, frames: Sequence[Batch], *, stress: bool = False) -> Predictions:
    """The labels of the frames and the force field's predictions; stress only on request."""
    predicted, batch = predict(force_field, frames, stress=stress)
    targets, n_atoms = batch.targets, torch.bincount(batch.graph.batch)
    no_forces = bool(targets.forces.isnan().all())
    return Predictions(
        numbers=batch.graph.numbers.numpy(),
        n_atoms=n_atoms.numpy(),
        energy_true=targets.energy.numpy(),
        energy_pred=predicted.energy.numpy(),
        forces_true=None if no_forces else targets.forces.numpy(),
        forces_pred=None if no_forces else predicted.forces.numpy(),
        stress_true=targets.stress.numpy() if predicted.stress is not None else None,
        stress_pred=predicted.stress.numpy() if predicted.stress is not None else None,
    )
