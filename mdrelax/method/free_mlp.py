"""A free function that is not linear: the perceptron that ACE puts next to the products of its N-body network.

    m(x) = A_3 gelu(A_2 gelu(A_1 x + b_1) + b_2) + b_3

| term of the penalty | means over rows x |
| --- | --- |
| N | ||m(x)||^2 |
| LD | sum_A ||drho_out(A) m(x) - J_m(x) drho_in(A) x||^2, J_m the Jacobian of m |

The elements of finite groups and the inversion are included as ||rho_out(g) m(x) - m(rho_in(g) x)||^2. There is no
closed form without inputs, and no nearest equivariant layer to fold: projection drops m.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import jvp

from mdrelax.method.free_maps import FreeFunction, Sample, Sizes, Terms, rows_of
from mdrelax.method.groups import Representation

__all__ = ["FreeMLP"]


class FreeMLP(FreeFunction):
    """Three layers on vectors (..., dim); the hidden ones are as wide as the result."""

    def __init__(self, source: Representation, output: Representation) -> None:
        super().__init__()
        self.source, self.output = source, output
        width = output.dim
        layers = [
            nn.Linear(*size, dtype=torch.float32) for size in ((source.dim, width), (width, width), (width, width))
        ]
        self.layers = nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim_in) to (..., dim_out)."""
        return self.layers(x)

    @torch.no_grad()
    def reset(self, std: float, generator: torch.Generator | None = None) -> None:
        """Hidden matrices that keep the size of features, a last one of entries ``std``; biases are zero."""
        linears = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        for linear in linears:
            linear.weight.normal_(std=linear.in_features**-0.5, generator=generator)
            linear.bias.zero_()
        linears[-1].weight.mul_(std * linears[-1].in_features ** 0.5)

    def penalty_terms(self, inputs: Sequence[Tensor] | None = None, *, rows: int | Sample | None = None) -> Terms:
        """Means over rows; raises ``ValueError`` without inputs."""
        if inputs is None:
            raise ValueError(
                "A free perceptron has no penalty in closed form, got kind='weight': use kind='activation', or linear "
                "free maps."
            )
        x = rows_of(inputs, rows)
        image = self(x)
        changes = [
            derived - jvp(self.layers, (x,), (moved,))[1]
            for derived, moved in zip(self.output.lie(image), self.source.lie(x), strict=True)
        ]
        turned = zip(self.output.elements(image), self.source.elements(x), strict=True)
        changes += [there - self(moved) for there, moved in turned]
        n_rows = max(len(x), 1)
        return Terms(torch.stack(changes).square().sum() / n_rows, image.square().sum() / n_rows)

    def sizes(self) -> Sizes:
        """The norm of all parameters, for all three: projection removes all of it."""
        norm = torch.cat([parameter.detach().double().flatten() for parameter in self.parameters()]).norm().item()
        return Sizes(norm, norm, norm, [])

    def fold_into(self, layer: nn.Module, theta: float) -> bool:
        """Never: no layer represents it."""
        return False
