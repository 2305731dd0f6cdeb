"""Relaxation: a free linear map added to an equivariant layer, and its control parameter theta. This is the method.

Pertigkiozoglou, Chatzipantazis, Trivedi, Daniilidis, "Improving Equivariant Model Training via Constraint Relaxation",
NeurIPS 2024 (arXiv 2408.13242). During training, a layer f_e becomes

    f(x) = f_e(x) + theta W x

with a dense W over the flattened features; theta in [0, 1] is the same for the whole network, and theta = 0
restores the equivariant network bit for bit. ``penalty`` keeps W small and near equivariance; ``project`` removes it.
"""

import inspect
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from mdrelax.base.names import nearest_name
from mdrelax.method.free_low_rank import FreeLowRank
from mdrelax.method.free_maps import FLAT, FeatureView, FreeFunction, FreeLinear
from mdrelax.method.free_mlp import FreeMLP
from mdrelax.method.references import names_of_modules, refuse_hidden_references
from mdrelax.method.sites import Site, relaxable_sites

__all__ = [
    "FreeKind",
    "Placement",
    "Relaxed",
    "is_relaxed",
    "relax_constraints",
    "relaxed_layers",
    "replace_module",
    "set_theta",
    "theta_of",
]

FreeKind = Literal["linear", "mlp"]
INITIAL_STD = 1e-4  # of W, as in the paper's N-body release
OWN_NAMES = (
    "calls",
    "control",
    "free",
    "layer",
    "note",
    "set_theta",
    "theta",
    "theta_tensor",
    "view",
)  # attributes of ``Relaxed``


class Relaxed(nn.Module):
    """An equivariant layer with an added free map; inputs and outputs are those of the layer.

    Attributes of the layer are available through it: ``relaxed.irreps_out`` and ``relaxed.weight`` are the layer's;
    the weight of the free map is ``relaxed.free.weight``.
    Raises ``ValueError`` for a layer that has an attribute with a name that this class uses itself.

    ``theta`` is a number, or the leaf scalar of a controller (``mdrelax.method.controllers``); compiled code
    (``torch.compile``) reads the same value from a tensor, so that a new theta needs no recompilation. ``calls``
    collects the inputs while ``record_inputs`` is active, and is None otherwise.
    """

    theta_tensor: Tensor

    def __init__(self, layer: nn.Module, free: FreeFunction, view: FeatureView = FLAT) -> None:
        super().__init__()
        taken = [name for name in OWN_NAMES if hasattr(layer, name)]
        if taken:
            raise ValueError(
                f"`{type(layer).__name__}` has an attribute `{taken[0]}`, which its relaxed form needs for itself: "
                "rename it, or leave the layer out of `where`."
            )
        self.free, self.layer, self.view = free, layer, view
        self.theta: float | Tensor = 1.0
        self.register_buffer("theta_tensor", torch.ones(()), persistent=False)
        self.calls: list[Tensor] | None = None
        self.first = next(iter(inspect.signature(layer.forward).parameters), "")  # the name of its first argument
        self.register_load_state_dict_pre_hook(_rename_weight)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """f_e(x) + theta W x, where x is the first argument."""
        # A tensor, too, while ``compiled.training`` records the network.
        theta = self.theta_tensor if torch.compiler.is_compiling() else self.theta
        acts = isinstance(theta, Tensor) or theta != 0.0
        if acts and self.free.joins(self.layer):
            self.note(self.view.flatten(args[0] if args else kwargs[self.first]))
            return self.layer(*args, free=(theta, self.free.weight), **kwargs)
        y = self.layer(*args, **kwargs)
        if not acts and self.calls is None:
            return y
        flat = self.view.flatten(args[0] if args else kwargs[self.first])
        self.note(flat)
        return _add(y, self.view.unflatten(theta * self.free(flat), like=y)) if acts else y

    @torch.no_grad()
    def set_theta(self, theta: float) -> None:
        """Set theta to a number."""
        self.theta = float(theta)
        self.theta_tensor.fill_(theta)

    def control(self, gamma: Tensor) -> None:
        """Take theta from a leaf scalar, which gets the derivative with respect to it in every backward pass."""
        self.theta = self.theta_tensor = gamma

    def note(self, flat: Tensor) -> None:
        """Keep an input of the free map, detached, if inputs are recorded and this is not a backward pass.

        In a backward pass, activation checkpointing calls the layer a second time with the same input.
        """
        if self.calls is not None and (torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1):
            self.calls.append(flat.detach())

    def __getattr__(self, name: str) -> Any:
        """Look up attributes that this module does not have in the layer."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            layer = self.__dict__.get("_modules", {}).get("layer")
            if layer is None:
                raise
            return getattr(layer, name)


def _add(y: Any, free: Any) -> Any:
    """The sum of two features of any form."""
    if isinstance(y, Tensor):
        return y + free
    if isinstance(y, dict):
        return {key: block + free[key] for key, block in y.items()}
    return tuple(block + piece for block, piece in zip(y, free, strict=True))


def _rename_weight(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Read checkpoints of older versions, in which W had a name that now belongs to the layer."""
    if prefix + "weight" in state and prefix + "free.weight" not in state:
        state[prefix + "free.weight"] = state.pop(prefix + "weight")


class Placement(NamedTuple):
    """Where free maps were added, what was left out, and the number of parameters; print it to read it."""

    names: list[str]  # of the relaxed layers, in the order of the network
    left_out: list[str]  # layers between invariant scalars, which the default skips
    n_free: int  # parameters of the free maps
    n_parameters: int  # of the network without them

    def __str__(self) -> str:
        """One sentence on what was relaxed, and one on what was left out."""
        said = (
            f"Relaxed {', '.join(self.names)}: {self.n_free:,} free parameters next to the network's "
            f"{self.n_parameters:,}."
        )
        return f"{said}\n{_why_left_out(self.left_out)}" if self.left_out else said


def _why_left_out(names: Sequence[str]) -> str:
    return (
        f"Left out {', '.join(names)}: every map between invariant scalars is equivariant. Name them in `where` to "
        "relax them anyway."
    )


def relax_constraints(
    model: nn.Module,
    *,
    where: Sequence[str] | None = None,
    initial_std: float = INITIAL_STD,
    generator: torch.Generator | None = None,
    kind: FreeKind = "linear",
    rank: int | None = None,
) -> Placement:
    """Add a free map to chosen layers of a model, in place: f(x) = f_e(x) + theta W x, with theta = 1 initially.

    The method is that of Pertigkiozoglou et al., NeurIPS 2024 (arXiv 2408.13242); W is (dim_out, dim_in) over the
    flattened features of the layer's first argument and of its result.

    Args:
        model: Any module with layers that ``relaxable_sites`` knows: those of e3nn in ``SITES``, and layers with a
            method ``relaxable``. A layer registered under several names is relaxed once, under all of them.
        where: Shell patterns of layer names, from the model's root or from any depth (``blocks.*.feed_forward``). By
            default the layers that the paper relaxes, which a potential names in its ``relax_where``; in other models,
            every layer with a site that is not inside another one, except those between invariant scalars.
        initial_std: Standard deviation of the normal distribution that each W is drawn from; 1e-4 as in the paper's
            N-body release.
        generator: Generator of these numbers; by default torch's global one.
        kind: ``linear``, or ``mlp``: a perceptron of three layers in place of W x, as in ACE's N-body network.
        rank: Take W = U V^T of this rank in layers where U and V have fewer parameters than W.

    Returns the names of the relaxed layers, those left out, and the number of parameters of the free maps. Raises
    ``ValueError`` if nothing matches (naming the nearest layer), if one chosen layer is inside another, if a layer has
    an attribute with a name that its relaxed form uses itself, if the model also keeps a layer in a plain attribute or
    is wrapped for several devices, if it is already relaxed, for an unknown
    ``kind``, a ``rank`` below 1 or of a perceptron, and for a perceptron where the free map is not a matrix.

    >>> from torch import nn
    >>> from mdrelax import relax_constraints
    >>> from mdrelax.base import o3
    >>> up, down = o3.Linear("8x0e + 4x1o", "8x0e + 4x1o"), o3.Linear("8x0e + 4x1o", "4x0e")
    >>> model = nn.Sequential(up, down, o3.Linear("4x0e", "1x0e"))
    >>> print(relax_constraints(model))
    Relaxed 0, 1: 480 free parameters next to the network's 116.
    Left out 2: every map between invariant scalars is equivariant. Name them in `where` to relax them anyway.
    >>> model[0].free.weight.shape, model[0].irreps_out  # attributes of the layer, through its relaxed form
    (torch.Size([20, 20]), 8x0e+4x1o)
    """
    if is_relaxed(model):
        raise ValueError("The model is relaxed already; `project` it first.")
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    sites = relaxable_sites(model)
    chosen, left_out = _choose(model, sites, where)
    refuse_hidden_references(model, {name: model.get_submodule(name) for name in chosen})
    frees = {name: _free_function(name, sites[name], kind, rank) for name in chosen}
    relaxed = {}
    for name, free in frees.items():
        free.reset(initial_std, generator)
        relaxed[name] = _relaxed(model.get_submodule(name), free, sites[name].view)
    for name, layer in relaxed.items():
        replace_module(model, model.get_submodule(name), layer)
    n_free = sum(parameter.numel() for free in frees.values() for parameter in free.parameters())
    return Placement(chosen, left_out, n_free, n_parameters)


def _free_function(name: str, site: Site, kind: FreeKind, rank: int | None) -> FreeFunction:
    """The free function of a site, zero."""
    if kind not in get_args(FreeKind):
        raise ValueError(f"Unknown kind of free maps `{kind}`; {nearest_name(kind, get_args(FreeKind))}")
    if rank is not None and (rank < 1 or kind == "mlp"):
        raise ValueError(f"`rank` must be at least 1 and is of linear free maps, got {rank} with kind={kind!r}.")
    source, output = site.source, site.output
    if site.make_free is not FreeLinear:
        if kind == "mlp":
            raise ValueError(f"The free map of `{name}` is no matrix: use kind='linear', or leave it out of `where`.")
        return site.make_free(source, output)
    if kind == "mlp":
        return FreeMLP(source, output)
    if rank is not None and rank * (source.dim + output.dim) < source.dim * output.dim:
        return FreeLowRank(source, output, rank=rank)
    return FreeLinear(source, output)


def _relaxed(layer: nn.Module, free: FreeFunction, view: FeatureView) -> Relaxed:
    like = next(layer.parameters())
    return Relaxed(layer, free, view).to(like.device, like.dtype).train(layer.training)


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace a module by another, under every name that it has in the model."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old and parent is not new:
                setattr(parent, name, new)


def _choose(model: nn.Module, sites: dict[str, Site], where: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The names of the layers to relax, and of those that the default leaves out."""
    patterns = _default_where(model) if where is None else where
    if patterns is None:
        chosen = [name for name in sites if not _is_inside(name, sites)]
    else:
        names = names_of_modules(model)
        known = {name: names[id(model.get_submodule(name))] for name in sites}
        chosen = [name for name in sites if any(_matches(each, own) for each in known[name] for own in patterns)]
    left_out = [name for name in chosen if where is None and sites[name].is_trivial]
    chosen = [name for name in chosen if name not in left_out]
    if left_out and not chosen:
        raise ValueError(f"There is no other place in this model. {_why_left_out(left_out)}")
    if not chosen:
        hint = nearest_name(str(patterns), sites) if sites else "none can be relaxed (a layer must be in a module)."
        raise ValueError(f"No layer matches where={patterns}; {hint}")
    inside = [name for name in chosen if _is_inside(name, chosen)]
    if inside:
        raise ValueError(f"{inside} lie inside layers that are chosen too; choose one level of the network.")
    return chosen, left_out


def _is_inside(name: str, others: Collection[str]) -> bool:
    return any(name.startswith(other + ".") for other in others)


def _default_where(model: nn.Module) -> Sequence[str] | None:
    """The patterns of the first submodule that declares ``relax_where``."""
    declared = (getattr(module, "relax_where", None) for module in model.modules())
    return next((patterns for patterns in declared if patterns is not None), None)


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, "*." + pattern)


def relaxed_layers(model: nn.Module) -> dict[str, Relaxed]:
    """The relaxed layers by name, in the order of the network."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Relaxed)}


def is_relaxed(model: nn.Module) -> bool:
    """Whether any layer of the model has a free map."""
    return any(isinstance(module, Relaxed) for module in model.modules())


def theta_of(layer: Relaxed) -> float:
    """theta of a layer as a number, also if a controller owns it."""
    return layer.theta.item() if isinstance(layer.theta, Tensor) else layer.theta


def set_theta(model: nn.Module, theta: float) -> None:
    """Set theta of f(x) = f_e(x) + theta W x in every relaxed layer (Pertigkiozoglou et al., NeurIPS 2024).

    Args:
        model: A relaxed model. At theta = 0 it equals the original network bit for bit, and no W is read.
        theta: A number in [0, 1], the same for all layers; in a training step, ``Schedule(...).at_step(step)``.

    Raises ``ValueError`` for theta outside [0, 1] and for a model without relaxed layers.

    >>> import torch
    >>> from torch import nn
    >>> from mdrelax import relax_constraints, set_theta
    >>> from mdrelax.base import o3
    >>> model, x = nn.Sequential(o3.Linear("1o", "1o")), torch.tensor([1.0, 2.0, 3.0])
    >>> _ = nn.init.ones_(model[0].weight)  # f_e(x) = x
    >>> relax_constraints(model).names
    ['0']
    >>> model[0].free.weight.data = torch.tensor([[0.0, 1, 0], [0, 0, 0], [0, 0, 0]])  # adds theta y to x
    >>> for theta in (0.0, 0.5, 1.0):
    ...     set_theta(model, theta)
    ...     print(theta, model(x).tolist())
    0.0 [1.0, 2.0, 3.0]
    0.5 [2.0, 2.0, 3.0]
    1.0 [3.0, 2.0, 3.0]
    """
    if not 0.0 <= theta <= 1.0:
        raise ValueError(f"`theta` must lie in [0, 1], got {theta}.")
    layers = relaxed_layers(model)
    if not layers:
        raise ValueError("No layer of the model is relaxed; call `relax_constraints` first.")
    for layer in layers.values():
        layer.set_theta(theta)
