"""Settings of force matching: the trainer's, the loss, and how a batch is evaluated."""

from typing import Self

from pydantic import Field, model_validator

from mdrelax.forces.loss import LossKind
from mdrelax.training.settings import OptimisationConfig

__all__ = ["TrainingConfig"]


class TrainingConfig(OptimisationConfig):
    """Optimisation of a force field."""

    max_edges: int | None = Field(None, ge=1, description="Largest number of edges per batch, for mixed sizes.")
    micro_batch_size: int | None = Field(
        None, ge=1, description="Structures evaluated at once, whose gradients are added: less memory, same step."
    )
    compile: bool = Field(
        False, description="Compile the step: minutes before the first one, then about twice as fast."
    )
    loss: LossKind = Field("l2norm", description="Error function, see `mdrelax.forces.loss`.")
    energy_weight: float = Field(4.0, ge=0, description="Weight of the energy error per atom, 1/eV.")
    forces_weight: float = Field(1.0, ge=0, description="Weight of the force error, A/eV.")
    stress_weight: float = Field(0.0, ge=0, description="Weight of the stress error, A^3/eV.")
    huber_delta: float = Field(0.01, gt=0, description="Where the Huber loss turns linear.")

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if not self.energy_weight + self.forces_weight + self.stress_weight > 0:
            raise ValueError("one of `energy_weight`, `forces_weight` and `stress_weight` must be above 0")
        return self
