"""network.json: the definition of a run's network, written before the first step, to rebuild it without the data.

| key | content |
| --- | --- |
| format_version | 2; version 1 had no hash |
| potential, elements, dtype, symmetry | arguments that build the network, defaults included |
| started_from | the model file that the run continues from: name and content hash, and `pretrained`: how; else null |
| exact_lone_atoms, binding | whether lone atoms have exactly their reference energies; eV, see ``ForceField`` |
| physics | the terms that are not learnt, see ``Physics`` |
| reference_energies, scale | eV of each element; eV/Angstrom, the RMS force of the training set |
| structures | a few of the run's test (or validation) structures, Angstrom: certificates are measured on them |
| content | SHA-256 over the rest: a flipped bit in a cut-off would change every number |
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch_geometric.data import Data

from mdrelax.base.files import write_atomically
from mdrelax.base.sealed import SEAL, seal, unseal
from mdrelax.base.sections import ConfigError, Section, load
from mdrelax.datasets import make_frame
from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.physics import Physics
from mdrelax.forces.potential import Potential
from mdrelax.runs.config import PotentialConfig
from mdrelax.runs.experiment import seeded
from mdrelax.training.checkpoint import CheckpointError

__all__ = [
    "NETWORK_FILE",
    "NetworkFile",
    "Networks",
    "Untrained",
    "arguments_of",
    "check_network",
    "read_network",
    "write_network",
]

NETWORK_FILE = "network.json"
FORMAT_VERSION = 2


class Networks(Protocol):
    """A registry of potentials; the module ``mdrelax.potentials`` is one."""

    def preset(self, potential: str, name: str) -> dict[str, Any]:
        """The arguments of a preset; raises ``ValueError`` naming the nearest known one."""

    def arguments_section(self, name: str) -> type[Section]:
        """The arguments of a network as a typed section; raises ``ValueError`` for its name."""

    def build_potential(self, name: str, n_species: int, arguments: Mapping[str, Any]) -> Potential:
        """A network for a number of elements; raises ``ValueError`` for unknown names and impossible arguments."""


def arguments_of(settings: PotentialConfig, networks: Networks) -> dict[str, Any]:
    """The arguments of the network as far as the settings decide them: those of its preset, cut-off and its own.

    Raises ``ConfigError`` for an unknown network, preset or argument.
    """
    try:
        preset = networks.preset(settings.name, settings.preset)
        section = networks.arguments_section(settings.name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    own = load(section, settings.arguments, place="potential.arguments").model_dump(exclude_unset=True)
    return {**preset, "cutoff": settings.cutoff, **own}


def check_network(settings: PotentialConfig, networks: Networks) -> None:
    """Raise ``ConfigError`` for a network that cannot be built: ranges may span several arguments, so one is built."""
    arguments = arguments_of(settings, networks)
    try:
        seeded(lambda: networks.build_potential(settings.name, 1, arguments), 0)
    except ValueError as error:
        raise ConfigError(str(error)) from error


class Untrained(NamedTuple):
    """A force field before its first step, and the arguments to rebuild its network."""

    force_field: ForceField
    name: str
    arguments: dict[str, Any]
    origin: dict[str, str] | None  # the model file it continues from: name, content hash, and how it was pre-trained
    shift: torch.Tensor | None = None  # (n_elements,) eV, by which the references of that file were moved


class NetworkFile(NamedTuple):
    """The content of network.json."""

    name: str
    arguments: dict[str, Any]
    elements: list[int]
    reference_energies: list[float]  # eV
    scale: float  # eV/Angstrom
    dtype: str
    symmetry: str
    structures: list[Data]
    started_from: dict[str, str] | None  # see ``Untrained.origin``
    exact_lone_atoms: bool  # see ``ForceField``
    binding: float  # eV
    physics: Physics

    def build(self, networks: Networks) -> ForceField:
        """The force field before training, with other random weights, to be replaced by those of a checkpoint."""
        network = networks.build_potential(self.name, len(self.elements), self.arguments)
        references = torch.tensor(self.reference_energies, dtype=torch.float64)
        elements = tuple(self.elements)
        force_field = ForceField(
            network, elements=elements, reference_energies=references, scale=self.scale,
            exact_lone_atoms=self.exact_lone_atoms, binding=self.binding, physics=self.physics,
        )  # fmt: skip
        return force_field.to_dtype(getattr(torch, self.dtype))


def write_network(folder: Path, begun: Untrained, *, structures: Sequence[Data]) -> None:
    """Write network.json into a run folder."""
    force_field = begun.force_field
    document = {
        "format_version": FORMAT_VERSION,
        "potential": {"name": begun.name, "arguments": begun.arguments},
        "started_from": begun.origin,
        "exact_lone_atoms": force_field.exact_lone_atoms,
        "binding": float(force_field.binding),
        "physics": force_field.physics._asdict(),
        "elements": list(force_field.elements),
        "reference_energies": force_field.reference_energies.tolist(),
        "scale": float(force_field.scale),
        "dtype": str(force_field.dtype).removeprefix("torch."),
        "symmetry": force_field.potential.symmetry,
        "structures": [
            {"numbers": d.z.tolist(), "positions": d.pos.tolist(), "cell": d.cell[0].tolist(), "pbc": d.pbc[0].tolist()}
            for d in structures
        ],
    }
    write_atomically(folder / NETWORK_FILE, json.dumps(seal(document), indent=1).encode())


def read_network(folder: Path) -> NetworkFile | None:
    """The network definition in a run folder; None for a run of a version without network.json.

    Raises ``CheckpointError`` for a file that is damaged or of a newer version.
    """
    path = folder / NETWORK_FILE
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        version = document["format_version"]
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise CheckpointError(
                f"`{path}` has format version {version!s:.20}; this mdrelax reads up to {FORMAT_VERSION}: upgrade it."
            )
        if version > 1 or SEAL in document:
            document = unseal(document)
        structures = [
            make_frame(s["numbers"], s["positions"], cell=s["cell"], pbc=s["pbc"]) for s in document["structures"]
        ]
        potential = document["potential"]
        return NetworkFile(
            potential["name"], potential["arguments"], document["elements"], document["reference_energies"],
            document["scale"], document["dtype"], document["symmetry"], structures, document.get("started_from"),
            document.get("exact_lone_atoms", False), document.get("binding", 0.0),
            Physics(**document.get("physics", {})),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"`{path}` is damaged ({error!s:.100}); restart the run to write it again.") from error
