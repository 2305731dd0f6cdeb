"""Networks without rotation symmetry, and two ways to give it to them: the baselines and comparators of the benchmark.

| network | symmetry | source |
| --- | --- | --- |
| ``PointNet`` | none | Qi et al., CVPR 2017, arXiv 1612.00593, with both of its transforms |
| ``DGCNN`` | none | Wang et al., TOG 2019, arXiv 1801.07829 |
| ``GroupAveraged`` | the rotations of a cube | Equi-Tuning: Basu et al., AAAI 2023, arXiv 2210.06475 |
| ``Canonicalised`` | all rotations | Equiv-Adapt: Kaba et al., ICML 2023, arXiv 2211.06489 |

All map points (B, N, 3) to scores (B, n_classes), and translations change nothing: clouds are centred.
"""

from itertools import pairwise, permutations, product

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdrelax.packs.modelnet.edges import edge_sum, nearest_neighbours
from mdrelax.packs.modelnet.networks import DGCNN_SLOPE, Head, centred
from mdrelax.packs.modelnet.vector_neurons import EdgeActivation, VectorActivation, VectorLinear

__all__ = ["DGCNN", "Canonicalised", "GroupAveraged", "PointNet", "cube_rotations"]

SMALLEST_LENGTH = 1e-12  # of the vectors that a frame is made from


def _layers(widths: tuple[int, ...], n_in: int) -> nn.Sequential:
    """Layers that act on each point of (B, C, N): linear, batch norm, ReLU."""
    parts = ((nn.Conv1d(a, b, 1), nn.BatchNorm1d(b), nn.ReLU()) for a, b in pairwise((n_in, *widths)))
    return nn.Sequential(*(each for part in parts for each in part))


class Alignment(nn.Module):
    """PointNet's transform: a matrix for each cloud that its features are multiplied with, the identity at first."""

    def __init__(self, n: int, widths: tuple[int, ...], hidden: tuple[int, int]) -> None:
        super().__init__()
        self.points = _layers(widths, n)
        parts = ((nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()) for a, b in pairwise((widths[-1], *hidden)))
        self.cloud = nn.Sequential(*(each for part in parts for each in part), nn.Linear(hidden[1], n * n))
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, N) to (B, n, N)."""
        matrices = self.cloud(self.points(x).amax(-1)).view(-1, self.n, self.n)
        return (matrices + torch.eye(self.n).to(x)).mT @ x


class PointNet(nn.Module):
    """Published sizes: ``widths`` 64, 128, 1024 and ``hidden`` 512, 256."""

    def __init__(
        self, n_classes: int, *, widths: tuple[int, int, int] = (64, 128, 1024), hidden: tuple[int, int] = (512, 256),
        dropout: float = 0.4,
    ) -> None:  # fmt: skip
        super().__init__()
        self.align_points = Alignment(3, widths, hidden)
        self.first = _layers(widths[:1], 3)
        self.align_features = Alignment(widths[0], widths, hidden)
        self.second = _layers(widths[1:2], widths[0])
        self.last = nn.Sequential(nn.Conv1d(*widths[1:], 1), nn.BatchNorm1d(widths[2]))
        self.head = Head(widths[2], hidden, n_classes, slope=0.0, dropout=dropout)

    def forward(self, points: Tensor) -> Tensor:
        """(B, N, 3) to (B, n_classes)."""
        x = (points - points.mean(1, keepdim=True)).mT
        x = self.align_features(self.first(self.align_points(x)))
        return self.head(self.last(self.second(x)).amax(-1))


class EdgeConv(nn.Module):
    """max_j leaky_relu(BN(W [x_j - x_i; x_i])), made from features of points as in ``edges``."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, 2 * n_in).uniform_(-1, 1) / (2 * n_in) ** 0.5)
        self.norm = nn.BatchNorm1d(n_out)

    def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
        """(C_in, B, N) and places (k, B, N) to (C_out, B, N)."""
        of_neighbour, of_centre = self.weight.chunk(2, dim=1)
        there, here = ((w @ x.flatten(1)).view(-1, *x.shape[1:]) for w in (of_neighbour, of_centre - of_neighbour))
        edges = edge_sum(there, here, neighbours)  # (C_out, k, B, N)
        normed = self.norm(edges.flatten(1).unsqueeze(0)).view_as(edges)
        return functional.leaky_relu(normed, DGCNN_SLOPE).amax(1)


class DGCNN(nn.Module):
    """Published sizes: ``widths`` 64, 64, 128, 256, ``wide`` 1024 and ``hidden`` 512, 256."""

    def __init__(
        self, n_classes: int, *, widths: tuple[int, ...] = (64, 64, 128, 256), wide: int = 1024,
        hidden: tuple[int, int] = (512, 256), n_neighbours: int = 20, dropout: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__()
        self.n_neighbours = n_neighbours
        self.edges = nn.ModuleList(EdgeConv(a, b) for a, b in pairwise((3, *widths)))
        self.wide = nn.Sequential(nn.Conv1d(sum(widths), wide, 1, bias=False), nn.BatchNorm1d(wide))
        self.head = Head(2 * wide, hidden, n_classes, slope=DGCNN_SLOPE, dropout=dropout, bias=False)

    def forward(self, points: Tensor) -> Tensor:
        """(B, N, 3) to (B, n_classes)."""
        x, depths = centred(points)[0], []
        for edge in self.edges:
            x = edge(x, nearest_neighbours(x, self.n_neighbours))
            depths.append(x)
        x = functional.leaky_relu(self.wide(torch.cat(depths).transpose(0, 1)), DGCNN_SLOPE)
        return self.head(torch.cat([x.amax(-1), x.mean(-1)], dim=1))


# --- symmetry from outside ---


def cube_rotations() -> Tensor:
    """The 24 rotations that turn a cube onto itself (24, 3, 3), float64; the identity is the first."""
    signed = [
        torch.diag(torch.tensor(signs, dtype=torch.float64))[list(order)]
        for order in permutations(range(3)) for signs in product((1.0, -1.0), repeat=3)
    ]  # fmt: skip
    return torch.stack([matrix for matrix in signed if torch.linalg.det(matrix) > 0])


class GroupAveraged(nn.Module):
    """Scores of a plain network, averaged over the rotations of a cube; it is invariant to these 24 and to no others.

    A network that was trained plainly is fine-tuned like this: ``averages`` is False while it is trained plainly, and
    in evaluation mode the scores are averaged whatever it says.
    """

    rotations: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.averages = network, False
        self.register_buffer("rotations", cube_rotations(), persistent=False)

    def forward(self, points: Tensor) -> Tensor:
        """(B, N, 3) to (B, n_classes)."""
        if self.training and not self.averages:
            return self.network(points)
        return torch.stack([self.network(points @ matrix.mT) for matrix in self.rotations.to(points)]).mean(0)


class Canonicalised(nn.Module):
    """A plain network that sees every cloud in a frame of its own, which a small vector-neuron network finds.

    The frame is the Gram-Schmidt basis of two vectors, with their cross product, so that it turns with the cloud. No
    prior on the frames: where all training shapes stand anyhow, no orientation is to be preferred.
    """

    def __init__(self, network: nn.Module, *, channels: tuple[int, int] = (8, 16), n_neighbours: int = 20) -> None:
        super().__init__()
        self.network, self.n_neighbours = network, n_neighbours
        self.edge = EdgeActivation(1, channels[0], slope=DGCNN_SLOPE)
        self.point = VectorActivation(*channels, slope=DGCNN_SLOPE)
        self.frame = VectorLinear(channels[1], 2)

    def forward(self, points: Tensor) -> Tensor:
        """(B, N, 3) to (B, n_classes)."""
        points = points - points.mean(1, keepdim=True)
        return self.network(points @ self.frames(points))

    def frames(self, points: Tensor) -> Tensor:
        """Rotation matrices (B, 3, 3) whose columns are the axes."""
        x = centred(points)
        x = self.edge(x, nearest_neighbours(x, self.n_neighbours)).mean(2)
        first, second = self.frame(self.point(x).mean(-1)).permute(0, 2, 1)  # (B, 3) each
        first = functional.normalize(first, dim=1, eps=SMALLEST_LENGTH)
        second = second - (first * second).sum(1, keepdim=True) * first
        second = functional.normalize(second, dim=1, eps=SMALLEST_LENGTH)
        return torch.stack([first, second, torch.linalg.cross(first, second)], dim=2)
