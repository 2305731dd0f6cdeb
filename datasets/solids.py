"""Analytic solids: point clouds of eight kinds of bodies, made here, so that nothing has to be downloaded.

Each shape has its own proportions, and its points are uniform on the surface up to a little noise. z is upright.

| class | body | what varies |
| --- | --- | --- |
| box | a x b x c | sides |
| capsule | cylinder with two half spheres | length |
| cone | right circular | height |
| cylinder | right circular | height |
| ellipsoid | semi-axes a, b, c | axes |
| frame | a box's twelve edges | sides |
| pyramid | on a square | height |
| torus | | thickness |
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["SOLIDS", "solid_points"]

Floats = npt.NDArray[np.float64]
Draw = Callable[[int, np.random.Generator], Floats]

NOISE = 0.01  # standard deviation of a coordinate, of a body about 1 large


def solid_points(kind: str, n_points: int, generator: np.random.Generator) -> Floats:
    """Points (n_points, 3) on the surface of a body of a kind, a key of ``SOLIDS``, of random proportions."""
    points = SOLIDS[kind](n_points, generator)
    return points + NOISE * generator.normal(size=points.shape)


def _box(n: int, rng: np.random.Generator) -> Floats:
    """A side is chosen by its area; the point is uniform on it."""
    half = rng.uniform(0.3, 1.0, 3)
    areas = np.prod(half) / half
    axis = rng.choice(3, size=n, p=areas / areas.sum())
    points = rng.uniform(-half, half, (n, 3))
    points[np.arange(n), axis] = rng.choice([-1.0, 1.0], n) * half[axis]
    return points


def _sphere(n: int, rng: np.random.Generator) -> Floats:
    x = rng.normal(size=(n, 3))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _capsule(n: int, rng: np.random.Generator) -> Floats:
    """Areas of the mantle and of the sphere are as the half length to the radius."""
    radius, half = 0.4, rng.uniform(0.3, 0.8)
    points = radius * _sphere(n, rng)
    points[:, 2] += np.where(points[:, 2] > 0, half, -half)
    on_mantle = rng.random(n) < half / (half + radius)
    return np.where(on_mantle[:, None], _mantle(n, rng, radius, half), points)


def _mantle(n: int, rng: np.random.Generator, radius: float, half: float) -> Floats:
    return np.column_stack([radius * _circle(n, rng), rng.uniform(-half, half, n)])


def _circle(n: int, rng: np.random.Generator) -> Floats:
    angle = rng.uniform(0, 2 * np.pi, n)
    return np.column_stack([np.cos(angle), np.sin(angle)])


def _disc(n: int, rng: np.random.Generator) -> Floats:
    return np.sqrt(rng.random((n, 1))) * _circle(n, rng)


def _cylinder(n: int, rng: np.random.Generator) -> Floats:
    radius, half = 0.5, rng.uniform(0.3, 1.0)
    lids = np.column_stack([radius * _disc(n, rng), rng.choice([-half, half], n)])
    on_mantle = rng.random(n) < 2 * half / (2 * half + radius)
    return np.where(on_mantle[:, None], _mantle(n, rng, radius, half), lids)


def _cone(n: int, rng: np.random.Generator) -> Floats:
    """On the mantle the distance from the tip is distributed as on a disc."""
    radius, height = 0.6, rng.uniform(0.8, 1.8)
    slant = np.hypot(radius, height)
    disc = _disc(n, rng)
    on_mantle = rng.random(n) < slant / (slant + radius)
    z = np.where(on_mantle, height * (1 - np.linalg.norm(disc, axis=1)), 0.0)
    return np.column_stack([radius * disc, z])


def _ellipsoid(n: int, rng: np.random.Generator) -> Floats:
    """Points of a sphere are kept with odds as the local stretching, so that they are uniform on the ellipsoid."""
    axes = rng.uniform(0.4, 1.0, 3)
    candidates = _sphere(8 * n, rng)
    stretch = np.linalg.norm(candidates / axes, axis=1) * axes.min()
    return axes * candidates[rng.random(8 * n) < stretch][:n]


def _frame(n: int, rng: np.random.Generator) -> Floats:
    """An edge is chosen by its length."""
    half = rng.uniform(0.4, 1.0, 3)
    axis = rng.choice(3, size=n, p=half / half.sum())
    points = rng.choice([-1.0, 1.0], (n, 3)) * half
    points[np.arange(n), axis] *= rng.uniform(0, 1, n)
    return points


def _pyramid(n: int, rng: np.random.Generator) -> Floats:
    """On the mantle the distance from the tip is distributed as on the square, whose radius is max(|x|, |y|)."""
    half, height = 0.6, rng.uniform(0.8, 1.8)
    slant = np.hypot(half, height)
    square = rng.uniform(-1, 1, (n, 2))
    on_mantle = rng.random(n) < slant / (slant + half)
    z = np.where(on_mantle, height * (1 - np.abs(square).max(axis=1)), 0.0)
    return np.column_stack([half * square, z])


def _torus(n: int, rng: np.random.Generator) -> Floats:
    """Angles of the tube are kept with odds as the distance from the axis."""
    tube = rng.uniform(0.15, 0.35)
    angle = rng.uniform(0, 2 * np.pi, 4 * n)
    angle = angle[rng.random(4 * n) * (1 + tube) < 1 + tube * np.cos(angle)][:n]
    return np.column_stack([(1 + tube * np.cos(angle))[:, None] * _circle(n, rng), tube * np.sin(angle)])


SOLIDS: dict[str, Draw] = {
    "box": _box,
    "capsule": _capsule,
    "cone": _cone,
    "cylinder": _cylinder,
    "ellipsoid": _ellipsoid,
    "frame": _frame,
    "pyramid": _pyramid,
    "torus": _torus,
}
