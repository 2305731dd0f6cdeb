"""Model file of a flow network: weights, and all that builds and describes it, in one `.safetensors` file.

| key | content |
| --- | --- |
| kind | "a flow network"; force fields have no such key |
| format_version | 1; newer ones are refused |
| network, preset, group, norm, n_in, size, sampling, dtype | everything needed to build and use the network |
| theta | of a network that keeps its free maps: theta by relaxed layer; else null |
| certificate | the errors under quarter turns; its symmetry is "none" where the network claims none |
| card | free text and numbers: data, training, errors, the symmetry error that was learnt |
"""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mdrelax.base.containers import check_header, read_container, rebuilt, refuse_others, write_container
from mdrelax.base.provenance import software_versions
from mdrelax.base.states import load_exactly
from mdrelax.datasets.plume import Sampling
from mdrelax.method.certificate import Certificate, require
from mdrelax.method.relaxation import relax_constraints, relaxed_layers
from mdrelax.packs.smoke.sizes import build_network
from mdrelax.packs.smoke.task import predict

__all__ = ["KIND", "FlowHeader", "LoadedFlow", "load_flow", "save_flow"]

KIND = "a flow network"
FORMAT_VERSION = 1
DTYPES = {"float32": torch.float32, "float64": torch.float64}


class _Form(BaseModel):
    """The keys that loading needs, with their types; others are free."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    network: str
    preset: str
    group: str
    norm: bool
    n_in: Annotated[int, Field(ge=1)]
    size: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)]
    sampling: Sampling
    dtype: Literal["float32", "float64"]
    theta: dict[str, float] | None
    certificate: dict[str, Any]


class FlowHeader(NamedTuple):
    """Everything needed to build a network and to feed it."""

    network: str
    preset: str
    group: str
    norm: bool
    n_in: int  # frames seen
    size: tuple[int, int]  # (H, W)
    sampling: str  # centres or faces
    dtype: str

    def names(self) -> tuple[str, str, str]:
        """The first arguments of ``build_network``."""
        return self.network, self.preset, self.group

    def arguments(self) -> dict[str, Any]:
        """Its other arguments."""
        return {"n_in": self.n_in, "size": self.size, "norm": self.norm}


class LoadedFlow(NamedTuple):
    """A network in evaluation mode on the CPU, what it was built from, its certificate, and the whole header."""

    network: nn.Module
    built: FlowHeader
    certificate: Certificate
    header: dict[str, Any]

    def predict(self, frames: Tensor, n_frames: int) -> Tensor:
        """The frames (B, n_frames, 2, H, W) that follow velocities (B, n, 2, H, W), of which the last n_in are read.

        Raises ``ValueError`` for another number of components, too few frames, a grid that the network was not made
        for, velocities that are not finite, and an unstable rollout.
        """
        return predict(self.network, _checked(frames, self.built), n_frames)


def _checked(frames: Tensor, built: FlowHeader) -> Tensor:
    if frames.ndim != 5 or frames.shape[2] != 2:
        raise ValueError(f"Velocities have the shape (windows, frames, 2, H, W), got {tuple(frames.shape)}.")
    if frames.shape[1] < built.n_in:
        raise ValueError(f"The network predicts from {built.n_in} frames, got {frames.shape[1]}.")
    if tuple(frames.shape[-2:]) != built.size:
        raise ValueError(f"The network was trained on a grid of {built.size}, got {tuple(frames.shape[-2:])}.")
    if not torch.isfinite(frames).all():
        raise ValueError("The velocities contain NaN or infinite numbers; remove these frames.")
    return frames[:, -built.n_in :]


def save_flow(
    path: str | Path, model: nn.Module, built: FlowHeader, *, certificate: Certificate,
    card: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Write a network atomically: projected, or with the free maps that it keeps.

    Raises ``CertificateError`` if the certificate claims a symmetry and did not pass, and ``OSError`` if the disk is
    full (the old file stays).
    """
    _require(certificate)
    kept = relaxed_layers(model)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    header = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        **built._asdict(),
        "size": list(built.size),
        "theta": {name: layer.theta for name, layer in kept.items()} or None,
        "certificate": certificate.to_dict(),
        "card": card or {},
        "versions": software_versions(),
    }
    return write_container(path, tensors, header)


def load_flow(path: str | Path, *, certified: bool = True) -> LoadedFlow:
    """Read a model file; raises ``ModelFileError`` if it is missing, truncated, foreign, altered or too new.

    Raises ``CertificateError`` for a file that claims a symmetry but did not pass, unless ``certified`` is off.
    """
    path = Path(path)
    header, tensors = read_container(path, refuse=refuse_others(KIND, FORMAT_VERSION))
    check_header(path, header, _Form)
    with rebuilt(path, [header[name] for name in FlowHeader._fields], tensors):
        built = FlowHeader(**{**{name: header[name] for name in FlowHeader._fields}, "size": tuple(header["size"])})
        network = build_network(*built.names(), **built.arguments())
        if header["theta"]:
            relax_constraints(network, where=list(header["theta"]))
            for name, layer in relaxed_layers(network).items():
                layer.set_theta(header["theta"][name])
        load_exactly(network.to(DTYPES[built.dtype]), tensors)
        certificate = Certificate.from_dict(header["certificate"])
    network.eval().requires_grad_(False)
    return LoadedFlow(network, built, _require(certificate) if certified else certificate, header)


def _require(certificate: Certificate) -> Certificate:
    return certificate if certificate.symmetry == "none" else require(certificate)
