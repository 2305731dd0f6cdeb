"""The N-body task: a ``Task`` of the trainer, and the equivariance error of a network.

A network maps positions, velocities (M, n, 3) and charges (M, n) to displacements (M, n, 3). The measure is the
mean squared error of the predicted positions over all coordinates; it is also the published loss. With ``huber`` =
delta the loss is the same for errors up to delta and grows linearly beyond, so that the few systems that pass through a
close encounter, which no network can follow, do not dominate the gradient. With ``noise`` > 0 normal noise of that
size is added to every coordinate and velocity of a training batch, while the target positions are kept, which prevents
memorisation.
"""

import copy
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdrelax.base.seeds import generator
from mdrelax.datasets.nbody import NBodySplit
from mdrelax.method.certificate import EquivarianceError
from mdrelax.structures.rotate import random_rotations
from mdrelax.training.ranks import ALONE, EVERYTHING, Ranks

__all__ = ["Displacement", "Systems", "displacement_error", "error_profile", "mean_squared_error", "prepare"]

EVALUATION_BATCH = 250  # systems evaluated at once: their edge features fit in the cache
SMALLEST_SCALE = 1e-12  # for a network that predicts no motion at all


class Systems(NamedTuple):
    """Systems of particles in the network's precision."""

    positions: Tensor  # (M, n, 3)
    velocities: Tensor  # (M, n, 3)
    charges: Tensor  # (M, n)
    displacements: Tensor  # (M, n, 3), from the input frame to the target frame

    def take(self, index: Tensor | slice) -> "Systems":
        """Select systems by index."""
        return Systems(*(tensor[index] for tensor in self))

    def turned(self, matrices: Tensor) -> "Systems":
        """Rotate every system by its own matrix (M, 3, 3)."""
        transposed = matrices.mT.to(self.positions)
        x, v, d = (t @ transposed for t in (self.positions, self.velocities, self.displacements))
        return Systems(x, v, self.charges, d)

    def moved(self, size: float, generator: torch.Generator) -> "Systems":
        """Add noise to positions and velocities; the target positions do not change."""
        shift, kick = size * torch.randn(2, *self.positions.shape, generator=generator, dtype=self.positions.dtype)
        return Systems(self.positions + shift, self.velocities + kick, self.charges, self.displacements - shift)


def prepare(split: NBodySplit, dtype: torch.dtype = torch.float32) -> Systems:
    """A split of the data set as displacements, cast after the difference was taken in float64."""
    moved = split.targets - split.positions
    return Systems(*(t.to(dtype) for t in (split.positions, split.velocities, split.charges, moved)))


class Displacement:
    """The training task; see ``mdrelax.training.trainer.Task``.

    Orders follow from (seed, epoch), rotations and noise from (seed, step): a resumed run sees what an uninterrupted
    one sees. A last batch that is not full is left out, as published. Raises ``ValueError`` if no batch is full.
    """

    train_columns: tuple[str, ...] = ()
    validation_columns: tuple[str, ...] = ("val_mse",)
    selected = "val_mse"

    def __init__(
        self,
        train: Systems,
        validation: Systems,
        *,
        batch_size: int,
        seed: int = 0,
        rotate: bool = True,
        huber: float | None = None,
        noise: float = 0.0,
    ) -> None:
        self.train, self.validation, self.huber, self.noise = train, validation, huber, noise
        self.batch_size, self.seed, self.rotate = batch_size, seed, rotate
        self.n_batches = len(train.charges) // batch_size
        if not self.n_batches:
            raise ValueError(
                f"`batch_size` must be at most the {len(train.charges)} training trajectories, got {batch_size}."
            )

    def n_steps(self, epochs: int) -> int:
        """The number of batches in a number of epochs."""
        return epochs * self.n_batches

    def batches(self, epoch: int, *, start: int) -> Iterable[Systems]:
        """The batches of an epoch from number ``start`` on."""
        order = torch.randperm(len(self.train.charges), generator=generator(self.seed, "order", epoch))
        for k in range(start, self.n_batches):
            yield self.train.take(order[k * self.batch_size : (k + 1) * self.batch_size])

    def sizes(self, batch: Systems) -> list[int]:
        """All systems cost the same."""
        return [1] * len(batch.charges)

    def loss(
        self, model: nn.Module, batch: Systems, *, step: int, part: slice = EVERYTHING
    ) -> tuple[Tensor, list[Tensor]]:
        """The mean error of a batch, with each of its systems rotated at random; or the share of a part."""
        if self.rotate:
            batch = batch.turned(random_rotations(len(batch.charges), generator(self.seed, "rotations", step)))
        if self.noise:
            batch = batch.moved(self.noise, generator(self.seed, "noise", step))
        own = batch.take(part)
        share = len(own.charges) / len(batch.charges)
        predicted = model(own.positions, own.velocities, own.charges)
        if self.huber is None:
            return share * (predicted - own.displacements).square().mean(), []
        return share * 2 * functional.huber_loss(predicted, own.displacements, delta=self.huber), []

    def validate(self, model: nn.Module, *, ranks: Ranks = ALONE) -> dict[str, float]:
        """The error of a projected copy on the validation systems."""
        own = self.validation.take(ranks.part(self.sizes(self.validation)))
        n, n_all = len(own.charges), len(self.validation.charges)
        mean = mean_squared_error(model, own) if n else 0.0
        return {"val_mse": ranks.sum(torch.tensor(n / n_all * mean, dtype=torch.float64)).item()}


@torch.no_grad()
def predict(model: nn.Module, systems: Systems) -> Tensor:
    """Displacements (M, n, 3), evaluated a few hundred systems at a time."""
    parts = (systems.take(slice(k, k + EVALUATION_BATCH)) for k in range(0, len(systems.charges), EVALUATION_BATCH))
    return torch.cat([model(part.positions, part.velocities, part.charges) for part in parts])


def mean_squared_error(model: nn.Module, systems: Systems) -> float:
    """The mean over systems, particles and coordinates of the squared error of the predicted positions."""
    return (predict(model, systems) - systems.displacements).double().square().mean().item()


def error_profile(model: nn.Module, systems: Systems) -> dict[str, float]:
    """Mean and median over systems of their squared errors, and the share of the worst twentieth in the sum."""
    errors = (predict(model, systems) - systems.displacements).double().square().mean((1, 2))  # (M,)
    worst = errors.sort(descending=True).values[: max(1, len(errors) // 20)]
    return {
        "test_mse": errors.mean().item(),
        "test_median": errors.median().item(),
        "test_share_of_worst_twentieth": (worst.sum() / errors.sum()).item(),
    }


def displacement_error(
    model: nn.Module, systems: Systems, *, dtype: torch.dtype = torch.float64, n_operations: int = 4, seed: int = 0
) -> EquivarianceError:
    """Largest errors of predicted displacements under symmetry operations, relative to their root mean square.

    The model itself is not changed. ``mdrelax.forces.symmetry`` has the measure for force fields.
    """
    twin = copy.deepcopy(model).to(dtype).eval()
    systems = Systems(*(tensor.to(dtype) for tensor in systems))
    reference = predict(twin, systems)
    scale = reference.square().mean().sqrt().clamp(min=SMALLEST_SCALE)
    stream = generator(seed, "operations")
    n_systems, n_particles, _ = systems.positions.shape
    errors = []
    for _ in range(n_operations):
        matrices = random_rotations(n_systems, stream).to(dtype)
        shift = 10 * torch.randn(n_systems, 1, 3, generator=stream, dtype=torch.float64).to(dtype)
        order = torch.randperm(n_particles, generator=stream)
        pairs = [
            (systems.turned(matrices), reference @ matrices.mT),
            (systems.turned(-matrices), -reference @ matrices.mT),
            (systems._replace(positions=systems.positions + shift), reference),
            (Systems(*(tensor[:, order] for tensor in systems)), reference[:, order]),
        ]
        errors.append(torch.stack([(predict(twin, moved) - expected).abs().max() for moved, expected in pairs]))
    worst = torch.stack(errors).amax(0) / scale
    return EquivarianceError(*torch.nan_to_num(worst, nan=torch.inf).tolist())
