"""Settings of force matching: the trainer's, the loss, and how a batch is evaluated.

The defaults are the recipe for data that nothing is known of yet; its measurements are in docs/training.md.
"""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from mdrelax.forces.loss import LossKind
from mdrelax.training.optimizers import OptimizerKind
from mdrelax.training.settings import OptimisationConfig, Share

__all__ = ["STRESS_WEIGHT", "TrainingConfig"]

STRESS_WEIGHT = 20.0  # A^3/eV, where there is a stress and the settings do not say
ADAM_BETAS = (0.9, 0.99)  # of all optimisers but muon, which alone gains from more momentum (docs/studies/rmd17.md)


class TrainingConfig(OptimisationConfig):
    """Optimisation of a force field."""

    steps: int | None = Field(3000, ge=1, description="Optimiser steps; null where `epochs` are given.")
    optimizer: OptimizerKind = Field(
        "muon",
        description="The optimiser, see `mdrelax.training.optimizers`; a good learning rate depends on it.",
    )
    betas: tuple[float, float] = Field(
        (0.98, 0.99), description="Decays of momentum and second moment; of other optimisers than muon 0.9 and 0.99."
    )
    warmup_steps: Share = Field(
        0.05, ge=0, description="Steps of linear warm-up: a number, or a fraction of the steps below 1."
    )
    validate_every: Share = Field(
        0.05, gt=0, description="Steps between validations, each with a checkpoint: a number, or a fraction below 1."
    )
    max_edges: int | None = Field(6000, ge=1, description="Largest number of edges per batch; none: any number.")
    micro_batch_size: int | None = Field(
        None, ge=1, description="Structures evaluated at once, whose gradients are added: less memory, same step."
    )
    compile: bool = Field(
        False, description="Compile the step: minutes before the first one, then about twice as fast."
    )
    loss: LossKind = Field("l2norm", description="Error function, see `mdrelax.forces.loss`.")
    energy_weight: float = Field(4.0, ge=0, description="Weight of the energy error per atom, 1/eV.")
    forces_weight: float = Field(1.0, ge=0, description="Weight of the force error, A/eV.")
    stress_weight: float | None = Field(
        None,
        ge=0,
        description=f"Weight of the stress error, A^3/eV; none: {STRESS_WEIGHT:g} where frames have a stress.",
    )
    huber_delta: float = Field(0.01, gt=0, description="Where the Huber loss turns linear.")

    committee: int = Field(
        1, ge=1, description="Networks that differ in their seed, trained side by side; their spread tells the error."
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_others(cls, document: Any) -> Any:
        """`epochs` replace the default `steps`; another optimiser than the default one has its own `betas`."""
        if not isinstance(document, Mapping):
            return document
        steps = {} if document.get("epochs") is None else {"steps": None}
        betas = {} if document.get("optimizer", "muon") == "muon" else {"betas": ADAM_BETAS}
        return {**steps, **betas, **document}

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if not self.energy_weight + self.forces_weight + (self.stress_weight or 0) > 0:
            raise ValueError("one of `energy_weight`, `forces_weight` and `stress_weight` must be above 0")
        return self
