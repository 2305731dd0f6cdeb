"""Networks that predict the next frame of a flow: (B, 2 n_in, H, W), frame by frame, to (B, 2, H, W).

    frames -> convolution -> [norm] -> ReLU -> ... -> convolution -> velocity

| network | convolutions | exactly symmetric |
| --- | --- | --- |
| ``mlp`` | none: all pixels at once | no |
| ``conv`` | plain | no |
| ``equiv`` | steerable, or scale-steerable | yes (quarter turns) |
| ``rpp`` | the same with a free, small residual | no |
| ``lift`` | steerable, with features of an encoder without symmetry | no |
| ``rsteer`` | steerable with weights that vary over the kernel | no |

As published (Wang, Walters, Yu, ICML 2022, arXiv 2201.11969), apart from the constants of initialisation, and without
the unused norms of the published RSteer. The frames are vectors of the plane, not pairs of numbers: a rotation turns
both the grid and the components.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdrelax.method.groups import FiniteRepresentation, cyclic_regular
from mdrelax.packs.smoke.convolution import KernelConv, PlainConv
from mdrelax.packs.smoke.scale import RelaxedScaleConv, ResidualScaleConv, ScaleConv
from mdrelax.packs.smoke.steerable import RelaxedSteerableConv, ResidualConv, SteerableConv
from mdrelax.packs.smoke.steerable_kernels import flow_vectors

__all__ = ["ConvNetwork", "FibreNorm", "LiftNetwork", "PixelNetwork", "plain_network", "scale_network",
           "steerable_network"]  # fmt: skip

Layer = Callable[..., KernelConv]


class FibreNorm(nn.Module):
    """Batch norm whose statistics are shared by the entries of a fibre: exact for regular fibres."""

    def __init__(self, fibres: FiniteRepresentation) -> None:
        super().__init__()
        self.channels, self.norm = fibres.channels, nn.BatchNorm2d(fibres.channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C d, H, W) to the same form."""
        return self.norm(x.view(len(x), self.channels, -1, x.shape[-1])).view_as(x)


class ConvNetwork(nn.Module):
    """Layers with a norm (or none) and a ReLU after all but the last."""

    def __init__(self, layers: Sequence[KernelConv], norms: Sequence[nn.Module], *, alpha: float, claims: str) -> None:
        super().__init__()
        self.layers, self.norms = nn.ModuleList(layers), nn.ModuleList(norms)
        self.alpha, self.claims = alpha, claims

    def forward(self, x: Tensor) -> Tensor:
        """The next frame."""
        *hidden, last = self.layers
        for k, layer in enumerate(hidden):
            x = layer(x)
            x = functional.relu_(self.norms[k](x) if len(self.norms) else x)
        return last(x)

    def constraint(self) -> Tensor:
        """alpha times the sum of the layers' constraints, a part of the loss."""
        terms = [layer.constraint() for layer in self.layers]  # type: ignore[operator]
        given = [term for term in terms if term is not None]
        return self.alpha * torch.stack(given).sum() if given else torch.zeros(())


class LiftNetwork(nn.Module):
    """A steerable network with features that an encoder finds in the whole input, without symmetry, at every pixel."""

    claims = "none"
    alpha = 0.0

    def __init__(
        self, n_in: int, size: tuple[int, int], *, hidden: int, encoder: int, kernel_size: int, n: int
    ) -> None:
        super().__init__()
        added = max(hidden // 4, 1)
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(2 * n_in * size[0] * size[1], encoder), nn.BatchNorm1d(encoder), nn.ReLU(),
            nn.Linear(encoder, encoder), nn.BatchNorm1d(encoder), nn.ReLU(), nn.Linear(encoder, added * n),
        )  # fmt: skip
        sides = [cyclic_regular(n, hidden)] * 4
        first = [flow_vectors(n, n_in), *sides[:2]]
        second = [cyclic_regular(n, hidden + added), *sides[2:], flow_vectors(n)]
        self.layers = nn.ModuleList(SteerableConv(a, b, kernel_size) for a, b in (*pairwise(first), *pairwise(second)))
        self.norms = nn.ModuleList(FibreNorm(side) for side in sides)

    def forward(self, x: Tensor) -> Tensor:
        """The next frame."""
        lifted = self.encoder(x)[:, :, None, None].expand(-1, -1, *x.shape[-2:])
        for k, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=False)):
            x = functional.relu_(norm(layer(torch.cat([x, lifted], dim=1) if k == 2 else x)))
        return self.layers[-1](x)

    def constraint(self) -> Tensor:
        """None: 0."""
        return torch.zeros(())


class PixelNetwork(nn.Module):
    """A perceptron over all pixels of all frames."""

    claims = "none"
    alpha = 0.0

    def __init__(self, n_in: int, size: tuple[int, int], *, hidden: int, n_layers: int) -> None:
        super().__init__()
        self.size = size
        n_pixels = size[0] * size[1]
        widths = [2 * n_in * n_pixels, *[hidden] * (n_layers - 1)]
        blocks = [nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()) for a, b in pairwise(widths)]
        self.layers = nn.Sequential(nn.Flatten(), *blocks, nn.Linear(hidden, 2 * n_pixels))

    def forward(self, x: Tensor) -> Tensor:
        """The next frame; raises ``ValueError`` for another grid than the network was made for."""
        if tuple(x.shape[-2:]) != self.size:
            raise ValueError(f"This network was made for grids of {self.size}, got {tuple(x.shape[-2:])}.")
        return self.layers(x).view(len(x), 2, *self.size)

    def constraint(self) -> Tensor:
        """None: 0."""
        return torch.zeros(())


def plain_network(n_in: int, *, hidden: int, n_layers: int, kernel_size: int, norm: bool) -> ConvNetwork:
    """``conv``: plain convolutions, ``hidden`` channels wide."""
    widths = [2 * n_in, *[hidden] * (n_layers - 1)]
    layers = [PlainConv(a, b, kernel_size) for a, b in pairwise(widths)]
    norms = [nn.BatchNorm2d(hidden) for _ in layers] if norm else []
    return ConvNetwork([*layers, PlainConv(hidden, 2, kernel_size, before_relu=False)], norms, alpha=0.0, claims="none")


STEERABLE: dict[str, Layer] = {"equiv": SteerableConv, "rpp": ResidualConv, "rsteer": RelaxedSteerableConv}
SCALED: dict[str, Layer] = {"equiv": ScaleConv, "rpp": ResidualScaleConv, "rsteer": RelaxedScaleConv}


def steerable_network(
    kind: str, n_in: int, *, hidden: int, n_layers: int, kernel_size: int, n: int, norm: bool, alpha: float
) -> ConvNetwork:
    """``equiv``, ``rpp`` or ``rsteer`` for C_n, with ``hidden`` regular fibres."""
    sides = [flow_vectors(n, n_in), *[cyclic_regular(n, hidden)] * (n_layers - 1), flow_vectors(n)]
    make = partial(STEERABLE[kind], kernel_size=kernel_size)
    layers = [make(a, b, before_relu=k < n_layers - 1) for k, (a, b) in enumerate(pairwise(sides))]
    norms: list[nn.Module] = []
    if norm and kind == "equiv":
        norms = [FibreNorm(side) for side in sides[1:-1]]
    elif norm and kind == "rpp":
        norms = [nn.BatchNorm2d(side.dim) for side in sides[1:-1]]
    return ConvNetwork(layers, norms, alpha=alpha, claims="C4" if kind == "equiv" else "none")


def scale_network(
    kind: str, n_in: int, *, hidden: int, n_layers: int, kernel_size: int, scales: tuple[float, ...], alpha: float
) -> ConvNetwork:
    """``equiv``, ``rpp`` or ``rsteer`` for scalings; symmetric up to the grid, so that nothing is claimed."""
    make = partial(SCALED[kind], kernel_size=kernel_size)
    layers = [
        make(2 * n_in, hidden, scales=scales, lifts=True),
        *(make(hidden, hidden, scales=scales) for _ in range(n_layers - 2)),
        make(hidden, 2, scales=(1.0,), before_relu=False),
    ]
    return ConvNetwork(layers, [], alpha=alpha, claims="none")
