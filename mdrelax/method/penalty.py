"""Penalty: keeps the free maps small and close to equivariance during training.

The loss gains lambda times

    sqrt( sum_l LD_l ) + sqrt( sum_l N_l )         sums over the relaxed layers

| kind | N_l | LD_l | cost |
| --- | --- | --- | --- |
| activation (the paper's) | mean ||W x||^2 | mean sum_A ||drho_out(A) W x - W drho_in(A) x||^2 | products per row |
| weight (ours, closed form) | ||W||_F^2 | sum_A ||drho_out(A) W - W drho_in(A)||_F^2 | none per row |

Means are over the rows x of all inputs of the layer that were recorded, detached: the penalty has gradients with
respect to W only. For the inversion of O(3) and for finite groups the commutator with the group element replaces the
Lie derivative. Where several processes each evaluate a part of a batch, the rows are those of all of them, and each
process has the gradient of its own terms.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor, nn

from mdrelax.base.names import nearest_name
from mdrelax.method.free_maps import FreeFunction, Sample, Terms
from mdrelax.method.relaxation import Relaxed, relaxed_layers

__all__ = ["Inputs", "PenaltyKind", "Processes", "penalty", "record_inputs"]

PenaltyKind = Literal["activation", "weight"]
Inputs = Mapping[str, list[Tensor]]  # by relaxed layer: one detached tensor for each of its calls
SMALLEST_SQUARE = 1e-16  # below it the square root is constant, so that the gradient at W = 0 is finite


class Processes(Protocol):
    """Processes that hold parts of a batch, in its order; see ``mdrelax.training.ranks.Ranks``."""

    rank: int
    size: int

    def gather(self, numbers: Tensor) -> Tensor:
        """The numbers (n,) of all processes, (size, n)."""

    def total(self, own: Tensor) -> Tensor:
        """The sum over processes, with the gradient of the own term."""


class _Part(NamedTuple):
    """What this process contributes to the means of a layer."""

    calls: Sequence[Tensor] | None  # of the layer; None: the weights themselves
    rows: int | Sample | None
    share: float = 1.0  # its rows, as a fraction of all rows


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
    processes: Processes | None = None,
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
        processes: Those that evaluate other parts of the batch; None if this one has evaluated all of it.

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
    if kind == "weight":
        parts = [_Part(None, None, 1.0 if processes is None else 1 / processes.size)] * len(layers)
    elif processes is None:
        parts = [_Part(_calls(inputs, name), rows) for name in layers]
    else:
        parts = _parts(layers, inputs or {}, rows, processes)
    terms = _terms(list(layers.values()), parts)
    if not terms:  # this process has no part of the batch
        terms = [Terms(*next(iter(layers.values())).theta_tensor.new_zeros(2))]
    derivatives, sizes = (torch.stack(column).sum() for column in zip(*terms, strict=True))
    if processes is not None:
        derivatives, sizes = processes.total(torch.stack([derivatives, sizes]))
    return lie * _safe_sqrt(derivatives) + _safe_sqrt(sizes)


def _parts(layers: Mapping[str, Relaxed], inputs: Inputs, rows: int | None, processes: Processes) -> list[_Part]:
    """The part of this process in the rows of each layer, of which it may have none."""
    own = torch.tensor([layer.free.n_rows(inputs.get(name, [])) for name, layer in layers.items()])
    counts = processes.gather(own)  # (size, layers)
    before, totals = counts[: processes.rank].sum(0).tolist(), counts.sum(0).tolist()
    parts = []
    for name, n, n_before, total in zip(layers, own.tolist(), before, totals, strict=True):
        if not total:
            _calls(inputs, name)  # raises
        sample = Sample(total if rows is None else rows, n_before, total)
        share = len(sample.rows(n)) / min(sample.wanted, total)
        parts.append(_Part(inputs.get(name, []), None if rows is None else sample, share))
    return parts


def _terms(layers: Sequence[Relaxed], parts: Sequence[_Part]) -> list[Terms]:
    """The terms of all layers, evaluated together for each class of free maps and equal shares."""
    kinds: dict[tuple[type[FreeFunction], int | Sample | None, float], list[int]] = {}
    for k, (layer, part) in enumerate(zip(layers, parts, strict=True)):
        kinds.setdefault((type(layer.free), part.rows, part.share), []).append(k)
    return [
        terms if share == 1 else Terms(*(share * term for term in terms))
        for (kind, rows, share), members in kinds.items()
        if share
        for terms in kind.terms_of_many([layers[k].free for k in members], [parts[k].calls for k in members], rows=rows)
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
