"""Layer log: how far each free map is from equivariance while it is trained, one row a layer and validation.

| column | of the averaged W at that step |
| --- | --- |
| norm | ||W|| |
| distance | ||W - P(W)||, what the projection takes away |
| lie | sqrt(LD(W)), LD = sum_A ||drho_out(A) W - W drho_in(A)||^2: the Lie norm, zero exactly when W is equivariant |
| activation_lie_square | mean sum_A ||drho_out(A) W x - W drho_in(A) x||^2 over rows x of the last batch |

The first three are what the projection of a validation has measured anyway. As everywhere, the elements of finite
groups and the inversion count beside the Lie algebra.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mdrelax.method.projection import LayerRecord
from mdrelax.method.relaxation import Relaxed, relaxed_layers

__all__ = ["LAYER_COLUMNS", "activation_lie_squares", "last_inputs", "layer_rows"]

LAYER_COLUMNS = ("step", "layer", "norm", "distance", "lie", "activation_lie_square")
MOST_ROWS = 256  # of a batch, evenly spaced: the mean is of a diagnosis, not of a loss


def last_inputs(model: nn.Module) -> dict[str, Tensor]:
    """The remembered inputs of the relaxed layers by name; those that were never called are left out."""
    layers = relaxed_layers(model)
    return {name: layer.last_input for name, layer in layers.items() if layer.last_input is not None}


@torch.no_grad()
def activation_lie_squares(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean square of the Lie derivative of each relaxed layer's free map at its input."""
    layers = relaxed_layers(model)
    return {name: _lie_square(layers[name], x.flatten(0, -2)) for name, x in inputs.items()}


def _lie_square(layer: Relaxed, x: Tensor) -> float:
    x = x[:: math.ceil(len(x) / MOST_ROWS)] if len(x) else x
    moved = torch.cat([layer.source.lie(x), layer.source.elements(x)])  # (A + G, rows, dim_in)
    image = x @ layer.weight.T
    difference = torch.cat([layer.output.lie(image), layer.output.elements(image)]) - moved @ layer.weight.T
    return difference.square().sum().item() / max(len(x), 1)


def layer_rows(step: int, records: Sequence[LayerRecord], squares: Mapping[str, float]) -> list[dict[str, Any]]:
    """The rows of one validation, from the records of its projection."""
    return [
        {
            "step": step, "layer": record.name, "norm": record.norm, "distance": record.distance,
            "lie": math.sqrt(2) * record.bound, "activation_lie_square": squares.get(record.name, math.nan),
        }
        for record in records
    ]  # fmt: skip
