"""One run of the smoke benchmark: one arm, one seed, from plumes to tested rollouts in a folder.

plumes -> network -> relaxation -> training -> projection -> certificate -> rollouts -> model file

Every arm sees the same windows in the same order under the same optimiser and number of steps; arms of one network
start from the same weights. The network is chosen by its error on the validation times; both tests are evaluated once,
at the end. The flows are only nearly symmetric: ``equiv`` alone claims a symmetry and has to pass its certificate. Of
the others the numbers are kept, as is the symmetry error that each network has learnt.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from mdrelax.base.files import whole_file
from mdrelax.base.names import nearest_name
from mdrelax.base.sections import ConfigError, Section
from mdrelax.datasets.plume import Indices, PlumeSet, PlumeSplit, Sampling, read_windows
from mdrelax.datasets.plume_files import open_plumes
from mdrelax.method.certificate import Certificate, EquivarianceError, require
from mdrelax.method.relaxation import is_relaxed
from mdrelax.packs.arm_runs import ACE, run_arm, symmetry_results, with_arm
from mdrelax.packs.smoke.model_file import FlowHeader, save_flow
from mdrelax.packs.smoke.sizes import GroupName, NetworkName, Preset, build_network
from mdrelax.packs.smoke.task import (
    Forecast,
    RolloutErrors,
    commutation_error,
    evenly,
    predict,
    rollout_errors,
    symmetry_error,
)
from mdrelax.runs.experiment import Finished, seeded
from mdrelax.training.folders import enter
from mdrelax.training.settings import OptimisationConfig, RelaxationConfig
from mdrelax.training.trainer import FitResult, Progress

__all__ = ["ARMS", "PlumeExperiment", "SmokeRun", "Windows", "network_of", "run_smoke", "windows_of"]

ARMS: dict[str, dict[str, Any]] = {  # changes of each arm to the relaxation settings of the study
    **{name: {"schedule": "off"} for name in ("mlp", "conv", "equiv", "rpp", "lift", "rsteer")},
    "rsteer-relaxed": {},
    "equiv-relaxed": {},
    "rsteer-ace": ACE,
    "equiv-ace": ACE,
    "equiv-keep": {"schedule": "constant", "projection": "keep"},
}
CERTIFIED_WINDOWS = 8
SAMPLE = "sample:plume"
ROLLOUTS = "rollouts.npz"  # of one window of each test: truth and prediction


class SmokeRun(Section):
    """Everything that decides a run."""

    pack: Literal["smoke"] = Field("smoke", description="The task.")
    arm: str = Field("rsteer", description="A key of `ARMS`; its network is the word before the first hyphen.")
    preset: Preset = Field("small", description="The network's size: published, small or tiny.")
    group: GroupName | None = Field(None, description="C4, C8 or scale; none: C4, and scale for the scale set.")
    norm: bool = Field(True, description="Batch norms where the published network has them.")
    data: str = Field(SAMPLE, description="A file of `mdrelax data generate plume`, or a folder of raw_data_*.pt.")
    sampling: Sampling = Field("centres", description="Velocities in the centres or on the faces of the cells.")
    level: int | None = Field(None, ge=0, description="Of a graded set: how much its symmetry is broken.")
    n_train: int | None = Field(None, ge=2, description="Training windows, evenly spaced; none: all.")
    n_validation: int | None = Field(None, ge=1, description="Validation windows, evenly spaced; none: all.")
    n_test: int | None = Field(None, ge=1, description="Windows of each test, evenly spaced; none: all.")
    part: int = Field(4, ge=1, description="Windows of a batch computed at a time, in networks without batch norm.")
    training: OptimisationConfig
    relaxation: RelaxationConfig = RelaxationConfig()

    @model_validator(mode="before")
    @classmethod
    def _apply_arm(cls, document: Any) -> Any:
        return with_arm(document, ARMS)

    @field_validator("arm")
    @classmethod
    def _known(cls, arm: str) -> str:
        if arm not in ARMS:
            raise ValueError(f"there is no arm `{arm}`; {nearest_name(arm, ARMS)}".removesuffix("."))
        return arm

    @model_validator(mode="after")
    def _lift_has_a_group(self) -> Self:
        if self.arm == "lift" and self.group == "scale":
            raise ValueError("there is no network `lift` for scalings; choose another arm")
        return self


def network_of(arm: str) -> NetworkName:
    """The network of an arm."""
    return arm.partition("-")[0]  # type: ignore[return-value]


class Windows(NamedTuple):
    """A set with the windows of the four parts."""

    plumes: PlumeSet
    split: PlumeSplit
    train: Indices
    validation: Indices
    future: Indices
    domain: Indices


def windows_of(
    data: str, *, sampling: Sampling = "centres", level: int | None = None, n_train: int | None = None,
    n_validation: int | None = None, n_test: int | None = None,
) -> Windows:  # fmt: skip
    """A set by its source, split as published, or as the sample and the graded family are; evenly spaced windows.

    Raises ``ConfigError`` if ``level`` is missing for a graded set or given for another, and the errors of
    ``open_plumes``.
    """
    plumes = open_plumes(data, sampling=sampling)
    if (plumes.kind == "graded") != (level is not None):
        raise ConfigError(
            f"`level` chooses the part of a graded set to train on, but `{data}` is a {plumes.kind} set: "
            f"{'give it' if level is None else 'leave it out'}."
        )
    if level is not None:
        split = PlumeSplit.graded(level)
    else:
        split = PlumeSplit.sample() if data == SAMPLE else PlumeSplit.published(plumes.kind)
    parts = split.windows(plumes)
    return Windows(
        plumes, split, evenly(parts.train, n_train), evenly(parts.validation, n_validation),
        evenly(parts.future, n_test), evenly(parts.domain, n_test),
    )  # fmt: skip


class PlumeExperiment:
    """The ``Experiment`` of an arm."""

    data: Windows
    header: FlowHeader
    certificate: Certificate

    def __init__(self, settings: SmokeRun) -> None:
        self.settings, self.training, self.relaxation = settings, settings.training, settings.relaxation
        self.dtype = getattr(torch, settings.training.dtype)

    def enter(self, folder: Path, *, restart: bool) -> bool:
        """Write run.yaml; see ``Experiment``."""
        return enter(self.settings, folder, restart=restart)

    def prepare(self, folder: Path, *, resume: bool, tell: Callable[[str], None]) -> nn.Module:
        """Read the plumes and build the network of the arm."""
        own = self.settings
        self.data = windows_of(
            own.data, sampling=own.sampling, level=own.level, n_train=own.n_train, n_validation=own.n_validation,
            n_test=own.n_test,
        )  # fmt: skip
        plumes, split = self.data.plumes, self.data.split
        group: GroupName = own.group or ("scale" if plumes.kind == "scale" else "C4")
        self.header = FlowHeader(
            network=network_of(own.arm), preset=own.preset, group=group, norm=own.norm, n_in=split.n_in,
            size=(plumes.shape[2], plumes.shape[3]), sampling=own.sampling, dtype=own.training.dtype,
        )  # fmt: skip
        try:
            return seeded(partial(build_network, *self.header.names(), **self.header.arguments()), own.training.seed)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def task(self, model: nn.Module) -> Forecast:
        """The next frames."""
        own, training, data = self.settings, self.training, self.data
        model.to(self.dtype)
        return Forecast(
            data.plumes, data.split, train=data.train, validation=data.validation, batch_size=training.batch_size,
            seed=training.seed, rotate=training.rotate, part=own.part, dtype=self.dtype,
        )  # fmt: skip

    def certify(self, fit: FitResult[nn.Module]) -> Certificate:
        """The certificate; a projected ``equiv`` must pass (``CertificateError``), of others it is only kept."""
        inputs = self._inputs()
        claims = "none" if is_relaxed(fit.model) else str(getattr(fit.model, "claims"))  # noqa: B009 - of any network

        def measure(dtype: torch.dtype) -> EquivarianceError:
            return commutation_error(fit.model, inputs, dtype=dtype)

        found = Certificate(claims, measure(torch.float64), measure(torch.float32), len(inputs), fit.layers)
        self.certificate = found if claims == "none" else require(found, cause="A layer breaks the symmetry.")
        return self.certificate

    def evaluate(self, fit: FitResult[nn.Module], folder: Path) -> dict[str, Any]:
        """Errors of rollouts, the symmetry errors of network and data, and one rollout of each test as a file."""
        data, n = self.data, self.data.split.n_rollout
        errors = partial(rollout_errors, fit.model, data.plumes, data.split, dtype=self.dtype)
        started = time.process_time()
        future, domain = (errors(rows, n) for rows in (data.future, data.domain))
        n_frames = n * (len(data.future) + len(data.domain))
        seconds = time.process_time() - started
        _write_rollouts(folder / ROLLOUTS, fit.model, data)
        known = [data.plumes.tasks[k].info.symmetry_error for k in np.unique(data.train[:, 0])]
        return {
            "run": self.settings.model_dump(mode="json"),
            "set": data.plumes.kind,
            "validation_rmse": errors(data.validation, data.split.n_out).rmse,
            **_named("future", future),
            **_named("domain", domain),
            "symmetry_error": None if data.plumes.kind == "scale" else symmetry_error(fit.model, self._inputs()),
            "data_symmetry_error": _mean_of_finite(known),
            "inference_ms": 1e3 * seconds / n_frames,
            **symmetry_results(self.certificate),
        }

    def export(self, folder: Path, finished: Finished[nn.Module]) -> None:
        """Write model.safetensors."""
        keys = ("run", "test_future", "test_domain", "validation_rmse", "symmetry_error", "data_symmetry_error")
        save_flow(
            folder / "model.safetensors", finished.fit.model, self.header, certificate=finished.certificate,
            card={key: finished.results[key] for key in keys},
        )  # fmt: skip

    def _inputs(self) -> Tensor:
        """Inputs of some test windows."""
        some = evenly(self.data.future, CERTIFIED_WINDOWS)
        return read_windows(self.data.plumes, some, self.data.split.n_in, 1)[0]


def run_smoke(
    settings: SmokeRun, folder: Path, *, listener: Callable[[Progress], None] = lambda progress: None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Train, project, certify and test an arm; see ``run_arm``."""
    return run_arm(PlumeExperiment(settings), settings, folder, listener=listener, tell=tell)


def _named(part: str, errors: RolloutErrors) -> dict[str, Any]:
    return {f"test_{part}": errors.rmse, f"{part}_by_step": errors.by_step, f"{part}_size": errors.size}


def _mean_of_finite(values: list[float]) -> float | None:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else None


def _write_rollouts(path: Path, model: nn.Module, data: Windows) -> None:
    """One rollout in the middle of each test, (n_rollout, 2, H, W) float32: NAME_truth and NAME_prediction."""
    arrays, n = {}, data.split.n_rollout
    for name, rows in (("future", data.future), ("domain", data.domain)):
        inputs, truth = read_windows(data.plumes, rows[len(rows) // 2 : len(rows) // 2 + 1], data.split.n_in, n)
        arrays[f"{name}_truth"], arrays[f"{name}_prediction"] = truth[0], predict(model, inputs, n, bounded=False)[0]
    with whole_file(path) as file:
        np.savez_compressed(file, **{name: array.float().numpy() for name, array in arrays.items()})  # type: ignore[arg-type]
