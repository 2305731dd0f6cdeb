"""Model file: a finished, projected force field in one `.safetensors` file that never executes code when loaded.

The tensors are the force field's state; the header holds one JSON document:

| key | content |
| --- | --- |
| format_version | 4; older versions are migrated, newer ones refused |
| potential, elements, dtype | arguments that build the network, defaults included |
| physics | the terms that are not learnt: `zbl` and `dispersion`, see ``Physics`` |
| certificate | the proof of equivariance, see `projection` |
| card | free text and numbers on data, training, errors, citation |
| versions, coupling_fingerprint | of the libraries, and of e3nn's Clebsch-Gordan coefficients |
| content | SHA-256 over the tensors and the rest of the header |
"""

import copy
import hashlib
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field

import mdrelax.potentials as networks
from mdrelax.base import o3
from mdrelax.base.ambient import out_of_inference_mode
from mdrelax.base.containers import (
    ModelFileError,
    check_header,
    read_container,
    rebuilt,
    refuse_versions,
    write_container,
)
from mdrelax.base.migrations import with_published_norm
from mdrelax.base.names import nearest_name
from mdrelax.base.provenance import software_versions
from mdrelax.base.states import load_exactly
from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.physics import LEARNT_ALONE, Physics, PhysicsForm
from mdrelax.method.certificate import Certificate, require
from mdrelax.method.relaxation import is_relaxed

__all__ = [
    "LoadedModel",
    "ModelFileError",
    "RoughPotentialWarning",
    "frozen_copy",
    "load_model",
    "save_model",
    "save_refused",
    "warn_if_rough",
]

FORMAT_VERSION = 4


def _name_the_norm(header: dict[str, Any]) -> dict[str, Any]:
    """Version 1 to 2: networks had the published layer norm, which was not recorded."""
    spec = header["potential"]
    arguments = with_published_norm(spec["name"], spec["arguments"])
    return {**header, "format_version": 2, "potential": {**spec, "arguments": arguments}}


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {  # from version k to k + 1
    1: _name_the_norm,
    2: lambda header: {**header, "format_version": 3},  # the tensor `binding`, which was zero
    3: lambda header: {**header, "format_version": 4, "physics": LEARNT_ALONE._asdict()},
}
CITATION = "Pertigkiozoglou, Chatzipantazis, Trivedi, Daniilidis, NeurIPS 2024 (arXiv 2408.13242)"
DTYPES = {"float32": torch.float32, "float64": torch.float64}


class RoughPotentialWarning(UserWarning):
    """Warns of a model whose energy is not smooth, so that its force constants are wrong."""


class _Network(BaseModel):
    name: str
    arguments: dict[str, Any]


class _Header(BaseModel):
    """The keys of a header that loading needs, with their types; others are free."""

    model_config = ConfigDict(strict=True)
    physics: PhysicsForm | None = None  # absent before version 4
    potential: _Network
    elements: Annotated[list[Annotated[int, Field(ge=1, le=118)]], Field(min_length=1)]
    dtype: Literal["float32", "float64"]
    certificate: dict[str, Any]
    card: dict[str, Any]
    versions: dict[str, str]
    coupling_fingerprint: str


class LoadedModel(NamedTuple):
    """A force field in evaluation mode on the CPU, its certificate and the whole header."""

    force_field: ForceField
    certificate: Certificate
    header: dict[str, Any]


@out_of_inference_mode
def frozen_copy(force_field: ForceField, dtype: str | None) -> ForceField:
    """A copy in evaluation mode without gradients of parameters; ``dtype`` is a name, ``None`` keeps the model's own.

    Raises ``ValueError`` for an unknown ``dtype``.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"Unknown `dtype` {dtype!r}; {nearest_name(str(dtype), DTYPES)}")
    own = copy.deepcopy(force_field).eval().requires_grad_(False)
    return own if dtype is None else own.to_dtype(DTYPES[dtype])


def save_model(
    path: str | Path,
    force_field: ForceField,
    *,
    potential: str,
    arguments: dict[str, Any],
    certificate: Certificate,
    card: dict[str, Any] | None = None,
) -> Path:
    """Write a projected, certified force field atomically; ``potential`` and ``arguments`` describe its network.

    Raises ``CertificateError`` if the certificate did not pass, ``ValueError`` for a network with free maps, and
    ``OSError`` if the disk is full (the old file stays).
    """
    require(certificate)
    return save_refused(path, force_field, potential=potential, arguments=arguments, certificate=certificate, card=card)


def save_refused(
    path: str | Path,
    force_field: ForceField,
    *,
    potential: str,
    arguments: dict[str, Any],
    certificate: Certificate,
    card: dict[str, Any] | None = None,
) -> Path:
    """Write the file even if the certificate failed; ``load_model`` then refuses it unless ``certified=False``."""
    if is_relaxed(force_field):
        raise ValueError("The network still has free maps; `project` it before it is saved.")
    force_field = force_field.with_folded_lone_atoms()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in force_field.state_dict().items()}
    header = {
        "format_version": FORMAT_VERSION,
        "potential": {"name": potential, "arguments": networks.resolved_arguments(potential, arguments)},
        "elements": list(force_field.elements),
        "physics": force_field.physics._asdict(),
        "dtype": str(force_field.dtype).removeprefix("torch."),
        "units": {"energy": "eV", "length": "Angstrom", "forces": "eV/Angstrom", "stress": "eV/Angstrom^3"},
        "certificate": certificate.to_dict(),
        "card": card or {},
        "citation": CITATION,
        "versions": software_versions(),
        "coupling_fingerprint": coupling_fingerprint(),
    }
    return write_container(path, tensors, header)


@out_of_inference_mode
def load_model(path: str | Path, *, certified: bool = True) -> LoadedModel:
    """Read a model file; raises ``ModelFileError`` if it is missing, truncated, foreign, altered or too new.

    Raises ``CertificateError`` for a file whose certificate did not pass, unless ``certified=False``. Warns
    (``RoughPotentialWarning``) if the energy is not smooth, as in files of version 1.
    """
    path = Path(path)
    header, tensors = read_container(path, refuse=_refuse_others)
    check_header(path, header, _Header)
    may_lack = () if header["format_version"] >= 3 else ("binding",)  # which was zero
    header = _migrate(header)
    if header["coupling_fingerprint"] != coupling_fingerprint():
        raise ModelFileError(
            f"`{path}` was made with e3nn {header['versions'].get('e3nn', '?'):.20}, whose Clebsch-Gordan coefficients "
            f"differ from those of the installed {metadata.version('e3nn')}; install that version to use the model."
        )
    with rebuilt(path, header["potential"]["arguments"], tensors):
        force_field = _build(header)
        load_exactly(force_field, tensors, may_lack=may_lack)
        certificate = Certificate.from_dict(header["certificate"])
        if certificate.symmetry != force_field.potential.symmetry:
            raise ValueError(
                f"its certificate is of {certificate.symmetry:.20}, it of {force_field.potential.symmetry}"
            )
    warn_if_rough(path, force_field)
    return LoadedModel(force_field.eval(), require(certificate) if certified else certificate, header)


def warn_if_rough(path: Path, force_field: ForceField) -> None:
    """Warn the caller of a loader that the energy of the model is not smooth."""
    if force_field.roughness is not None:
        warnings.warn(f"`{path}` is not smooth: {force_field.roughness}.", RoughPotentialWarning, stacklevel=3)


def coupling_fingerprint() -> str:
    """SHA-256 of the Clebsch-Gordan coefficients up to l = 3, rounded to 10 digits."""
    digest = hashlib.sha256()
    for a in range(4):
        for b in range(4):
            for c in range(abs(a - b), min(a + b, 3) + 1):
                table = o3.wigner_3j(a, b, c, dtype=torch.float64)
                digest.update((torch.round(table, decimals=10) + 0.0).numpy().tobytes())
    return digest.hexdigest()


def _refuse_others(path: Path, header: dict[str, Any]) -> None:
    """Checked first: another kind of model, or a newer version, stores everything differently, its hash included."""
    if "kind" in header:
        raise ModelFileError(
            f"`{path}` holds {header['kind']!s:.60}, not a force field; its pack has a `load_network`."
        )
    refuse_versions(path, header, oldest=FORMAT_VERSION - len(MIGRATIONS), newest=FORMAT_VERSION)


def _migrate(header: dict[str, Any]) -> dict[str, Any]:
    for step in range(header["format_version"], FORMAT_VERSION):
        header = MIGRATIONS[step](header)
    return header


def _build(header: dict[str, Any]) -> ForceField:
    elements = tuple(header["elements"])
    spec = header["potential"]
    network = networks.build_potential(spec["name"], len(elements), spec["arguments"])
    force_field = ForceField(network, elements=elements, physics=Physics(**header["physics"]))
    return force_field.to_dtype(DTYPES[header["dtype"]])
