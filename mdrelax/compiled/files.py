"""Package: a compiled model as one `.pt2` file, which RUNS THE CODE IN IT when it is loaded.

The file is torch's archive of a shared library with one document of ours in it, `mdrelax.json`:

| key | content |
| --- | --- |
| format_version | 4; others are refused |
| elements, reference_energies, scale, binding, cutoff, dtype | converts the library's output to energies in eV |
| physics | the terms that are not learnt, see ``Physics`` |
| takes_table | whether the library needs the neighbour table |
| n_rounds | up to how many cut-offs away an energy depends on atoms |
| roughness | why its energy is not smooth; null if it is smooth |
| certificate, card, citation, versions, units | as in the model file it was made from, whose hash is `source` |
| built_for | torch's version and the processor that it was compiled with; it runs nowhere else |
| threads | number of threads that loops were compiled for; matrix products follow torch's setting |
| parity | differences from the uncompiled model, measured when it was made |
| sha256 | over everything else in the file |

The hash detects a damaged file, not a harmful one: whoever changes the library can change the hash, too. Load files
that you made yourself, or give the SHA-256 of the whole file that its author published (``load_compiled(path,
sha256=...)``).
"""

import hashlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from mdrelax.base.containers import check_header
from mdrelax.compiled.inference import CompiledPotential, load_library
from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.physics import Physics, PhysicsForm
from mdrelax.method.certificate import Certificate, require
from mdrelax.modelfile import DTYPES, LoadedModel, ModelFileError, warn_if_rough

__all__ = ["file_hash", "load_compiled", "seal", "this_machine"]

FORMAT_VERSION = 4
DOCUMENT = "extra/mdrelax.json"
FROM_THE_MODEL = ("certificate", "card", "citation", "versions", "units")


class _Header(BaseModel):
    """The keys that loading needs, with their types; others are free."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    elements: Annotated[list[Annotated[int, Field(ge=1, le=118)]], Field(min_length=1)]
    reference_energies: list[float]
    scale: float
    binding: float
    physics: PhysicsForm
    cutoff: Annotated[float, Field(gt=0, le=1000)]
    dtype: Literal["float32", "float64"]
    takes_table: bool
    n_rounds: Annotated[int, Field(ge=1, le=1000)] | None
    roughness: str | None
    certificate: dict[str, Any]
    card: dict[str, Any]

    @model_validator(mode="after")
    def _one_energy_for_each_element(self) -> Self:
        if len(self.reference_energies) != len(self.elements):
            raise ValueError("there must be one reference energy for each element")
        return self


def seal(package: Path, compiled: ForceField, model: dict[str, Any], parity: dict[str, float]) -> dict[str, Any]:
    """Add our document to torch's archive, in place, and return it; ``model`` is the header of the model file."""
    network = cast(CompiledPotential, compiled.potential)
    header: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "elements": list(compiled.elements),
        "reference_energies": compiled.reference_energies.tolist(),
        "scale": compiled.scale.item(),
        "binding": compiled.binding.item(),
        "physics": compiled.physics._asdict(),
        "cutoff": compiled.cutoff,
        "dtype": str(compiled.dtype).removeprefix("torch."),
        "takes_table": network.takes_table,
        "n_rounds": network.n_rounds,
        "roughness": compiled.roughness,
        **{name: model[name] for name in FROM_THE_MODEL},
        "source": model["content"],
        "built_for": this_machine(),
        "threads": torch.get_num_threads(),
        "parity": parity,
    }
    with zipfile.ZipFile(package, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        header["sha256"] = _digest(archive, header)
        archive.writestr(f"{root}/{DOCUMENT}", json.dumps(header))
    return header


def load_compiled(path: str | Path, *, sha256: str | None = None) -> LoadedModel:
    """Read a compiled model, which RUNS ITS CODE: load only what you made yourself or got from someone you trust.

    ``sha256`` is that of the file you trust, as ``mdrelax export`` and ``sha256sum`` print it; any other file is
    refused before any of its code is loaded. Raises ``ModelFileError`` for a file that is missing, damaged, foreign, of
    another format version, torch or processor, and ``CertificateError`` if its certificate did not pass.
    """
    path = Path(path)
    header = _read(path)
    if sha256 is not None and sha256 != (found := file_hash(path)):
        raise ModelFileError(f"`{path}` is not the file you trust: its SHA-256 is {found}, not {sha256}.")
    _refuse_other_machines(path, header)
    check_header(path, header, _Header)
    network = CompiledPotential(
        _not_loaded, cutoff=float(header["cutoff"]), dtype=DTYPES[header["dtype"]], takes_table=header["takes_table"],
        n_rounds=header["n_rounds"], roughness=header["roughness"],
    )  # fmt: skip
    try:
        certificate = require(Certificate.from_dict(header["certificate"]))
        force_field = ForceField(
            network,
            elements=tuple(header["elements"]),
            reference_energies=torch.tensor(header["reference_energies"], dtype=torch.float64),
            scale=header["scale"],
            binding=header["binding"],
            physics=Physics(**header["physics"]),
        )
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"The header of `{path}` is damaged ({error}).") from error
    try:
        network.run = load_library(path)  # the last step: everything else has been checked
    except Exception as error:  # torch's loader raises anything
        raise ModelFileError(f"The library in `{path}` cannot be loaded ({str(error).splitlines()[:1]}).") from error
    warn_if_rough(path, force_field)
    return LoadedModel(force_field.eval(), certificate, header)


def _not_loaded(arguments: list[Tensor]) -> Sequence[Tensor]:
    raise RuntimeError("The library of this compiled model was not loaded.")


def file_hash(path: Path) -> str:
    """SHA-256 of a whole file, as ``sha256sum`` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> dict[str, Any]:
    """Our document, after checking that it is complete and that its hash matches; no code is run."""
    if not path.is_file():
        raise ModelFileError(f"There is no compiled model `{path}`.")
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = [name for name in archive.namelist() if name.partition("/")[2] == DOCUMENT]
            header = json.loads(archive.read(name))
            if header["format_version"] != FORMAT_VERSION:
                found = f"{header['format_version']!s:.20}"
                raise ModelFileError(
                    f"`{path}` has format version {found}, this mdrelax reads {FORMAT_VERSION}; export the model again."
                )
            found, stated = _digest(archive, header), header["sha256"]
    except ModelFileError:
        raise
    except Exception as error:  # zipfile and zlib raise several types for a damaged archive
        raise ModelFileError(f"`{path}` is damaged, or not a compiled model of mdrelax ({error!s:.200}).") from error
    if found != stated:
        raise ModelFileError(f"`{path}` was altered after it was exported: its content does not match its hash.")
    return header


def _digest(archive: zipfile.ZipFile, header: dict[str, Any]) -> str:
    """SHA-256 over the document, without its own hash, and every other entry with its name."""
    stated = {key: value for key, value in header.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(stated, sort_keys=True).encode())
    for name in sorted(archive.namelist()):
        if name.partition("/")[2] != DOCUMENT:
            digest.update(f"{name} {archive.getinfo(name).file_size}\n".encode())
            digest.update(archive.read(name))
    return digest.hexdigest()


def this_machine() -> dict[str, str]:
    """The versions and processor that a compiled library depends on."""
    from torch._inductor.codecache import get_device_information

    return {"torch": torch.__version__, **get_device_information("cpu")}


def _refuse_other_machines(path: Path, header: dict[str, Any]) -> None:
    here = this_machine()
    made = header.get("built_for")
    if made != here:
        raise ModelFileError(
            f"`{path}` was compiled for {made!s:.200} and this is {here}: compiled code runs on like machines only. "
            "Export the model file here again (`mdrelax export`)."
        )
