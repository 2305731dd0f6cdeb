"""Settings of the trainer: relaxation of the constraint and optimisation of the network, for any task."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from mdrelax.base.sections import Section
from mdrelax.method.penalty import PenaltyKind
from mdrelax.method.projection import ProjectionKind
from mdrelax.method.schedule import Schedule, ScheduleKind
from mdrelax.training.optimizers import OptimizerKind
from mdrelax.training.rates import LearningRate, LearningRateKind

__all__ = ["OptimisationConfig", "RelaxationConfig", "Share", "refuse_keep"]


def _whole_or_below_1(value: int | float) -> int | float:
    if value > 1 and value != int(value):
        raise ValueError(f"this must be a whole number or a fraction below 1, got {value}")
    return int(value) if value >= 1 else value


Share = Annotated[int | float, AfterValidator(_whole_or_below_1)]  # a number of steps, or a fraction of them


class RelaxationConfig(Section):
    """The relaxed constraint: schedule `off` trains the standard, always equivariant network."""

    schedule: Annotated[ScheduleKind, BeforeValidator(lambda value: "off" if value is False else value)] = Field(
        "triangle", description="theta during training; off: never relaxed (YAML reads a bare off as false)."
    )
    peak: float = Field(1.0, gt=0, le=1, description="Largest theta.")
    ramp: float = Field(0.2, gt=0, le=0.5, description="Rise and fall of the trapezoid, as a fraction of the schedule.")
    end: float = Field(1.0, gt=0, le=1, description="Fraction of the training after which theta is 0 for good.")
    where: list[str] | None = Field(None, description="Name patterns of the layers; none: the paper's places.")
    initial_std: float = Field(1e-4, ge=0, description="Standard deviation of the initial free maps.")
    penalty: PenaltyKind = Field("activation", description="The paper's, or the closed form in W.")
    optimizer: OptimizerKind | None = Field(None, description="The free maps' optimiser; none: the network's.")
    learning_rate_fraction: float = Field(
        1.0, gt=0, le=1, description="The free maps' learning rate as a fraction of the network's."
    )
    penalty_rows: int | None = Field(
        None, ge=1, description="activation: number of evenly spaced input rows to evaluate it at; none: all."
    )
    weight: float = Field(0.01, ge=0, description="lambda, the weight of the penalty in the loss.")
    lie_weight: float = Field(1.0, ge=0, description="Factor of the penalty's Lie-derivative term; 0: size alone.")
    projection: ProjectionKind = Field(
        "drop", description="How symmetry is restored; keep: not at all, for nearly symmetric data."
    )

    @model_validator(mode="after")
    def _something_to_keep(self) -> Self:
        if self.projection == "keep" and self.schedule != "off" and self.theta()(1.0) == 0:
            raise ValueError(
                f"`projection: keep` keeps the free maps, but with `schedule: {self.schedule}` and `end: {self.end:g}` "
                "theta is 0 at the end, so they would have no effect; use `schedule: constant` with `end: 1`, or "
                "`projection: drop`"
            )
        return self

    def theta(self) -> Schedule:
        """theta as a function of the training time."""
        return Schedule(self.schedule, self.peak, self.ramp, self.end)


def refuse_keep(relaxation: RelaxationConfig, *, what: str) -> None:
    """Raise ``ValueError`` if the free maps of ``what``, which has to be exactly equivariant, would be kept."""
    if relaxation.projection == "keep":
        raise ValueError(
            f"{what} has to be exactly equivariant, so its free maps cannot be kept: `relaxation.projection` must be "
            "drop or fold, got keep"
        )


class OptimisationConfig(Section):
    """Optimisation of any task."""

    steps: int | None = Field(None, ge=1, description="Optimiser steps (REQUIRED: this or `epochs`).")
    epochs: int | None = Field(None, ge=1, description="Passes over the training set, instead of `steps`.")
    batch_size: int = Field(8, ge=1, description="Structures per batch.")
    optimizer: OptimizerKind = Field(
        "adamw",
        description="The optimiser, see `mdrelax.training.optimizers`; a good learning rate depends on it.",
    )
    learning_rate: float = Field(5e-3, gt=0, description="Peak learning rate.")
    vector_rate_fraction: float = Field(
        0.2, gt=0, le=1, description="muon: the learning rate of vectors and scalars, as a fraction of the matrices'."
    )
    learning_rate_schedule: LearningRateKind = Field(
        "cosine", description="After warm-up, see `mdrelax.training.rates`."
    )
    warmup_steps: Share = Field(
        100, ge=0, description="Steps of linear warm-up: a number, or a fraction of the steps below 1."
    )
    final_learning_rate: float = Field(0.01, ge=0, le=1, description="Last rate of the cosine, a fraction of the peak.")
    plateau_factor: float = Field(0.5, gt=0, lt=1, description="Reduction at a plateau.")
    plateau_patience: int = Field(10, ge=1, description="Validations without improvement before a reduction.")
    decay_factor: float = Field(0.5, gt=0, lt=1, description="step, exponential: factor on the rate.")
    decay_steps: int | None = Field(None, ge=1, description="step, exponential: interval in optimiser steps.")
    decay_epochs: int | None = Field(None, ge=1, description="The same in epochs, instead of `decay_steps`.")
    betas: tuple[float, float] = Field((0.9, 0.99), description="Decays of the first moment (momentum) and the second.")
    weight_decay: float = Field(
        1e-6, ge=0, description="Decay of weight matrices; `adam`, `sgd` and `rmsprop`: of all weights."
    )
    ema: float = Field(
        0.999, ge=0, lt=1, description="Decay of the weights' moving average, s / (s + 10) at most in step s; 0: none."
    )
    norm_batches: int = Field(
        32,
        ge=0,
        description="Training batches for the validated network's batch-norm statistics; 0: the trained one's.",
    )
    gradient_clip: float = Field(10.0, gt=0, description="Largest norm of the gradient.")
    early_stopping: int | None = Field(None, ge=1, description="Stop after this many validations without improvement.")
    validate_every: Share = Field(
        500, gt=0, description="Steps between validations, each with a checkpoint: a number, or a fraction below 1."
    )
    rotate: bool = Field(True, description="Rotate each structure at random in each batch.")
    dtype: Literal["float32", "float64"] = Field("float32", description="The network's precision.")
    device: str = Field("cpu", description="`cpu` or `cuda`.")
    seed: int = Field(0, ge=0, description="Seed of the weights, the order of frames, the rotations and dropout.")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"give either `steps` or `epochs`, got {self.steps} and {self.epochs}")
        return self

    @model_validator(mode="after")
    def _one_decay_length(self) -> Self:
        needed = self.learning_rate_schedule in ("step", "exponential")
        if (self.decay_steps and self.decay_epochs) or (needed and not (self.decay_steps or self.decay_epochs)):
            raise ValueError(
                f"`learning_rate_schedule: {self.learning_rate_schedule}` needs "
                f"{'either' if needed else 'at most one of'} `decay_steps` {'or' if needed else 'and'} `decay_epochs`, "
                f"got {self.decay_steps} and {self.decay_epochs}"
            )
        return self

    def rate(self, n_steps: int) -> LearningRate:
        """The learning rate as a function of the step, in a training of ``n_steps``."""
        return LearningRate(
            self.learning_rate, self.learning_rate_schedule, _in_steps(self.warmup_steps, n_steps),
            self.final_learning_rate,
            self.plateau_factor, self.decay_factor, self.decay_steps or self.decay_epochs or 1,
            "epochs" if self.decay_epochs else "steps",
        )  # fmt: skip

    def validation_interval(self, n_steps: int) -> int:
        """Steps between validations in a training of ``n_steps``."""
        return max(1, _in_steps(self.validate_every, n_steps))


def _in_steps(share: int | float, n_steps: int) -> int:
    """A number of steps, from itself or from a fraction of them."""
    return round(share * n_steps) if share < 1 else int(share)
