"""Training: the loop for any task with a relaxed constraint; validates the projection, resumes bit for bit.

One step, for step s of n:

    theta = schedule(s / (n - 1))        loss = task + lambda * penalty        optimiser        moving average

or theta = the gamma_i that a controller (ACE) found for each relaxed place.

Validation, model selection and test use only the projected copy of the averaged weights, or, with
`projection: keep`, the copy with its free maps at the theta of that step. The trainer is
generic: network and ``Task`` (for potentials, ``mdrelax.forces.forcematching``) are passed in, and nothing here depends
on either.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import pandas as pd
import torch
from torch import Tensor, nn

from mdrelax.base.allocator import keep_freed_memory
from mdrelax.base.files import write_atomically
from mdrelax.base.seeds import default_stream
from mdrelax.base.states import load_exactly, refuse_changed
from mdrelax.method.free_map_log import LAYER_COLUMNS, activation_lie_squares, layer_rows
from mdrelax.method.penalty import Inputs, penalty, record_inputs
from mdrelax.method.projection import LayerRecord, projected_copy
from mdrelax.method.relaxation import is_relaxed, relaxed_layers
from mdrelax.training.averages import Ema, has_running_statistics, own_statistics, running_statistics
from mdrelax.training.checkpoint import CheckpointError, load_checkpoint, refuse_impossible, save_checkpoint
from mdrelax.training.optimizers import make_optimizer, moving, set_rate
from mdrelax.training.ranks import ALONE, Divisible, Ranks
from mdrelax.training.settings import OptimisationConfig, RelaxationConfig, make_controller

__all__ = ["CHECKPOINT_DEFAULTS", "CHECKPOINT_KEYS", "FitResult", "Progress", "Task", "Trainer", "TrainingError"]

FIRST_COLUMNS = ("step", "epoch", "time_s", "lr", "theta", "penalty", "train_loss")  # of metrics.csv; then the task's
PROJECTED = "projected_"  # prefix of the columns of the projected network, with `keep`
# The content of a checkpoint in addition to model, optimiser and average.
PRIMITIVES = ("step", "epoch", "batch", "reductions", "stale", "seconds", "cpu_seconds", "best", "rows", "layer_rows")
STATES = ("model", "optimizer", "ema", "controller")
CHECKPOINT_KEYS = (*PRIMITIVES, *STATES)
CHECKPOINT_DEFAULTS: dict[str, Any] = {"controller": {}}  # of keys that older versions did not write
Model = TypeVar("Model", bound=nn.Module)
ModelIn = TypeVar("ModelIn", bound=nn.Module, contravariant=True)


class TrainingError(RuntimeError):
    """Training cannot continue."""


class Progress(NamedTuple):
    """The argument of a listener after every step; ``row`` is the line of metrics.csv after a validation, else None."""

    step: int  # steps done
    n_steps: int
    theta: float
    penalty: float
    row: dict[str, float] | None


class FitResult(NamedTuple, Generic[Model]):
    """The best network by validation error, and how it was found."""

    model: Model  # projected (with `keep`: relaxed, at the theta of ``best_step``), averaged weights, evaluation mode
    layers: list[LayerRecord]
    best_step: int
    steps: int  # done; fewer than planned after early stopping
    seconds: float
    cpu_seconds: float  # of all threads of all ranks, without interruptions
    metrics: pd.DataFrame


class Task(Protocol[ModelIn]):
    """A training task: batches, their loss, and the validation error that selects the best network.

    To train on several ranks it has to be ``mdrelax.training.ranks.Divisible``, too.

    All randomness in a batch follows from a seed of the task and from ``epoch`` or ``step``, so that a resumed run
    sees the same batches as an uninterrupted one. Only the network, in ``loss``, may draw from torch's own generators
    (dropout), which the trainer seeds in every step.
    """

    @property
    def train_columns(self) -> Sequence[str]:
        """Names of the numbers that ``loss`` returns with the loss; averaged (without NaN) between validations."""

    @property
    def validation_columns(self) -> Sequence[str]:
        """Names of the numbers that ``validate`` returns."""

    @property
    def selected(self) -> str:
        """The validation column whose smallest value selects the best network."""

    def batches(self, epoch: int, *, start: int) -> Iterable[Any]:
        """The batches of an epoch from number ``start`` on."""

    def n_steps(self, epochs: int) -> int:
        """The number of batches in a number of epochs."""

    def loss(self, model: ModelIn, batch: Any, *, step: int) -> tuple[Tensor, list[Tensor]]:
        """The loss of a batch, a scalar, and one detached scalar for each of ``train_columns``.

        A task may itself accumulate gradients of parts of the loss; they are cleared before each call. A copy of
        the trained network may be passed too, in evaluation mode but for its batch norms (``norm_batches``).
        """

    def validate(self, model: ModelIn) -> dict[str, float]:
        """The errors of a network in evaluation mode: a projected copy, or one with its free maps (`keep`)."""


class Trainer(Generic[Model]):
    """The state of a run and the loop over it.

    ``model`` is already relaxed unless the schedule is ``off``. Checkpoints, metrics.csv and (of a relaxed model)
    layers.csv go to ``folder`` after every validation, so a killed run loses at most the steps since then.

    Of several ``ranks`` each has a trainer with the same arguments: they start from the weights of rank 0, each takes
    its part of every batch, and rank 0 alone writes. Raises ``TrainingError`` for a task that cannot be divided.
    """

    def __init__(
        self,
        model: Model,
        task: Task[Model],
        *,
        training: OptimisationConfig,
        relaxation: RelaxationConfig,
        folder: Path,
        listener: Callable[[Progress], None] = lambda progress: None,
        ranks: Ranks = ALONE,
    ) -> None:
        _require_divisible(task, ranks)
        self.ranks = ranks
        if ranks.size > 1:
            model.load_state_dict(ranks.share({name: tensor.cpu() for name, tensor in model.state_dict().items()}))
        self.model = model.to(training.device)
        self.task, self.folder, self.listener = task, folder, listener
        self.settings, self.relaxation = training, relaxation
        self.n_steps = training.steps or task.n_steps(training.epochs or 1)
        self.learning_rate = training.rate(self.n_steps)
        self.interval = training.validation_interval(self.n_steps)
        self.optimizer = make_optimizer(
            self.model, kind=training.optimizer, lr=training.learning_rate, weight_decay=training.weight_decay,
            betas=training.betas, vector_fraction=training.vector_rate_fraction, free_kind=relaxation.optimizer,
            free_fraction=relaxation.learning_rate_fraction, fractions=training.rate_fractions,
        )  # fmt: skip
        self.moving = moving(self.model, self.optimizer)
        self.ema = Ema(self.model, decay=training.ema)
        self.relaxed = is_relaxed(self.model)
        self.controller = make_controller(relaxation, self.model, n_steps=self.n_steps, betas=training.betas)
        self.keeps = self.relaxed and relaxation.projection == "keep"
        self.step = self.epoch = self.batch = self.reductions = self.stale = 0
        self.seconds = self.cpu_seconds = 0.0
        self.best: dict[str, Any] = {"step": 0, "error": math.inf, "state": {}, "layers": []}
        self.rows: list[dict[str, float]] = []
        self.layer_rows: list[dict[str, Any]] = []
        self.since_validation: list[Tensor] = []
        self.inputs: Inputs = {}  # of the relaxed layers, in the last step

    # --- the loop ---

    def run(self) -> FitResult[Model]:
        """Train from the present state to the last step (or early stop); raises ``TrainingError`` on NaN."""
        keep_freed_memory()
        started, cpu_started = time.perf_counter() - self.seconds, time.process_time() - self.cpu_seconds
        while self.step < self.n_steps and not self._stopped_early():
            for batch in self.task.batches(self.epoch, start=self.batch):
                theta, extra = self._train_step(batch)
                self.step, self.batch = self.step + 1, self.batch + 1
                self.seconds, self.cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
                row = self._validate(theta, extra) if self._validates_at(self.step) else None
                self.listener(Progress(self.step, self.n_steps, theta, extra, row))
                if self.step == self.n_steps or self._stopped_early():
                    break
            else:
                self.epoch, self.batch = self.epoch + 1, 0
        return self.result()

    def _train_step(self, batch: Any) -> tuple[float, float]:
        """One optimiser step; returns theta and the penalty."""
        theta = self.controller.begin_step(self.model, step=self.step) if self.relaxed else 0.0
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        stream = self.step * self.ranks.size + self.ranks.rank
        with default_stream(self.settings.seed, "dropout", stream, device=self.settings.device):
            with self._recorded() as self.inputs:
                loss, numbers = self._loss(batch)
            extra = self._penalty()
            (loss + self.relaxation.weight * extra).backward()
        self.ranks.add_gradients([*self.model.parameters(), *self.controller.leaves()])
        self._apply_gradient()
        self.since_validation.append(torch.stack([loss.detach(), *numbers]))
        return theta, float(extra.detach())

    def _loss(self, batch: Any) -> tuple[Tensor, list[Tensor]]:
        """The loss of a batch and its numbers, or this rank's shares of them."""
        if self.ranks.size == 1:
            return self.task.loss(self.model, batch, step=self.step)
        task: Any = self.task  # it is divisible
        part = self.ranks.part(task.sizes(batch))
        if part.start == part.stop:
            nothing = torch.zeros((), dtype=torch.float64, device=self.settings.device)
            return nothing.clone().requires_grad_(), [nothing] * len(task.train_columns)
        return task.loss(self.model, batch, step=self.step, part=part)

    def _recorded(self) -> AbstractContextManager[Inputs]:
        """For the activation penalty, and before a validation for layers.csv; recorded images take much memory."""
        own = self.relaxation
        needed = (own.penalty == "activation" and own.weight > 0) or self._validates_at(self.step + 1)
        return record_inputs(self.model) if needed else nullcontext({})

    def _validates_at(self, step: int) -> bool:
        return step % self.interval == 0 or step == self.n_steps

    def _penalty(self) -> Tensor:
        own, processes = self.relaxation, self.ranks if self.ranks.size > 1 else None
        if not (self.relaxed and own.weight):
            return torch.zeros(())
        return penalty(
            self.model, self.inputs, kind=own.penalty, rows=own.penalty_rows, lie=own.lie_weight, processes=processes
        )

    def _apply_gradient(self) -> None:
        """Clip, step, average; a gradient that is not finite ends the run before it changes the weights."""
        norm = torch.nn.utils.clip_grad_norm_(self.moving, self.settings.gradient_clip)
        if not torch.isfinite(norm):
            error = TrainingError(
                f"The gradient is {norm.item()} at step {self.step}: (a) lower `training.learning_rate` "
                f"({self.settings.learning_rate}), or (b) look for broken data (frames: with `mdrelax data check`)."
            )
            raise self.ranks.one_sentence(error)
        rate = self.learning_rate.at_step(self.step, n_steps=self.n_steps, epoch=self.epoch, reductions=self.reductions)
        set_rate(self.optimizer, rate)
        if self.relaxed:
            self.controller.after_backward(self.model)
        self.optimizer.step()
        self.ema.update(self.model.parameters())

    def _stopped_early(self) -> bool:
        return self.settings.early_stopping is not None and self.stale >= self.settings.early_stopping

    # --- validation and state ---

    def projected(self) -> tuple[Model, list[LayerRecord]]:
        """The network to validate and save: a projected copy in evaluation mode with the averaged weights."""
        return self._project(self.ema.copy_to)

    def _project(self, prepare: Callable[[nn.Module], None]) -> tuple[Model, list[LayerRecord]]:
        twin, layers = projected_copy(self.model, how=self.relaxation.projection, prepare=prepare)
        self._give_statistics(twin)
        return twin, layers

    def _log_and_project(self) -> tuple[Model, list[LayerRecord]]:
        """``projected``, together with the rows of layers.csv."""
        squares: dict[str, float] = {}

        def prepare(twin: nn.Module) -> None:
            self.ema.copy_to(twin)
            squares.update(activation_lie_squares(twin, self.inputs))

        twin, layers = self._project(prepare)
        self.layer_rows += layer_rows(self.step, layers, squares, self.controller.duals())
        return twin, layers

    def _give_statistics(self, twin: Model) -> None:
        """Batch-norm statistics of a copy, always from the same batches: the first ones of epoch 0, rotated alike."""
        if not (self.settings.norm_batches and has_running_statistics(twin)):
            return

        done: list[int] = []

        def forward(numbered: tuple[int, Any], _: int) -> None:
            k, batch = numbered
            done.append(k)
            with default_stream(self.settings.seed, "dropout", k, device=self.settings.device):
                self.task.loss(twin, batch, step=k)

        batches = itertools.islice(self.task.batches(0, start=0), self.settings.norm_batches)
        own_statistics(twin, forward, itertools.islice(enumerate(batches), self.ranks.rank, None, self.ranks.size))
        self.ranks.average(running_statistics(twin), weight=len(done))
        twin.zero_grad(set_to_none=True)

    def _errors(self, twin: Model) -> dict[str, float]:
        """The validation errors of a network; if its free maps are kept, also those of its projection."""
        task: Any = self.task
        keys = {"ranks": self.ranks} if self.ranks.size > 1 else {}
        errors = task.validate(twin, **keys)
        if self.keeps:
            nearest, _ = projected_copy(twin, how="fold")
            self._give_statistics(nearest)
            errors |= {PROJECTED + name: error for name, error in task.validate(nearest, **keys).items()}
        return self.ranks.share(errors)  # on other processors they may be rounded differently

    def _validate(self, theta: float, extra: float) -> dict[str, float]:
        """Measure the network, keep it if it is the best, write the checkpoint and the tables."""
        self.ranks.average(running_statistics(self.model))
        twin, layers = self._log_and_project()
        errors = self._errors(twin)
        steps = torch.stack(self.since_validation)
        loss, *numbers = (steps if self.ranks.size == 1 else self.ranks.sum(steps.double())).nanmean(0).tolist()
        self.since_validation = []
        row = {
            "step": self.step, "epoch": self.epoch, "time_s": round(self.seconds, 3),
            "lr": self.optimizer.param_groups[0]["lr"], "theta": theta, "penalty": extra, "train_loss": loss,
            **dict(zip(self.task.train_columns, numbers, strict=True)), **errors,
        }  # fmt: skip
        self.rows.append(row)
        self._select(errors[self.task.selected], twin, layers)
        self.save()
        return row

    def _select(self, error: float, twin: Model, layers: list[LayerRecord]) -> None:
        """Keep the network if it is the best so far; count the validations since the best."""
        self.stale += 1
        if error < self.best["error"]:
            self.stale = 0
            state = {name: tensor.cpu() for name, tensor in twin.state_dict().items()}
            self.best = {"step": self.step, "error": error, "state": state, "layers": [r._asdict() for r in layers]}
        elif self.stale % self.settings.plateau_patience == 0:
            self.reductions += 1

    def save(self) -> None:
        """Write metrics.csv, layers.csv and last, since it says that they are there, the checkpoint; rank 0 does."""
        if self.ranks.first:
            self._write_tables()
            state = {name: getattr(self, name) for name in PRIMITIVES}
            state |= {name: getattr(self, name).state_dict() for name in STATES}
            save_checkpoint(self.folder / "checkpoints" / "last.pt", state)

    def _write_tables(self) -> None:
        write_atomically(self.folder / "metrics.csv", self.metrics().to_csv(index=False).encode())
        if self.relaxed:
            table = pd.DataFrame(self.layer_rows, columns=list(LAYER_COLUMNS))
            write_atomically(self.folder / "layers.csv", table.to_csv(index=False).encode())

    def resume(self) -> None:
        """Load the state of checkpoints/last.pt; raises ``CheckpointError`` if it cannot be used."""
        path = self.folder / "checkpoints" / "last.pt"
        loaded = load_checkpoint(path, keys=CHECKPOINT_KEYS, defaults=CHECKPOINT_DEFAULTS) if self.ranks.first else {}
        state = self.ranks.share(loaded)
        refuse_impossible(state, path, n_steps=self.n_steps)
        try:
            load_exactly(self.model, state["model"], may_lack=None)
            for name in STATES[1:]:
                getattr(self, name).load_state_dict(state[name])
                refuse_changed(state[name], getattr(self, name).state_dict())
            if best := state["best"]["state"]:
                load_exactly(projected_copy(self.model, how=self.relaxation.projection)[0], best, may_lack=None)
        except Exception as error:  # optimisers raise anything for a state that is none of theirs
            raise CheckpointError(f"`{path}` belongs to another network; delete it and restart.") from error
        for name in PRIMITIVES:
            setattr(self, name, state[name])

    def metrics(self) -> pd.DataFrame:
        """One row per validation: step, time, rate, theta, penalty and loss, then the task's columns.

        With `keep` the validation columns come twice, the second time as ``projected_...``.
        """
        validation = tuple(self.task.validation_columns)
        projected = tuple(PROJECTED + name for name in validation) if self.keeps else ()
        columns = (*FIRST_COLUMNS, *self.task.train_columns, *validation, *projected)
        return pd.DataFrame(self.rows, columns=list(columns))

    def result(self) -> FitResult[Model]:
        """The best network so far; raises ``TrainingError`` if no validation gave a finite error."""
        if not self.best["state"]:
            error = TrainingError(
                f"No validation up to step {self.step} gave a finite error, so there is no best network: (a) the run "
                "was stopped before the first validation, or (b) the network's numbers overflow."
            )
            raise self.ranks.one_sentence(error)
        twin, _ = projected_copy(self.model, how=self.relaxation.projection)
        twin.load_state_dict(self.best["state"])
        layers = [LayerRecord(**record) for record in self.best["layers"]]
        if self.keeps:
            for layer, record in zip(relaxed_layers(twin).values(), layers, strict=True):
                layer.set_theta(record.theta)
        times = (self.seconds, self.ranks.sum(torch.tensor(self.cpu_seconds, dtype=torch.float64)).item())
        return FitResult(twin.cpu(), layers, self.best["step"], self.step, *times, self.metrics())


def _require_divisible(task: object, ranks: Ranks) -> None:
    if ranks.size > 1 and not isinstance(task, Divisible):
        error = TrainingError(
            f"The task `{type(task).__name__}` cannot be divided among {ranks.size} ranks: it has no method `sizes` "
            "(`mdrelax.training.ranks.Divisible`). Train it with one process."
        )
        raise ranks.one_sentence(error)
