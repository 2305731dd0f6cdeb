"""EGNN (Satorras, Hoogeboom, Welling, ICML 2021, arXiv 2102.09844): the plain baseline of the N-body benchmark.

With invariant features h and distances d a layer is (their eqs. 3 to 6, with velocities)

    m_ij = phi_e(h_i, h_j, d_ij^2, q_i q_j)        v_i <- phi_v(h_i) v_i + mean_j (x_i - x_j) phi_x(m_ij)
    x_i <- x_i + v_i                                h_i <- h_i + phi_h(h_i, sum_j m_ij)

It starts from h = Linear(speed) and is exactly equivariant by construction, without tensor products.
"""

import torch
from torch import Tensor, nn

from mdrelax.potentials.adjacency import Adjacency, fully_connected

__all__ = ["EGNN"]

SMALLEST_GAIN = 0.001  # of the coordinate network's last layer initially, as published


class EGNNLayer(nn.Module):
    """One round of messages."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.edge = nn.Sequential(nn.Linear(2 * width + 2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.coordinate = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1, bias=False))
        self.velocity = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
        self.node = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))
        nn.init.xavier_uniform_(self.coordinate[-1].weight, gain=SMALLEST_GAIN)  # type: ignore[arg-type]

    def forward(self, h: Tensor, x: Tensor, v: Tensor, charges: Tensor, edges: Adjacency) -> tuple[Tensor, Tensor]:
        """Map features (N, W) and positions (N, 3) of one layer to those of the next; v are the initial velocities."""
        apart = edges.at_target(x) - edges.at_source(x)
        pair = [edges.at_target(h), edges.at_source(h), apart.square().sum(1, keepdim=True), charges]
        messages = self.edge(torch.cat(pair, dim=1))
        pull = edges.sum_at_target(apart * self.coordinate(messages)) / edges.edges_per_atom
        x = x + self.velocity(h) * v + pull
        return h + self.node(torch.cat([h, edges.sum_at_target(messages)], dim=1)), x


class EGNN(nn.Module):
    """Displacements (M, n, 3) of fully connected systems of charged particles."""

    def __init__(self, *, width: int = 64, n_layers: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Linear(1, width)
        self.layers = nn.ModuleList(EGNNLayer(width) for _ in range(n_layers))

    def forward(self, positions: Tensor, velocities: Tensor, charges: Tensor) -> Tensor:
        """``charges`` is (M, n), the rest (M, n, 3)."""
        edges = fully_connected(positions.shape[0], positions.shape[1], positions[0])
        x, v, q = positions.flatten(0, 1), velocities.flatten(0, 1), charges.flatten()
        products = (edges.at_source(q) * edges.at_target(q)).unsqueeze(1)
        start, h = x, self.embedding(v.norm(dim=1, keepdim=True))
        for layer in self.layers:
            h, x = layer(h, x, v, products, edges)
        return (x - start).view_as(positions)
