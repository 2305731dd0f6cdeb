"""One run of the N-body benchmark: one arm, one seed, from data to a certified test error in a folder.

data -> network -> relaxation -> training -> projection -> certificate -> test error

Every arm of a comparison sees the same trajectories in the same order with the same rotations, starts from the same
weights, and gets the same optimiser and number of steps; the network is chosen by its validation error after
projection. The test set is looked at once, at the end.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import Field, ValidationError, model_validator
from torch import nn

from mdrelax.base.files import locked_folder, write_atomically
from mdrelax.base.provenance import environment
from mdrelax.base.sections import Section, explain, read_yaml
from mdrelax.base.seeds import generator
from mdrelax.datasets.nbody import load_nbody
from mdrelax.method.certificate import Certificate, EquivarianceError, certificate_of, require
from mdrelax.method.relaxation import relax_constraints, relaxed_layers
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
from mdrelax.runs.config_changes import refuse_changes
from mdrelax.training.settings import OptimisationConfig, RelaxationConfig
from mdrelax.training.trainer import FitResult, Progress, Trainer

__all__ = ["ARMS", "ArmName", "NBodyRun", "load_run", "prepare_folder", "read_result", "run_nbody"]

ArmName = Literal[
    "standard", "relaxed", "relaxed-weight", "relaxed-fold", "constant-drop", "constant-fold", "egnn"
]  # fmt: skip
ARMS: dict[str, dict[str, Any]] = {  # what an arm changes in the relaxation of the study
    "standard": {"schedule": "off"},
    "relaxed": {},
    "relaxed-weight": {"penalty": "weight"},
    "relaxed-fold": {"projection": "fold"},
    "constant-drop": {"schedule": "constant"},
    "constant-fold": {"schedule": "constant", "projection": "fold"},
    "egnn": {"schedule": "off"},
}
CERTIFIED_SYSTEMS = 8
RESULT = "results.json"


class NBodyRun(Section):
    """Everything that decides a run."""

    arm: ArmName = Field("standard", description="A key of `ARMS`.")
    data: str = Field("charged", description="charged, gravity, springs, or a folder of published npy files.")
    n_train: int = Field(3000, ge=1, description="Training trajectories: the first ones of the set.")
    n_validation: int = Field(2000, ge=1, description="Validation trajectories.")
    n_test: int = Field(2000, ge=1, description="Test trajectories.")
    n_layers: int = Field(4, ge=1, description="Rounds of messages.")
    channels: int = Field(32, ge=1, description="Channels of each degree.")
    huber: float | None = Field(None, gt=0, description="Errors above it count linearly in the loss; none: the MSE.")
    noise: float = Field(0.0, ge=0, description="Size of the normal deviates added to a training batch's input.")
    training: OptimisationConfig
    relaxation: RelaxationConfig = RelaxationConfig()
    compile: bool = Field(False, description="Train through torch.compile, which needs a C++ compiler.")

    @model_validator(mode="before")
    @classmethod
    def _apply_arm(cls, document: Any) -> Any:
        """The arm's own keys replace those of the study: an arm is what its name says."""
        if not isinstance(document, dict) or document.get("arm") not in ARMS:
            return document
        relaxation = document.get("relaxation", {})
        given = relaxation.model_dump() if isinstance(relaxation, RelaxationConfig) else dict(relaxation)
        return {**document, "relaxation": {**given, **ARMS[document["arm"]]}}

    def name(self) -> str:
        """The run's folder: arm, depth, size of the training set and seed."""
        return f"{self.arm}-layers{self.n_layers}-train{self.n_train}-seed{self.training.seed}"


def run_nbody(
    run: NBodyRun, folder: Path, *, listener: Callable[[Progress], None] = lambda progress: None
) -> dict[str, Any]:
    """Train (or go on from the folder's checkpoint), project, certify and test; returns what results.json holds.

    A finished run is read, not repeated. Raises ``ConfigError`` when the folder holds a run with other settings,
    ``InUseError`` when another process trains in it, and ``CertificateError`` when the projected network is not
    equivariant.
    """
    with locked_folder(folder):
        return _run_in(run, folder, listener)


def _run_in(run: NBodyRun, folder: Path, listener: Callable[[Progress], None]) -> dict[str, Any]:
    prepare_folder(run, folder)
    if (finished := read_result(folder)) is not None:
        return finished
    data = load_nbody(run.data, n_train=run.n_train, n_validation=run.n_validation, n_test=run.n_test)
    train, validation, test = (prepare(split, getattr(torch, run.training.dtype)) for split in data)
    model = _network(run)
    n_parameters = sum(p.numel() for p in model.parameters())
    trainer = _trainer(run, model, train, validation, folder, listener)
    if (folder / "checkpoints" / "last.pt").exists():
        trainer.resume()
    fit = trainer.run()
    certificate = _certified(fit, test)
    result = {
        "run": run.model_dump(mode="json"),
        "n_parameters": n_parameters,
        "n_free_parameters": sum(layer.free.weight.numel() for layer in relaxed_layers(model).values()),
        **error_profile(fit.model, test),
        "validation_mse": mean_squared_error(fit.model, validation),
        **_story(fit),
        "equivariance_error_float64": certificate.float64._asdict(),
        "equivariance_error_float32": certificate.float32._asdict(),
        "environment": environment(device=run.training.device, seed=run.training.seed),
    }
    write_atomically(folder / RESULT, json.dumps(result, indent=2).encode())
    return result


def read_result(folder: Path) -> dict[str, Any] | None:
    """What a finished run says of itself, ``None`` before it has finished."""
    path = folder / RESULT
    return json.loads(path.read_text()) if path.is_file() else None


def _story(fit: FitResult[nn.Module]) -> dict[str, Any]:
    """How the network was found."""
    return {
        "best_step": fit.best_step,
        "steps": fit.steps,
        "seconds": fit.seconds,
        "cpu_seconds": fit.cpu_seconds,
        "layers": [record._asdict() for record in fit.layers],
    }


def prepare_folder(run: NBodyRun, folder: Path) -> None:
    """Make a run's folder with its run.yaml; raises ``ConfigError`` when it holds a run with other settings."""
    saved, document = folder / "run.yaml", run.model_dump(mode="json")
    if saved.is_file():
        refuse_changes(read_yaml(saved), document, found=f"`{folder}` holds a run with other settings", choose="folder")
    write_atomically(saved, yaml.safe_dump(document, sort_keys=False).encode())


def load_run(folder: Path) -> NBodyRun:
    """The settings in a prepared folder; raises ``ConfigError``."""
    try:
        return NBodyRun.model_validate(read_yaml(folder / "run.yaml"))
    except ValidationError as error:
        raise explain(error, NBodyRun) from error


def _network(run: NBodyRun) -> nn.Module:
    """The network of an arm, its weights drawn from the run's seed; relaxed where the arm is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.training.seed)
        if run.arm == "egnn":
            return EGNN(width=2 * run.channels, n_layers=run.n_layers)
        return NBodySEGNN(channels=run.channels, n_layers=run.n_layers)


def _trainer(
    run: NBodyRun,
    model: nn.Module,
    train: Systems,
    validation: Systems,
    folder: Path,
    listener: Callable[[Progress], None],
) -> Trainer[nn.Module]:
    """Relax the network where the arm asks for it, and hand everything to the trainer."""
    settings = run.training
    if run.relaxation.schedule != "off":
        stream = generator(settings.seed, "free maps")
        relax_constraints(model, where=run.relaxation.where, initial_std=run.relaxation.initial_std, generator=stream)
    model.to(getattr(torch, settings.dtype))
    if run.compile:
        model.compile(dynamic=False)
    task = Displacement(
        train, validation, batch_size=settings.batch_size, seed=settings.seed, rotate=settings.rotate,
        huber=run.huber, noise=run.noise,
    )  # fmt: skip
    return Trainer(model, task, training=settings, relaxation=run.relaxation, folder=folder, listener=listener)


def _certified(fit: FitResult[nn.Module], test: Systems) -> Certificate:
    """The certificate of the projected network, with the limits of a model file; raises ``CertificateError``."""
    some = test.take(slice(0, CERTIFIED_SYSTEMS))

    def measure(dtype: torch.dtype) -> EquivarianceError:
        return displacement_error(fit.model, some, dtype=dtype)

    certificate = certificate_of(fit.model, measure, symmetry="E(3)", n_structures=len(some.charges), layers=fit.layers)
    return require(certificate, cause="A layer breaks the symmetry.")
