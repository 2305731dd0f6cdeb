"""One run of the point-cloud benchmark: one arm, one seed, from shapes to a certified test accuracy in a folder.

shapes -> network -> relaxation -> training -> projection -> certificate -> test accuracy -> model file

Every arm of a comparison sees the same shapes in the same order, turned alike, and gets the same optimiser and number
of steps; vector-neuron arms start from the same weights. The network is chosen by the validation error of its
projection; the test set is looked at once, at the end.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from mdrelax.base.sections import Section
from mdrelax.datasets.modelnet import load_modelnet
from mdrelax.datasets.point_clouds import ModelNet, PointClouds, Protocol, protocol_poses
from mdrelax.method.certificate import Certificate, EquivarianceError, certificate_of, require
from mdrelax.packs.arm_runs import ACE, run_arm, symmetry_results, with_arm
from mdrelax.packs.modelnet.model_file import save_network
from mdrelax.packs.modelnet.sizes import COMPARATORS, NetworkName, Preset, build_network
from mdrelax.packs.modelnet.task import Augmentation, Classification, Errors, errors_of, predict, score_error, shapes
from mdrelax.runs.experiment import Finished, seeded
from mdrelax.training.folders import enter
from mdrelax.training.settings import OptimisationConfig, RelaxationConfig, refuse_keep
from mdrelax.training.trainer import FitResult, Progress

__all__ = ["ARMS", "ArmName", "ModelNetRun", "PointCloudExperiment", "run_modelnet"]

ArmName = Literal[
    "standard", "relaxed", "relaxed-weight", "relaxed-fold", "no-schedule", "no-lie-penalty", "no-penalty", "ace",
    "plain", "equi-tuning", "equiv-adapt",
]  # fmt: skip
ARMS: dict[str, dict[str, Any]] = {  # what an arm changes in the relaxation of the study
    "standard": {"schedule": "off"},
    "relaxed": {},
    "relaxed-weight": {"penalty": "weight"},
    "relaxed-fold": {"projection": "fold"},
    "no-schedule": {"schedule": "constant", "peak": 0.1},  # as in the release; theta is 0 in the projection only
    "no-lie-penalty": {"lie_weight": 0.0},
    "no-penalty": {"weight": 0.0},
    "ace": ACE,
    **{name: {"schedule": "off"} for name in COMPARATORS},
}
CERTIFIED_SHAPES = 8
TIMED_SHAPES = 32  # of the inference time
POSE_SEED = 0  # of validation and test shapes: the same in every run


class ModelNetRun(Section):
    """Everything that decides a run."""

    pack: Literal["modelnet"] = Field("modelnet", description="The task.")
    arm: ArmName = Field("standard", description="A key of `ARMS`.")
    network: NetworkName = Field("vn-pointnet", description="vn-pointnet or vn-dgcnn; comparators wrap its plain form.")
    preset: Preset = Field("small", description="The network's size: published, small or tiny.")
    data: str = Field("modelnet:solids", description="A source of `load_modelnet`.")
    protocol: Protocol = Field("SO3/SO3", description="How shapes are turned in training / in the test.")
    n_points: int = Field(300, ge=1, description="Points that the network is given.")
    resample: bool = Field(False, description="Draw other points of each training shape in every step.")
    n_train: int | None = Field(None, ge=1, description="Training shapes, drawn once; none: all.")
    n_test: int | None = Field(None, ge=1, description="Test shapes, drawn once; none: all.")
    validation: float = Field(0.1, gt=0, lt=1, description="The fraction of the training set that chooses the network.")
    smoothing: float = Field(0.0, ge=0, lt=1, description="Label smoothing: the share of the wrong classes.")
    augmentation: Augmentation = Field("rotate", description="pointnet: scaled and points dropped besides.")
    tuning: float = Field(0.3, gt=0, le=1, description="equi-tuning: the last fraction of the steps.")
    training: OptimisationConfig
    relaxation: RelaxationConfig = RelaxationConfig()

    @model_validator(mode="before")
    @classmethod
    def _apply_arm(cls, document: Any) -> Any:
        return with_arm(document, ARMS)

    @model_validator(mode="after")
    def _invariant_in_the_end(self) -> Self:
        refuse_keep(self.relaxation, what="the point-cloud network")
        return self

    def name(self) -> str:
        """The run's folder: network, arm and seed."""
        return f"{self.network}-{self.arm}-seed{self.training.seed}"


class PointCloudExperiment:
    """The ``Experiment`` of an arm."""

    data: ModelNet
    certificate: Certificate

    def __init__(self, settings: ModelNetRun) -> None:
        self.settings, self.training, self.relaxation = settings, settings.training, settings.relaxation
        self.dtype = getattr(torch, settings.training.dtype)

    def enter(self, folder: Path, *, restart: bool) -> bool:
        """Write run.yaml; see ``Experiment``."""
        return enter(self.settings, folder, restart=restart)

    def prepare(self, folder: Path, *, resume: bool, tell: Callable[[str], None]) -> nn.Module:
        """Read the shapes and build the network of the arm."""
        own = self.settings
        n_read = own.n_points if not own.resample else max(own.n_points, 1024)
        train, validation, test = load_modelnet(own.data, n_points=n_read, validation=own.validation)
        in_training, in_test = protocol_poses(own.protocol)
        self.data = ModelNet(
            _some(train, own.n_train),
            _fewer_points(validation, own.n_points).posed(in_training, POSE_SEED),
            _fewer_points(_some(test, own.n_test), own.n_points).posed(in_test, POSE_SEED + 1),
        )
        comparator = own.arm if own.arm in COMPARATORS else None
        build = partial(build_network, own.network, own.preset, len(train.classes), comparator=comparator)
        return seeded(build, own.training.seed)

    def task(self, model: nn.Module) -> Classification:
        """Which class is a shape of."""
        own, training = self.settings, self.training
        model.to(self.dtype)
        train, validation, _ = (shapes(part, self.dtype) for part in self.data)
        task = Classification(
            train, validation, batch_size=training.batch_size, seed=training.seed, n_points=own.n_points,
            n_classes=len(self.data.train.classes), poses=protocol_poses(own.protocol)[0] if training.rotate else None,
            resample=own.resample, smoothing=own.smoothing, augmentation=own.augmentation,
        )  # fmt: skip
        n_steps = training.steps or task.n_steps(training.epochs or 1)
        task.tuning_from = round((1 - own.tuning) * n_steps)
        return task

    def certify(self, fit: FitResult[nn.Module]) -> Certificate:
        """The certificate; vector-neuron networks must pass (``CertificateError``), of comparators it is only kept."""
        some = self.data.test.points[:CERTIFIED_SHAPES]
        symmetry = getattr(fit.model, "symmetry", "SE(3)")

        def measure(dtype: torch.dtype) -> EquivarianceError:
            return score_error(fit.model, some, dtype=dtype)

        found = certificate_of(fit.model, measure, symmetry=symmetry, n_structures=len(some), layers=fit.layers)
        claims = self.settings.arm not in COMPARATORS
        self.certificate = require(found, cause="A layer breaks the symmetry.") if claims else found
        return self.certificate

    def evaluate(self, fit: FitResult[nn.Module], folder: Path) -> dict[str, Any]:
        """Errors on validation and test shapes, the confusion matrix, the layers and the symmetry."""
        classes = self.data.train.classes
        validation, test = (
            errors_of(fit.model, shapes(part, self.dtype), n_classes=len(classes)) for part in self.data[1:]
        )
        return {
            "run": self.settings.model_dump(mode="json"),
            "classes": list(classes),
            **_named("validation", validation),
            **_named("test", test),
            "confusion": test.confusion,
            "inference_ms": _inference_ms(fit.model, self.data.test.points[:TIMED_SHAPES].to(self.dtype)),
            **symmetry_results(self.certificate),
        }

    def export(self, folder: Path, finished: Finished[nn.Module]) -> None:
        """Write model.safetensors; comparators have no model file."""
        own = self.settings
        if own.arm not in COMPARATORS:
            card = {key: finished.results[key] for key in ("run", "test_accuracy", "validation_accuracy", "steps")}
            save_network(
                folder / "model.safetensors", finished.fit.model, network=own.network, preset=own.preset,
                classes=self.data.train.classes, n_points=own.n_points, certificate=finished.certificate, card=card,
            )  # fmt: skip


def run_modelnet(
    settings: ModelNetRun, folder: Path, *, listener: Callable[[Progress], None] = lambda progress: None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Train, project, certify and test an arm; see ``run_arm``."""
    return run_arm(PointCloudExperiment(settings), settings, folder, listener=listener, tell=tell)


def _some(clouds: PointClouds, n: int | None) -> PointClouds:
    """The first ``n`` shapes when they are taken class by class in turn, so that every class is there."""
    if n is None or n >= len(clouds.labels):
        return clouds
    labels = clouds.labels.tolist()
    turn = [labels[:k].count(label) for k, label in enumerate(labels)]
    order = sorted(range(len(labels)), key=lambda k: (turn[k], labels[k]))
    return clouds.take(torch.tensor(sorted(order[:n])))


def _fewer_points(clouds: PointClouds, n: int) -> PointClouds:
    return clouds._replace(points=clouds.points[:, :n])


def _named(part: str, errors: Errors) -> dict[str, float]:
    return {
        f"{part}_accuracy": 1 - errors.error,
        f"{part}_class_accuracy": 1 - errors.class_error,
        f"{part}_loss": errors.loss,
    }


def _inference_ms(model: nn.Module, points: torch.Tensor, repeats: int = 3) -> float:
    """Milliseconds of processor time per shape; the best of some repetitions."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        predict(model, points)
        best = min(best, time.process_time() - start)
    return 1e3 * best / len(points)
