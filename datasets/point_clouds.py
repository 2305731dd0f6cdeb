"""Point clouds: labelled shapes as points on their surfaces, what is checked of them, and how they are posed.

Every cloud is centred and scaled into the unit sphere; z is upright. A protocol says how shapes are turned in training
and how they stand in the test: about the upright axis (`z`), or anyhow (`SO3`).
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from mdrelax.base.names import nearest_name
from mdrelax.base.seeds import generator
from mdrelax.structures.rotate import random_rotations

__all__ = [
    "PROTOCOLS",
    "ModelNet",
    "PointClouds",
    "Poses",
    "Protocol",
    "check_clouds",
    "cloud_stats",
    "point_clouds",
    "protocol_poses",
    "random_poses",
]

Protocol = Literal["z/z", "z/SO3", "SO3/SO3"]  # training / test
Poses = Literal["z", "SO3"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
SMALLEST_RADIUS = 1e-9  # of the points around their centre, before they are scaled


class PointClouds(NamedTuple):
    """M shapes with P points each."""

    points: Tensor  # (M, P, 3), float32, centred, in the unit sphere
    labels: Tensor  # (M,), int64, indices into ``classes``
    names: tuple[str, ...]  # of the M shapes
    classes: tuple[str, ...]

    def take(self, index: Tensor | slice) -> "PointClouds":
        """Some of the shapes."""
        places = torch.arange(len(self.labels))[index]
        return PointClouds(self.points[places], self.labels[places], tuple(self.names[k] for k in places), self.classes)

    def posed(self, poses: Poses, seed: int) -> "PointClouds":
        """Every shape in an orientation of its own, which follows from the seed; `z` turns about z only."""
        turns = random_poses(len(self.labels), poses, generator(seed, "poses")).to(self.points)
        return self._replace(points=self.points @ turns.mT)


class ModelNet(NamedTuple):
    """The three parts of a data set; the validation part was taken out of the published training set."""

    train: PointClouds
    validation: PointClouds
    test: PointClouds


def random_poses(n: int, poses: Poses, generator: torch.Generator) -> Tensor:
    """Rotations (n, 3, 3), float64: uniform over SO(3), or about z; raises ``ValueError`` for other ``poses``."""
    if poses == "SO3":
        return random_rotations(n, generator)
    if poses != "z":
        raise ValueError(f"`poses` must be z or SO3, got `{poses}`.")
    angles = 2 * torch.pi * torch.rand(n, generator=generator, dtype=torch.float64)
    turns = torch.eye(3, dtype=torch.float64).repeat(n, 1, 1)
    c, s = angles.cos(), angles.sin()
    turns[:, 0, 0], turns[:, 0, 1], turns[:, 1, 0], turns[:, 1, 1] = c, -s, s, c
    return turns


def protocol_poses(protocol: str) -> tuple[Poses, Poses]:
    """How shapes are turned in training, and in validation and test; raises ``ValueError`` for an unknown protocol.

    Validation shapes stand as those of the training: to look at the test's poses would be to choose by them.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"There is no protocol `{protocol}`; {nearest_name(protocol, PROTOCOLS)}")
    train, _, test = protocol.partition("/")
    return train, test  # type: ignore[return-value]


# --- build and check ---


def point_clouds(
    points: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    classes: Sequence[str],
    names: Sequence[str],
    source: str,
    n_points: int | None = None,
) -> PointClouds:
    """Checked clouds: the first ``n_points`` of each, centred and scaled by the farthest point of all of them.

    ``points`` is (M, P, 3), ``labels`` (M,). Raises ``ValueError`` naming the file ``source`` and the shape: wrong
    forms, too few points, NaN, a shape without extent, a label out of range.
    """
    x, y = np.asarray(points), np.asarray(labels).ravel().astype(np.int64)
    if x.ndim != 3 or x.shape[2] != 3 or len(x) != len(y) or not len(x):
        raise ValueError(
            f"`{source}` holds points of shape {x.shape} and {len(y)} labels; points must be (shapes, points, 3), with "
            "one label per shape."
        )
    if n_points is not None and not 1 <= n_points <= x.shape[1]:
        raise ValueError(
            f"`{source}` has {x.shape[1]} points per shape, but `n_points` is {n_points}; ask for as many at most."
        )
    x = x.astype(np.float32)
    _refuse(~np.isfinite(x).all((1, 2)), names, f"`{source}`: a coordinate of `{{}}` is NaN or infinite; leave it out.")
    wrong = (y < 0) | (y >= len(classes))
    if wrong.any():
        raise ValueError(
            f"`{source}`: the label of `{names[int(wrong.argmax())]}` is {y[wrong][0]}, but the classes are "
            f"0 to {len(classes) - 1}."
        )
    x -= x.mean(1, keepdims=True)
    radii = np.linalg.norm(x, axis=2).max(1)
    _refuse(radii < SMALLEST_RADIUS, names, f"`{source}`: all points of `{{}}` are one point; leave it out.")
    x /= radii[:, None, None]
    return PointClouds(torch.from_numpy(x[:, :n_points].copy()), torch.from_numpy(y), tuple(names), tuple(classes))


def _refuse(wrong: npt.NDArray[np.bool_], names: Sequence[str], sentence: str) -> None:
    if wrong.any():
        raise ValueError(sentence.format(names[int(wrong.argmax())]))


# --- describe ---


def cloud_stats(parts: Mapping[str, PointClouds]) -> pd.DataFrame:
    """Shapes of each class in each part (with the sum), one row per class."""
    some = next(iter(parts.values()))
    counts = {name: torch.bincount(part.labels, minlength=len(part.classes)).tolist() for name, part in parts.items()}
    table = pd.DataFrame(counts, index=pd.Index(some.classes, name="class"))
    table.loc["all"] = table.sum()
    return table


def check_clouds(parts: Mapping[str, PointClouds]) -> pd.DataFrame:
    """One row per ``check``, with ``passed`` and a ``message``.

    Every part has every class; no shape is there twice, and no point. A shape is, when all its points are equal; a
    point may be, in one shape in twenty.
    """
    missing = [
        f"{part.classes[k]} ({name})" for name, part in parts.items()
        for k in sorted(set(range(len(part.classes))) - set(part.labels.tolist()))
    ]  # fmt: skip
    owners: dict[bytes, list[str]] = {}
    for name, part in parts.items():
        for cloud, own in zip(part.points.numpy(), part.names, strict=True):
            owners.setdefault(cloud.tobytes(), []).append(f"{own} ({name})")
    twice = [" = ".join(names) for names in owners.values() if len(names) > 1]
    few = [
        f"{own} ({name})" for name, part in parts.items()
        for cloud, own in zip(part.points.numpy(), part.names, strict=True)
        if len(np.unique(cloud, axis=0)) < 0.95 * len(cloud)
    ]  # fmt: skip
    found = {"every class in every part": missing, "no shape twice": twice, "no point twice": few}
    rows = [{"check": name, "passed": not bad, "message": _some(bad)} for name, bad in found.items()]
    return pd.DataFrame(rows)


def _some(names: Sequence[str], n: int = 3) -> str:
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(names[:n]) + more
