"""potentials: the networks that predict per-atom energies, by name, and their presets.

| name | paper |
| --- | --- |
| equiformer | Liao & Smidt, ICLR 2023, arXiv 2206.11990 |
| segnn | Brandstetter et al., ICLR 2022, arXiv 2110.02905 |
| equiformer-pytorch | the library of that name, adapted for molecular dynamics; imported on demand |

A preset is a set of arguments; `md17` is the published MD17 configuration (L = 2, SE(3)), `small` and `tiny` are E(3)
networks sized for a few CPU cores. The N-body form of SEGNN is not a potential; see ``mdrelax.packs.nbody``.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from mdrelax.base.names import nearest_name
from mdrelax.base.sections import Section
from mdrelax.forces.potential import Potential
from mdrelax.potentials.arguments import section_of
from mdrelax.potentials.equiformer import Equiformer
from mdrelax.potentials.segnn import SEGNNPotential

__all__ = [
    "POTENTIALS",
    "PRESETS",
    "Equiformer",
    "SEGNNPotential",
    "arguments_section",
    "build_potential",
    "preset",
    "resolved_arguments",
]


def _equiformer_pytorch() -> type[Potential]:
    """The adapter, imported on demand, because its library is slow to import."""
    from mdrelax.potentials.equiformer_pytorch import EquiformerPytorch

    return EquiformerPytorch


POTENTIALS: dict[str, Callable[[], type[Potential]]] = {
    "equiformer": lambda: Equiformer,
    "segnn": lambda: SEGNNPotential,
    "equiformer-pytorch": _equiformer_pytorch,
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "equiformer": {
        "tiny": {
            "irreps": "32x0e+16x1o+8x2e",
            "n_blocks": 2,
            "nonlinear_messages": False,
            "expansion": 2,
            "n_features": 64,
            "radial_basis": "bessel",
            "n_basis": 8,
        },
        "small": {
            "irreps": "64x0e+32x1o+16x2e",
            "n_blocks": 3,
            "nonlinear_messages": False,
            "expansion": 2,
            "n_features": 128,
            "radial_basis": "bessel",
            "n_basis": 8,
        },
        "md17": {
            "irreps": "128x0e+64x1e+32x2e",
            "n_blocks": 6,
            "nonlinear_messages": True,
            "expansion": 3,
            "n_features": 512,
            "radial_basis": "expnormal",
            "n_basis": 32,
        },
    },
    "segnn": {
        "tiny": {"channels": 32, "lmax": 1, "n_layers": 3, "n_basis": 8},
        "small": {"channels": 48, "lmax": 1, "lmax_attribute": 2, "n_layers": 3, "n_basis": 8},
    },
    "equiformer-pytorch": {
        "tiny": {"dim": [32, 16, 8], "depth": 2, "heads": 4, "dim_head": [8, 4, 2], "radial_hidden": 32, "n_basis": 8},
        "small": {
            "dim": [64, 32, 16],
            "depth": 3,
            "heads": 4,
            "dim_head": [16, 8, 4],
            "radial_hidden": 64,
            "n_basis": 8,
        },
    },
}


def preset(potential: str, name: str) -> dict[str, Any]:
    """The arguments of a preset; raises ``ValueError`` naming the nearest known one."""
    known = PRESETS[_known(potential)]
    if name not in known:
        raise ValueError(f"`{potential}` has no preset `{name}`; {nearest_name(name, known)}")
    return dict(known[name])


def resolved_arguments(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a network, defaults included, so that a file that stores them survives changes of defaults.

    Raises ``ValueError`` for an unknown name.
    """
    parameters = inspect.signature(_network_class(name)).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
    return {**defaults, **arguments}


def arguments_section(name: str) -> type[Section]:
    """The arguments of a network as a typed section with a sentence per key; raises ``ValueError`` for its name."""
    return section_of(_network_class(name))


def build_potential(name: str, n_species: int, arguments: Mapping[str, Any]) -> Potential:
    """The network ``name`` for ``n_species`` elements; raises ``ValueError`` for unknown names and bad arguments."""
    network = _network_class(name)
    try:
        return network(n_species, **arguments)
    except TypeError as error:  # an unknown argument, or one of the wrong type
        raise ValueError(f"The potential `{name}` cannot be built: {error}.") from error


def _network_class(name: str) -> type[Potential]:
    return POTENTIALS[_known(name)]()


def _known(name: str) -> str:
    if name not in POTENTIALS:
        raise ValueError(f"There is no potential `{name}`; {nearest_name(name, POTENTIALS)}")
    return name
