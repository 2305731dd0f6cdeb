"""Penalty: keeps the free maps small and close to equivariance during training.

The loss gains lambda times

    sqrt( sum_l LD_l ) + sqrt( sum_l N_l )         sums over the relaxed layers

| kind | N_l | LD_l | cost |
| --- | --- | --- | --- |
| activation (the paper's) | mean ||W x||^2 | mean sum_A ||drho_out(A) W x - W drho_in(A) x||^2 | products per row |
| weight (ours, closed form) | ||W||_F^2 | sum_A ||drho_out(A) W - W drho_in(A)||_F^2 | none per row |

Means are over the rows x of all inputs of the layer that were recorded, detached: the penalty has gradients with
respect to W only. For the inversion of O(3) and for finite groups the commutator with the group element replaces the
Lie derivative.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mdrelax.base.names import nearest_name
from mdrelax.method.free_maps import FreeFunction, Terms
from mdrelax.method.relaxation import Relaxed, relaxed_layers

__all__ = ["Inputs", "PenaltyKind", "penalty", "record_inputs"]

PenaltyKind = Literal["activation", "weight"]
Inputs = Mapping[str, list[Tensor]]  # by relaxed layer: one detached tensor for each of its calls
SMALLEST_SQUARE = 1e-16  # below it the square root is constant, so that the gradient at W = 0 is finite


@contextmanager
def record_inputs(model: nn.Module) -> Iterator[Inputs]:
    """Record the inputs of the relaxed layers of a model in every call inside the ``with`` statement.

    Args:
        model: A relaxed model; nothing is recorded if it has no relaxed layers.

    Yields the inputs x of the free maps by the name of the layer: one tensor for each call, detached, (..., dim_in) or
    images (B, dim_in, H, W). The record remains valid after the statement. A nested recording keeps its calls to
    itself, and calls recomputed by activation checkpointing in a backward pass are not recorded again.

    >>> import torch
    >>> from torch import nn
    >>> from mdrelax import record_inputs, relax_constraints
    >>> from mdrelax.base import o3
    >>> model = nn.Sequential(o3.Linear("2x0e + 1x1o", "2x1o"))
    >>> relax_constraints(model).names
    ['0']
    >>> with record_inputs(model) as inputs:
    ...     y = model(torch.ones(4, 5)), model(torch.ones(7, 5))  # called twice in one step
    >>> {name: [tuple(x.shape) for x in calls] for name, calls in inputs.items()}
    {'0': [(4, 5), (7, 5)]}
    """
    layers = relaxed_layers(model)
    outer = [layer.calls for layer in layers.values()]
    inputs: dict[str, list[Tensor]] = {name: [] for name in layers}
    for name, layer in layers.items():
        layer.calls = inputs[name]
    try:
        yield inputs
    finally:
        for layer, calls in zip(layers.values(), outer, strict=True):
            layer.calls = calls


def penalty(
    model: nn.Module,
    inputs: Inputs | None = None,
    *,
    kind: PenaltyKind = "activation",
    rows: int | None = None,
    lie: float = 1.0,
) -> Tensor:
    """sqrt(sum_l LD_l) + sqrt(sum_l N_l) over the relaxed layers, see the module: the paper's regulariser.

    The task's loss gains lambda times it (lambda = 0.01 in Pertigkiozoglou et al., NeurIPS 2024, arXiv 2408.13242).

    Args:
        model: A relaxed model; its theta has no effect.
        inputs: What ``record_inputs(model)`` recorded; needed by the activation penalty, unused by the other.
        kind: ``activation``, the paper's, or ``weight``, which is closed form and needs no inputs.
        rows: Number of evenly spaced rows of each layer's inputs at which the activation penalty is evaluated: an
            estimate of the same means at lower cost. All by default.
        lie: Factor of the term with LD; 0 leaves the size term alone, which is an ablation of the paper's.

    Returns a scalar, whose gradient reaches the free maps only and is finite at W = 0. Raises ``ValueError`` for an
    unknown kind, for ``rows`` below 1, for a model without relaxed layers, and for the activation penalty if inputs
    are missing or a layer was never called.

    >>> import torch
    >>> from torch import nn
    >>> from mdrelax import penalty, record_inputs, relax_constraints
    >>> from mdrelax.base import o3
    >>> model = nn.Sequential(o3.Linear("1o", "1o"))
    >>> relax_constraints(model).names
    ['0']
    >>> model[0].free.weight.data = torch.eye(3)  # commutes with rotations: LD = 0 and N = 3 are left
    >>> f"{penalty(model, kind='weight'):.3f}"
    '1.732'
    >>> model[0].free.weight.data = torch.diag(torch.tensor([1.0, 0, 0]))  # LD = 4, N = 1
    >>> f"{penalty(model, kind='weight'):.3f}"
    '3.000'
    >>> with record_inputs(model) as inputs:
    ...     y = model(torch.tensor([[1.0, 0, 0], [0, 1, 0]]))  # LD = 3 / 2 and N = 1 / 2, means over two rows
    >>> f"{penalty(model, inputs):.3f}"
    '1.932'
    """
    if kind not in get_args(PenaltyKind):
        raise ValueError(f"Unknown penalty `{kind}`; {nearest_name(kind, get_args(PenaltyKind))}")
    if rows is not None and rows < 1:
        raise ValueError(f"`rows` must be at least 1, got {rows}.")
    layers = relaxed_layers(model)
    if not layers:
        raise ValueError("No layer of the model is relaxed; call `relax_constraints` first.")
    calls = [None if kind == "weight" else _calls(inputs, name) for name in layers]
    terms = _terms(list(layers.values()), calls, rows)
    derivatives, sizes = (torch.stack(column).sum() for column in zip(*terms, strict=True))
    return lie * _safe_sqrt(derivatives) + _safe_sqrt(sizes)


def _terms(layers: Sequence[Relaxed], calls: Sequence[Sequence[Tensor] | None], rows: int | None) -> list[Terms]:
    """The terms of all layers, evaluated together for each class of free maps."""
    kinds: dict[type[FreeFunction], list[int]] = {}
    for k, layer in enumerate(layers):
        kinds.setdefault(type(layer.free), []).append(k)
    return [
        terms
        for kind, members in kinds.items()
        for terms in kind.terms_of_many([layers[k].free for k in members], [calls[k] for k in members], rows=rows)
    ]


def _calls(inputs: Inputs | None, name: str) -> Sequence[Tensor]:
    if inputs is None:
        raise ValueError(
            "The activation penalty needs the inputs of a forward pass: `with record_inputs(model) as inputs: ...`, "
            "then `penalty(model, inputs)`."
        )
    if not inputs.get(name):
        raise ValueError(
            f"No input of the relaxed layer `{name}` was recorded: (a) no forward pass ran inside "
            "`with record_inputs(model)`, (b) it was another model's, or (c) the network uses parts of this layer "
            "without calling it, so that its free map does nothing; leave it out of `where`."
        )
    return inputs[name]


def _safe_sqrt(square: Tensor) -> Tensor:
    """The square root, 0 and flat (zero gradient) below ``SMALLEST_SQUARE``."""
    return square.clamp(min=SMALLEST_SQUARE).sqrt() - SMALLEST_SQUARE**0.5
