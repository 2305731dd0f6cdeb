"""Networks of the point-cloud task by name, and their sizes.

| network | published | small | tiny |
| --- | --- | --- | --- |
| vn-pointnet | 21, 42, 341 vectors | 12, 24, 96 | 6, 8, 16 |
| vn-dgcnn | 21, 21, 42, 85, 341 | 12, 12, 24, 48, 96 | 6, 6, 8, 12, 16 |
| pointnet, dgcnn | as published | about as many numbers per point as the vector neurons | the same |

A comparator wraps the plain network that a vector-neuron network was made from.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from torch import nn

from mdrelax.base.names import nearest_name
from mdrelax.packs.modelnet.networks import VNDGCNN, VNPointNet
from mdrelax.packs.modelnet.plain_networks import DGCNN, Canonicalised, GroupAveraged, PointNet

__all__ = ["COMPARATORS", "NETWORKS", "PLAIN_FORM", "SIZES", "NetworkName", "Preset", "build_network"]

NetworkName = Literal["vn-pointnet", "vn-dgcnn"]
Preset = Literal["published", "small", "tiny"]
Sizes = Mapping[str, Mapping[str, Any]]

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "vn-pointnet": VNPointNet, "vn-dgcnn": VNDGCNN, "pointnet": PointNet, "dgcnn": DGCNN,
}  # fmt: skip
PLAIN_FORM = {"vn-pointnet": "pointnet", "vn-dgcnn": "dgcnn"}
COMPARATORS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda network: network, "equi-tuning": GroupAveraged, "equiv-adapt": Canonicalised,
}  # fmt: skip
SIZES: dict[str, Sizes] = {
    "vn-pointnet": {
        "published": {},
        "small": {"channels": (12, 24, 96), "hidden": (128, 64)},
        "tiny": {"channels": (6, 8, 16), "hidden": (32, 16), "n_neighbours": 12},
    },
    "vn-dgcnn": {
        "published": {},
        "small": {"channels": (12, 12, 24, 48), "wide": 96, "hidden": (128, 64)},
        "tiny": {"channels": (6, 6, 8, 12), "wide": 16, "hidden": (32, 16), "n_neighbours": 12},
    },
    "pointnet": {
        "published": {},
        "small": {"widths": (36, 72, 288), "hidden": (128, 64)},
        "tiny": {"widths": (18, 24, 48), "hidden": (32, 16)},
    },
    "dgcnn": {
        "published": {},
        "small": {"widths": (36, 36, 72, 144), "wide": 288, "hidden": (128, 64)},
        "tiny": {"widths": (18, 18, 24, 36), "wide": 48, "hidden": (32, 16), "n_neighbours": 12},
    },
}


def build_network(name: str, preset: str, n_classes: int, *, comparator: str | None = None) -> nn.Module:
    """A network with weights from torch's generator; raises ``ValueError`` for an unknown name or preset.

    With a ``comparator`` it is the plain form of ``name`` in that wrapper.
    """
    if name not in NETWORKS:
        raise ValueError(f"There is no network `{name}`; {nearest_name(name, NETWORKS)}")
    if preset not in get_args(Preset):
        raise ValueError(f"There is no preset `{preset}`; {nearest_name(preset, get_args(Preset))}")
    if comparator is None:
        return NETWORKS[name](n_classes, **SIZES[name][preset])
    if comparator not in COMPARATORS:
        raise ValueError(f"There is no comparator `{comparator}`; {nearest_name(comparator, COMPARATORS)}")
    plain = PLAIN_FORM.get(name, name)
    return COMPARATORS[comparator](NETWORKS[plain](n_classes, **SIZES[plain][preset]))
