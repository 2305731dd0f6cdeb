"""Relaxation: a free linear map beside an equivariant layer, its control theta and its penalty. This is the method.

Pertigkiozoglou, Chatzipantazis, Trivedi, Daniilidis, "Improving Equivariant Model Training via Constraint Relaxation",
NeurIPS 2024 (arXiv 2408.13242). While training, a layer f_e becomes

    f(x) = f_e(x) + theta W x

with a dense W over the flattened features; theta in [0, 1] is one number for the network and theta = 0 gives the
equivariant network back bit for bit. The loss gains lambda times the penalty

    sqrt( sum_l LD_l ) + sqrt( sum_l N_l )         sums over the relaxed layers

| kind | N_l | LD_l | cost |
| --- | --- | --- | --- |
| activation (the paper's) | mean ||W x||^2 | mean sum_A ||drho_out(A) W x - W drho_in(A) x||^2 | a few products a row |
| weight (ours, closed form) | ||W||_F^2 | sum_A ||drho_out(A) W - W drho_in(A)||_F^2 | none a row |

Means are over the rows of x, the layer's own input, which is detached: the penalty trains W and nothing else. For the
inversion of O(3) and for finite groups the commutator of the group's element takes the place of the Lie derivative.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from mdrelax.base import o3
from mdrelax.base.names import nearest_name
from mdrelax.method.groups import IrrepsRepresentation, Layout, Representation, commutator_norm

__all__ = [
    "PenaltyKind",
    "Relaxed",
    "is_relaxed",
    "penalty",
    "relax_constraints",
    "relaxable_sites",
    "relaxed_layers",
    "set_theta",
]

PenaltyKind = Literal["activation", "weight"]
INITIAL_STD = 1e-4  # of W, as in the paper's N-body release
SMALLEST_SQUARE = 1e-16  # below it the penalty's square root is flat: a finite gradient at W = 0


class Relaxed(nn.Module):
    """An equivariant layer with a free linear map beside it; takes and gives what the layer takes and gives.

    Features are a tensor (..., dim), or a tuple or dict with one tensor per irrep, whose last two axes are components
    and channels in the order of the layout; they are flattened side by side for W, which is (dim_out, dim_in). In
    training mode the input of the last call is remembered, detached, for the penalty.

    ``theta`` is a number; compiled code (``torch.compile``) reads the same value from a tensor, so that a new theta
    needs no new compilation.
    """

    theta_tensor: Tensor

    def __init__(self, layer: nn.Module, source: Representation, output: Representation) -> None:
        super().__init__()
        self.layer, self.source, self.output = layer, source, output
        self.weight = nn.Parameter(torch.zeros(output.dim, source.dim))
        self.theta = 1.0
        self.register_buffer("theta_tensor", torch.ones(()), persistent=False)
        self.last_input: Tensor | None = None

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """f_e(x) + theta W x."""
        y = self.layer(x, *args, **kwargs)
        flat = _flatten(x)
        if self.training:
            self.last_input = flat.detach()
        # A tensor, too, while the network is recorded (``mdrelax.compiled``).
        theta: float | Tensor = self.theta_tensor if torch.compiler.is_compiling() else self.theta
        if not isinstance(theta, Tensor) and theta == 0.0:
            return y
        free = theta * (flat @ self.weight.T)
        if isinstance(y, Tensor):
            return y + free
        blocks = list(y.values() if isinstance(y, dict) else y)
        pieces = free.split([block.shape[-2:].numel() for block in blocks], dim=-1)
        sums = [block + piece.view_as(block) for block, piece in zip(blocks, pieces, strict=True)]
        return dict(zip(y, sums, strict=True)) if isinstance(y, dict) else tuple(sums)


def _flatten(x: Any) -> Tensor:
    """Features as one tensor (..., dim)."""
    if isinstance(x, Tensor):
        return x
    return torch.cat([block.flatten(-2) for block in (x.values() if isinstance(x, dict) else x)], dim=-1)


def relaxable_sites(model: nn.Module) -> dict[str, nn.Module]:
    """Every submodule that may be relaxed, by name: those with weights that declare ``irreps_in`` and ``irreps_out``.

    The model itself is none: a free map is put in the place of a child of its parent.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if name
        and isinstance(getattr(module, "irreps_in", None), o3.Irreps)
        and isinstance(getattr(module, "irreps_out", None), o3.Irreps)
        and next(module.parameters(), None) is not None
    }


def relax_constraints(
    model: nn.Module,
    *,
    where: Sequence[str] | None = None,
    initial_std: float = INITIAL_STD,
    generator: torch.Generator | None = None,
) -> list[str]:
    """Put a free linear map beside each layer whose name matches one of the patterns ``where``; returns the names.

    The default is the paper's place, which a potential tells in its ``relax_where``, or every e3nn ``o3.Linear`` of
    another model. Each W is drawn from a normal distribution with ``initial_std``. Raises ``ValueError`` when nothing
    matches (naming the places that exist) and when the model is relaxed already.
    """
    if is_relaxed(model):
        raise ValueError("The model is relaxed already; `project` it first.")
    sites = relaxable_sites(model)
    chosen = _choose(model, sites, where)
    for name in chosen:
        parent, _, leaf = name.rpartition(".")
        site = sites[name]
        layout: Layout = getattr(site, "feature_layout", "mul_ir")  # e3nn's unless the layer says otherwise
        relaxed = Relaxed(
            site, IrrepsRepresentation(site.irreps_in, layout), IrrepsRepresentation(site.irreps_out, layout)
        )
        like = next(site.parameters())
        with torch.no_grad():
            relaxed.weight.normal_(std=initial_std, generator=generator)
        relaxed.to(like.device, like.dtype).train(site.training)
        setattr(model.get_submodule(parent), leaf, relaxed)
    return chosen


def _choose(model: nn.Module, sites: dict[str, nn.Module], where: Sequence[str] | None) -> list[str]:
    if where is None:
        where = _default_where(model)
    if where is None:
        chosen = [name for name, site in sites.items() if isinstance(site, o3.Linear)]
    else:
        chosen = [name for name in sites if any(_matches(name, pattern) for pattern in where)]
    if not chosen:
        raise ValueError(
            f"No layer matches where={where}; {nearest_name(str(where), sites) if sites else 'none can be relaxed.'}"
        )
    inside = [name for name in chosen if any(name.startswith(other + ".") for other in chosen)]
    if inside:
        raise ValueError(f"{inside} lie inside layers that are chosen too; choose one level of the network.")
    return chosen


def _default_where(model: nn.Module) -> Sequence[str] | None:
    """The patterns of the first submodule that declares ``relax_where``."""
    return next((m.relax_where for m in model.modules() if hasattr(m, "relax_where")), None)  # type: ignore[return-value]


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, "*." + pattern)


def relaxed_layers(model: nn.Module) -> dict[str, Relaxed]:
    """The relaxed layers by name, in the order of the network."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Relaxed)}


def is_relaxed(model: nn.Module) -> bool:
    """Whether any layer of the model carries a free map."""
    return any(isinstance(module, Relaxed) for module in model.modules())


def set_theta(model: nn.Module, theta: float) -> None:
    """Set theta in every relaxed layer; raises ``ValueError`` outside [0, 1] and when no layer is relaxed."""
    if not 0.0 <= theta <= 1.0:
        raise ValueError(f"`theta` must lie in [0, 1], got {theta}.")
    layers = relaxed_layers(model)
    if not layers:
        raise ValueError("No layer of the model is relaxed; call `relax_constraints` first.")
    for layer in layers.values():
        layer.theta = float(theta)
        layer.theta_tensor.fill_(theta)


def penalty(model: nn.Module, *, kind: PenaltyKind = "activation", rows: int | None = None) -> Tensor:
    """sqrt(sum LD) + sqrt(sum N) over the relaxed layers, a scalar whose gradient reaches the free maps only.

    The activation penalty is taken at the inputs of the last forward pass, which must have been in training mode
    (``RuntimeError`` otherwise); with ``rows`` at so many of them, evenly spaced, which estimates the same means for
    less. Raises ``ValueError`` for an unknown kind and for ``rows`` below 1.
    """
    if kind not in get_args(PenaltyKind):
        raise ValueError(f"Unknown penalty `{kind}`; {nearest_name(kind, get_args(PenaltyKind))}")
    if rows is not None and rows < 1:
        raise ValueError(f"`rows` must be at least 1, got {rows}.")
    layers = list(relaxed_layers(model).values())
    if not layers:
        raise ValueError("No layer of the model is relaxed; call `relax_constraints` first.")
    if kind == "weight":
        terms = [_weight_terms(group) for group in _alike([(layer,) for layer in layers])]
    else:
        terms = [_activation_terms(group) for group in _alike([(layer, _input(layer, rows)) for layer in layers])]
    derivatives, sizes = (torch.stack(column).sum() for column in zip(*terms, strict=True))
    return _safe_sqrt(derivatives) + _safe_sqrt(sizes)


def _alike(entries: list[Any]) -> list[list[Any]]:
    """Layers between equal representations, with inputs of equal size, together: their terms are computed at once."""
    groups: dict[Any, list[Any]] = {}
    for layer, *x in entries:
        key = (layer.source.key, layer.output.key, *(len(each) for each in x))
        groups.setdefault(key, []).append((layer, *x))
    return list(groups.values())


def _weight_terms(group: list[tuple[Relaxed]]) -> tuple[Tensor, Tensor]:
    """(LD, N) of the matrices themselves, summed over the layers of a group."""
    layer = group[0][0]
    weights = torch.stack([each.weight for (each,) in group])
    return commutator_norm(weights, layer.output, layer.source), weights.square().sum()


def _activation_terms(group: list[tuple[Relaxed, Tensor]]) -> tuple[Tensor, Tensor]:
    """(LD, N) at the remembered inputs, means over their rows, summed over the layers of a group."""
    layer = group[0][0]
    weights = torch.stack([each.weight for each, _ in group]).mT  # (K, dim_in, dim_out)
    x = torch.stack([each for _, each in group])  # (K, rows, dim_in)
    moved = torch.cat([x.unsqueeze(0), layer.source.lie(x), layer.source.elements(x)])  # (1 + A + G, K, rows, dim_in)
    image, *images = (moved.transpose(0, 1).flatten(1, 2) @ weights).unflatten(1, (len(moved), -1)).unbind(1)
    difference = torch.cat([layer.output.lie(image), layer.output.elements(image)]) - torch.stack(images)
    n_rows = max(x.shape[1], 1)
    return difference.square().sum() / n_rows, image.square().sum() / n_rows


def _input(layer: Relaxed, rows: int | None) -> Tensor:
    """The remembered input as (rows, dim_in), all of it or evenly spaced rows."""
    if layer.last_input is None:
        raise RuntimeError("The activation penalty needs a forward pass in training mode before it.")
    x = layer.last_input.flatten(0, -2)
    if rows is None or rows >= len(x):
        return x
    return x[torch.arange(rows, device=x.device) * len(x) // rows]


def _safe_sqrt(square: Tensor) -> Tensor:
    """The square root, 0 and flat (zero gradient) below ``SMALLEST_SQUARE``."""
    return square.clamp(min=SMALLEST_SQUARE).sqrt() - SMALLEST_SQUARE**0.5
