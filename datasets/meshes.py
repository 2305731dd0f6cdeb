"""Meshes: `.off` files as triangles, and points drawn uniformly on their surface.

An .off file is the word OFF, the numbers of vertices, faces and edges, the vertices' coordinates, and for each face the
number of its corners and their indices. Hundreds of ModelNet's files lack the line break after OFF (`OFF490 518 0`).
"""

from itertools import pairwise

import numpy as np
import numpy.typing as npt

__all__ = ["parse_off", "sample_surface"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def parse_off(content: bytes, *, name: str) -> tuple[Floats, Integers]:
    """Vertices (V, 3) and triangles (T, 3) of an .off file; faces with more corners become fans of triangles.

    Raises ``ValueError`` with the file's ``name`` when it is no .off file, cut off, or names vertices it has not.
    """
    lines = (line.split(b"#")[0] for line in content.splitlines())
    text = b" ".join(lines).strip()
    if not text.startswith(b"OFF"):
        raise ValueError(f"`{name}` is no .off file: it starts with {text[:8]!r} instead of OFF.")
    try:
        numbers = np.array(text[3:].split(), dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"`{name}` holds something that is no number ({error}).") from error
    if len(numbers) < 3:
        raise ValueError(f"`{name}` is cut off: it does not say how many vertices and faces it has.")
    n_vertices, n_faces = int(numbers[0]), int(numbers[1])
    rest = numbers[3:]
    if len(rest) < 3 * n_vertices:
        raise ValueError(f"`{name}` is cut off: it has {len(rest) // 3} of its {n_vertices} vertices.")
    vertices = rest[: 3 * n_vertices].reshape(-1, 3)
    triangles = _triangles(rest[3 * n_vertices :], n_faces, name)
    if triangles.size and not 0 <= triangles.min() <= triangles.max() < n_vertices:
        raise ValueError(f"`{name}` has a face with vertex {triangles.max()}, but vertices are 0 to {n_vertices - 1}.")
    if not np.isfinite(vertices).all():
        raise ValueError(f"`{name}` has a vertex that is NaN or infinite; leave the file out.")
    return vertices, triangles


def _triangles(numbers: Floats, n_faces: int, name: str) -> Integers:
    """The faces, each as a fan from its first corner; most files have triangles only, and are read at once."""
    cut_off = ValueError(f"`{name}` is cut off: it lacks some of its {n_faces} faces.")
    if len(numbers) >= 4 * n_faces and (numbers[: 4 * n_faces : 4] == 3).all():
        return numbers[: 4 * n_faces].reshape(-1, 4)[:, 1:].astype(np.int64)
    fans, start = [], 0
    for _ in range(n_faces):
        if start >= len(numbers) or start + numbers[start] >= len(numbers):
            raise cut_off
        corners = numbers[start + 1 : start + 1 + int(numbers[start])].astype(np.int64)
        fans += [(corners[0], a, b) for a, b in pairwise(corners[1:])]
        start += 1 + len(corners)
    return np.array(fans, dtype=np.int64).reshape(-1, 3)


def sample_surface(
    vertices: Floats, triangles: Integers, n_points: int, *, generator: np.random.Generator, name: str = "mesh"
) -> Floats:
    """Points (n_points, 3) drawn uniformly on the surface: triangles by area, then inside the triangle.

    For u, v uniform in [0, 1], a + sqrt(u) ((1 - v) (b - a) + v (c - a)) is uniform in the triangle a, b, c. Raises
    ``ValueError`` with the ``name`` for a mesh without area.
    """
    a, b, c = vertices[triangles].transpose(1, 0, 2)
    areas = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    if not areas.sum() > 0:
        raise ValueError(f"`{name}` has no surface to draw points from: its {len(triangles)} triangles have no area.")
    chosen = generator.choice(len(areas), size=n_points, p=areas / areas.sum())
    root, v = np.sqrt(generator.random((n_points, 1))), generator.random((n_points, 1))
    a, b, c = a[chosen], b[chosen], c[chosen]
    return a + root * ((1 - v) * (b - a) + v * (c - a))
