"""The run of a force field, from data to model file: the ``Experiment`` of potentials."""

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from torch_geometric.data import Data

from mdrelax import datasets
from mdrelax.base.files import write_atomically
from mdrelax.base.sections import ConfigError
from mdrelax.compiled.training import CompiledTrainingStep
from mdrelax.datasets.structure_files import spread
from mdrelax.forces import metrics
from mdrelax.forces.forcefield import ForceField, fit_reference_energies
from mdrelax.forces.forcematching import ForceMatching
from mdrelax.forces.loader import Batch, Loader, distinct_elements, frames_from_data, join
from mdrelax.forces.predict import predictions_of
from mdrelax.forces.symmetry import certify
from mdrelax.method.certificate import Certificate
from mdrelax.modelfile import save_model, save_refused
from mdrelax.runs.config import Config, PotentialConfig
from mdrelax.runs.experiment import Finished, run, seeded
from mdrelax.runs.inputs import Parts, check_labels, load_parts, prepare_folder
from mdrelax.runs.network import Networks, arguments_of, write_network
from mdrelax.runs.refused import REFUSED, refuse
from mdrelax.structures.graph import Graph
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


def network_arguments(settings: PotentialConfig, frames: Sequence[Batch], networks: Networks) -> dict[str, Any]:
    """The arguments of the network: ``arguments_of`` the settings and the neighbours of the training set."""
    edges = sum(frame.graph.edge_index.shape[1] for frame in frames)
    atoms = sum(len(frame.graph.numbers) for frame in frames)
    measured = {"average_neighbors": max(1.0, round(edges / atoms, 3))}
    return {**measured, **arguments_of(settings, networks)}


def build_force_field(
    config: Config, parts: Parts, frames: Sequence[Batch], arguments: dict[str, Any], networks: Networks
) -> ForceField:
    """The untrained force field: seeded weights, reference energies, scale (RMS force of the training set)."""
    elements = distinct_elements([frame.graph.numbers for frame in frames])
    name = config.potential.name
    try:
        network = seeded(lambda: networks.build_potential(name, len(elements), arguments), config.training.seed)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    forces = torch.cat([frame.targets.forces for frame in frames])
    known = forces[~forces.isnan()]
    scale = float(known.square().mean().sqrt()) if known.any() else 1.0  # no forces, or all of them zero
    references = _references(config, parts, frames, elements)
    force_field = ForceField(network, elements=elements, reference_energies=references, scale=scale)
    if config.training.stress_weight > 0 and not force_field.conservative:
        raise ConfigError(
            f"`training.stress_weight` is {config.training.stress_weight}, but direct forces have no stress; set it to "
            "0 or `potential.arguments.forces` to gradient."
        )
    return force_field.to_dtype(getattr(torch, config.training.dtype))


def _references(config: Config, parts: Parts, frames: Sequence[Batch], elements: tuple[int, ...]) -> torch.Tensor:
    """Energies of the elements: least squares, or isolated atoms plus the mean binding energy per atom."""
    numbers = [frame.graph.numbers for frame in frames]
    energies = torch.cat([frame.targets.energy for frame in frames])
    if config.reference_energies == "fit":
        return fit_reference_energies(numbers, energies, elements)
    missing = [z for z in elements if z not in parts.isolated_energies]
    if missing:
        raise ConfigError(
            f"`reference_energies: isolated` needs a frame with config_type=IsolatedAtom for atomic numbers {missing}; "
            "add them to the data or use `fit`."
        )
    isolated = torch.tensor([parts.isolated_energies[z] for z in elements], dtype=torch.float64)
    sums = torch.stack([isolated[torch.searchsorted(torch.tensor(elements), z)].sum() for z in numbers])
    counts = torch.tensor([len(z) for z in numbers])
    return isolated + ((energies - sums) / counts).nanmean().nan_to_num()


class Potentials:
    """The ``Experiment`` of force fields: from labelled structures to a model file.

    ``networks`` is the registry that builds the network, for instance the module ``mdrelax.potentials``; ``data`` are
    labelled structures in place of ``config.data.source``.
    """

    parts: Parts
    frames: Frames
    arguments: dict[str, Any]

    def __init__(self, config: Config, networks: Networks, data: Sequence[Atoms] | None = None) -> None:
        self.config, self.networks, self.data = config, networks, data
        self.training, self.relaxation = config.training, config.relaxation

    def enter(self, folder: Path, *, restart: bool) -> bool:
        """Write config.yaml and env.json; see ``Experiment``."""
        arguments_of(self.config.potential, self.networks)  # refuses names before the data are read
        return prepare_folder(self.config, folder, restart=restart)

    def prepare(self, folder: Path, *, resume: bool, tell: Callable[[str], None]) -> ForceField:
        """Read and split the data, build the force field, write split.json and network.json."""
        config = self.config
        self.parts = load_parts(config.data, self.data)
        tell(self.parts.report)
        check_labels(config, self.parts)
        _keep_split(self.parts, folder, resume=resume)
        self.frames = data_frames(config, self.parts)
        self.arguments = network_arguments(config.potential, self.frames.train, self.networks)
        force_field = build_force_field(config, self.parts, self.frames.train, self.arguments, self.networks)
        structures = kept_structures(self.parts)
        write_network(folder, force_field, name=config.potential.name, arguments=self.arguments, structures=structures)
        tell(
            f"{len(self.frames.train)} training, {len(self.frames.validation)} validation and {len(self.frames.test)} "
            f"test frames; {config.potential.name} `{config.potential.preset}`."
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
        """Energies and forces of a few test (or validation) structures, turned, mirrored, moved and permuted."""
        return certify(fit.model, to_certify(self.frames.test or self.frames.validation), layers=fit.layers)

    def evaluate(self, fit: FitResult[ForceField], folder: Path) -> dict[str, Any]:
        """Errors on validation and test frames and of the trivial baseline; the test predictions go to a file."""
        return _test_results(self.config, fit.model, self.parts, self.frames, folder)

    def export(self, folder: Path, finished: Finished[ForceField]) -> None:
        """Write model.safetensors; a network that is not equivariant is kept as refused.safetensors."""
        fit, certificate, results = finished
        keep = save_model if certificate.passed else save_refused
        keep(
            folder / (MODEL if certificate.passed else REFUSED), fit.model, potential=self.config.potential.name,
            arguments=self.arguments, certificate=certificate,
            card=model_card(self.config, fit.model, best_step=fit.best_step, results=results),
        )  # fmt: skip
        (folder / (REFUSED if certificate.passed else MODEL)).unlink(missing_ok=True)  # of an earlier try
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
    experiment = Potentials(config, networks, data)
    finished = run(experiment, folder, restart=restart, tell=tell, listener=listener)
    return Outcome(*finished, experiment.parts, folder)


def _warnings(config: Config, force_field: ForceField) -> Iterator[str]:
    """What somebody should know before hours are spent."""
    if force_field.roughness is not None:
        yield f"The network is not smooth: {force_field.roughness}."
    if config.training.compile and not force_field.conservative:
        yield (
            "`training.compile` has no effect with direct forces: the step is not compiled. Leave it out, or take "
            "`potential.arguments.forces: gradient`."
        )


def _keep_split(parts: Parts, folder: Path, *, resume: bool) -> None:
    """Write split.json; a resumed run must find the data that it was begun with (``ValueError`` otherwise)."""
    path, fingerprint = folder / "split.json", datasets.data_hash([*parts.train, *parts.validation, *parts.test])
    if resume and path.is_file():
        datasets.load_split(path, data_hash=fingerprint)
    datasets.save_split(path, parts.split, data_hash=fingerprint)


def data_frames(config: Config, parts: Parts) -> Frames:
    """The parts of the data with their neighbour lists."""
    cutoff = config.potential.cutoff
    return Frames(*(frames_from_data(data, cutoff=cutoff) for data in (parts.train, parts.validation, parts.test)))


def model_card(config: Config, model: ForceField, *, best_step: int, results: dict[str, Any]) -> dict[str, Any]:
    """What the model file says of itself: config, data, errors, reference energies. File paths become file names."""
    document = config.model_dump(mode="json")
    for key in ("source", "test_source", "train_indices", "validation_indices", "test_indices"):
        if document["data"][key] is not None:
            document["data"][key] = Path(document["data"][key]).name
    energies = model.reference_energies.tolist()
    return {
        "config": document,
        "reference_energies_eV": dict(zip(map(str, model.elements), energies, strict=True)),
        "best_step": best_step,
        "validation": results.get("validation"),
        "test": results.get("test"),
    }


def kept_structures(parts: Parts) -> list[Data]:
    """A few structures from all over the test set (or validation set)."""
    return spread(parts.test or parts.validation, CERTIFIED_STRUCTURES)


def to_certify(frames: Sequence[Batch]) -> Graph:
    """A few of the structures as one graph."""
    return join(spread(frames, CERTIFIED_STRUCTURES)).graph


def _test_results(
    config: Config, force_field: ForceField, parts: Parts, frames: Frames, folder: Path
) -> dict[str, Any]:
    """Errors on validation and test frames and the trivial baseline; the test predictions go to a file."""
    stress = config.training.stress_weight > 0
    validation = predictions_of(force_field, frames.validation, stress=stress)
    results: dict[str, Any] = {"validation": metrics.errors(validation)}
    if frames.test:
        predictions = predictions_of(force_field, frames.test, stress=stress)
        baseline = _mean_baseline(parts)
        results |= {"test": metrics.errors(predictions), "baselines": {"mean": metrics.errors(baseline)}}
        if predictions.forces_pred is not None and not any(frame.graph.cell.any() for frame in frames.test):
            positions = torch.cat([frame.graph.positions for frame in frames.test]).numpy()
            results |= metrics.net_force_and_torque(predictions.forces_pred, positions, predictions.n_atoms)
        arrays = {name: array for name, array in predictions._asdict().items() if array is not None}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_atomically(folder / "test_predictions.npz", buffer.getvalue())
    return results


def _mean_baseline(parts: Parts) -> metrics.Predictions:
    """The mean of the training labels on the test frames, for the labels that both have."""
    train, test = metrics.labels_of(parts.train), metrics.labels_of(parts.test)
    forces = None if train.forces is None else test.forces
    stress = None if train.stress is None else test.stress
    return metrics.mean_baseline(train, test._replace(forces=forces, stress=stress))
