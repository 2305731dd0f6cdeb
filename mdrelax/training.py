"""Training: fit a force field with the relaxed constraint, validate its projection, and resume bit for bit.

One step, for step s of n:

    theta = schedule(s / (n - 1))        loss = task + lambda * penalty        AdamW        moving average

Validation, model selection and everything after it see only the projected copy of the averaged weights. The networks
and the data are handed in; nothing here knows which they are.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from mdrelax.checkpoint import CheckpointError, load_checkpoint, save_checkpoint, write_atomically
from mdrelax.config import RelaxationConfig, TrainingConfig
from mdrelax.forcefield import ForceField, Prediction
from mdrelax.loader import Batch, Loader, join, rotate_batch
from mdrelax.loss import LossWeights, Targets, task_loss
from mdrelax.optim import Ema, LearningRate, make_optimizer
from mdrelax.projection import LayerRecord, projected_copy
from mdrelax.relaxation import is_relaxed, penalty, set_theta
from mdrelax.schedule import Schedule

__all__ = ["METRIC_COLUMNS", "FitResult", "Progress", "Trainer", "TrainingError", "predict", "validation_errors"]

METRIC_COLUMNS = (
    "step", "epoch", "time_s", "lr", "theta", "penalty", "train_loss",
    "train_energy_mae_meV_per_atom", "train_forces_mae_meV_per_A",
    "val_energy_mae_meV", "val_energy_mae_meV_per_atom",
    "val_forces_mae_meV_per_A", "val_forces_rmse_meV_per_A", "val_stress_mae_meV_per_A3",
)  # fmt: skip
# What a checkpoint holds beside model, optimiser and average.
PRIMITIVES = ("step", "epoch", "batch", "reductions", "stale", "seconds", "cpu_seconds", "best", "rows")
EVALUATION_EDGES = 20_000  # edges evaluated at once where no gradient with respect to weights is kept


class TrainingError(RuntimeError):
    """Training cannot go on."""


class Progress(NamedTuple):
    """What a listener hears after every step; ``row`` is the line of metrics.csv after a validation, else None."""

    step: int  # steps done
    n_steps: int
    theta: float
    penalty: float
    row: dict[str, float] | None


class FitResult(NamedTuple):
    """The best projected network by validation error, and how it was found."""

    force_field: ForceField  # projected, averaged weights, evaluation mode
    layers: list[LayerRecord]
    best_step: int
    steps: int  # done; fewer than planned after early stopping
    seconds: float
    cpu_seconds: float  # of all threads of this process, interruptions left out
    metrics: pd.DataFrame


class Trainer:
    """The state of a run and the loop over it.

    ``force_field`` is relaxed already where the schedule is not ``off``. Checkpoints and metrics.csv go to ``folder``
    after every validation, so a killed run loses at most the steps since then.
    """

    def __init__(
        self,
        force_field: ForceField,
        loader: Loader,
        validation: Sequence[Batch],
        *,
        training: TrainingConfig,
        relaxation: RelaxationConfig,
        folder: Path,
        listener: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        if not any(_has_labels(frame) for frame in validation):
            raise ValueError(
                "There are no validation frames with labels to choose the best network on; set `data.validation` to a "
                "number of frames above 0."
            )
        self.model = force_field.to(training.device)
        self.loader, self.validation, self.folder, self.listener = loader, validation, folder, listener
        self.settings, self.relaxation = training, relaxation
        self.schedule = Schedule(relaxation.schedule, relaxation.peak, relaxation.ramp)
        self.n_steps = training.steps or loader.n_steps(training.epochs or 1)
        self.learning_rate = LearningRate(
            training.learning_rate, training.learning_rate_schedule, training.warmup_steps,
            training.final_learning_rate, training.plateau_factor, training.plateau_patience,
        )  # fmt: skip
        self.weights = LossWeights(
            training.energy_weight, training.forces_weight, training.stress_weight, training.huber_delta
        )
        self.optimizer = make_optimizer(
            self.model, lr=training.learning_rate, weight_decay=training.weight_decay, betas=training.betas
        )
        self.ema = Ema(self.model, decay=training.ema)
        self.relaxed = is_relaxed(self.model)
        self.judged_by_forces = any(not frame.targets.forces.isnan().all() for frame in validation)
        self.step = self.epoch = self.batch = self.reductions = self.stale = 0
        self.seconds = self.cpu_seconds = 0.0
        self.best: dict[str, Any] = {"step": 0, "error": math.inf, "state": {}, "layers": []}
        self.rows: list[dict[str, float]] = []
        self.since_validation: list[Tensor] = []

    # --- the loop ---

    def run(self) -> FitResult:
        """Train to the last step (or the early stop) from wherever the state is; raises ``TrainingError`` on NaN."""
        started, cpu_started = time.perf_counter() - self.seconds, time.process_time() - self.cpu_seconds
        while self.step < self.n_steps and not self._stopped_early():
            for batch in self.loader.batches(self.epoch, start=self.batch):
                theta, extra = self._train_step(batch)
                self.step, self.batch = self.step + 1, self.batch + 1
                validate = self.step % self.settings.validate_every == 0 or self.step == self.n_steps
                self.seconds, self.cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
                row = self._validate(theta, extra) if validate else None
                self.listener(Progress(self.step, self.n_steps, theta, extra, row))
                if self.step == self.n_steps or self._stopped_early():
                    break
            else:
                self.epoch, self.batch = self.epoch + 1, 0
        return self.result()

    def _train_step(self, batch: Batch) -> tuple[float, float]:
        """One optimiser step; returns theta and the penalty."""
        theta = self._set_theta()
        if self.settings.rotate:
            batch = rotate_batch(batch, seed=self.settings.seed, step=self.step)
        batch = batch.to(self.settings.device)
        self.model.train()
        prediction = self.model(batch.graph, stress=self._wants_stress(batch.targets), create_graph=True)
        loss = task_loss(prediction, batch.targets, batch.graph, kind=self.settings.loss, weights=self.weights)
        extra = penalty(self.model, kind=self.relaxation.penalty) if self.relaxed else torch.zeros(())
        self.optimizer.zero_grad(set_to_none=True)
        (loss + self.relaxation.weight * extra).backward()
        self._apply_gradient()
        self.since_validation.append(torch.stack([loss.detach(), *_batch_errors(prediction, batch)]))
        return theta, float(extra.detach())

    def _set_theta(self) -> float:
        theta = self.schedule.at_step(self.step, n_steps=self.n_steps)
        if self.relaxed:
            set_theta(self.model, theta)
        return theta if self.relaxed else 0.0

    def _apply_gradient(self) -> None:
        """Clip, step, average; a gradient that is not finite ends the run before it touches the weights."""
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip)
        if not torch.isfinite(norm):
            raise TrainingError(
                f"The gradient is {norm.item()} at step {self.step}: (a) lower `training.learning_rate` "
                f"({self.settings.learning_rate}), or (b) look for broken frames with `mdrelax data check`."
            )
        rate = self.learning_rate.at_step(self.step, n_steps=self.n_steps, reductions=self.reductions)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.ema.update(self.model.parameters())

    def _wants_stress(self, targets: Targets) -> bool:
        return self.weights.stress > 0 and targets.has_stress()

    def _stopped_early(self) -> bool:
        return self.settings.early_stopping is not None and self.stale >= self.settings.early_stopping

    # --- validation and state ---

    def projected(self) -> tuple[ForceField, list[LayerRecord]]:
        """The projected copy of the averaged weights, in evaluation mode."""
        return projected_copy(self.model, how=self.relaxation.projection, prepare=self.ema.copy_to)

    def _validate(self, theta: float, extra: float) -> dict[str, float]:
        """Measure the projected copy, keep it if it is the best, write the checkpoint and metrics.csv."""
        twin, layers = self.projected()
        errors = validation_errors(twin, self.validation, stress=self.weights.stress > 0)
        loss, energy, forces = torch.stack(self.since_validation).nanmean(0).tolist()
        self.since_validation = []
        row = {
            "step": self.step, "epoch": self.epoch, "time_s": round(self.seconds, 3),
            "lr": self.optimizer.param_groups[0]["lr"], "theta": theta, "penalty": extra, "train_loss": loss,
            "train_energy_mae_meV_per_atom": energy, "train_forces_mae_meV_per_A": forces, **errors,
        }  # fmt: skip
        self.rows.append(row)
        error = errors["val_forces_mae_meV_per_A" if self.judged_by_forces else "val_energy_mae_meV_per_atom"]
        self.stale += 1
        if error < self.best["error"]:
            self.stale = 0
            state = {name: tensor.cpu() for name, tensor in twin.state_dict().items()}
            self.best = {"step": self.step, "error": error, "state": state, "layers": [r._asdict() for r in layers]}
        elif self.stale % self.settings.plateau_patience == 0:
            self.reductions += 1
        self.save()
        return row

    def save(self) -> None:
        """Write checkpoints/last.pt and metrics.csv."""
        state = {name: getattr(self, name) for name in PRIMITIVES}
        state |= {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "ema")}
        save_checkpoint(self.folder / "checkpoints" / "last.pt", state)
        write_atomically(self.folder / "metrics.csv", self.metrics().to_csv(index=False).encode())

    def resume(self) -> None:
        """Take the state of checkpoints/last.pt; raises ``CheckpointError`` when it cannot be used."""
        path = self.folder / "checkpoints" / "last.pt"
        state = load_checkpoint(path, keys=(*PRIMITIVES, "model", "optimizer", "ema"))
        try:
            for name in ("model", "optimizer", "ema"):
                getattr(self, name).load_state_dict(state[name])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"`{path}` belongs to another network; delete it and restart.") from error
        for name in PRIMITIVES:
            setattr(self, name, state[name])

    def metrics(self) -> pd.DataFrame:
        """One row a validation, columns ``METRIC_COLUMNS``."""
        return pd.DataFrame(self.rows, columns=list(METRIC_COLUMNS))

    def result(self) -> FitResult:
        """The best projected network so far; raises ``TrainingError`` when no validation gave a finite error."""
        if not self.best["state"]:
            raise TrainingError(
                f"No validation up to step {self.step} gave a finite error, so there is no best network: (a) the run "
                "was stopped before the first validation, or (b) the network's numbers overflow."
            )
        twin, _ = self.projected()
        twin.load_state_dict(self.best["state"])
        layers = [LayerRecord(**record) for record in self.best["layers"]]
        times = (self.seconds, self.cpu_seconds)
        return FitResult(twin.cpu(), layers, self.best["step"], self.step, *times, self.metrics())


def predict(force_field: ForceField, frames: Sequence[Batch], *, stress: bool = False) -> tuple[Prediction, Batch]:
    """Predictions on many frames, evaluated a few thousand edges at a time, and the frames as one batch."""
    device = force_field.reference_energies.device
    batch_size = max(1, EVALUATION_EDGES // max(1, max(f.graph.edge_index.shape[1] for f in frames)))
    parts = [
        force_field(join(frames[k : k + batch_size]).graph.to(device), stress=stress)
        for k in range(0, len(frames), batch_size)
    ]
    columns = [[p[k] for p in parts] for k in range(4)]
    joined = [None if column[0] is None else torch.cat(column).cpu() for column in columns]
    return Prediction(*joined), join(frames)  # type: ignore[arg-type]


def validation_errors(force_field: ForceField, frames: Sequence[Batch], *, stress: bool = False) -> dict[str, float]:
    """The validation columns of metrics.csv; NaN where the frames have no such label. Forces: over components."""
    prediction, batch = predict(force_field, frames, stress=stress)
    targets, n_atoms = batch.targets, torch.bincount(batch.graph.batch)
    energy = 1e3 * (prediction.energy - targets.energy)
    forces = 1e3 * (prediction.forces - targets.forces)
    tension = torch.full_like(targets.stress, torch.nan)
    if prediction.stress is not None:
        tension = 1e3 * (prediction.stress - targets.stress)
    return {
        "val_energy_mae_meV": _mean(energy.abs(), targets.energy),
        "val_energy_mae_meV_per_atom": _mean(energy.abs() / n_atoms, targets.energy),
        "val_forces_mae_meV_per_A": _mean(forces.abs(), targets.forces),
        "val_forces_rmse_meV_per_A": _mean(forces.square(), targets.forces) ** 0.5,
        "val_stress_mae_meV_per_A3": _mean(tension.abs(), targets.stress),
    }


def _mean(values: Tensor, targets: Tensor) -> float:
    """The mean where there are labels: NaN without any, and where a prediction is NaN."""
    return values[~targets.isnan()].mean().item()


def _has_labels(frame: Batch) -> bool:
    return not bool(frame.targets.energy.isnan().all() and frame.targets.forces.isnan().all())


def _batch_errors(prediction: Prediction, batch: Batch) -> list[Tensor]:
    """Energy MAE (meV/atom) and force MAE (meV/A) of a training batch."""
    n_atoms = torch.bincount(batch.graph.batch, minlength=batch.graph.n_graphs)
    energy = (prediction.energy.detach() - batch.targets.energy) / n_atoms
    forces = prediction.forces.detach() - batch.targets.forces
    return [1e3 * energy.abs().nanmean(), 1e3 * forces.abs().nanmean()]
