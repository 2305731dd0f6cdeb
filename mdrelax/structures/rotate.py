"""Rotations of structures: drawn uniformly over SO(3), and applied to a batch."""

import torch
from torch import Tensor

from mdrelax.structures.graph import Graph

__all__ = ["random_rotations", "rotate"]


def random_rotations(n: int, generator: torch.Generator) -> Tensor:
    """``n`` rotation matrices (n, 3, 3), float64, uniform over SO(3) (from unit quaternions)."""
    quaternion = torch.randn(n, 4, dtype=torch.float64, generator=generator)
    w, x, y, z = (quaternion / quaternion.norm(dim=1, keepdim=True)).unbind(1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def rotate(graph: Graph, rotations: Tensor) -> Graph:
    """Rotate each structure by its own matrix: ``rotations`` is (G, 3, 3), acting as x -> R x on positions and cell."""
    per_atom = rotations[graph.batch]  # (N, 3, 3)
    positions = (per_atom @ graph.positions.unsqueeze(-1)).squeeze(-1)
    return graph._replace(positions=positions, cell=graph.cell @ rotations.transpose(1, 2))
