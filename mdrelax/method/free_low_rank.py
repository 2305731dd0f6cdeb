"""A free map of low rank, W = U V^T, for layers whose dense W would be too large.

The default places of SevenNet-0 hold ten times as many dense free parameters as the network has parameters.
"""

import torch
from torch import Tensor, nn

from mdrelax.method.free_maps import FreeMatrix
from mdrelax.method.groups import Representation

__all__ = ["FreeLowRank"]


class FreeLowRank(FreeMatrix):
    """W = U V^T of a given rank, for layers whose dense W would be too large."""

    def __init__(self, source: Representation, output: Representation, *, rank: int) -> None:
        super().__init__(source, output)
        self.up = nn.Parameter(torch.zeros(output.dim, rank, dtype=torch.float32))  # U
        self.down = nn.Parameter(torch.zeros(source.dim, rank, dtype=torch.float32))  # V

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim_in) to (..., dim_out); W itself is not formed."""
        return (x @ self.down) @ self.up.T

    def matrix(self) -> Tensor:
        """U V^T."""
        return self.up @ self.down.T

    @torch.no_grad()
    def reset(self, std: float, generator: torch.Generator | None = None) -> None:
        """V of columns of length about 1, and U so that entries of W have the standard deviation ``std``."""
        dim_in, rank = self.down.shape
        self.down.normal_(std=dim_in**-0.5, generator=generator)
        self.up.normal_(std=std * (dim_in / rank) ** 0.5, generator=generator)
