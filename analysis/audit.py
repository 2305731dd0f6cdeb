"""Audit: the equivariance error of a network: of each layer, at every angle, in both precisions.

Measured without the code that trains and projects: features are rotated by e3nn's harmonics, rotations are scipy's. The
error of a layer f is

    max |f(D_in(g) x, a(g)) - D_out(g) f(x, a)| / rms f(x, a)

| symbol | meaning |
| --- | --- |
| x | the input features of the layer on the audited structures |
| D_in, D_out | representations of its ``Site`` (``relaxable_sites``), for layers of any package |
| a, a(g) | its other arguments, such as attributes of edges, on these structures and on the same ones rotated by g |

The error of the network at an angle is the certificate's (``mdrelax.forces.symmetry``) for rotations by that angle.
"""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from mdrelax.analysis.drawing import BLUE, WIDTH, NothingToDrawError, heat_map, styled
from mdrelax.analysis.tables import short_names
from mdrelax.base.seeds import numpy_generator
from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.symmetry import network_in, relative_error
from mdrelax.method.relaxation import relaxed_layers
from mdrelax.method.sites import Site, relaxable_sites
from mdrelax.structures.graph import Graph
from mdrelax.structures.rotate import rotate

__all__ = ["ANGLES", "angle_errors", "draw_angles", "draw_layers", "layer_errors"]

ANGLES = (0.1, 1.0, 5.0, 15.0, 30.0, 45.0, 60.0, 90.0, 120.0, 150.0, 180.0)  # degrees
OPERATIONS = ("rotation", "reflection")
COLUMNS = ["layer", *OPERATIONS]
SMALLEST = 1e-30  # rms below which the output of a layer counts as zero

Call = tuple[tuple[Any, ...], dict[str, Any]]  # the arguments of a layer: features first


def angle_errors(
    force_field: ForceField,
    graph: Graph,
    *,
    angles: Sequence[float] = ANGLES,
    dtype: torch.dtype = torch.float64,
    n_axes: int = 4,
    seed: int = 0,
) -> pd.DataFrame:
    """Columns ``angle_deg`` and ``error``: the largest over random axes, one per structure and trial."""
    model = network_in(force_field, dtype)
    reference, scale = model(graph), model.magnitudes(graph)
    rng = numpy_generator(seed, "angles")
    rows = []
    for angle in angles:
        worst = 0.0
        for _ in range(n_axes):
            axes = rng.normal(size=(graph.n_graphs, 3))
            vectors = np.radians(angle) * axes / np.linalg.norm(axes, axis=1, keepdims=True)
            matrices = torch.from_numpy(Rotation.from_rotvec(vectors).as_matrix())
            turned = model(rotate(graph, matrices))
            worst = max(worst, relative_error(reference, turned, scale, matrices[graph.batch]).item())
        rows.append((angle, worst))
    return pd.DataFrame(rows, columns=["angle_deg", "error"])


def layer_errors(
    force_field: ForceField, graph: Graph, *, dtype: torch.dtype = torch.float64, n_operations: int = 4, seed: int = 0
) -> pd.DataFrame:
    """One row per layer with a site for a free map: ``layer``, ``rotation``, ``reflection``.

    Layers that are not called, or not with all their features, and those of groups that do not act in space are left
    out. A relaxed layer includes its free map at its theta, under the layer's own name. Layers whose outputs are zero
    have an error of 0 if they remain zero.
    """
    model = copy.deepcopy(force_field).to_dtype(dtype).eval()
    layers = _layers(model)
    straight = _calls(model, graph, layers)
    worst: dict[str, dict[str, float]] = {}
    for matrix in Rotation.random(n_operations, random_state=numpy_generator(seed, "operations")).as_matrix():
        for operation, sign in zip(OPERATIONS, (1, -1), strict=True):
            g = sign * torch.from_numpy(matrix)
            turned = _calls(model, rotate(graph, g.expand(graph.n_graphs, 3, 3)), layers)
            for name, (layer, site) in layers.items():
                for error in map(partial(_error, layer, site, g), straight[name], turned[name]):
                    if error is not None:
                        row = worst.setdefault(name, dict.fromkeys(OPERATIONS, 0.0))
                        row[operation] = max(row[operation], error)
    return pd.DataFrame([{"layer": name, **worst[name]} for name in layers if name in worst], columns=COLUMNS)


def _layers(model: nn.Module) -> dict[str, tuple[nn.Module, Site]]:
    """Every layer by name with its site; a relaxed one in place of the layer it wraps."""
    relaxed = relaxed_layers(model)
    found: dict[str, tuple[nn.Module, Site]] = {}
    for name, site in relaxable_sites(model).items():
        parent, _, leaf = name.rpartition(".")
        outer = parent if leaf == "layer" and parent in relaxed else name
        found[outer] = relaxed.get(outer, model.get_submodule(name)), site
    return found


def _calls(model: ForceField, graph: Graph, layers: dict[str, tuple[nn.Module, Site]]) -> dict[str, list[Call]]:
    """The arguments of each layer's calls in one evaluation."""
    calls: dict[str, list[Call]] = {name: [] for name in layers}

    def remember(name: str, _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls[name].append((arguments, named))

    handles = [
        layer.register_forward_pre_hook(partial(remember, name), with_kwargs=True)
        for name, (layer, _) in layers.items()
    ]
    try:
        model(graph)
    finally:
        for handle in handles:
            handle.remove()
    return calls


@torch.no_grad()
def _error(layer: nn.Module, site: Site, matrix: Tensor, straight: Call, turned: Call) -> float | None:
    """The layer's error for one operation and call, or None if it is undefined."""
    (x, *others), named = straight
    (_, *turned_others), turned_named = turned
    y, flat = layer(x, *others, **named), site.view.flatten(x)
    out = site.view.flatten(y)
    if (flat.shape[-1], out.shape[-1]) != (site.source.dim, site.output.dim) or not out.numel():
        return None
    turned_flat, expected = site.source.turned(flat, matrix), site.output.turned(out, matrix)
    if turned_flat is None or expected is None:
        return None
    found = site.view.flatten(layer(site.view.unflatten(turned_flat, like=x), *turned_others, **turned_named))
    size = expected.square().mean().sqrt().clamp(min=SMALLEST)
    error = ((found - expected).abs().max() / size).item()
    return error if np.isfinite(error) else float("inf")


@styled
def draw_layers(errors: pd.DataFrame) -> Figure:
    """Heat map of ``layer_errors``: one row per layer, one column per operation, log colour."""
    if errors.empty:
        raise NothingToDrawError("No layer with a place for a free map was found: there is nothing to draw.")
    figure = Figure(figsize=(0.6 * WIDTH, 1.2 + 0.24 * len(errors)), layout="constrained")
    ax = figure.add_subplot()
    heat_map(figure, ax, errors[list(OPERATIONS)].to_numpy(dtype=float), label="relative error")
    ax.set_yticks(range(len(errors)), short_names(list(errors.layer)))
    ax.set_xticks(range(len(OPERATIONS)), OPERATIONS)
    ax.set_title("equivariance error of each layer")
    return figure


@styled
def draw_angles(errors: pd.DataFrame) -> Figure:
    """The network's error against the angle of rotation, log scale."""
    figure = Figure(figsize=(0.6 * WIDTH, 2.8), layout="constrained")
    ax = figure.add_subplot()
    ax.plot(errors.angle_deg, errors.error.clip(lower=1e-18), "o-", color=BLUE, markersize=4)
    ax.set(xlabel="angle of rotation (degrees)", ylabel="relative error", yscale="log")
    ax.set_title("error of the whole network")
    return figure
