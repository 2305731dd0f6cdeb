"""The N-body form of SEGNN (Brandstetter et al., ICLR 2022, arXiv 2110.02905); the trunk is ``potentials.segnn``."""

import torch
from torch import Tensor, nn

from mdrelax.base import o3
from mdrelax.potentials.adjacency import fully_connected
from mdrelax.potentials.attributes import INTEGRAL
from mdrelax.potentials.segnn import RELAXED_PLACES, SEGNN
from mdrelax.potentials.steerable import SphericalHarmonics

__all__ = ["NBodySEGNN"]

SMALLEST_SPEED = 1e-12  # a particle at rest has no direction


class NBodySEGNN(nn.Module):
    """The published N-body network: the displacement of every particle of fully connected systems.

    Node input: position from the system's centre, velocity, speed. Edge invariants: distance, product of the charges.
    Node attribute: mean of the incoming edges' harmonics plus the velocity's. Positions are centred over the particles
    of each system (the published code averages over x, y and z, and is not equivariant).
    """

    relax_where = RELAXED_PLACES

    def __init__(self, *, channels: int = 32, n_layers: int = 4, lmax: int = 1, lmax_attribute: int = 1) -> None:
        super().__init__()
        self.harmonics = SphericalHarmonics(lmax_attribute)
        self.segnn = SEGNN(
            o3.Irreps("1x0e+2x1o"), o3.Irreps("1x1o"), channels=channels, lmax=lmax, lmax_attribute=lmax_attribute,
            n_layers=n_layers, n_invariants=2,
        )  # fmt: skip

    def forward(self, positions: Tensor, velocities: Tensor, charges: Tensor) -> Tensor:
        """Displacements (M, n, 3) of M systems of n particles; ``charges`` is (M, n), the rest (M, n, 3)."""
        n_systems, n_particles, _ = positions.shape
        edges = fully_connected(n_systems, n_particles, positions[0])
        x, v, q = positions.flatten(0, 1), velocities.flatten(0, 1), charges.flatten()
        vectors = edges.at_source(x) - edges.at_target(x)
        distances, speeds = vectors.norm(dim=1, keepdim=True), v.norm(dim=1, keepdim=True)
        of_edge = INTEGRAL * self.harmonics(vectors / distances)
        of_velocity = INTEGRAL * self.harmonics(v / speeds.clamp(min=SMALLEST_SPEED))
        of_node = edges.sum_at_target(of_edge) / (n_particles - 1) + of_velocity
        invariants = torch.cat([distances, (edges.at_source(q) * edges.at_target(q)).unsqueeze(1)], dim=1)
        centred = (positions - positions.mean(1, keepdim=True)).flatten(0, 1)
        inputs = (speeds.unsqueeze(2), torch.stack([centred, v], dim=2))
        edge_features = self.segnn.edge_features(edges, of_edge, invariants)
        (displacement,) = self.segnn(inputs, of_node, self.segnn.gathers(edge_features))
        return displacement.view(n_systems, n_particles, 3)
