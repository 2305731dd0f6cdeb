"""Projection: from the relaxed network back to an exactly equivariant one, with a certificate that anyone can check.

`drop` removes the free maps (theta = 0). `fold` first adds theta P(W), the nearest equivariant map to the free one, to
layers that can hold a linear map; other layers drop theirs. Both give back the original modules, parameter names and
speed. The certificate states per layer

    ||W||      ||W - P(W)||  <=  sqrt(LD(W) / 2)      the symmetry spectrum ||W_J||^2

and for the whole network the largest relative error of energy and forces over rotations, reflections, translations and
permutations of real structures, in float64 and in float32.
"""

import copy
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor, nn

from mdrelax.base import o3
from mdrelax.base.units import nearest_name
from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.symmetry import EquivarianceError, equivariance_error
from mdrelax.method.groups import (
    IrrepsRepresentation,
    commutators,
    equivariant_blocks,
    equivariant_part,
    symmetry_spectrum,
)
from mdrelax.method.relaxation import Relaxed, is_relaxed, relaxed_layers
from mdrelax.structures.graph import Graph

__all__ = [
    "Certificate",
    "CertificateError",
    "LayerRecord",
    "ProjectionKind",
    "certify",
    "project",
    "projected_copy",
    "require",
]

ProjectionKind = Literal["drop", "fold"]
Model = TypeVar("Model", bound=nn.Module)
LARGEST_ERROR_FLOAT64 = 1e-9  # relative to the terms that are summed, see `equivariance`
LARGEST_ERROR_FLOAT32 = 1e-4


class CertificateError(RuntimeError):
    """The network is not equivariant: it is refused, not saved."""


class LayerRecord(NamedTuple):
    """What the free map of one layer was when it was projected."""

    name: str
    norm: float  # ||W||
    distance: float  # ||W - P(W)||
    bound: float  # sqrt(LD(W) / 2), never below the distance (of finite groups: for C_n up to n = 4)
    spectrum: list[float]  # ||W_J||^2, J = 0, 1, ...
    theta: float
    how: str  # "dropped" or "folded"


class Certificate(NamedTuple):
    """The proof that travels with a model file; ``symmetry`` is "E(3)" or "SE(3)" (no reflections)."""

    symmetry: str
    float64: EquivarianceError
    float32: EquivarianceError
    n_structures: int
    layers: list[LayerRecord]

    @property
    def passed(self) -> bool:
        """Whether both precisions stay under their limits (1e-9 and 1e-4 of the terms that are summed)."""
        reflections = self.symmetry == "E(3)"
        return (
            self.float64.worst(reflections=reflections) < LARGEST_ERROR_FLOAT64
            and self.float32.worst(reflections=reflections) < LARGEST_ERROR_FLOAT32
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers for JSON."""
        return {
            "symmetry": self.symmetry,
            "float64": self.float64._asdict(),
            "float32": self.float32._asdict(),
            "n_structures": self.n_structures,
            "layers": [layer._asdict() for layer in self.layers],
            "passed": self.passed,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Certificate":
        """The inverse of ``to_dict``; "passed" is judged again from the numbers."""
        return cls(
            data["symmetry"],
            EquivarianceError(**data["float64"]),
            EquivarianceError(**data["float32"]),
            data["n_structures"],
            [LayerRecord(**layer) for layer in data["layers"]],
        )


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


def certify(
    force_field: ForceField,
    graph: Graph,
    *,
    layers: list[LayerRecord] | None = None,
    n_operations: int = 8,
    seed: int = 0,
) -> Certificate:
    """Measure a projected force field on real structures; raises ``ValueError`` when it still has free maps.

    The certificate may not pass: ``require`` raises then.
    """
    if is_relaxed(force_field):
        raise ValueError("The model still has free maps; `project` it before it is certified.")
    errors = [
        equivariance_error(force_field, graph, dtype=dtype, n_operations=n_operations, seed=seed)
        for dtype in (torch.float64, torch.float32)
    ]
    symmetry = str(getattr(force_field.potential, "symmetry", "SE(3)"))
    return Certificate(symmetry, errors[0], errors[1], graph.n_graphs, layers or [])


def require(certificate: Certificate) -> Certificate:
    """The certificate itself when it passed; raises ``CertificateError`` with the numbers when it did not."""
    if certificate.passed:
        return certificate
    reflections = certificate.symmetry == "E(3)"
    raise CertificateError(
        f"The network is not {certificate.symmetry}-equivariant: largest relative error "
        f"{certificate.float64.worst(reflections=reflections):.1e} in float64 (limit {LARGEST_ERROR_FLOAT64:.0e}) and "
        f"{certificate.float32.worst(reflections=reflections):.1e} in float32 (limit {LARGEST_ERROR_FLOAT32:.0e}). "
        "Either (a) a layer of the potential breaks the symmetry, or (b) the network's numbers overflow; "
        "`mdrelax audit` shows which."
    )


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
