"""Layer log: how far each free map is from equivariance during training, one row per layer and validation.

| column | of the averaged W at that step |
| --- | --- |
| norm | ||W|| |
| distance | ||W - P(W)||, the part that projection removes |
| lie | sqrt(LD(W)), LD = sum_A ||drho_out(A) W - W drho_in(A)||^2: the Lie norm, zero exactly when W is equivariant |
| theta | theta, or the layer's gamma under ACE |
| dual | the dual variable lambda under ACE, empty otherwise |
| activation_lie_square | mean sum_A ||drho_out(A) W x - W drho_in(A) x||^2 over rows x of the last batch |

The norms are by-products of the projection at each validation. As everywhere, the elements of finite
groups and the inversion are included with the Lie algebra.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mdrelax.method.penalty import Inputs
from mdrelax.method.projection import LayerRecord
from mdrelax.method.relaxation import relaxed_layers

__all__ = ["LAYER_COLUMNS", "activation_lie_squares", "layer_rows"]

LAYER_COLUMNS = ("step", "layer", "norm", "distance", "lie", "activation_lie_square", "theta", "dual")
MOST_ROWS = 256  # of a batch, evenly spaced; enough for a diagnostic mean


@torch.no_grad()
def activation_lie_squares(model: nn.Module, inputs: Inputs) -> dict[str, float]:
    """The mean square of the Lie derivative of each relaxed layer's free map at its recorded inputs."""
    layers = relaxed_layers(model)
    return {
        name: layers[name].free.penalty_terms(calls, rows=MOST_ROWS).derivative.item()
        for name, calls in inputs.items()
        if calls
    }


def layer_rows(
    step: int, records: Sequence[LayerRecord], squares: Mapping[str, float], duals: Mapping[str, float]
) -> list[dict[str, Any]]:
    """The rows of one validation, from the records of its projection; a value that a layer lacks is left out."""
    rows = []
    for record in records:
        row = {
            "step": step, "layer": record.name, "norm": record.norm, "distance": record.distance,
            "activation_lie_square": squares.get(record.name, math.nan), "theta": record.theta,
        }  # fmt: skip
        if record.spectrum:  # a map that is not linear has no Lie norm
            row["lie"] = math.sqrt(2) * record.bound
        if record.name in duals:
            row["dual"] = duals[record.name]
        rows.append(row)
    return rows
