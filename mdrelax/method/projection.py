"""Projection: from the relaxed network back to an exactly equivariant one.

`drop` removes the free maps (theta = 0). `fold` first adds theta P(W), the nearest equivariant map to the free one, to
layers that can represent a linear map; other layers drop theirs. Both restore the original modules, parameter names
and speed. `keep` leaves the free maps where they are and only records them: the network stays relaxed at its theta, for
data that are only nearly symmetric. The record of each layer states

    ||W||      ||W - P(W)||  <=  sqrt(LD(W) / 2)      the symmetry spectrum ||W_J||^2

and goes into the network's certificate (``mdrelax.method.certificate``).
"""

import copy
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar, get_args

from torch import nn

from mdrelax.base.names import nearest_name
from mdrelax.method.references import shares_parameters
from mdrelax.method.relaxation import Relaxed, relaxed_layers, replace_module, theta_of

__all__ = [
    "LayerRecord",
    "ProjectionKind",
    "project",
    "projected_copy",
]

ProjectionKind = Literal["drop", "fold", "keep"]
Model = TypeVar("Model", bound=nn.Module)


class LayerRecord(NamedTuple):
    """The size and symmetry of one layer's free map when it was projected."""

    name: str
    norm: float  # ||W||
    distance: float  # ||W - P(W)||
    bound: float  # sqrt(LD(W) / 2), never below the distance (of finite groups: for C_n up to n = 4)
    spectrum: list[float]  # ||W_J||^2, J = 0, 1, ...; of C_n ||W_f||^2, f = 0 .. n/2; empty if W is not linear
    theta: float  # or the gamma of a controller
    how: str  # "dropped", "folded" or "kept"


def project(model: nn.Module, *, how: ProjectionKind = "drop") -> list[LayerRecord]:
    """Remove the free maps of a model in place; its modules and parameters are those it had before relaxation.

    Args:
        model: Any model; one without free maps is not changed.
        how: ``drop`` sets theta = 0 (Pertigkiozoglou et al., NeurIPS 2024). ``fold`` first adds theta P(W), the nearest
            equivariant map in Frobenius norm, to layers that can represent one: e3nn's ``Linear``, and layers with a
            method ``fold`` (see ``FreeLinear`` and ``FreeConv2d``), unless their weights are another layer's too.
            ``keep`` returns the records and removes nothing.

    Returns a record for each relaxed layer. Raises ``ValueError`` for another ``how``.

    >>> import torch
    >>> from torch import nn
    >>> from mdrelax import project, relax_constraints, set_theta
    >>> from mdrelax.base import o3
    >>> model = nn.Sequential(o3.Linear("1o", "1o"))
    >>> _ = nn.init.ones_(model[0].weight)
    >>> relax_constraints(model).names
    ['0']
    >>> model[0].free.weight.data = torch.diag(torch.tensor([1.0, 0, 0]))  # P(W) = 1 / 3
    >>> set_theta(model, 0.6)
    >>> (record,) = project(model, how="fold")
    >>> record.how, round(record.norm, 3), round(record.distance, 3), [round(square, 3) for square in record.spectrum]
    ('folded', 1.0, 0.816, [0.333, 0.0, 0.667])
    >>> f"{model[0].weight.item():.3f}"  # 1 + 0.6 / 3
    '1.200'
    """
    if how not in get_args(ProjectionKind):
        raise ValueError(f"Unknown projection `{how}`; {nearest_name(how, get_args(ProjectionKind))}")
    if how == "keep":
        return [_record(name, layer, "kept") for name, layer in relaxed_layers(model).items()]
    records = []
    for name, layer in relaxed_layers(model).items():
        theta = theta_of(layer)
        can = how == "fold" and theta != 0 and not shares_parameters(model, layer.layer)
        folded = can and layer.free.fold_into(layer.layer, theta)
        records.append(_record(name, layer, "folded" if folded else "dropped"))
        replace_module(model, layer, layer.layer)
    return records


def projected_copy(
    model: Model, *, how: ProjectionKind = "drop", prepare: Callable[[Model], object] = lambda twin: None
) -> tuple[Model, list[LayerRecord]]:
    """A projected copy in evaluation mode, and the records of its layers; the model itself is not changed.

    Args:
        model: Any model.
        how: As in ``project``.
        prepare: Called with the copy before its projection, for instance to put averaged weights into it.

    Raises ``ValueError`` for another ``how``.
    """
    twin = copy.deepcopy(model)
    prepare(twin)
    records = project(twin, how=how)
    return twin.eval(), records


def _record(name: str, layer: Relaxed, how: str) -> LayerRecord:
    sizes = layer.free.sizes()
    return LayerRecord(name, sizes.norm, sizes.distance, sizes.bound, sizes.spectrum, theta_of(layer), how)
