"""Free maps: maps without any symmetry that are added to equivariant layers during training.

A free map W provides everything that the method needs: W x, its distance from equivariance at given inputs or as a
matrix, its nearest equivariant map P(W), its spectrum, and the way in which a layer absorbs P(W). A free function that
is not linear (``mdrelax.method.free_mlp``) has only the first two.

| map | features | W | an element g of the group |
| --- | --- | --- | --- |
| ``FreeLinear`` | vectors (..., dim), made by a ``FeatureView`` | (dim_out, dim_in) | acts on both sides |
| ``free_low_rank.FreeLowRank`` | the same | U V^T, U (dim_out, rank), V (dim_in, rank) | the same |
| ``free_conv.FreeConv2d`` | images (B, dim, H, W) | (dim_out, dim_in, k, k) | acts on channel axes, turns the grid |
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from mdrelax.base import o3
from mdrelax.method.groups import Blocks, Representation

__all__ = [
    "FLAT",
    "FOLDS",
    "AxesView",
    "FeatureView",
    "FlatView",
    "FreeFunction",
    "FreeLinear",
    "FreeMap",
    "FreeMatrix",
    "ImageView",
    "Sample",
    "Sizes",
    "Terms",
    "fibre_axes",
    "fold",
    "rows_of",
    "some_of_each",
]


class Terms(NamedTuple):
    """The two sums of the penalty, both scalars."""

    derivative: Tensor  # LD
    size: Tensor  # N


class Sample(NamedTuple):
    """Evenly spaced rows of the inputs of several processes, floor(k total / wanted) for k = 0, 1, ...

    ``before`` rows are those of the processes before this one, ``total`` those of all.
    """

    wanted: int
    before: int
    total: int

    def rows(self, n: int) -> Tensor:
        """The sampled ones of this process's ``n`` rows, counted from its first; all if no fewer are wanted."""
        if self.wanted >= self.total:
            return torch.arange(n)
        first, last = (-(-edge * self.wanted // self.total) for edge in (self.before, self.before + n))
        return torch.arange(first, last) * self.total // self.wanted - self.before


class Sizes(NamedTuple):
    """The size of a free function, and of the parts of it that are not equivariant."""

    norm: float  # ||W||
    distance: float  # ||W - P(W)||, what projection removes
    bound: float  # sqrt(LD(W) / 2), never below the distance (of finite groups: for C_n up to n = 4)
    spectrum: list[float]  # of the components of W; empty if it is not linear


# --- features and the vectors that they are ---


class FeatureView(Protocol):
    """Converts a layer's features to the single tensor that a free map takes, and its result back to their form."""

    def flatten(self, x: Any) -> Tensor:
        """Features as one tensor."""

    def unflatten(self, flat: Tensor, like: Any) -> Any:
        """The inverse: a tensor in the form of the features ``like``."""


class FlatView:
    """Features are a tensor (..., dim), or a tuple or dict with one tensor per irrep.

    The last two axes of the latter are components and channels in the order of the layout; they are flattened and
    concatenated.
    """

    def flatten(self, x: Any) -> Tensor:
        """(..., dim)."""
        if isinstance(x, Tensor):
            return x
        return torch.cat([block.flatten(-2) for block in (x.values() if isinstance(x, dict) else x)], dim=-1)

    def unflatten(self, flat: Tensor, like: Any) -> Any:
        """A tensor, tuple or dict, like ``like``."""
        if isinstance(like, Tensor):
            return flat
        blocks = list(like.values() if isinstance(like, dict) else like)
        pieces = flat.split([block.shape[-2:].numel() for block in blocks], dim=-1)
        shaped = [piece.view_as(block) for block, piece in zip(blocks, pieces, strict=True)]
        return dict(zip(like, shaped, strict=True)) if isinstance(like, dict) else tuple(shaped)


class AxesView(NamedTuple):
    """Two axes of a tensor are the vector: 1 and 2 for the (B, C, 3, N[, k]) of vector neurons."""

    channels: int
    components: int

    def flatten(self, x: Tensor) -> Tensor:
        """(..., C D), channel first."""
        return x.movedim(tuple(self), (-2, -1)).flatten(-2)

    def unflatten(self, flat: Tensor, like: Tensor) -> Tensor:
        """Both axes restored to their places."""
        sizes = like.shape[self.channels], like.shape[self.components]
        return flat.unflatten(-1, sizes).movedim((-2, -1), tuple(self))


class ImageView:
    """Features are images (B, dim, H, W), as ``FreeConv2d`` takes them."""

    def flatten(self, x: Tensor) -> Tensor:
        """The images themselves."""
        return x

    def unflatten(self, flat: Tensor, like: Tensor) -> Tensor:
        """The images themselves."""
        return flat


FLAT = FlatView()


# --- free maps ---


class FreeFunction(nn.Module, ABC):
    """A function without symmetry between two representations."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """W x."""

    def joins(self, layer: nn.Module) -> bool:
        """Whether the layer adds W to its own map before it applies it once: ``layer(x, free=(theta, W))``."""
        return False

    @abstractmethod
    def reset(self, std: float, generator: torch.Generator | None = None) -> None:
        """Draw the parameters, so that entries of W are normal with standard deviation ``std``."""

    @abstractmethod
    def penalty_terms(self, inputs: Sequence[Tensor] | None = None, *, rows: int | Sample | None = None) -> Terms:
        """(LD, N) as means over the inputs of recorded calls, or of the weights themselves if none are given.

        ``rows`` limits the means to that many evenly spaced rows of all calls, or to those of a sample.
        """

    def n_rows(self, inputs: Sequence[Tensor]) -> int:
        """The number of rows that the inputs of recorded calls (..., dim) have."""
        return sum(x.shape[:-1].numel() for x in inputs)

    @classmethod
    def terms_of_many(
        cls, maps: Sequence[Self], inputs: Sequence[Sequence[Tensor] | None], *, rows: int | Sample | None = None
    ) -> list[Terms]:
        """The terms of several maps of this class, in any order and grouping: only their sums are used."""
        return [each.penalty_terms(x, rows=rows) for each, x in zip(maps, inputs, strict=True)]

    @abstractmethod
    def sizes(self) -> Sizes:
        """Norms for the layer's record."""

    @abstractmethod
    def fold_into(self, layer: nn.Module, theta: float) -> bool:
        """Add theta P(W) to the layer's own weights; returns False if the layer cannot represent it."""


class FreeMap(FreeFunction):
    """A free linear map; unless it says otherwise, ``weight`` is W and its only parameter."""

    weight: nn.Parameter

    def matrix(self) -> Tensor:
        """W."""
        return self.weight

    @torch.no_grad()
    def reset(self, std: float, generator: torch.Generator | None = None) -> None:
        """W from a normal distribution."""
        self.weight.normal_(std=std, generator=generator)

    @abstractmethod
    def commutators(self) -> Tensor:
        """The commutators, one per generator, which vanish for an equivariant W: (A + G, *W.shape)."""

    @abstractmethod
    def equivariant_part(self) -> Tensor:
        """P(W), the nearest equivariant map in Frobenius norm, of the shape of W."""

    @abstractmethod
    def spectrum(self) -> Tensor:
        """The squared norm of each component of W; they sum to ||W||^2, and only the first can be equivariant."""

    @torch.no_grad()
    def sizes(self) -> Sizes:
        """In float64."""
        free = copy.deepcopy(self).double()
        w = free.matrix()
        distance = (w - free.equivariant_part()).norm().item()
        bound = math.sqrt(free.commutators().square().sum().item() / 2)
        return Sizes(w.norm().item(), distance, bound, free.spectrum().tolist())


class FreeMatrix(FreeMap):
    """W x on vectors (..., dim), W (dim_out, dim_in).

    A layer absorbs P(W) in a method ``fold(blocks)``: mixing matrices (C_out, C_in) per pair of equal irreps.
    """

    def __init__(self, source: Representation, output: Representation) -> None:
        super().__init__()
        self.source, self.output = source, output

    def penalty_terms(self, inputs: Sequence[Tensor] | None = None, *, rows: int | Sample | None = None) -> Terms:
        """A row is a vector x: LD = mean sum_A ||drho_out(A) W x - W drho_in(A) x||^2 and N = mean ||W x||^2."""
        (terms,) = self.terms_of_many([self], [inputs], rows=rows)
        return terms

    @classmethod
    def terms_of_many(
        cls, maps: Sequence[Self], inputs: Sequence[Sequence[Tensor] | None], *, rows: int | Sample | None = None
    ) -> list[Terms]:
        """Maps between equal representations with inputs of equal size are evaluated together; one entry per map."""
        groups: dict[Any, list[tuple[Self, Tensor | None]]] = {}
        for each, calls in zip(maps, inputs, strict=True):
            x = None if calls is None else rows_of(calls, rows)
            key = each.source.key, each.output.key, None if x is None else len(x)
            groups.setdefault(key, []).append((each, x))
        return [_terms_of_equals(*zip(*group, strict=True)) for group in groups.values()]

    def commutators(self) -> Tensor:
        """C_A(W) and C_g(W), see ``groups``."""
        return self.output.commutators(self.matrix(), self.source)

    def equivariant_part(self) -> Tensor:
        """(dim_out, dim_in)."""
        return self.output.average(self.matrix(), self.source)

    def spectrum(self) -> Tensor:
        """||W_J||^2 of irreps, ||W_f||^2 of a finite group."""
        return self.output.spectrum(self.matrix(), self.source)

    @torch.no_grad()
    def fold_into(self, layer: nn.Module, theta: float) -> bool:
        """By the layer's rule in ``FOLDS`` or its own ``fold``; False between finite groups."""
        blocks = self.output.blocks(theta * self.matrix(), self.source)
        return blocks is not None and fold(layer, blocks)


class FreeLinear(FreeMatrix):
    """A dense W (dim_out, dim_in)."""

    def __init__(self, source: Representation, output: Representation) -> None:
        super().__init__(source, output)
        self.weight = nn.Parameter(torch.zeros(output.dim, source.dim, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim_in) to (..., dim_out)."""
        return x @ self.weight.T


def _terms_of_equals(maps: Sequence[FreeMatrix], inputs: Sequence[Tensor | None]) -> Terms:
    """The summed terms of maps between equal representations, with inputs of equal size or without."""
    source, output = maps[0].source, maps[0].output
    weights = torch.stack([each.matrix() for each in maps])
    given = [x for x in inputs if x is not None]
    if not given:
        return Terms(output.commutator_norm(weights, source), weights.square().sum())
    x = torch.stack(given)  # (K, rows, dim_in)
    moved = torch.cat([x.unsqueeze(0), source.lie(x), source.elements(x)])  # (1 + A + G, K, rows, dim_in)
    image, *images = (moved.transpose(0, 1).flatten(1, 2) @ weights.mT).unflatten(1, (len(moved), -1)).unbind(1)
    difference = torch.cat([output.lie(image), output.elements(image)]) - torch.stack(images)
    n_rows = max(x.shape[1], 1)
    return Terms(difference.square().sum() / n_rows, image.square().sum() / n_rows)


def rows_of(calls: Sequence[Tensor], rows: int | Sample | None) -> Tensor:
    """The inputs of all calls as (rows, dim), all of them or evenly spaced ones."""
    flat = [x.flatten(0, -2) for x in calls]
    x = flat[0] if len(flat) == 1 else torch.cat(flat)
    chosen = _chosen(rows, len(x))
    return x if chosen is None else x[chosen.to(x.device)]


def some_of_each(calls: Sequence[Tensor], rows: int | Sample | None) -> Sequence[Tensor]:
    """The calls themselves, or evenly spaced entries of their concatenated first axes."""
    sizes = [len(x) for x in calls]
    chosen = _chosen(rows, sum(sizes))
    if chosen is None:
        return calls
    masks = torch.zeros(sum(sizes), dtype=torch.bool).index_fill(0, chosen, value=True).split(sizes)
    return [x[mask.to(x.device)] for x, mask in zip(calls, masks, strict=True)]


def _chosen(rows: int | Sample | None, n: int) -> Tensor | None:
    """The numbers of the sampled ones of ``n`` rows; None for all."""
    if rows is None:
        return None
    sample = Sample(rows, 0, n) if isinstance(rows, int) else rows
    return None if sample.wanted >= sample.total else sample.rows(n)


# --- layers that absorb an equivariant map ---


def fold(layer: nn.Module, part: Any) -> bool:
    """Add an equivariant map to a layer's weights by the rule of its type, or by its method ``fold``."""
    rule = next((FOLDS[kind] for kind in type(layer).__mro__ if kind in FOLDS), None)
    if rule is not None:
        return rule(layer, part)
    own = getattr(layer, "fold", None)
    if own is None:
        return False
    own(part)
    return True


def fibre_axes(linear: Any) -> tuple[int, int] | None:
    """(f_in, f_out) of e3nn's ``Linear``, from the shape of its weights, or None if features have no such axis."""
    shape = list(linear.weight.shape) if linear.internal_weights else []
    return (shape[0], shape[1]) if len(shape) == 3 else None


def _fold_e3nn(linear: Any, blocks: Blocks) -> bool:
    """e3nn's ``Linear`` computes path_weight * x w: the map is divided by the path weight.

    With ``f_in`` and ``f_out``, both representations are repeated, and the weights have these two axes in front.
    """
    paths = [(k, i) for k, i in enumerate(linear.instructions) if i.i_in >= 0]
    n_in, n_out = len(linear.irreps_in), len(linear.irreps_out)
    axes = fibre_axes(linear)
    pairs = {
        (y * n_out + i.i_out, x * n_in + i.i_in): (k, (x, y) if axes else (), i.path_weight)
        for k, i in paths
        for x in range(axes[0] if axes else 1)
        for y in range(axes[1] if axes else 1)
    }
    if set(pairs) != set(blocks) or not isinstance(linear._parameters.get("weight"), nn.Parameter):
        return False  # also where the weights are computed from others (torch.nn.utils.parametrize)
    for pair, (k, place, path_weight) in pairs.items():
        linear.weight_view_for_instruction(k)[place].add_(blocks[pair].T / path_weight)
    return True


# For layers of other packages. A rule takes the layer and the arguments of ``fold``; False: it cannot add the map.
FOLDS: dict[type[nn.Module], Callable[[Any, Any], bool]] = {o3.Linear: _fold_e3nn}
