"""The run of a force field, from data to model file: the ``Experiment`` of potentials."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from torch_geometric.data import Data

from mdrelax import datasets
from mdrelax.base.files import locked_folder, whole_file
from mdrelax.base.sections import ConfigError
from mdrelax.compiled.training import CompiledTrainingStep
from mdrelax.datasets.structure_files import spread
from mdrelax.forces import metrics
from mdrelax.forces.dispersion import with_dispersion, without_dispersion
from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.forcematching import ForceMatching
from mdrelax.forces.loader import Batch, Loader, frames_from_data, join
from mdrelax.forces.physics import Physics
from mdrelax.forces.predict import predictions_of
from mdrelax.forces.symmetry import certify
from mdrelax.method.certificate import Certificate
from mdrelax.method.projection import LayerRecord
from mdrelax.modelfile import LoadedModel, save_model, save_refused
from mdrelax.runs.config import Config, PotentialConfig
from mdrelax.runs.continued import replayed, shift_references
from mdrelax.runs.experiment import Finished, check_device, run
from mdrelax.runs.inputs import Parts, check_cutoff, check_labels, load_parts, prepare_folder, with_stress_weight
from mdrelax.runs.network import Networks, Untrained, check_network, read_network, write_network
from mdrelax.runs.pretrain import (
    PRETRAIN,
    Pretrained,
    first_stage,
    label_frames,
    read_pretrained,
    require_same_starts,
    second_stage,
)
from mdrelax.runs.refused import REFUSED, refuse
from mdrelax.runs.untrained import load_start, untrained
from mdrelax.training.ranks import Ranks, joined
from mdrelax.training.trainer import FitResult, Progress

CERTIFIED_STRUCTURES = 8
MODEL = "model.safetensors"


class Frames(NamedTuple):
    """The parts of the data with their neighbour lists."""

    train: list[Batch]
    validation: list[Batch]
    test: list[Batch]


class Outcome(NamedTuple):
    """A finished run."""

    fit: FitResult[ForceField]
    certificate: Certificate
    results: dict[str, Any]
    parts: Parts
    folder: Path

    @property
    def model_file(self) -> Path:
        """The model file in the run folder."""
        return self.folder / MODEL


class Potentials:
    """The ``Experiment`` of force fields: from labelled structures to a model file.

    ``networks`` is the registry that builds the network, for instance the module ``mdrelax.potentials``; ``data`` are
    labelled structures that replace ``config.data.source``.
    """

    parts: Parts
    frames: Frames
    physics: Physics
    begun: Untrained

    def __init__(
        self,
        config: Config,
        networks: Networks,
        data: Sequence[Atoms] | None = None,
        pretrained: Pretrained | None = None,
    ) -> None:
        self.settings = self.config = config
        self.networks, self.data, self.pretrained = networks, data, pretrained
        if pretrained is not None:
            potential = PotentialConfig(start=str(pretrained.model))
            self.config = second_stage(config).model_copy(update={"potential": potential})
        self.start: LoadedModel | None = None
        self.training, self.relaxation = self.config.training, self.config.relaxation

    def enter(self, folder: Path, *, restart: bool) -> bool:
        """Write config.yaml and env.json; see ``Experiment``."""
        self.start = load_start(self.config.potential)
        if self.start is None:
            check_network(self.config.potential, self.networks)  # before the data are read
        elif self.pretrained is not None:
            self.start.force_field.physics = self.config.physics.physics()
        self.physics = self.config.physics.physics() if self.start is None else self.start.force_field.physics
        _check_dispersion(self.physics)
        return prepare_folder(self.settings, folder, restart=restart)

    def prepare(self, folder: Path, *, resume: bool, tell: Callable[[str], None]) -> ForceField:
        """Read and split the data, build the force field, write split.json and network.json."""
        config = self.config
        self.parts = load_parts(config.data, self.data)
        tell(self.parts.report)
        check_labels(config, self.parts)
        if self.pretrained is not None:
            require_same_starts(config, self.parts, self.pretrained.model.parent)
        _keep_split(self.parts, folder, resume=resume)
        cutoff = config.potential.cutoff if self.start is None else self.start.force_field.cutoff
        self.frames = data_frames(self.parts, cutoff, self.physics)
        neighbours = check_cutoff(self.frames.train, cutoff)
        self.begun = untrained(config, self.frames.train, self.parts.isolated_energies, self.networks, self.start)
        if self.pretrained is not None:
            known = self.begun.origin or {}
            self.begun = self.begun._replace(origin={**known, "pretrained": self.pretrained.summary})
        force_field, name, origin = self.begun.force_field, self.begun.name, self.begun.origin
        self.settings, self.config = (
            with_stress_weight(each, self.parts, conservative=force_field.conservative)
            for each in (self.settings, config)
        )
        config, self.training = self.config, self.config.training
        if resume and (before := read_network(folder)) is not None:
            force_field.exact_lone_atoms = before.exact_lone_atoms  # of an older version: False
        write_network(folder, self.begun, structures=kept_structures(self.parts))
        if config.data.replay is not None:
            extra = replayed(config, self.begun, len(self.frames.train))
            self.frames.train.extend(extra)
            tell(f"{len(extra)} of the training frames are from `{config.data.replay}`.")
        if self.start is not None:
            _tell_new_elements(force_field, self.start.force_field, tell)
        size = f"`{self.settings.potential.preset}`" if origin is None else f"of `{origin['file']}`"
        size = size if self.pretrained is None else f"`{self.settings.potential.preset}`, {self.pretrained.summary}"
        tell(
            f"{len(self.frames.train)} training, {len(self.frames.validation)} validation and {len(self.frames.test)} "
            f"test frames, {neighbours:.1f} neighbours per atom within {cutoff:g} A; {name} {size}."
        )
        for warning in _warnings(config, force_field):
            tell(warning)
        return force_field

    def task(self, model: ForceField) -> ForceMatching:
        """Energies, forces and stress against their labels."""
        training = self.training
        loader = Loader(
            self.frames.train, batch_size=training.batch_size, max_edges=training.max_edges, seed=training.seed
        )
        return ForceMatching(loader, self.frames.validation, training, compiler=CompiledTrainingStep)

    def certify(self, fit: FitResult[ForceField]) -> Certificate:
        """Errors of energies and forces of a few test (or validation) structures under all symmetry operations.

        Before them, the constants of the elements become those that fit the training labels: while the weights move,
        the mean of all energies wanders by more than the energies scatter about it.
        """
        if self.config.reference_energies == "fit" and not fit.model.exact_lone_atoms:
            shift_references(fit.model, self.frames.train)
        return certified(fit.model, self.frames.test or self.frames.validation, fit.layers, self.begun)

    def evaluate(self, fit: FitResult[ForceField], folder: Path) -> dict[str, Any]:
        """Errors on validation and test frames and of the trivial baseline; the test predictions go to a file."""
        found = _test_results(self.config, fit.model, self.parts, self.frames, folder)
        if self.pretrained is not None:
            found["pretrained"] = {"summary": self.pretrained.summary, **self.pretrained.facts}
        return {"reference_energies_eV": references_of(fit.model), **found}

    def export(self, folder: Path, finished: Finished[ForceField]) -> None:
        """Write model.safetensors; a network that is not equivariant is kept as refused.safetensors."""
        fit, certificate, results = finished
        keep = save_model if certificate.passed else save_refused
        keep(
            folder / (MODEL if certificate.passed else REFUSED), fit.model, potential=self.begun.name,
            arguments=self.begun.arguments, certificate=certificate,
            card=model_card(
                self.settings, fit.model, best_step=fit.best_step, results=results, origin=self.begun.origin
            ),
        )  # fmt: skip
        (folder / (REFUSED if certificate.passed else MODEL)).unlink(missing_ok=True)  # of an earlier attempt
        if not certificate.passed:
            refuse(certificate)


def run_training(
    config: Config,
    folder: Path,
    networks: Networks,
    *,
    restart: bool = False,
    tell: Callable[[str], None] = lambda line: None,
    data: Sequence[Atoms] | None = None,
    listener: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """``run`` the experiment ``Potentials``; arguments and errors as there."""
    if config.training.committee > 1:
        raise ConfigError(
            f"`training.committee: {config.training.committee}` trains several networks, which this call does not: use "
            "`mdrelax train`, or `mdrelax.train_committee` from Python."
        )
    if config.pretrain is None:
        return _outcome(Potentials(config, networks, data), folder, restart=restart, tell=tell, listener=listener)
    n_steps = config.training.steps or 0
    first = config.pretrain.steps_of(n_steps)

    def listen(progress: Progress, before: int) -> None:  # both stages are one run
        listener(progress._replace(step=before + progress.step, n_steps=n_steps))

    with joined() as ranks, locked_folder(folder) if ranks.first else nullcontext():
        pretrained = _pretrain(
            config, folder, networks, ranks, restart=restart, tell=tell, data=data, listener=partial(listen, before=0)
        )
        experiment = Potentials(config, networks, data, pretrained)
        return _outcome(experiment, folder, restart=True, tell=tell, listener=partial(listen, before=first))


def _outcome(
    experiment: Potentials,
    folder: Path,
    *,
    restart: bool,
    tell: Callable[[str], None],
    listener: Callable[[Progress], None],
) -> Outcome:
    finished = run(experiment, folder, restart=restart, tell=tell, listener=listener)
    return Outcome(*finished, experiment.parts, folder)


def _pretrain(
    config: Config,
    folder: Path,
    networks: Networks,
    ranks: Ranks,
    *,
    restart: bool,
    tell: Callable[[str], None],
    data: Sequence[Atoms] | None,
    listener: Callable[[Progress], None],
) -> Pretrained:
    """The network of the first stage, trained now or earlier; raises the errors of both its parts."""
    place = folder / PRETRAIN
    with ranks.in_turn():
        if ranks.first:
            check_device(config.training.device)
            check_network(config.potential, networks)
            _check_dispersion(config.physics.physics())
            prepare_folder(config, folder, restart=restart)
            label_frames(config, place, data, tell=tell)
    if ranks.share(read_pretrained(config, folder)) is None:
        run(Potentials(first_stage(config, place), networks), place, restart=True, tell=tell, listener=listener)
    if (found := ranks.share(read_pretrained(config, folder))) is None:
        raise RuntimeError(f"The first stage in `{place}` left no model.")
    if ranks.first:
        tell(f"The network is {found.summary}; it is now trained on the run's own data.")
    return found


def _tell_new_elements(force_field: ForceField, before: ForceField, tell: Callable[[str], None]) -> None:
    """A line on elements that the model of ``potential.start`` did not know."""
    new = [chemical_symbols[z] for z in force_field.elements if z not in before.elements]
    if new:
        tell(f"New elements {', '.join(new)}: what the network knows of them begins at random.")


def _warnings(config: Config, force_field: ForceField) -> Iterator[str]:
    """Warnings that should be seen before hours of training."""
    if force_field.roughness is not None:
        yield f"The network is not smooth: {force_field.roughness}."
    if config.training.compile and not force_field.conservative:
        yield (
            "`training.compile` has no effect with direct forces: the step is not compiled. Leave it out, or take "
            "`potential.arguments.forces: gradient`."
        )


def _keep_split(parts: Parts, folder: Path, *, resume: bool) -> None:
    """Write split.json; a resumed run must use the same data as before (``ValueError`` otherwise)."""
    path, fingerprint = folder / "split.json", datasets.data_hash([*parts.train, *parts.validation, *parts.test])
    if resume and path.is_file():
        datasets.load_split(path, data_hash=fingerprint)
    datasets.save_split(path, parts.split, data_hash=fingerprint)


def data_frames(parts: Parts, cutoff: float, physics: Physics) -> Frames:
    """The parts of the data with their neighbour lists, labels without dispersion; ``cutoff`` in Angstrom."""
    learnt = (without_dispersion(data, physics.subtracted) for data in (parts.train, parts.validation, parts.test))
    return Frames(*(frames_from_data(data, cutoff=cutoff) for data in learnt))


def _check_dispersion(physics: Physics) -> None:
    """Raise ``ConfigError`` for dispersion that cannot be computed, before the data are read."""
    try:
        without_dispersion([], physics.dispersion)
    except (ImportError, ValueError) as error:
        raise ConfigError(str(error)) from error


def model_card(
    config: Config,
    model: ForceField,
    *,
    best_step: int,
    results: dict[str, Any],
    origin: dict[str, str] | None = None,
) -> dict[str, Any]:
    """The model card: config, data, errors, reference energies. File paths are reduced to file names."""
    document = config.model_dump(mode="json")
    paths = [(document["data"], key) for key in ("source", "test_source", "replay", "train_indices",
                                                 "validation_indices", "test_indices")]  # fmt: skip
    paths += [(document["potential"], "start"), *([(document["pretrain"], "starts")] if config.pretrain else [])]
    for section, key in paths:
        if (named := section[key]) is not None:
            section[key] = Path(named).name if isinstance(named, str) else [Path(each).name for each in named]
    return {
        "config": document,
        "physics": model.physics._asdict(),
        "reference_energies_eV": references_of(model),
        "started_from": origin,
        "pretrained": results.get("pretrained"),
        "best_step": best_step,
        "validation": results.get("validation"),
        "test": results.get("test"),
    }


def references_of(model: ForceField) -> dict[str, float]:
    """The reference energies (eV) by atomic number."""
    return dict(zip(map(str, model.elements), model.reference_energies.tolist(), strict=True))


def kept_structures(parts: Parts) -> list[Data]:
    """A few structures from all over the test set (or validation set)."""
    return spread(parts.test or parts.validation, CERTIFIED_STRUCTURES)


def certified(model: ForceField, frames: Sequence[Batch], layers: list[LayerRecord], begun: Untrained) -> Certificate:
    """The certificate of a projected network on a few of the structures, with how it began."""
    graph = join(spread(frames, CERTIFIED_STRUCTURES)).graph
    return certify(model, graph, layers=layers)._replace(history=(begun.origin or {}).get("pretrained"))


def _test_results(
    config: Config, force_field: ForceField, parts: Parts, frames: Frames, folder: Path
) -> dict[str, Any]:
    """Errors on validation and test frames and the trivial baseline; the test predictions go to a file."""
    stress = bool(config.training.stress_weight)
    validation = predictions_of(force_field, frames.validation, stress=stress)
    results: dict[str, Any] = {"validation": metrics.errors(validation)}
    if frames.test:
        predictions = with_dispersion(
            predictions_of(force_field, frames.test, stress=stress), parts.test, force_field.physics.subtracted
        )
        baseline = _mean_baseline(parts)
        results |= {"test": metrics.errors(predictions), "baselines": {"mean": metrics.errors(baseline)}}
        if predictions.forces_pred is not None and not any(frame.graph.cell.any() for frame in frames.test):
            positions = torch.cat([frame.graph.positions for frame in frames.test]).numpy()
            results |= metrics.net_force_and_torque(predictions.forces_pred, positions, predictions.n_atoms)
        arrays = {name: array for name, array in predictions._asdict().items() if array is not None}
        with whole_file(folder / "test_predictions.npz") as file:
            np.savez_compressed(file, **arrays)
    return results


def _mean_baseline(parts: Parts) -> metrics.Predictions:
    """The error of the training mean on the test frames, for the labels that both have."""
    train, test = metrics.labels_of(parts.train), metrics.labels_of(parts.test)
    forces = None if train.forces is None else test.forces
    stress = None if train.stress is None else test.stress
    return metrics.mean_baseline(train, test._replace(forces=forces, stress=stress))
