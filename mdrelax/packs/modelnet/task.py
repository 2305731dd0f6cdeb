"""The point-cloud task, which class is a shape of: a ``Task`` of the trainer, its errors, and how invariant scores are.

A network maps points (B, N, 3) to scores (B, n_classes); its loss is their cross entropy, with published label
smoothing, which gives a share of the weight to the n - 1 wrong classes alone:

    (1 - s) (-log p_y) + s / (n - 1) sum_(c != y) (-log p_c)

The error is the fraction of shapes whose largest score is another class's; the class error is its mean over classes.
"""

import copy
from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdrelax.base.seeds import generator
from mdrelax.datasets.point_clouds import PointClouds, Poses, random_poses
from mdrelax.method.certificate import EquivarianceError
from mdrelax.packs.modelnet.edges import given_neighbours, recorded_neighbours
from mdrelax.packs.modelnet.plain_networks import GroupAveraged
from mdrelax.structures.rotate import random_rotations
from mdrelax.training.ranks import ALONE, EVERYTHING, Ranks

__all__ = ["Augmentation", "Classification", "Errors", "Shapes", "errors_of", "predict", "score_error", "shapes"]

Augmentation = Literal["rotate", "pointnet"]
EVALUATION_BATCH = 8  # shapes evaluated at once: their edge features stay in the cache
SCALES = (0.8, 1.25)  # of the release's augmentation for PointNet
MOST_DROPPED = 0.875  # points of a cloud, in the same
SMALLEST_SCALE = 1e-12  # scores that are all zero have no scale of their own


class Shapes(NamedTuple):
    """Clouds in the network's precision."""

    points: Tensor  # (M, P, 3)
    labels: Tensor  # (M,)


class Errors(NamedTuple):
    """How wrong a network is on some shapes."""

    error: float  # fraction of shapes
    class_error: float  # mean over classes
    loss: float  # cross entropy without smoothing
    confusion: list[list[int]]  # shapes of class (row) taken for class (column)


def shapes(clouds: PointClouds, dtype: torch.dtype = torch.float32) -> Shapes:
    """Points and labels of a part of a data set."""
    return Shapes(clouds.points.to(dtype), clouds.labels)


class Classification:
    """The training task; see ``mdrelax.training.trainer.Task``.

    Orders follow from (seed, epoch); poses, drawn points and other augmentation from (seed, step). A last batch that is
    not full is left out: batch norm asks for equal ones.

    Args:
        train: Training shapes, with as many points as there are.
        validation: Validation shapes, posed and with as many points as the network is given.
        n_points: Points of a training shape: the first ones, or with ``resample`` others in each step.
        poses: How training shapes are turned; None: not at all.
        smoothing: The share s of the wrong classes.
        augmentation: ``rotate`` turns only, ``pointnet`` also scales each shape and drops up to 7/8 of its points.
        tuning_from: Step from which a ``GroupAveraged`` network is trained through its average.

    Raises ``ValueError`` when no batch is full.
    """

    train_columns: tuple[str, ...] = ("train_error",)
    validation_columns: tuple[str, ...] = ("val_error", "val_class_error", "val_loss")
    selected = "val_error"

    def __init__(
        self,
        train: Shapes,
        validation: Shapes,
        *,
        batch_size: int,
        n_points: int,
        n_classes: int,
        seed: int = 0,
        poses: Poses | None = "SO3",
        resample: bool = False,
        smoothing: float = 0.0,
        augmentation: Augmentation = "rotate",
        tuning_from: int = 0,
    ) -> None:
        self.train, self.validation, self.n_points, self.n_classes = train, validation, n_points, n_classes
        self.batch_size, self.seed, self.poses, self.resample = batch_size, seed, poses, resample
        self.augmentation, self.tuning_from = augmentation, tuning_from
        self.smoothing = smoothing * n_classes / (n_classes - 1)  # torch's share is that of all classes
        self.n_batches = len(train.labels) // batch_size
        if not self.n_batches:
            raise ValueError(f"`batch_size` must be at most the {len(train.labels)} training shapes, got {batch_size}.")

    def n_steps(self, epochs: int) -> int:
        """The number of batches in so many epochs."""
        return epochs * self.n_batches

    def batches(self, epoch: int, *, start: int) -> Iterable[Shapes]:
        """The batches of an epoch from number ``start`` on."""
        order = torch.randperm(len(self.train.labels), generator=generator(self.seed, "order", epoch))
        for k in range(start, self.n_batches):
            chosen = order[k * self.batch_size : (k + 1) * self.batch_size]
            yield Shapes(self.train.points[chosen], self.train.labels[chosen])

    def sizes(self, batch: Shapes) -> list[int]:
        """All shapes cost the same."""
        return [1] * len(batch.labels)

    def loss(
        self, model: nn.Module, batch: Shapes, *, step: int, part: slice = EVERYTHING
    ) -> tuple[Tensor, list[Tensor]]:
        """The mean cross entropy of a batch, and the fraction that is taken for another class; or a part's shares.

        Batch norms see the part only.
        """
        if isinstance(model, GroupAveraged):
            model.averages = step >= self.tuning_from
        labels = batch.labels[part]
        share = len(labels) / len(batch.labels)
        scores = model(self.augmented(batch.points, step)[part])
        wrong = (scores.detach().argmax(1) != labels).to(scores)
        loss = functional.cross_entropy(scores, labels, label_smoothing=self.smoothing)
        return share * loss, [share * wrong.mean()]

    def augmented(self, points: Tensor, step: int) -> Tensor:
        """Points (B, n_points, 3) of a batch (B, P, 3) as they are trained on in a step."""
        n, n_all, _ = points.shape
        if self.resample:
            chosen = torch.rand(n, n_all, generator=generator(self.seed, "points", step)).argsort(1)[:, : self.n_points]
            points = points.gather(1, chosen.unsqueeze(2).expand(-1, -1, 3))
        points = points[:, : self.n_points]
        if self.poses is not None:
            turns = random_poses(n, self.poses, generator(self.seed, "rotations", step))
            points = points @ turns.mT.to(points)
        return self._scaled(points, generator(self.seed, "noise", step)) if self.augmentation == "pointnet" else points

    def _scaled(self, points: Tensor, stream: torch.Generator) -> Tensor:
        """Dropped points move onto the first one, as in the release; the size is drawn uniformly."""
        size, share = torch.rand(2, len(points), 1, 1, generator=stream).to(points)
        dropped = torch.rand(points.shape[:2], generator=stream).to(points).unsqueeze(2) < MOST_DROPPED * share
        points = torch.where(dropped, points[:, :1], points)
        return points * (SCALES[0] + (SCALES[1] - SCALES[0]) * size)

    def validate(self, model: nn.Module, *, ranks: Ranks = ALONE) -> dict[str, float]:
        """The errors of a projected copy on the validation shapes."""
        found = errors_of(model, self.validation, n_classes=self.n_classes, ranks=ranks)
        return {"val_error": found.error, "val_class_error": found.class_error, "val_loss": found.loss}


@torch.no_grad()
def predict(model: nn.Module, points: Tensor) -> Tensor:
    """Scores (M, n_classes), some shapes at a time."""
    return torch.cat([model(part) for part in points.split(EVALUATION_BATCH)])


def errors_of(model: nn.Module, shapes: Shapes, *, n_classes: int, ranks: Ranks = ALONE) -> Errors:
    """Errors of a network in evaluation mode; classes that no shape has are left out of the mean over classes.

    Of several ranks each evaluates its part of the shapes.
    """
    own = ranks.part([1] * len(shapes.labels))
    labels = shapes.labels[own]
    scores = predict(model, shapes.points[own]) if len(labels) else shapes.points.new_zeros(0, n_classes)
    found = torch.bincount(n_classes * labels + scores.argmax(1), minlength=n_classes**2).view(n_classes, -1)
    found = ranks.sum(found)
    there = found.sum(1) > 0
    right = found.diagonal()[there] / found.sum(1)[there]
    share = functional.cross_entropy(scores.double(), labels, reduction="sum") / len(shapes.labels)
    loss = ranks.sum(share).item()
    error = 1 - (found.diagonal().sum() / found.sum()).item()
    return Errors(error, 1 - right.double().mean().item(), loss, found.tolist())


def score_error(
    model: nn.Module, points: Tensor, *, dtype: torch.dtype = torch.float64, n_operations: int = 4, seed: int = 0
) -> EquivarianceError:
    """Changes of scores under operations that must not change them, relative to the terms that scores are summed from.

    In float64 the largest change. Below, two things of the published networks make single scores jump where rounding
    moves them, though no symmetry is broken, so that neighbours are those of the unmoved clouds, and the change is a
    root mean square over shapes and classes: (a) a point's k-th and next neighbour at nearly equal distances, (b) a
    vector of nearly no length, which the norm of lengths makes long. The model itself is not touched.
    """
    twin, points = copy.deepcopy(model).to(dtype).eval(), points.to(dtype)
    exact = dtype == torch.float64
    with recorded_neighbours() as found, torch.no_grad():
        reference, scale = _scores_and_scale(twin, points)
    stream = generator(seed, "operations")

    @torch.no_grad()
    def change(moved: Tensor, places: list[Tensor] = found) -> Tensor:
        if exact:
            return (twin(moved) - reference).abs().max()
        with given_neighbours(places):
            return (twin(moved) - reference).square().mean().sqrt()

    errors = []
    for _ in range(n_operations):
        turns = random_rotations(len(points), stream).to(dtype).mT
        shift = torch.randn(len(points), 1, 3, generator=stream, dtype=torch.float64).to(dtype)
        order = torch.randperm(points.shape[1], generator=stream)
        of_order = change(points[:, order], [_reordered(places, order) for places in found])
        errors.append(torch.stack([change(points @ turns), change(-points @ turns), change(points + shift), of_order]))
    worst = torch.stack(errors).amax(0) / scale
    return EquivarianceError(*torch.nan_to_num(worst, nan=torch.inf).tolist())


def _scores_and_scale(model: nn.Module, points: Tensor) -> tuple[Tensor, Tensor]:
    """Scores, and the root mean square of sum_f |w_cf x_f| + |b_c| in the last layer that makes them."""
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    sums: list[Tensor] = []

    def keep(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        sums.append((given[0].abs() @ last.weight.abs().T + last.bias.abs()).square().mean())

    hook = last.register_forward_pre_hook(keep)
    scores = model(points)
    hook.remove()
    return scores, torch.stack(sums).mean().sqrt().clamp(min=SMALLEST_SCALE)


def _reordered(places: Tensor, order: Tensor) -> Tensor:
    """Neighbours (k, B, N) among B N points, for clouds whose points come in another order."""
    n_points = len(order)
    own, cloud = places[:, :, order] % n_points, places[:, :, order] // n_points
    return order.argsort()[own] + n_points * cloud
