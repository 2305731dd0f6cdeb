"""Model file of a point-cloud network: weights, and all that builds and describes it, in one `.safetensors` file.

| key | content |
| --- | --- |
| kind | "a point-cloud network"; force fields have no such key |
| format_version | 1; newer ones are refused |
| network, preset, classes, n_points, dtype | everything needed to build and use the network |
| certificate | the proof of invariance |
| card | free text and numbers: data, training, errors |
"""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mdrelax.base.containers import check_header, read_container, rebuilt, refuse_others, write_container
from mdrelax.base.provenance import software_versions
from mdrelax.base.states import load_exactly
from mdrelax.method.certificate import Certificate, require
from mdrelax.method.relaxation import is_relaxed
from mdrelax.packs.modelnet.sizes import build_network
from mdrelax.packs.modelnet.task import predict

__all__ = ["KIND", "LoadedNetwork", "load_network", "save_network"]

KIND = "a point-cloud network"
FORMAT_VERSION = 1
DTYPES = {"float32": torch.float32, "float64": torch.float64}


class _Header(BaseModel):
    """The keys that loading needs, with their types; others are free."""

    model_config = ConfigDict(strict=True)
    network: str
    preset: str
    classes: Annotated[list[str], Field(min_length=1)]
    n_points: Annotated[int, Field(ge=1)]
    dtype: Literal["float32", "float64"]
    certificate: dict[str, Any]


class LoadedNetwork(NamedTuple):
    """A network in evaluation mode on the CPU, its classes, its certificate and the whole header."""

    network: nn.Module
    classes: tuple[str, ...]
    certificate: Certificate
    header: dict[str, Any]

    def probabilities(self, points: Tensor) -> Tensor:
        """The probability of each class (M, n_classes) for clouds (M, P, 3), whatever their pose."""
        return predict(self.network, points.to(DTYPES[self.header["dtype"]])).softmax(1)


def save_network(
    path: str | Path,
    model: nn.Module,
    *,
    network: str,
    preset: str,
    classes: tuple[str, ...],
    n_points: int,
    certificate: Certificate,
    card: dict[str, Any] | None = None,
) -> Path:
    """Write a projected, certified network atomically; ``network`` and ``preset`` are the names that built it.

    Raises ``CertificateError`` if the certificate did not pass, ``ValueError`` for a network with free maps, and
    ``OSError`` if the disk is full (the old file stays).
    """
    require(certificate)
    if is_relaxed(model):
        raise ValueError("The network still has free maps; `project` it before it is saved.")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    header = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "network": network,
        "preset": preset,
        "classes": list(classes),
        "n_points": n_points,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "certificate": certificate.to_dict(),
        "card": card or {},
        "versions": software_versions(),
    }
    return write_container(path, tensors, header)


def load_network(path: str | Path, *, certified: bool = True) -> LoadedNetwork:
    """Read a model file; raises ``ModelFileError`` if it is missing, truncated, foreign, altered or too new.

    Raises ``CertificateError`` for a file whose certificate did not pass, unless ``certified`` is off.
    """
    path = Path(path)
    header, tensors = read_container(path, refuse=refuse_others(KIND, FORMAT_VERSION))
    check_header(path, header, _Header)
    with rebuilt(path, len(header["classes"]), tensors):
        network = build_network(header["network"], header["preset"], len(header["classes"]))
        load_exactly(network.to(DTYPES[header["dtype"]]), tensors)
        certificate = Certificate.from_dict(header["certificate"])
    network.eval().requires_grad_(False)
    return LoadedNetwork(network, tuple(header["classes"]), require(certificate) if certified else certificate, header)
