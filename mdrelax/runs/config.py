"""Config: all settings of a training run, as typed sections read from YAML.

An unknown key is an error that names the nearest known one. Names come from hand-written registries: a config is data,
never code. Every default is written into the run's own config.yaml.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from mdrelax.base.migrations import with_recipe_of_version_2
from mdrelax.base.sections import Section, load
from mdrelax.forces.physics import Physics
from mdrelax.forces.settings import TrainingConfig
from mdrelax.training.settings import RelaxationConfig, Share, refuse_keep

__all__ = ["Config", "DataConfig", "PhysicsConfig", "PotentialConfig", "PretrainConfig", "load_config"]

Size = Annotated[int | float, Field(ge=0)]


class DataConfig(Section):
    """Where the frames come from and how they are split."""

    source: str | list[str] = Field(
        description="A file, folder or pattern, `sample:ethanol` (shipped), `nbody:charged` (simulated) or fetched: "
        "`rmd17:ethanol`; or a list of these."
    )
    test_source: str | None = Field(None, description="A separate file of test frames; by default they are split off.")
    format: str | None = Field(None, description="`extxyz`, `md17` or `ase`, when the file's ending does not tell.")
    labels: str | None = Field(None, description="rMD17 files: `revised` or `original` labels.")
    energy_key: str | None = Field(None, description="extxyz: the key of the energies.")
    forces_key: str | None = Field(None, description="extxyz: the key of the forces.")
    stress_key: str | None = Field(None, description="extxyz: the key of the stress.")
    energy_unit: str | None = Field(None, description="The file's unit of energy: eV, Ha, kcal/mol, kJ/mol, ...")
    length_unit: str | None = Field(None, description="The file's unit of length: Angstrom, Bohr or nm.")
    forces_unit: str | None = Field(None, description="The unit of force, if not energy/length: `Hartree/Bohr`.")
    stress_unit: str | None = Field(None, description="The unit of stress, if not energy/length^3: `GPa`, `kbar`.")
    forces_sign: Literal["usual", "opposite"] | None = Field(
        None, description="extxyz: `opposite` if the file's forces are gradients, +dE/dx."
    )
    stress_sign: Literal["usual", "opposite"] | None = Field(
        None, description="extxyz: `opposite` if the file's stress is positive under compression."
    )
    train: Size = Field(0.8, description="Training frames: a number, or a fraction below 1.")
    validation: Size = Field(0.1, description="Validation frames: a number, or a fraction below 1.")
    test: Size | None = Field(None, description="Test frames; default: all remaining ones.")
    train_indices: str | None = Field(None, description="A file with one frame number per line, instead of `train`.")
    validation_indices: str | None = Field(None, description="Likewise for validation.")
    test_indices: str | None = Field(None, description="Likewise for test.")
    seed: int = Field(0, ge=0, description="Seed of the random split.")
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="Weights in the loss by config_type, `{surface: 2}`; a frame's config_weight multiplies them.",
    )
    replay: str | None = Field(
        None, description="With `potential.start`: data to train on as well, so that the model does not forget them."
    )
    replay_fraction: float = Field(0.2, gt=0, lt=1, description="Fraction of the training frames drawn from `replay`.")


class PotentialConfig(Section):
    """The network."""

    name: str = Field("equiformer", description="A network of `mdrelax.potentials.POTENTIALS`.")
    preset: str = Field("tiny", description="A size of it: `tiny`, `small`; `equiformer` also has `md17`.")
    cutoff: float = Field(5.0, gt=0, description="Cut-off radius in Angstrom.")
    arguments: dict[str, Any] = Field(default_factory=dict, description="Arguments that replace the preset's.")

    start: str | None = Field(None, description="A model file to continue from, which defines network and cut-off.")
    start_where: list[str] | None = Field(
        None, description="Name patterns of the parameters to take from `start`, others begin at random; none: all."
    )

    @model_validator(mode="after")
    def _one_network(self) -> "PotentialConfig":
        fields = type(self).model_fields
        own = [name for name in ("name", "preset", "cutoff") if getattr(self, name) != fields[name].default]
        own += ["arguments"] if self.arguments else []
        if self.start is not None and own:
            raise ValueError(f"leave out `{own[0]}`: the network is that of `potential.start`, {self.start}")
        if self.start is None and self.start_where is not None:
            raise ValueError("`start_where` chooses parameters of `potential.start`: name that file, or leave it out")
        return self

    @model_validator(mode="after")
    def _one_cutoff(self) -> "PotentialConfig":
        if "cutoff" in self.arguments:
            raise ValueError("set `potential.cutoff` instead of the argument `cutoff`: the neighbour lists need it too")
        return self


class PhysicsConfig(Section):
    """The terms that are not learnt, see `mdrelax.forces.physics`."""

    switches: ClassVar[frozenset[str]] = frozenset({"zbl"})

    zbl: float = Field(
        0.0,
        ge=0,
        le=2,
        description="Nuclear repulsion (ZBL), faded out at this many sums of two covalent radii; true: 1, false: none.",
    )
    dispersion: str | None = Field(
        None, description="Functional whose D3(BJ) dispersion is added, such as `PBE`; none: no dispersion."
    )

    dispersion_in_labels: bool = Field(
        True, description="The labels contain it, so that it is subtracted from them; false: plain DFT labels."
    )

    def physics(self) -> Physics:
        """The same for a force field."""
        return Physics(self.zbl, self.dispersion, self.dispersion_in_labels)


class PretrainConfig(Section):
    """The first stage of a run, on frames that xTB labels, see `mdrelax.runs.pretrain`."""

    method: Literal["GFN2-xTB", "GFN1-xTB"] = Field("GFN2-xTB", description="The labels: GFN2-xTB or GFN1-xTB.")
    frames: int = Field(20_000, ge=10, description="Labelled frames, a twentieth of them (500 at most) to validate.")
    steps: Share = Field(
        0.7, gt=0, description="Steps of the first stage out of `training.steps`: a number, or a fraction below 1."
    )
    learning_rate_fraction: float = Field(
        0.2, gt=0, le=1, description="The fine-tuning's learning rate as a fraction of `training.learning_rate`."
    )
    relaxed: Literal["pre-training", "fine-tuning", "both"] = Field(
        "pre-training", description="The stage with the `relaxation`: pre-training, fine-tuning or both."
    )
    temperature: float = Field(600.0, gt=0, description="K, of the Langevin bursts that sample.")
    burst_frames: int = Field(20, ge=1, description="Frames of a burst, each burst from one geometry.")
    interval_fs: float = Field(10.0, gt=0, description="fs between the frames of a burst.")
    timestep_fs: float = Field(1.0, gt=0, description="fs, of the Langevin dynamics.")
    friction_per_fs: float = Field(0.01, gt=0, description="1/fs, of the Langevin thermostat.")
    starts: list[str] = Field(
        default_factory=list, description="Files of further geometries to sample from, without labels, in Angstrom."
    )
    seed: int = Field(0, ge=0, description="Seed of the bursts.")

    @model_validator(mode="after")
    def _whole_steps(self) -> Self:
        if self.timestep_fs > self.interval_fs:
            raise ValueError(
                f"`timestep_fs` must not exceed `interval_fs`, got {self.timestep_fs} and {self.interval_fs}"
            )
        return self

    def steps_of(self, n_steps: int) -> int:
        """Steps of the first stage in a run of ``n_steps``."""
        return max(1, round(self.steps * n_steps)) if self.steps < 1 else int(self.steps)


class Config(Section):
    """One training run."""

    data: DataConfig
    potential: PotentialConfig = PotentialConfig()
    physics: PhysicsConfig = PhysicsConfig()
    pretrain: PretrainConfig | None = Field(
        None, description="Pre-training on frames that xTB labels; none: the network begins at random."
    )
    relaxation: RelaxationConfig = RelaxationConfig()
    training: TrainingConfig = TrainingConfig()
    reference_energies: Literal["fit", "isolated", "keep"] = Field(
        "fit",
        description="Energies of the elements: least squares over the training set, those of isolated atoms, or with "
        "`potential.start` those of that model.",
    )
    exact_lone_atoms: bool | None = Field(
        None, description="A lone atom has exactly its reference energy; none: where these are those of isolated atoms."
    )
    standard_baseline: bool = Field(False, description="Also train the standard network, same budget and seed.")
    md_picoseconds: float = Field(0.0, ge=0, description="Length of an NVE run at 300 K at the end; 0: none.")
    format_version: Literal[3] = Field(3, description="Of this document; one of version 2 keeps its defaults.")

    @model_validator(mode="after")
    def _physics_of_the_start(self) -> Self:
        if self.potential.start is not None and self.physics != PhysicsConfig():
            raise ValueError(f"leave out `physics`: its terms are those of `potential.start`, {self.potential.start}")
        return self

    @model_validator(mode="after")
    def _something_to_keep(self) -> Self:
        if self.potential.start is None and self.reference_energies == "keep":
            raise ValueError("`reference_energies: keep` keeps those of `potential.start`: name that file, or take fit")
        if self.potential.start is None and self.data.replay is not None:
            raise ValueError(
                f"`data.replay: {self.data.replay}` is for runs with `potential.start`; add the file to `data.source`"
            )
        return self

    @model_validator(mode="after")
    def _two_stages(self) -> Self:
        if self.pretrain is None:
            return self
        if self.potential.start is not None:
            raise ValueError(
                f"leave out `pretrain`, or `potential.start`, {self.potential.start}: a run begins with one of them"
            )
        if self.training.steps is None:
            raise ValueError("`pretrain` shares out `training.steps`: give those instead of `training.epochs`")
        if (first := self.pretrain.steps_of(self.training.steps)) >= self.training.steps:
            raise ValueError(
                f"`pretrain.steps: {self.pretrain.steps:g}` takes {first:,} of the {self.training.steps:,} steps of "
                "`training.steps`, which leaves none for the fine-tuning: take fewer, or a fraction below 1"
            )
        return self

    @model_validator(mode="after")
    def _equivariant_in_the_end(self) -> Self:
        refuse_keep(self.relaxation, what="a potential")
        return self


def load_config(document: Mapping[str, Any], *, overrides: Sequence[str] = ()) -> Config:
    """Check a document, with ``section.key=value`` overrides (values in YAML); raises ``ConfigError``.

    Keys that a document of ``format_version: 2`` leaves out have the defaults of that version.
    """
    current = with_recipe_of_version_2(document) if document.get("format_version") == 2 else document
    return load(Config, current, overrides=overrides)
