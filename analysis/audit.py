"""Audit: where and by how much a network is not equivariant: each layer, every angle, both precisions.

Measured without the code that trains and projects: Wigner matrices are e3nn's, rotations scipy's. The error of a layer
f between irreps is

    max |f(D_in(g) x) - D_out(g) f(x)| / rms f(x)          x: the layer's own inputs on the structures that are audited

and that of the network at an angle is the certificate's (``mdrelax.forces.symmetry``) for rotations by that angle.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from mdrelax.analysis.drawing import BLUE, WIDTH, NothingToDrawError, heat_map, styled
from mdrelax.analysis.tables import short_names
from mdrelax.base import o3
from mdrelax.base.seeds import numpy_generator
from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.symmetry import network_in, relative_error
from mdrelax.method.groups import IrrepsRepresentation, Layout
from mdrelax.method.relaxation import relaxed_layers
from mdrelax.method.sites import relaxable_sites
from mdrelax.structures.graph import Graph
from mdrelax.structures.rotate import rotate

__all__ = ["ANGLES", "angle_errors", "draw_angles", "draw_layers", "layer_errors"]

ANGLES = (0.1, 1.0, 5.0, 15.0, 30.0, 45.0, 60.0, 90.0, 120.0, 150.0, 180.0)  # degrees
OPERATIONS = ("rotation", "reflection")
SMALLEST = 1e-30  # rms below which a layer gives nothing

Features = Any  # a tensor (..., dim), or a tuple with one (..., D, C) per irrep


def angle_errors(
    force_field: ForceField,
    graph: Graph,
    *,
    angles: Sequence[float] = ANGLES,
    dtype: torch.dtype = torch.float64,
    n_axes: int = 4,
    seed: int = 0,
) -> pd.DataFrame:
    """Columns ``angle_deg`` and ``error``: the largest over random axes, one for each structure and try."""
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
    """A row for each layer between irreps that takes features alone: ``layer``, ``rotation``, ``reflection``.

    A relaxed layer counts with its free map at its theta, under the layer's own name. Layers that give zeros only have
    an error of 0 where they stay at zero.
    """
    model = copy.deepcopy(force_field).to_dtype(dtype).eval()
    layers = _layers(model)
    inputs = _inputs(model, graph, layers)
    matrices = torch.from_numpy(
        Rotation.random(n_operations, random_state=numpy_generator(seed, "operations")).as_matrix()
    )
    rows = []
    for name, (layer, irreps_in, irreps_out, layout) in layers.items():
        if name not in inputs:
            continue
        x, errors = inputs[name], {}
        for operation, sign in zip(OPERATIONS, (1, -1), strict=True):
            pairs = [
                (_turn(layer(x), irreps_out, layout, sign * m), layer(_turn(x, irreps_in, layout, sign * m)))
                for m in matrices
            ]
            errors[operation] = max(_relative(expected, found) for expected, found in pairs)
        rows.append({"layer": name, **errors})
    return pd.DataFrame(rows, columns=["layer", *OPERATIONS])


def _layers(model: nn.Module) -> dict[str, tuple[nn.Module, o3.Irreps, o3.Irreps, Layout]]:
    """Every layer by name with its irreps and layout; a relaxed one in the place of what it wraps."""
    relaxed = relaxed_layers(model)
    found: dict[str, tuple[nn.Module, o3.Irreps, o3.Irreps, Layout]] = {}
    for name in relaxable_sites(model):
        site = model.get_submodule(name)
        if not hasattr(site, "irreps_in"):
            continue
        parent, _, leaf = name.rpartition(".")
        outer = parent if leaf == "layer" and parent in relaxed else name
        module: Any = site
        layout: Layout = getattr(module, "feature_layout", "mul_ir")
        found[outer] = (relaxed.get(outer, site), module.irreps_in, module.irreps_out, layout)
    return found


@torch.no_grad()
def _inputs(model: ForceField, graph: Graph, layers: dict[str, Any]) -> dict[str, Features]:
    """What each layer is given in one evaluation, of those that take one thing: a tensor or a tuple of tensors."""
    inputs: dict[str, Features] = {}

    def remember(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if len(arguments) == 1:
                (x,) = arguments
                inputs[name] = x.detach() if isinstance(x, Tensor) else tuple(block.detach() for block in x)

        return hook

    handles = [layer.register_forward_pre_hook(remember(name)) for name, (layer, *_) in layers.items()]
    try:
        model(graph)
    finally:
        for handle in handles:
            handle.remove()
    whole = {name: x for name, x in inputs.items() if isinstance(x, Tensor) or len(x) == len(layers[name][1])}
    return {name: x for name, x in whole.items() if isinstance(x, Tensor) or all(map(len, x))}


def _turn(x: Features, irreps: o3.Irreps, layout: Layout, matrix: Tensor) -> Features:
    """D(g) x for an orthogonal matrix, with e3nn's Wigner matrices."""
    if isinstance(x, Tensor):
        flat = IrrepsRepresentation(irreps, layout)
        return flat.join(list(_turn(tuple(flat.split(x)), irreps, layout, matrix)))
    # e3nn makes Wigner matrices in the dtype of what it is given.
    return tuple(ir.D_from_matrix(matrix).to(block) @ block for block, (_, ir) in zip(x, irreps, strict=False))


def _relative(expected: Features, found: Features) -> float:
    ours, theirs = ([x] if isinstance(x, Tensor) else list(x) for x in (found, expected))
    both = [torch.cat([block.flatten() for block in blocks]) for blocks in (ours, theirs)]
    size = both[1].square().mean().sqrt().clamp(min=SMALLEST)
    error = ((both[0] - both[1]).abs().max() / size).item()
    return error if np.isfinite(error) else float("inf")


@styled
def draw_layers(errors: pd.DataFrame) -> Figure:
    """Heat map of ``layer_errors``: a row a layer, a column an operation, log colour."""
    if errors.empty:
        raise NothingToDrawError("No layer between irreps was found: there is nothing to draw.")
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
