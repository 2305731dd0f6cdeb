"""Sites: the layers of a network to which a free map can be added.

A layer of our own declares its site in a method ``relaxable()``; for layers of other packages the table ``SITES``
has a rule by type. To relax a layer of yours, do one or the other:

    SITES[VectorNeuron] = lambda layer: Site(
        IrrepsRepresentation(f"{layer.n_in}x1o", "mul_ir"), IrrepsRepresentation(f"{layer.n_out}x1o", "mul_ir"),
        view=AxesView(channels=1, components=2),
    )
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from mdrelax.base import o3
from mdrelax.method.free_maps import FLAT, AxesView, FeatureView, FreeFunction, FreeLinear, fibre_axes
from mdrelax.method.groups import IrrepsRepresentation, Layout, Representation

__all__ = ["SITES", "Site", "irreps_site", "relaxable_sites"]


@dataclass(frozen=True)
class Site:
    """The representations between which a free map acts, and the views of the layer's first argument and result."""

    source: Representation
    output: Representation
    view: FeatureView = FLAT
    make_free: Callable[..., FreeFunction] = FreeLinear  # called as make_free(source, output)

    @property
    def is_trivial(self) -> bool:
        """True if every map is equivariant here: the group acts on neither side."""
        return self.source.is_trivial and self.output.is_trivial


def irreps_site(irreps_in: o3.Irreps, irreps_out: o3.Irreps, layout: Layout) -> Site:
    """The site of a layer between irreps, whose features are flat or one tensor per irrep."""
    return Site(IrrepsRepresentation(irreps_in, layout), IrrepsRepresentation(irreps_out, layout))


def _linear(layer: Any) -> Site:
    """e3nn's ``Linear``; with ``f_in`` and ``f_out`` features are (..., f, dim), and both last axes are mapped."""
    axes = fibre_axes(layer)
    if axes is None:
        return irreps_site(layer.irreps_in, layer.irreps_out, "mul_ir")
    sides = (axes[0] * list(layer.irreps_in), axes[1] * list(layer.irreps_out))
    source, output = (IrrepsRepresentation(o3.Irreps(side), "mul_ir") for side in sides)
    return Site(source, output, view=AxesView(channels=-2, components=-1))


def _product(layer: Any) -> Site:
    """e3nn's ``TensorProduct`` and its subclasses: the free map reads the first of the two inputs."""
    return irreps_site(layer.irreps_in1, layer.irreps_out, "mul_ir")


SITES: dict[type[nn.Module], Callable[[Any], Site | None]] = {o3.Linear: _linear, o3.TensorProduct: _product}


def relaxable_sites(model: nn.Module) -> dict[str, Site]:
    """Every submodule with weights of its own that may be relaxed, by name; layers that are given their weights in each
    call have none.

    The model itself is not included: a relaxed layer replaces a child of its parent module.
    """
    found = {name: _site(module) for name, module in model.named_modules() if name}
    return {name: site for name, site in found.items() if site is not None}


def _site(module: nn.Module) -> Site | None:
    if next(module.parameters(), None) is None:
        return None
    declared: Callable[[nn.Module], Site | None] | None = getattr(type(module), "relaxable", None)
    rule = declared or next((SITES[kind] for kind in type(module).__mro__ if kind in SITES), None)
    return None if rule is None else rule(module)
