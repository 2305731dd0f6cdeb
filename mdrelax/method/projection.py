"""Projection: from the relaxed network back to an exactly equivariant one.

`drop` removes the free maps (theta = 0). `fold` first adds theta P(W), the nearest equivariant map to the free one, to
layers that can hold a linear map; other layers drop theirs. Both give back the original modules, parameter names and
speed. The record of each layer states

    ||W||      ||W - P(W)||  <=  sqrt(LD(W) / 2)      the symmetry spectrum ||W_J||^2

and goes into the network's certificate (``mdrelax.method.certificate``).
"""

import copy
import math
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor, nn

from mdrelax.base import o3
from mdrelax.base.names import nearest_name
from mdrelax.method.groups import (
    IrrepsRepresentation,
    commutators,
    equivariant_blocks,
    equivariant_part,
    symmetry_spectrum,
)
from mdrelax.method.relaxation import Relaxed, relaxed_layers

__all__ = [
    "LayerRecord",
    "ProjectionKind",
    "project",
    "projected_copy",
]

ProjectionKind = Literal["drop", "fold"]
Model = TypeVar("Model", bound=nn.Module)


class LayerRecord(NamedTuple):
    """What the free map of one layer was when it was projected."""

    name: str
    norm: float  # ||W||
    distance: float  # ||W - P(W)||
    bound: float  # sqrt(LD(W) / 2), never below the distance (of finite groups: for C_n up to n = 4)
    spectrum: list[float]  # ||W_J||^2, J = 0, 1, ...
    theta: float
    how: str  # "dropped" or "folded"


def project(model: nn.Module, *, how: ProjectionKind = "drop") -> list[LayerRecord]:
    """Remove the free maps of a model in place; the result has the modules and parameters it had before relaxation.

    With ``fold``, theta P(W) is added to the layers that can hold it. Raises ``ValueError`` for another ``how``; a
    model without free maps is left as it is.
    """
    if how not in get_args(ProjectionKind):
        raise ValueError(f"Unknown projection `{how}`; {nearest_name(how, get_args(ProjectionKind))}")
    records = []
    for name, layer in relaxed_layers(model).items():
        folded = how == "fold" and layer.theta > 0 and _fold(layer)
        records.append(_record(name, layer, "folded" if folded else "dropped"))
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer.layer)
    return records


def projected_copy(
    model: Model, *, how: ProjectionKind = "drop", prepare: Callable[[Model], object] = lambda twin: None
) -> tuple[Model, list[LayerRecord]]:
    """A projected copy in evaluation mode, and the records of its layers; the model itself goes on training.

    ``prepare(copy)`` is called before the projection, for instance to put averaged weights into the copy.
    """
    for layer in relaxed_layers(model).values():
        layer.last_input = None
    twin = copy.deepcopy(model)
    prepare(twin)
    records = project(twin, how=how)
    return twin.eval(), records


def _record(name: str, layer: Relaxed, how: str) -> LayerRecord:
    weight = layer.weight.detach().double()
    distance = (weight - equivariant_part(weight, layer.output, layer.source)).norm().item()
    bound = math.sqrt(commutators(weight, layer.output, layer.source).square().sum().item() / 2)
    spectrum: list[float] = []
    if isinstance(layer.source, IrrepsRepresentation) and isinstance(layer.output, IrrepsRepresentation):
        spectrum = symmetry_spectrum(weight, layer.output, layer.source).tolist()
    return LayerRecord(name, weight.norm().item(), distance, bound, spectrum, layer.theta, how)


def _fold(layer: Relaxed) -> bool:
    """Add theta P(W) to the wrapped layer's weights; False where the layer cannot hold an equivariant linear map."""
    if not (isinstance(layer.source, IrrepsRepresentation) and isinstance(layer.output, IrrepsRepresentation)):
        return False
    blocks = equivariant_blocks(layer.theta * layer.weight.detach(), layer.output, layer.source)
    if isinstance(layer.layer, o3.Linear):
        return _fold_e3nn(layer.layer, blocks)
    fold = getattr(layer.layer, "fold", None)
    if fold is None:
        return False
    fold(blocks)
    return True


@torch.no_grad()
def _fold_e3nn(linear: o3.Linear, blocks: dict[tuple[int, int], Tensor]) -> bool:
    """e3nn's linear computes path_weight * x w: the map is divided by the path weight."""
    pairs = [(i.i_out, i.i_in) for i in linear.instructions if i.i_in >= 0]
    if set(pairs) != set(blocks) or not linear.internal_weights:
        return False
    for k, (pair, instruction) in enumerate(zip(pairs, linear.instructions, strict=False)):
        linear.weight_view_for_instruction(k).add_(blocks[pair].T / instruction.path_weight)
    return True
