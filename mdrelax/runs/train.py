"""One training run from data to model file: where the rooms meet.

data -> split -> network -> relaxation -> training -> projection -> certificate -> model file -> test errors
"""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from torch_geometric.data import Data

from mdrelax import datasets
from mdrelax.base.allocator import peak_memory
from mdrelax.base.files import locked_folder, write_atomically
from mdrelax.base.provenance import environment
from mdrelax.base.sections import ConfigError
from mdrelax.base.seeds import generator
from mdrelax.compiled.training import CompiledTrainingStep
from mdrelax.datasets.structure_files import spread
from mdrelax.forces import metrics
from mdrelax.forces.forcefield import ForceField, fit_reference_energies
from mdrelax.forces.forcematching import ForceMatching
from mdrelax.forces.loader import Batch, Loader, distinct_elements, frames_from_data, join
from mdrelax.forces.predict import predictions_of
from mdrelax.forces.symmetry import certify
from mdrelax.method.certificate import Certificate
from mdrelax.method.relaxation import relax_constraints, relaxed_layers
from mdrelax.modelfile import save_model, save_refused
from mdrelax.runs.config import Config, PotentialConfig
from mdrelax.runs.inputs import Parts, check_device, check_labels, load_parts, prepare_folder
from mdrelax.runs.network import Networks, write_network
from mdrelax.runs.refused import REFUSED, refuse
from mdrelax.structures.graph import Graph
from mdrelax.training.settings import RelaxationConfig
from mdrelax.training.trainer import FitResult, Progress, Trainer

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
    """The arguments of the network: preset, the config's own, cut-off and the neighbours of the training set."""
    edges = sum(frame.graph.edge_index.shape[1] for frame in frames)
    atoms = sum(len(frame.graph.numbers) for frame in frames)
    try:
        preset = networks.preset(settings.name, settings.preset)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return {
        **preset,
        "cutoff": settings.cutoff,
        "average_neighbors": max(1.0, round(edges / atoms, 3)),
        **settings.arguments,
    }


def build_force_field(
    config: Config, parts: Parts, frames: Sequence[Batch], arguments: dict[str, Any], networks: Networks
) -> ForceField:
    """The untrained force field: seeded weights, reference energies, scale (RMS force of the training set)."""
    elements = distinct_elements([frame.graph.numbers for frame in frames])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        try:
            network = networks.build_potential(config.potential.name, len(elements), arguments)
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
    """Train, project, certify, save and test one network in ``folder``; ``tell`` hears one line per stage.

    ``networks`` is the registry that builds the network, for instance the module ``mdrelax.potentials``. Raises
    ``InUseError`` while another process trains in the folder.
    """
    with locked_folder(folder):
        return _run_in(config, folder, networks, data, restart=restart, tell=tell, listener=listener)


def _run_in(
    config: Config,
    folder: Path,
    networks: Networks,
    data: Sequence[Atoms] | None,
    *,
    restart: bool,
    tell: Callable[[str], None],
    listener: Callable[[Progress], None],
) -> Outcome:
    """``run_training`` in a folder that is locked."""
    check_device(config.training.device)
    resume = prepare_folder(config, folder, restart=restart)
    parts = load_parts(config.data, data)
    tell(parts.report)
    check_labels(config, parts)
    _keep_split(parts, folder, resume=resume)
    frames = data_frames(config, parts)
    arguments = network_arguments(config.potential, frames.train, networks)
    force_field = build_force_field(config, parts, frames.train, arguments, networks)
    write_network(
        folder, force_field, name=config.potential.name, arguments=arguments, structures=kept_structures(parts)
    )
    n_parameters = sum(p.numel() for p in force_field.parameters())
    trainer = _trainer(config, force_field, frames, folder, listener)
    if resume:
        trainer.resume()
        tell(f"Resumed at step {trainer.step} of {trainer.n_steps}.")
    n_free = sum(layer.free.weight.numel() for layer in relaxed_layers(force_field).values())
    tell(
        f"{len(frames.train)} training, {len(frames.validation)} validation and {len(frames.test)} test frames; "
        f"{config.potential.name} `{config.potential.preset}`: {n_parameters:,} parameters, {n_free:,} free ones while "
        "the constraint is relaxed."
    )
    if force_field.roughness is not None:
        tell(f"The network is not smooth: {force_field.roughness}.")
    if config.training.compile and not force_field.conservative:
        tell(
            "`training.compile` has no effect with direct forces: the step is not compiled. Leave it out, or take "
            "`potential.arguments.forces: gradient`."
        )
    fit = trainer.run()
    certificate = certify(fit.model, to_certify(frames.test or frames.validation), layers=fit.layers)
    results = {
        "n_parameters": n_parameters, "n_free_parameters": n_free, "steps": fit.steps, "best_step": fit.best_step,
        "seconds": fit.seconds, "cpu_seconds": fit.cpu_seconds, "peak_MB": peak_memory(),
        "certificate": certificate.to_dict(),
        "environment": environment(device=config.training.device, seed=config.training.seed),
        **_test_results(config, fit.model, parts, frames, folder),
    }  # fmt: skip
    write_results(folder, results)
    keep = save_model if certificate.passed else save_refused
    keep(
        folder / (MODEL if certificate.passed else REFUSED), fit.model, potential=config.potential.name,
        arguments=arguments, certificate=certificate,
        card=model_card(config, fit.model, best_step=fit.best_step, results=results),
    )  # fmt: skip
    (folder / (REFUSED if certificate.passed else MODEL)).unlink(missing_ok=True)  # of an earlier try
    if not certificate.passed:
        refuse(certificate)
    return Outcome(fit, certificate, results, parts, folder)


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


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Write results.json atomically."""
    write_atomically(folder / "results.json", json.dumps(results, indent=2).encode())


def relax(force_field: ForceField, settings: RelaxationConfig, *, seed: int) -> None:
    """Put free maps into the force field where the schedule asks for them; raises ``ConfigError``."""
    if settings.schedule == "off":
        return
    stream = generator(seed, "free maps")
    try:
        relax_constraints(force_field, where=settings.where, initial_std=settings.initial_std, generator=stream)
    except ValueError as error:
        raise ConfigError(f"`relaxation.where`: {error}") from error


def _trainer(
    config: Config, force_field: ForceField, frames: Frames, folder: Path, listener: Callable[[Progress], None]
) -> Trainer[ForceField]:
    """Relax the force field where the schedule asks for it, and hand everything to the trainer."""
    relaxation, training = config.relaxation, config.training
    relax(force_field, relaxation, seed=training.seed)
    loader = Loader(frames.train, batch_size=training.batch_size, max_edges=training.max_edges, seed=training.seed)
    task = ForceMatching(loader, frames.validation, training, compiler=CompiledTrainingStep)
    return Trainer(force_field, task, training=training, relaxation=relaxation, folder=folder, listener=listener)


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
