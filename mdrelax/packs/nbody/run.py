"""One run of the N-body benchmark: one arm, one seed, from data to a certified test error in a folder.

data -> network -> relaxation -> training -> projection -> certificate -> test error

Every arm of a comparison sees the same trajectories in the same order with the same rotations, starts from the same
weights, and gets the same optimiser and number of steps; the network is chosen by its validation error after
projection. The test set is evaluated once, at the end.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import nn

from mdrelax.base.names import nearest_name
from mdrelax.base.sections import Section
from mdrelax.datasets.nbody import load_nbody
from mdrelax.method.certificate import Certificate, EquivarianceError, certificate_of, require
from mdrelax.packs.arm_runs import ACE, run_arm, symmetry_results, with_arm
from mdrelax.packs.nbody.egnn import EGNN
from mdrelax.packs.nbody.networks import NBodySEGNN
from mdrelax.packs.nbody.task import (
    Displacement,
    Systems,
    displacement_error,
    error_profile,
    mean_squared_error,
    prepare,
)
from mdrelax.runs.experiment import Finished, seeded
from mdrelax.training.folders import enter
from mdrelax.training.settings import OptimisationConfig, RelaxationConfig, refuse_keep
from mdrelax.training.trainer import FitResult, Progress

__all__ = ["ARMS", "NBody", "NBodyRun", "run_nbody"]

ARMS: dict[str, dict[str, Any]] = {  # changes of each arm to the relaxation settings of the study
    "standard": {"schedule": "off"},
    "relaxed": {},
    "relaxed-weight": {"penalty": "weight"},
    "relaxed-fold": {"projection": "fold"},
    "constant-drop": {"schedule": "constant"},
    "constant-fold": {"schedule": "constant", "projection": "fold"},
    "ace": ACE,
    "ace-mlp": {**ACE, "free_map": "mlp"},
    "egnn": {"schedule": "off"},
}
CERTIFIED_SYSTEMS = 8


class NBodyRun(Section):
    """All settings of a run."""

    arm: str = Field("standard", description="A key of `ARMS`.")
    data: str = Field("charged", description="charged, gravity, springs, or a folder of published npy files.")
    n_train: int = Field(3000, ge=1, description="Training trajectories: the first ones of the set.")
    n_validation: int = Field(2000, ge=1, description="Validation trajectories.")
    n_test: int = Field(2000, ge=1, description="Test trajectories.")
    n_layers: int = Field(4, ge=1, description="Rounds of messages.")
    channels: int = Field(32, ge=1, description="Channels of each degree.")
    huber: float | None = Field(None, gt=0, description="Error above which the loss is linear; none: the MSE.")
    noise: float = Field(0.0, ge=0, description="Standard deviation of the noise added to a training batch's input.")
    training: OptimisationConfig
    relaxation: RelaxationConfig = RelaxationConfig()
    compile: bool = Field(False, description="Train through torch.compile, which needs a C++ compiler.")

    @model_validator(mode="before")
    @classmethod
    def _apply_arm(cls, document: Any) -> Any:
        return with_arm(document, ARMS)

    @model_validator(mode="after")
    def _equivariant_in_the_end(self) -> Self:
        refuse_keep(self.relaxation, what="the N-body network")
        return self

    @field_validator("arm")
    @classmethod
    def _known(cls, arm: str) -> str:
        if arm not in ARMS:
            raise ValueError(f"there is no arm `{arm}`; {nearest_name(arm, ARMS)}".removesuffix("."))
        return arm

    def name(self) -> str:
        """The run's folder: arm, depth, size of the training set and seed."""
        return f"{self.arm}-layers{self.n_layers}-train{self.n_train}-seed{self.training.seed}"


class NBody:
    """The ``Experiment`` of an arm."""

    train: Systems
    validation: Systems
    test: Systems
    certificate: Certificate

    def __init__(self, settings: NBodyRun) -> None:
        self.settings, self.training, self.relaxation = settings, settings.training, settings.relaxation

    def enter(self, folder: Path, *, restart: bool) -> bool:
        """Write run.yaml; see ``Experiment``."""
        return enter(self.settings, folder, restart=restart)

    def prepare(self, folder: Path, *, resume: bool, tell: Callable[[str], None]) -> nn.Module:
        """Read the trajectories and build the network of the arm."""
        own = self.settings
        data = load_nbody(own.data, n_train=own.n_train, n_validation=own.n_validation, n_test=own.n_test)
        self.train, self.validation, self.test = (prepare(part, getattr(torch, own.training.dtype)) for part in data)
        return seeded(partial(_network, own), own.training.seed)

    def task(self, model: nn.Module) -> Displacement:
        """The displacement of every particle."""
        own, training = self.settings, self.training
        model.to(getattr(torch, training.dtype))
        if own.compile:
            model.compile(dynamic=False)
        return Displacement(
            self.train, self.validation, batch_size=training.batch_size, seed=training.seed, rotate=training.rotate,
            huber=own.huber, noise=own.noise,
        )  # fmt: skip

    def certify(self, fit: FitResult[nn.Module]) -> Certificate:
        """The certificate, with the limits of a model file; raises ``CertificateError``."""
        some = self.test.take(slice(0, CERTIFIED_SYSTEMS))

        def measure(dtype: torch.dtype) -> EquivarianceError:
            return displacement_error(fit.model, some, dtype=dtype)

        found = certificate_of(fit.model, measure, symmetry="E(3)", n_structures=len(some.charges), layers=fit.layers)
        self.certificate = require(found, cause="A layer breaks the symmetry.")
        return self.certificate

    def evaluate(self, fit: FitResult[nn.Module], folder: Path) -> dict[str, Any]:
        """Errors of the displacements, the layers and the symmetry, as a study collects them."""
        return {
            "run": self.settings.model_dump(mode="json"),
            **error_profile(fit.model, self.test),
            "validation_mse": mean_squared_error(fit.model, self.validation),
            **symmetry_results(self.certificate),
        }

    def export(self, folder: Path, finished: Finished[nn.Module]) -> None:
        """Export nothing: the networks of this benchmark are not used afterwards."""


def run_nbody(
    settings: NBodyRun, folder: Path, *, listener: Callable[[Progress], None] = lambda progress: None
) -> dict[str, Any]:
    """Train, project, certify and test an arm; see ``run_arm``."""
    return run_arm(NBody(settings), settings, folder, listener=listener)


def _network(settings: NBodyRun) -> nn.Module:
    """The network of an arm, its weights drawn from torch's generator."""
    if settings.arm == "egnn":
        return EGNN(width=2 * settings.channels, n_layers=settings.n_layers)
    return NBodySEGNN(channels=settings.channels, n_layers=settings.n_layers)
