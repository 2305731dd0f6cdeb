"""Networks of the smoke task by name, and their sizes.

| preset | rotation set | scale set |
| --- | --- | --- |
| published | 92 regular fibres of C_4, 5 layers, 3 x 3 | 64 channels at scales 1, 1.5, 2, 2.5, 5 layers, 5 x 5 |
| small | 12 fibres, 5 layers | 12 channels, 5 layers |
| tiny | 4 fibres, 3 layers | 4 channels at scales 1 and 2, 3 layers |

Plain convolutions are as wide as the features of the others (n fibres are n |G| channels, or n at each scale).
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

from torch import nn

from mdrelax.base.names import nearest_name
from mdrelax.packs.smoke.networks import LiftNetwork, PixelNetwork, plain_network, scale_network, steerable_network

__all__ = ["ALPHA", "NETWORKS", "GroupName", "NetworkName", "Preset", "build_network"]

NetworkName = Literal["mlp", "conv", "equiv", "rpp", "lift", "rsteer"]
GroupName = Literal["C4", "C8", "scale"]
Preset = Literal["published", "small", "tiny"]
NETWORKS: tuple[NetworkName, ...] = get_args(NetworkName)
ALPHA = {"rpp": 1e-6, "rsteer": 1e-5}  # of the constraints; RSteer's on the scale set is 1e-6


class Size(NamedTuple):
    """Of all networks of a preset."""

    hidden: int  # fibres
    n_layers: int
    pixels: int  # width of the MLP and of Lift's encoder
    scales: tuple[float, ...] = (1.0, 1.5, 2.0, 2.5)


ROTATION: Mapping[str, Size] = {"published": Size(92, 5, 512), "small": Size(12, 5, 128), "tiny": Size(4, 3, 24)}
SCALE: Mapping[str, Size] = {
    "published": Size(64, 5, 512), "small": Size(12, 5, 128), "tiny": Size(4, 3, 24, (1.0, 2.0)),
}  # fmt: skip


def build_network(
    name: str, preset: str, group: str, *, n_in: int, size: tuple[int, int], norm: bool = True
) -> nn.Module:
    """An untrained network, its weights drawn from torch's generator.

    Args:
        name: ``mlp``, ``conv``, ``equiv``, ``rpp``, ``lift`` or ``rsteer``.
        preset: ``published``, ``small`` or ``tiny``.
        group: The symmetry that is built in or deviated from: ``C4``, ``C8`` or ``scale``.
        n_in: Number of frames that the network sees.
        size: (H, W) of the grid, which ``mlp`` and ``lift`` depend on.
        norm: Batch norms in ``conv``, ``equiv`` and ``rpp``, as published for the rotation set.

    Raises ``ValueError`` for an unknown name, and for ``lift`` with scalings, which the published one lacks too.
    """
    for what, given, known in (
        ("network", name, NETWORKS), ("preset", preset, get_args(Preset)), ("group", group, get_args(GroupName)),
    ):  # fmt: skip
        if given not in known:
            raise ValueError(f"There is no {what} `{given}`; {nearest_name(given, known)}")
    own = (SCALE if group == "scale" else ROTATION)[preset]
    n = 8 if group == "C8" else 4
    if name == "mlp":
        return PixelNetwork(n_in, size, hidden=own.pixels, n_layers=own.n_layers)
    common: dict[str, Any] = {"hidden": own.hidden, "kernel_size": 5 if group == "scale" else 3}
    if name == "lift":
        if group == "scale":
            raise ValueError("There is no network `lift` for scalings; choose mlp, conv, equiv, rpp or rsteer.")
        return LiftNetwork(n_in, size, encoder=own.pixels, n=n, **common)
    common["n_layers"] = own.n_layers
    if name == "conv":
        width = own.hidden * (len(own.scales) if group == "scale" else n)
        return plain_network(n_in, norm=norm and group != "scale", **{**common, "hidden": width})
    if group == "scale":
        alpha = 1e-6 if name == "rsteer" else ALPHA.get(name, 0.0)
        return scale_network(name, n_in, scales=own.scales, alpha=alpha, **common)
    return steerable_network(name, n_in, n=n, norm=norm, alpha=ALPHA.get(name, 0.0), **common)
