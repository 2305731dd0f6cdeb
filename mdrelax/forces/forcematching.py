"""Force matching: the training task of force fields.

A batch of labelled structures, each turned at random, is compared with the force field's energies, forces and (where
they count) stress. The best network is the one with the smallest force error on the validation frames, or the smallest
energy error where these have no forces.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from mdrelax.forces.forcefield import ForceField, Prediction
from mdrelax.forces.loader import Batch, Loader, part_of_batch, rotate_batch, split_batch
from mdrelax.forces.loss import LossWeights, Targets, task_loss
from mdrelax.forces.potential import Potential
from mdrelax.forces.predict import predict
from mdrelax.forces.settings import TrainingConfig
from mdrelax.structures.common_edges import common_edges, with_edges
from mdrelax.structures.graph import Graph
from mdrelax.training.ranks import ALONE, EVERYTHING, Ranks

__all__ = ["Compiler", "ForceMatching", "validation_errors"]

Compiler = Callable[[Potential, Tensor | None], Potential]  # of a potential and the edges (2, E) to compile it for


class ForceMatching:
    """A ``Task`` of the trainer; raises ``ValueError`` if no validation frame has a label to select by.

    If the settings request a compiled step, ``compiler(potential, edge_index)`` returns the compiled form of the
    network, for those edges only, or for any edges if ``edge_index`` is None (``mdrelax.compiled.training``).
    """

    train_columns = ("train_energy_mae_meV_per_atom", "train_forces_mae_meV_per_A")
    validation_columns = (
        "val_energy_mae_meV", "val_energy_mae_meV_per_atom",
        "val_forces_mae_meV_per_A", "val_forces_rmse_meV_per_A", "val_stress_mae_meV_per_A3",
    )  # fmt: skip

    def __init__(
        self,
        loader: Loader,
        validation: Sequence[Batch],
        settings: TrainingConfig,
        *,
        compiler: Compiler | None = None,
    ) -> None:
        if not any(_has_labels(frame) for frame in validation):
            raise ValueError(
                "There are no validation frames with labels to choose the best network on; set `data.validation` to a "
                "number of frames above 0."
            )
        if settings.compile and compiler is None:
            raise ValueError("The settings ask for a compiled step (`compile: true`), but no `compiler` is given.")
        self.loader, self.validation, self.settings, self.compiler = loader, validation, settings, compiler
        self.weights = LossWeights(
            settings.energy_weight, settings.forces_weight, settings.stress_weight or 0.0, settings.huber_delta
        )  # no stress weight: a run has one from its data
        self.compiled: ForceField | None = None  # compiled from the network of the first step
        self.trained: ForceField | None = None  # that network
        # Common to all structures, if the compiled code is specialised to them: if all are one molecule, and no
        # batch is limited by its edges.
        fixed = settings.compile and not loader.limited_by_edges
        self.edges: Tensor | None = common_edges([frame.graph for frame in loader.frames]) if fixed else None
        self.validation_sizes = [_size(frame.graph) for frame in validation]
        forces = any(not frame.targets.forces.isnan().all() for frame in validation)
        self.selected = "val_forces_mae_meV_per_A" if forces else "val_energy_mae_meV_per_atom"

    def batches(self, epoch: int, *, start: int) -> Iterable[Batch]:
        """The batches of an epoch from number ``start`` on."""
        return self.loader.batches(epoch, start=start)

    def n_steps(self, epochs: int) -> int:
        """The number of batches in that many epochs."""
        return self.loader.n_steps(epochs)

    def sizes(self, batch: Batch) -> list[int]:
        """The edges and atoms of each structure of a batch; 1 if all are evaluated on the same edges."""
        graph = batch.graph
        if self.edges is not None:
            return [1] * graph.n_graphs
        ends = torch.cat([graph.batch, graph.batch[graph.edge_index[1]]])
        return torch.bincount(ends, minlength=graph.n_graphs).tolist()

    def loss(
        self, model: ForceField, batch: Batch, *, step: int, part: slice = EVERYTHING
    ) -> tuple[Tensor, list[Tensor]]:
        """The weighted errors of a batch, rotated by (seed, step), and its energy and force MAE; or a part's shares.

        With ``micro_batch_size`` the gradients of all parts but the last are added to the parameters' here.
        """
        settings = self.settings
        if settings.rotate:
            batch = rotate_batch(batch, seed=settings.seed, step=step)
        own = part_of_batch(batch, part).to(settings.device)
        parts = split_batch(own, settings.micro_batch_size or own.graph.n_graphs)
        if self.compiler is not None and settings.compile and self.compiled is None:
            self._compile(self.compiler, model, parts[0])
        stress = self._wants_stress(batch.targets)
        total, predictions = torch.zeros((), dtype=torch.float64, device=settings.device), []
        for number, piece in enumerate(parts):
            graph = piece.graph if self.edges is None else with_edges(piece.graph, self.edges)
            network = self.compiled if self.compiled is not None and model is self.trained else model
            prediction = network(graph, stress=stress, create_graph=True)
            weights = self.weights.for_part(piece.targets, batch.targets)
            loss = task_loss(
                prediction, piece.targets, piece.graph, kind=settings.loss, weights=weights, of_structures=piece.weights
            )
            predictions.append(prediction.detach())
            if number < len(parts) - 1:
                loss.backward()
                loss = loss.detach()
            total = total + loss
        return total, _batch_errors(Prediction.join(predictions), own, batch.targets)

    def _compile(self, compiler: Compiler, model: ForceField, part: Batch) -> None:
        """Compile for the common edges, if there are any."""
        fixed = None if self.edges is None else with_edges(part.graph, self.edges).edge_index
        self.compiled, self.trained = model.with_potential(compiler(model.potential, fixed)), model

    def validate(self, model: ForceField, *, ranks: Ranks = ALONE) -> dict[str, float]:
        """The errors on the validation frames."""
        own = self.validation[ranks.part(self.validation_sizes)]
        return _means(ranks.sum(_error_sums(model, own, stress=self.weights.stress > 0)))

    def _wants_stress(self, targets: Targets) -> bool:
        return self.weights.stress > 0 and targets.has_stress()


def validation_errors(force_field: ForceField, frames: Sequence[Batch], *, stress: bool = False) -> dict[str, float]:
    """The validation columns of metrics.csv, NaN for labels that the frames lack. Forces: over components."""
    return _means(_error_sums(force_field, frames, stress=stress))


def _error_sums(force_field: ForceField, frames: Sequence[Batch], *, stress: bool) -> Tensor:
    """For each validation column the sum over existing labels and their number, (5, 2)."""
    if not frames:
        return torch.zeros(len(ForceMatching.validation_columns), 2, dtype=torch.float64)
    prediction, batch = predict(force_field, frames, stress=stress)
    targets, n_atoms = batch.targets, torch.bincount(batch.graph.batch)
    energy = 1e3 * (prediction.energy - targets.energy)
    forces = 1e3 * (prediction.forces - targets.forces)
    tension = torch.full_like(targets.stress, torch.nan)
    if prediction.stress is not None:
        tension = 1e3 * (prediction.stress - targets.stress)
    columns = [
        (energy.abs(), targets.energy),
        (energy.abs() / n_atoms, targets.energy),
        (forces.abs(), targets.forces),
        (forces.square(), targets.forces),
        (tension.abs(), targets.stress),
    ]
    known = [values[~labels.isnan()] for values, labels in columns]
    return torch.stack([torch.stack([values.sum(), values.new_tensor(len(values))]) for values in known])


def _means(sums: Tensor) -> dict[str, float]:
    """The validation columns: NaN without labels, or if a prediction is NaN."""
    means = dict(zip(ForceMatching.validation_columns, (sums[:, 0] / sums[:, 1]).tolist(), strict=True))
    means["val_forces_rmse_meV_per_A"] **= 0.5
    return means


def _size(graph: Graph) -> int:
    return graph.edge_index.shape[1] + len(graph.numbers)


def _has_labels(frame: Batch) -> bool:
    return not bool(frame.targets.energy.isnan().all() and frame.targets.forces.isnan().all())


def _batch_errors(prediction: Prediction, own: Batch, targets: Targets) -> list[Tensor]:
    """The shares of some structures in the energy MAE (meV/atom) and force MAE (meV/A) of a batch with ``targets``."""
    n_atoms = torch.bincount(own.graph.batch, minlength=own.graph.n_graphs)
    energy = (prediction.energy.detach() - own.targets.energy) / n_atoms
    forces = prediction.forces.detach() - own.targets.forces
    pairs = ((energy, targets.energy), (forces, targets.forces))
    return [1e3 * errors.abs().nansum() / (~labels.isnan()).sum().to(errors.device) for errors, labels in pairs]
