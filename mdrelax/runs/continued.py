"""Runs that continue from a model file: which weights are taken, references, new elements, replayed data.

| setting | meaning |
| --- | --- |
| `potential.start_where` | name patterns of the parameters that are taken; others begin at random |
| elements that the file does not know | new rows, at random, wherever a parameter has a row for each element |
| `reference_energies: fit` | moved by the least-squares energy of each element over label minus prediction |
| `reference_energies: isolated` | those of the data's isolated atoms |
| `reference_energies: keep` | those of the file; of new elements fitted |
| `data.replay` | frames of other data among the training set, whose energies move with the references |
| `pretrain` | the file is that of the first stage: `scale` is fitted too, and `binding` where lone atoms are exact |
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mdrelax import datasets
from mdrelax.base.ambient import default_float32
from mdrelax.base.names import nearest_name
from mdrelax.base.sections import ConfigError
from mdrelax.base.seeds import default_stream
from mdrelax.datasets.structure_files import spread
from mdrelax.forces.dispersion import without_dispersion
from mdrelax.forces.forcefield import ForceField, bound_share, fit_reference_energies
from mdrelax.forces.loader import Batch, distinct_elements, frames_from_data
from mdrelax.forces.predict import predict
from mdrelax.modelfile import LoadedModel
from mdrelax.runs.config import Config
from mdrelax.runs.network import Networks, Untrained
from mdrelax.structures.graph import edge_vectors
from mdrelax.training.optimizers import name_fits

__all__ = ["continued", "exact_lone_atoms", "fit_scale", "isolated_references", "mean_binding", "replayed",
           "shift_references"]  # fmt: skip

MOST_TO_SCALE = 200  # frames that the scale is fitted to
LIKELY_FACTORS = (0.5, 2.0)


def continued(
    config: Config,
    frames: Sequence[Batch],
    isolated_energies: Mapping[int, float],
    networks: Networks,
    start: LoadedModel,
) -> Untrained:
    """The force field of a run that begins with a model file; arguments as for ``untrained``.

    Raises ``ConfigError`` for a pattern that no parameter has, and for isolated atoms that the data lack.
    """
    before, spec = start.force_field, start.header["potential"]
    found = set(distinct_elements([frame.graph.numbers for frame in frames]))
    elements = tuple(sorted(found | set(before.elements)))
    force_field = before
    if elements != before.elements or config.potential.start_where is not None:
        with default_stream(config.training.seed, "new weights"), default_float32():  # not those of the first run
            network = networks.build_potential(spec["name"], len(elements), spec["arguments"])
        force_field = _extended(before, network, elements, config.potential.start_where)
    force_field = force_field.to_dtype(getattr(torch, config.training.dtype)).requires_grad_(True)
    if config.pretrain is not None:
        fit_scale(force_field, frames)
    old = force_field.reference_energies.clone()
    if config.reference_energies == "isolated":
        force_field.unfold_lone_atoms()
        old = force_field.reference_energies.clone()
        places = [elements.index(z) for z in sorted(found)]
        force_field.reference_energies[places] = isolated_references(isolated_energies, tuple(sorted(found)))
        if config.pretrain is not None and force_field.conservative:
            prediction, batch = predict(force_field, frames)
            force_field.binding += mean_binding(force_field, batch, batch.targets.energy - prediction.energy)
    else:
        new = tuple(z for z in elements if z not in before.elements)
        shift_references(force_field, frames, elements if config.reference_energies == "fit" else new)
    shift = force_field.reference_energies - old
    if exact_lone_atoms(config):
        force_field.unfold_lone_atoms()
    origin = {"file": Path(str(config.potential.start)).name, "content": start.header["content"]}
    return Untrained(force_field.train(), spec["name"], spec["arguments"], origin, shift)


def exact_lone_atoms(config: Config) -> bool:
    """Whether lone atoms keep exactly their reference energies."""
    return config.reference_energies == "isolated" if config.exact_lone_atoms is None else config.exact_lone_atoms


def isolated_references(isolated_energies: Mapping[int, float], elements: tuple[int, ...]) -> Tensor:
    """The energies (n_elements,) of isolated atoms in eV; raises ``ConfigError`` for those that are missing."""
    missing = [z for z in elements if z not in isolated_energies]
    if missing:
        raise ConfigError(
            f"`reference_energies: isolated` needs a frame with config_type=IsolatedAtom for atomic numbers {missing}; "
            "add them to the data or use `fit`."
        )
    return torch.tensor([isolated_energies[z] for z in elements], dtype=torch.float64)


def shift_references(force_field: ForceField, frames: Sequence[Batch], elements: tuple[int, ...] | None = None) -> None:
    """Move the reference energies by the least-squares energy of each element over label minus prediction.

    ``elements`` are those that move, by default all. Without energy labels nothing moves. Forces stay as they are.
    """
    elements = force_field.elements if elements is None else elements
    if not elements:
        return
    prediction, batch = predict(force_field, frames)
    numbers = [frame.graph.numbers for frame in frames]
    missed = batch.targets.energy - prediction.energy
    places = [force_field.elements.index(z) for z in elements]
    force_field.reference_energies[places] += fit_reference_energies(numbers, missed, elements)


@torch.no_grad()
def fit_scale(force_field: ForceField, frames: Sequence[Batch]) -> None:
    """Multiply the scale by the least-squares factor between the forces that the network predicts and the labels.

    Two levels of theory differ first of all in the stiffness of their bonds. A factor outside ``LIKELY_FACTORS``, which
    is that of an untrained network, is not taken.
    """
    some = spread(frames, MOST_TO_SCALE)
    prediction, batch = predict(force_field, some)
    scale, learnt = force_field.scale.clone(), prediction.forces
    rest = torch.zeros_like(learnt)
    if force_field.physics.zbl or force_field.binding:  # forces that are not the network's
        force_field.scale.zero_()
        rest = predict(force_field, some)[0].forces
        force_field.scale.copy_(scale)
    learnt, wanted = learnt - rest, batch.targets.forces - rest
    known = ~wanted.isnan()
    factor = float((learnt * wanted)[known].sum() / learnt[known].square().sum()) if known.any() else 1.0
    if LIKELY_FACTORS[0] < factor < LIKELY_FACTORS[1]:
        force_field.scale *= factor


def mean_binding(force_field: ForceField, batch: Batch, energies: Tensor) -> float:
    """The least-squares factor (eV) between energies (G,) and how many atoms of each structure are bound."""
    graph = batch.graph
    share, _ = bound_share(graph.edge_index[1], edge_vectors(graph), len(graph.numbers), force_field.cutoff)
    bound = energies.new_zeros(graph.n_graphs).index_add(0, graph.batch, share)
    known = ~energies.isnan() & (bound > 0)
    return float((energies * bound)[known].sum() / bound[known].square().sum()) if known.any() else 0.0


def replayed(config: Config, begun: Untrained, n_train: int) -> list[Batch]:
    """Frames of ``data.replay`` for a training set of ``n_train`` other ones, at most as many as there are.

    They are drawn at random from ``data.seed``, in the references of the new run. Raises ``ValueError`` for elements
    that the force field does not know.
    """
    field, fraction = begun.force_field, config.data.replay_fraction
    data = datasets.load_frames(str(config.data.replay)).data
    wanted = min(len(data), max(1, round(n_train * fraction / (1 - fraction))))
    places = np.random.default_rng(config.data.seed).choice(len(data), wanted, replace=False)
    chosen = without_dispersion([data[k] for k in sorted(places)], field.physics.subtracted)
    frames = frames_from_data(chosen, cutoff=field.cutoff)
    unknown = sorted(set(distinct_elements([frame.graph.numbers for frame in frames])) - set(field.elements))
    if unknown:
        raise ValueError(
            f"`data.replay: {config.data.replay}` has atomic numbers {unknown}, which neither `potential.start` nor "
            "the training frames have; take the data that the model was trained on."
        )
    return [_moved(frame, field, begun.shift) for frame in frames]


def _moved(frame: Batch, field: ForceField, shift: Tensor | None) -> Batch:
    """The same frame with its energy in references that were moved by ``shift`` (n_elements,) in eV."""
    if shift is None:
        return frame
    energy = frame.targets.energy + shift[field.species_of(frame.graph.numbers)].sum()
    return frame._replace(targets=frame.targets._replace(energy=energy))


def _extended(
    before: ForceField, network: nn.Module, elements: tuple[int, ...], where: Sequence[str] | None
) -> ForceField:
    """A force field of more elements around a new ``network``, with the chosen weights of the old one."""
    rows = torch.tensor([elements.index(z) for z in before.elements])
    references = torch.zeros(len(elements), dtype=torch.float64)
    references[rows] = before.reference_energies
    old, names = before.potential.state_dict(), [name for name, _ in network.named_parameters()]
    for pattern in where or ():
        if not any(name_fits(name, pattern) for name in names):
            raise ConfigError(
                f"`potential.start_where`: no parameter fits the name pattern `{pattern}`; "
                f"{nearest_name(pattern, {name.partition('.')[0] for name in names})}"
            )
    state = network.state_dict()
    for name in old:
        if where is None or any(name_fits(name, pattern) for pattern in where):
            state[name] = _with_rows(state[name], old[name].to(state[name].dtype), rows)
    network.load_state_dict(state)
    return ForceField(
        network, elements=elements, reference_energies=references, scale=before.scale.item(),  # type: ignore[arg-type]
        binding=before.binding.item(), exact_lone_atoms=before.exact_lone_atoms, physics=before.physics,
    ).to_dtype(before.dtype)  # fmt: skip


def _with_rows(new: Tensor, old: Tensor, rows: Tensor) -> Tensor:
    """The old tensor, in a new one of more elements; the rows of the others stay as they are."""
    different = [axis for axis, sizes in enumerate(zip(new.shape, old.shape, strict=True)) if sizes[0] != sizes[1]]
    if not different:
        return old
    (axis,) = different
    return new.index_copy(axis, rows, old)
