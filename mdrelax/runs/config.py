"""Config: everything that decides a training run, as typed sections read from YAML.

An unknown key is an error that names the nearest known one. Names come from hand-written registries: a config is data,
never code. Every default is written into the run's own config.yaml.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mdrelax.method.schedule import ScheduleKind
from mdrelax.base.units import nearest_name

__all__ = [
    "Config",
    "ConfigError",
    "OptimisationConfig",
    "RelaxationConfig",
    "Section",
    "TrainingConfig",
    "apply_overrides",
    "explain",
    "load_config",
    "read_yaml",
]

Size = Annotated[int | float, Field(ge=0)]
OptimizerKind = Literal["adam", "adamw", "muon", "normalised", "soap"]


class ConfigError(ValueError):
    """A config that cannot be used; the message names the key, the value and the remedy."""


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, no infinite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    """Where the frames come from and how they are split."""

    source: str = Field(
        description="A file, `sample:ethanol` (shipped), `nbody:charged` (simulated) or fetched: `rmd17:ethanol`."
    )
    test_source: str | None = Field(None, description="A separate file of test frames; else they are split off.")
    format: str | None = Field(None, description="`extxyz` or `md17`, when the file's ending does not tell.")
    labels: str | None = Field(None, description="rMD17 files: `revised` or `original` labels.")
    energy_key: str | None = Field(None, description="extxyz: the key of the energies.")
    forces_key: str | None = Field(None, description="extxyz: the key of the forces.")
    stress_key: str | None = Field(None, description="extxyz: the key of the stress.")
    energy_unit: str | None = Field(None, description="The file's unit of energy.")
    length_unit: str | None = Field(None, description="The file's unit of length.")
    train: Size = Field(0.8, description="Training frames: a number, or a fraction below 1.")
    validation: Size = Field(0.1, description="Validation frames: a number, or a fraction below 1.")
    test: Size | None = Field(None, description="Test frames; none given: all that are left.")
    train_indices: str | None = Field(None, description="A file with one frame number a line, instead of `train`.")
    validation_indices: str | None = Field(None, description="Likewise for validation.")
    test_indices: str | None = Field(None, description="Likewise for test.")
    seed: int = Field(0, ge=0, description="Seed of the random split.")


class PotentialConfig(Section):
    """The network."""

    name: str = Field("equiformer", description="`equiformer`, `segnn` or `equiformer-pytorch`.")
    preset: str = Field("tiny", description="`tiny` or `small` (`equiformer` also has `md17`).")
    cutoff: float = Field(5.0, gt=0, description="Cut-off radius in Angstrom.")
    arguments: dict[str, Any] = Field(default_factory=dict, description="Arguments that replace the preset's.")

    @model_validator(mode="after")
    def _one_cutoff(self) -> "PotentialConfig":
        if "cutoff" in self.arguments:
            raise ValueError("set `potential.cutoff` instead of the argument `cutoff`: the neighbour lists need it too")
        return self


class RelaxationConfig(Section):
    """The relaxed constraint: schedule `off` trains the standard, always equivariant network."""

    schedule: Annotated[ScheduleKind, BeforeValidator(lambda value: "off" if value is False else value)] = Field(
        "triangle", description="theta over the training time; off: never relaxed (YAML reads a bare off as false)."
    )
    peak: float = Field(1.0, gt=0, le=1, description="Largest theta.")
    ramp: float = Field(0.2, gt=0, le=0.5, description="Rise and fall of the trapezoid, as a fraction of the schedule.")
    end: float = Field(1.0, gt=0, le=1, description="Fraction of the training after which theta is 0 for good.")
    where: list[str] | None = Field(None, description="Name patterns of the layers; none: the paper's places.")
    initial_std: float = Field(1e-4, ge=0, description="Standard deviation of the free maps at the start.")
    penalty: Literal["activation", "weight"] = Field("activation", description="The paper's, or the closed form in W.")
    optimizer: OptimizerKind | None = Field(None, description="The free maps' optimiser; none: the network's.")
    learning_rate_fraction: float = Field(
        1.0, gt=0, le=1, description="The free maps' learning rate as a fraction of the network's."
    )
    penalty_rows: int | None = Field(
        None, ge=1, description="activation: rows of a layer's input it is taken at, evenly spaced; none: all of them."
    )
    weight: float = Field(0.01, ge=0, description="lambda, the weight of the penalty in the loss.")
    projection: Literal["drop", "fold"] = Field("drop", description="How the network becomes equivariant again.")


class OptimisationConfig(Section):
    """Optimisation, for whatever is trained."""

    steps: int | None = Field(None, ge=1, description="Optimiser steps (REQUIRED: this or `epochs`).")
    epochs: int | None = Field(None, ge=1, description="Passes over the training set, instead of `steps`.")
    batch_size: int = Field(8, ge=1, description="Structures a batch.")
    optimizer: OptimizerKind = Field(
        "adamw", description="How a step is made, see `mdrelax.training.optimizers`; what a good rate is depends on it."
    )
    learning_rate: float = Field(5e-3, gt=0, description="Peak learning rate.")
    vector_rate_fraction: float = Field(
        0.2, gt=0, le=1, description="muon: the rate of what is no matrix, as a fraction of the matrices'."
    )
    learning_rate_schedule: Literal["constant", "cosine", "plateau"] = Field("cosine", description="After warm-up.")
    warmup_steps: int = Field(100, ge=0, description="Steps of linear warm-up.")
    final_learning_rate: float = Field(0.01, ge=0, le=1, description="Last rate of the cosine, a fraction of the peak.")
    plateau_factor: float = Field(0.5, gt=0, lt=1, description="Reduction at a plateau.")
    plateau_patience: int = Field(10, ge=1, description="Validations without improvement before a reduction.")
    betas: tuple[float, float] = Field((0.9, 0.99), description="Decays of the first moment (momentum) and the second.")
    weight_decay: float = Field(1e-6, ge=0, description="Decay of weight matrices; `adam`: of all weights.")
    ema: float = Field(0.999, ge=0, lt=1, description="Decay of the weights' moving average; 0 turns it off.")
    gradient_clip: float = Field(10.0, gt=0, description="Largest norm of the gradient.")
    early_stopping: int | None = Field(None, ge=1, description="Stop after so many validations without improvement.")
    validate_every: int = Field(500, ge=1, description="Steps between validations, each with a checkpoint.")
    rotate: bool = Field(True, description="Turn each structure at random in each batch.")
    dtype: Literal["float32", "float64"] = Field("float32", description="The network's precision.")
    device: str = Field("cpu", description="`cpu` or `cuda`.")
    seed: int = Field(0, ge=0, description="Seed of the weights, the order of frames and the rotations.")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"give either `steps` or `epochs`, got {self.steps} and {self.epochs}")
        return self


class TrainingConfig(OptimisationConfig):
    """Optimisation of a force field."""

    max_edges: int | None = Field(None, ge=1, description="Largest number of edges a batch, for mixed sizes.")
    micro_batch_size: int | None = Field(
        None, ge=1, description="Structures evaluated at once, whose gradients are added: less memory, same step."
    )
    compile: bool = Field(
        False, description="Compile the step: minutes before the first one, then about twice as fast."
    )
    loss: Literal["huber", "l2norm", "mae", "mse"] = Field("l2norm", description="Error function, see `mdrelax.forces.loss`.")
    energy_weight: float = Field(4.0, ge=0, description="Weight of the energy error per atom, 1/eV.")
    forces_weight: float = Field(1.0, ge=0, description="Weight of the force error, A/eV.")
    stress_weight: float = Field(0.0, ge=0, description="Weight of the stress error, A^3/eV.")
    huber_delta: float = Field(0.01, gt=0, description="Where the Huber loss turns linear.")

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if not self.energy_weight + self.forces_weight + self.stress_weight > 0:
            raise ValueError("one of `energy_weight`, `forces_weight` and `stress_weight` must be above 0")
        return self


class Config(Section):
    """One training run."""

    data: DataConfig
    potential: PotentialConfig = PotentialConfig()
    relaxation: RelaxationConfig = RelaxationConfig()
    training: TrainingConfig
    reference_energies: Literal["fit", "isolated"] = Field(
        "fit", description="Energies of the elements: least squares over the training set, or from isolated atoms."
    )
    standard_baseline: bool = Field(False, description="Train the standard network beside it: same budget and seed.")
    md_picoseconds: float = Field(0.0, ge=0, description="Length of an NVE run at 300 K at the end; 0: none.")
    format_version: Literal[2] = Field(
        2, description="Of this document; a run without it had the layer norm `separable`."
    )


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The document of a YAML file, which must be a mapping; raises ``ConfigError`` with the place otherwise."""
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The config `{path}` cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"The config `{path}` is no text file ({error.reason}).") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"The config `{path}` is not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"The config `{path}` is empty or no mapping; `mdrelax config template` prints one.")
    return document


def load_config(document: Mapping[str, Any], *, overrides: Sequence[str] = ()) -> Config:
    """Check a document, with ``section.key=value`` overrides (values in YAML); raises ``ConfigError``."""
    try:
        return Config.model_validate(apply_overrides(document, overrides))
    except ValidationError as error:
        raise explain(error, Config) from error


def apply_overrides(document: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of a document with ``section.key=value`` overrides applied; raises ``ConfigError`` on other text."""
    merged: dict[str, Any] = copy.deepcopy(dict(document))
    for override in overrides:
        _override(merged, override)
    return merged


def explain(error: ValidationError, model: type[BaseModel]) -> ConfigError:
    """What pydantic found in a document for ``model``, a sentence a key, as an error to raise."""
    first = {_place(e): e for e in reversed(error.errors())}  # alternatives of a type fail one by one
    return ConfigError("\n".join(_sentence(e, model) for e in reversed(first.values())))


def _override(document: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"An override is written section.key=value, got `{override}`.")
    *parents, leaf = path.split(".")
    for parent in parents:
        document[parent] = {} if document.get(parent) is None else document[parent]
        document = document[parent]
        if not isinstance(document, dict):
            raise ConfigError(f"`{path}` cannot be set: `{parent}` is no section.")
    try:
        document[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The value of the override `{override}` is not valid YAML.") from error


def _place(error: Any) -> tuple[str, ...]:
    """Section and key; pydantic adds which alternative of a type it tried."""
    return tuple(str(part) for part in error["loc"] if part not in ("int", "float"))


def _sentence(error: Any, model: type[BaseModel]) -> str:
    """One pydantic error as a sentence."""
    place = _place(error)
    where = ".".join(place) or "config"
    if error["type"] == "extra_forbidden":
        return f"Unknown config key `{where}`; {nearest_name(place[-1], _keys(place[:-1], model))}"
    if error["type"] == "missing":
        return f"The config key `{where}` is missing; `mdrelax config template` shows all keys."
    message = error["msg"].removeprefix("Value error, ").removesuffix(", unable to parse string as a number")
    given = "" if error["type"] == "value_error" else f", got {error['input']!r}"
    return f"`{where}`: {message[0].lower() + message[1:]}{given}."


def _keys(sections: Sequence[str], root: type[BaseModel]) -> list[str]:
    model: Any = root
    for section in sections:
        field = model.model_fields.get(section)
        model = field.annotation if field else root
    return list(getattr(model, "model_fields", {}))
