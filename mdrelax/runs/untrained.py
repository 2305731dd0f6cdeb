"""The initial force field of a run: a new network, or that of a model file (``potential.start``)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mdrelax.base.sections import ConfigError
from mdrelax.forces.forcefield import ForceField, fit_reference_energies
from mdrelax.forces.loader import Batch, distinct_elements, join
from mdrelax.forces.physics import Physics
from mdrelax.forces.potential import Potential
from mdrelax.modelfile import LoadedModel, load_model
from mdrelax.runs.config import Config, PotentialConfig
from mdrelax.runs.continued import continued, exact_lone_atoms, isolated_references, mean_binding
from mdrelax.runs.experiment import seeded
from mdrelax.runs.network import Networks, Untrained, arguments_of
from mdrelax.structures.graph import edge_vectors

__all__ = ["load_start", "network_arguments", "new_force_field", "untrained"]


def load_start(settings: PotentialConfig) -> LoadedModel | None:
    """The model that a run continues from, or None; raises the errors of ``load_model``."""
    return None if settings.start is None else load_model(settings.start)


def untrained(
    config: Config,
    frames: Sequence[Batch],
    isolated_energies: Mapping[int, float],
    networks: Networks,
    start: LoadedModel | None,
) -> Untrained:
    """The force field of a run; ``frames`` are its training set, ``isolated_energies`` (eV) of isolated atoms.

    Raises ``ConfigError`` for settings that cannot be used.
    """
    if start is not None:
        found = continued(config, frames, isolated_energies, networks, start)
    else:
        arguments = network_arguments(config.potential, frames, networks)
        model = new_force_field(config, frames, isolated_energies, arguments, networks)
        found = Untrained(model, config.potential.name, arguments, None)
    if config.training.stress_weight and not found.force_field.conservative:
        raise ConfigError(
            f"`training.stress_weight` is {config.training.stress_weight}, but direct forces have no stress; set it to "
            "0 or `potential.arguments.forces` to gradient."
        )
    return found


def network_arguments(settings: PotentialConfig, frames: Sequence[Batch], networks: Networks) -> dict[str, Any]:
    """The arguments of the network: ``arguments_of`` the settings and the neighbours of the training set."""
    edges = sum(frame.graph.edge_index.shape[1] for frame in frames)
    atoms = sum(len(frame.graph.numbers) for frame in frames)
    measured = {"average_neighbors": max(1.0, round(edges / atoms, 3))}
    return {**measured, **arguments_of(settings, networks)}


def new_force_field(
    config: Config,
    frames: Sequence[Batch],
    isolated_energies: Mapping[int, float],
    arguments: dict[str, Any],
    networks: Networks,
) -> ForceField:
    """Seeded weights, reference energies, and as scale the root mean square force of the training set."""
    elements = distinct_elements([frame.graph.numbers for frame in frames])
    name, physics = config.potential.name, config.physics.physics()
    try:
        network = seeded(lambda: networks.build_potential(name, len(elements), arguments), config.training.seed)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    frames = _learnt(network, frames, elements, physics)
    forces = torch.cat([frame.targets.forces for frame in frames])
    known = forces[~forces.isnan()]
    scale = float(known.square().mean().sqrt()) if known.any() else 1.0  # no forces, or all of them zero
    references = _references(config, frames, isolated_energies, elements)
    exact = exact_lone_atoms(config)
    force_field = ForceField(
        network, elements=elements, reference_energies=references, scale=scale, exact_lone_atoms=exact, physics=physics
    )
    if exact and force_field.conservative:
        batch = join(frames)
        alone = references[force_field.species_of(batch.graph.numbers)]
        alone = alone.new_zeros(batch.graph.n_graphs).index_add(0, batch.graph.batch, alone)
        force_field.binding.fill_(mean_binding(force_field, batch, batch.targets.energy - alone))
    return force_field.to_dtype(getattr(torch, config.training.dtype))


def _learnt(
    network: Potential, frames: Sequence[Batch], elements: tuple[int, ...], physics: Physics
) -> Sequence[Batch]:
    """The frames with what remains of their energies and forces beside the repulsion; raises ``ConfigError``."""
    try:
        bare = ForceField(network, elements=elements, physics=physics)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not physics.zbl:
        return frames
    found = []
    for frame in frames:
        graph, targets = frame.graph, frame.targets
        species, vectors = bare.species_of(graph.numbers), edge_vectors(graph)
        zeros = vectors.new_zeros(len(species))
        added = bare.finish(graph, species, vectors, zeros, torch.zeros_like(vectors), stress=False)
        rest = targets._replace(energy=targets.energy - added.energy, forces=targets.forces - added.forces)
        found.append(frame._replace(targets=rest))
    return found


def _references(
    config: Config, frames: Sequence[Batch], isolated_energies: Mapping[int, float], elements: tuple[int, ...]
) -> torch.Tensor:
    """Energies of the elements: least squares over the training set, or those of the isolated atoms."""
    numbers = [frame.graph.numbers for frame in frames]
    energies = torch.cat([frame.targets.energy for frame in frames])
    if config.reference_energies == "fit":
        return fit_reference_energies(numbers, energies, elements)
    return isolated_references(isolated_energies, elements)
