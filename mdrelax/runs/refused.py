"""Refused networks: a run whose certificate fails is kept, with the reason."""

import math
from typing import NoReturn

from mdrelax.method.certificate import LARGEST_ERROR_FLOAT64, Certificate, EquivarianceError, require

__all__ = ["cause_of_failure", "refuse"]

REFUSED = "refused.safetensors"


def cause_of_failure(certificate: Certificate) -> str:
    """Why a certificate does not pass, as a sentence with the remedy."""
    kinds = [name for name in EquivarianceError._fields if name != "reflection" or certificate.symmetry == "E(3)"]
    double = {name: getattr(certificate.float64, name) for name in kinds}
    single = [getattr(certificate.float32, name) for name in kinds]
    if not all(map(math.isfinite, double.values())):
        return "Its numbers overflow, in float64 too: lower `training.learning_rate`, and look for broken frames."
    broken = [f"{name}s" for name, error in double.items() if not error < LARGEST_ERROR_FLOAT64]
    if broken:
        return (
            f"A layer of the network breaks the symmetry under {' and '.join(broken)}: `mdrelax audit "
            f"RUN/{REFUSED} --out FOLDER` measures every layer."
        )
    if not all(map(math.isfinite, single)):
        return "It is equivariant in float64, but its numbers overflow in float32: lower `training.learning_rate`."
    return (
        "It is equivariant in float64, but float32 rounds too coarsely for its large, cancelling numbers: train for "
        "longer, or with more weight decay."
    )


def refuse(certificate: Certificate) -> NoReturn:
    """Raise the ``CertificateError`` of a run that was kept."""
    kept = f"The run is kept: the network as `{REFUSED}`, its errors in results.json."
    require(certificate, cause=f"{cause_of_failure(certificate)} {kept}")
    raise ValueError("The certificate passed: there is nothing to refuse.")
