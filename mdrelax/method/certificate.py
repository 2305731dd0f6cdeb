"""Certificate: the measured proof that a projected network is equivariant, stored in its model file.

For the whole network it states the largest relative error under rotations, reflections, translations and permutations
of real inputs, in float64 and in float32; for each relaxed layer, the size of its free map when it was projected. The
error is measured by a function of the task: ``mdrelax.forces.symmetry`` for force fields.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from mdrelax.method.projection import LayerRecord
from mdrelax.method.relaxation import is_relaxed

__all__ = [
    "LARGEST_ERROR_FLOAT32",
    "LARGEST_ERROR_FLOAT64",
    "Certificate",
    "CertificateError",
    "EquivarianceError",
    "certificate_of",
    "require",
]

# The certificate's limits.
LARGEST_ERROR_FLOAT64 = 1e-9  # relative to the terms that a prediction is summed from, see `forces.symmetry`
LARGEST_ERROR_FLOAT32 = 1e-4
LIKELY_CAUSES = (
    "Either (a) a layer of the potential breaks the symmetry, or (b) the network's numbers overflow; `mdrelax audit` "
    "shows which."
)


class CertificateError(RuntimeError):
    """The network is not equivariant: it is refused, not saved."""


class EquivarianceError(NamedTuple):
    """Largest relative errors over the structures and operations that were tried; dimensionless."""

    rotation: float
    reflection: float
    translation: float
    permutation: float

    def worst(self, *, reflections: bool) -> float:
        """The largest error over the symmetries that the network claims (``reflections`` for E(3), not for SE(3))."""
        errors = [self.rotation, self.translation, self.permutation] + [self.reflection] * reflections
        return max(errors) if all(map(math.isfinite, errors)) else float("inf")


class Certificate(NamedTuple):
    """The proof that is stored in a model file; ``symmetry`` is "E(3)" or "SE(3)" (no reflections)."""

    symmetry: str
    float64: EquivarianceError
    float32: EquivarianceError
    n_structures: int
    layers: list[LayerRecord]
    history: str | None = None  # how the network began, if not at random, as in "pre-trained on ..."

    @property
    def passed(self) -> bool:
        """Whether both precisions stay under their limits (``LARGEST_ERROR_FLOAT64`` and ``_FLOAT32``)."""
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
            **({} if self.history is None else {"history": self.history}),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Certificate":
        """The inverse of ``to_dict``; "passed" is evaluated again from the numbers.

        Raises ``ValueError`` for a document that is no certificate.
        """
        n_structures = data.get("n_structures")
        if not _is_word(data.get("symmetry"), longest=40):
            raise ValueError("its certificate names no symmetry")
        if type(n_structures) is not int or n_structures < 1:
            raise ValueError(f"its certificate was measured on {n_structures!s:.40} structures")
        if not isinstance(data.get("layers"), list) or not all(isinstance(layer, dict) for layer in data["layers"]):
            raise ValueError("its certificate lists no layers")
        history = data.get("history")
        if history is not None and not _is_word(history):
            raise ValueError("its certificate has a history that is no line of text")
        layers = [LayerRecord(**layer) for layer in data["layers"]]
        if not all(_is_word(layer.name) and _is_word(layer.how) for layer in layers):
            raise ValueError("its certificate has a layer without a name")
        return cls(data["symmetry"], _errors(data, "float64"), _errors(data, "float32"), n_structures, layers, history)


def _is_word(value: Any, longest: int = 500) -> bool:
    """True for a text that tables and messages can quote: not endless, no characters that a terminal would obey."""
    return isinstance(value, str) and value.isprintable() and len(value) <= longest


def _errors(data: dict[str, Any], precision: str) -> EquivarianceError:
    """The errors in one precision; raises ``ValueError`` unless they are numbers, which may be infinite or NaN."""
    errors = data.get(precision)
    if not isinstance(errors, dict) or set(errors) != set(EquivarianceError._fields):
        raise ValueError(f"its certificate has no errors in {precision}")
    if not all((isinstance(value, float) and not value < 0) or value == 0 for value in errors.values()):
        raise ValueError(f"its certificate has errors in {precision} that are no numbers >= 0")
    return EquivarianceError(**errors)


def certificate_of(
    model: nn.Module,
    measure: Callable[[torch.dtype], EquivarianceError],
    *,
    symmetry: str,
    n_structures: int,
    layers: list[LayerRecord] | None = None,
) -> Certificate:
    """The certificate of a projected model.

    Args:
        model: A model without free maps.
        measure: ``measure(dtype)`` returns the model's largest relative errors on real inputs, with its weights in
            float64 or float32; 0 for symmetries that do not apply.
        symmetry: The group that the model claims: ``E(3)``, or another group, without reflections.
        n_structures: The number of inputs that were measured.
        layers: The records of ``project``.

    Returns a certificate that may not have passed; ``require`` raises in that case. Raises ``ValueError`` if the model
    still has free maps.

    >>> import torch
    >>> from torch import nn
    >>> from mdrelax.base import o3
    >>> from mdrelax.method.certificate import EquivarianceError, certificate_of, require
    >>> model, x = nn.Sequential(o3.Linear("1o", "2x1o")), torch.tensor([[1.0, 2.0, 3.0]])
    >>> quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # about z
    >>> def measure(dtype):
    ...     twin, g, y = model.to(dtype), quarter.to(dtype), x.to(dtype)
    ...     turned = (twin(y).unflatten(-1, (2, 3)) @ g.T).flatten(-2)
    ...     return EquivarianceError((twin(y @ g.T) - turned).abs().max().item(), 0.0, 0.0, 0.0)
    >>> require(certificate_of(model, measure, symmetry="E(3)", n_structures=1)).float64
    EquivarianceError(rotation=0.0, reflection=0.0, translation=0.0, permutation=0.0)
    """
    if is_relaxed(model):
        raise ValueError("The model still has free maps; `project` it before it is certified.")
    return Certificate(symmetry, measure(torch.float64), measure(torch.float32), n_structures, layers or [])


def require(certificate: Certificate, *, cause: str = LIKELY_CAUSES) -> Certificate:
    """Return the certificate if it passed.

    Args:
        certificate: What ``certificate_of`` returned.
        cause: The last sentence of the error message: the likely cause and how to find it.

    Raises ``CertificateError`` with the errors and their limits if it did not pass.

    >>> from mdrelax.method.certificate import Certificate, EquivarianceError, require
    >>> broken = EquivarianceError(rotation=0.1, reflection=0.0, translation=0.0, permutation=0.0)
    >>> require(Certificate("E(3)", broken, broken, n_structures=1, layers=[]), cause="The bias is a vector.")
    Traceback (most recent call last):
    ...
    mdrelax.method.certificate.CertificateError: The network is not E(3)-equivariant: largest relative error 1.0e-01 \
in float64 (limit 1e-09) and 1.0e-01 in float32 (limit 1e-04). The bias is a vector.
    """
    if certificate.passed:
        return certificate
    reflections = certificate.symmetry == "E(3)"
    raise CertificateError(
        f"The network is not {certificate.symmetry}-equivariant: largest relative error "
        f"{certificate.float64.worst(reflections=reflections):.1e} in float64 (limit {LARGEST_ERROR_FLOAT64:.0e}) and "
        f"{certificate.float32.worst(reflections=reflections):.1e} in float32 (limit {LARGEST_ERROR_FLOAT32:.0e}). "
        f"{cause}"
    )
