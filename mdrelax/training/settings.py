"""Settings of the trainer: relaxation of the constraint and optimisation of the network, for any task."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from torch import nn

from mdrelax.base.sections import ConfigError, Section
from mdrelax.base.seeds import generator
from mdrelax.method.controllers import Ace, AceForm, AceSettings, Controller, Scheduled
from mdrelax.method.penalty import PenaltyKind
from mdrelax.method.projection import ProjectionKind
from mdrelax.method.relaxation import FreeKind, Placement, relax_constraints
from mdrelax.method.schedule import Schedule, ScheduleKind
from mdrelax.training.optimizers import OptimizerKind
from mdrelax.training.rates import LearningRate, LearningRateKind

__all__ = ["OptimisationConfig", "RelaxationConfig", "Share", "make_controller", "refuse_keep", "relax"]


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
    controller: Literal["schedule", "ace"] = Field(
        "schedule", description="What moves theta: the schedule, or ace: one gamma per place by primal-dual updates."
    )
    ace_form: AceForm = Field("equality", description="ace: gamma = 0 in the end, or resilient: it may stay.")
    ace_rate: float | None = Field(None, gt=0, description="ace: learning rate of gamma; none: 4 / steps.")
    ace_dual_rate: float | None = Field(None, gt=0, description="ace: that of the dual variables; none: 4 / steps.")
    ace_damping: float = Field(4.0, ge=0, description="ace: weight of the augmented term; 0: as published, it swings.")
    ace_resilience: float = Field(1.0, gt=0, description="ace, resilient: weight of the slack u^2 / 2.")
    ace_end: float = Field(
        0.9, gt=0, le=1, description="ace, equality: fraction of the training after which gamma is 0; 1: never."
    )
    free_map: FreeKind = Field("linear", description="Free maps: linear W x, or mlp: perceptrons of three layers.")
    rank: int | None = Field(None, ge=1, description="Rank of the free maps, where that is smaller; none: dense.")
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

    @model_validator(mode="before")
    @classmethod
    def _no_penalty_under_ace(cls, document: Any) -> Any:
        if isinstance(document, dict) and document.get("controller") == "ace":
            return {"weight": 0.0, **document}
        return document

    @model_validator(mode="after")
    def _one_controller(self) -> Self:
        own = type(self).model_fields
        if self.controller == "schedule" or self.schedule == "off":
            return self
        moved = [key for key in ("schedule", "peak", "ramp", "end") if getattr(self, key) != own[key].default]
        if moved:
            raise ValueError(
                f"`controller: ace` moves theta itself and has no schedule: leave out `{moved[0]}`, got "
                f"{getattr(self, moved[0])} (`schedule: off` trains the standard network)"
            )
        if self.projection == "keep" and self.ace_form == "equality":
            raise ValueError(
                "`projection: keep` keeps the free maps, but with `ace_form: equality` they are to have no effect in "
                "the end; use `ace_form: resilient`, or `projection: drop`"
            )
        return self

    @model_validator(mode="after")
    def _possible_free_maps(self) -> Self:
        if self.free_map == "mlp" and self.rank is not None:
            raise ValueError(f"`rank` is of linear free maps, got {self.rank} with `free_map: mlp`; leave it out")
        if self.free_map == "mlp" and self.penalty == "weight" and self.weight:
            raise ValueError(
                "`penalty: weight` has a closed form for linear free maps only, got `free_map: mlp`; use "
                "`penalty: activation` or `weight: 0`"
            )
        return self

    @model_validator(mode="after")
    def _something_to_keep(self) -> Self:
        if self.controller == "ace":
            return self
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


def relax(model: nn.Module, settings: RelaxationConfig, *, seed: int) -> Placement | None:
    """Put free maps into a network where the schedule asks for them; None where it is off. Raises ``ConfigError``."""
    if settings.schedule == "off":
        return None
    stream = generator(seed, "free maps")
    try:
        return relax_constraints(
            model, where=settings.where, initial_std=settings.initial_std, generator=stream, kind=settings.free_map,
            rank=settings.rank,
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError(f"`relaxation.where`: {error}") from error


def make_controller(
    settings: RelaxationConfig, model: nn.Module, *, n_steps: int, betas: tuple[float, float]
) -> Controller:
    """The controller of a model's theta; ``betas`` are those of ACE's own Adam, the network's."""
    if settings.controller == "schedule" or settings.schedule == "off":
        return Scheduled(settings.theta(), n_steps=n_steps)
    own = AceSettings(
        settings.ace_form, settings.ace_rate, settings.ace_dual_rate, settings.ace_damping, settings.ace_resilience,
        settings.ace_end, betas,
    )  # fmt: skip
    return Ace(model, n_steps=n_steps, settings=own)


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
    rate_fractions: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default_factory=dict,
        description="Learning rates by name pattern, as fractions of the rate: `{blocks.*: 0.1}`; 0 freezes.",
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
