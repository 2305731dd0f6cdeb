"""Peer: how another package's network is evaluated on structures and how its calculator is called.

Units are eV and Angstrom. Structures are ASE atoms; G structures have N atoms in all.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple, Protocol, cast

from ase import Atoms
from ase.calculators.calculator import Calculator
from torch import Tensor, nn

from mdrelax.base.names import nearest_name

__all__ = ["PEERS", "Peer", "PeerPrediction", "StoredPeer", "open_peer", "open_stored_peer"]

PEERS = {"mace": "mace-torch", "nequip": "nequip", "sevenn": "sevenn"}  # name: what pip installs


class PeerPrediction(NamedTuple):
    """A network's result; its forces can be differentiated again while the network is in training mode."""

    energy: Tensor  # (G,)
    forces: Tensor  # (N, 3)
    stress: Tensor | None  # (G, 3, 3), eV/A^3, positive in tension


class Peer(Protocol):
    """A module of this room. ``mdrelax.method`` finds the layers: every default place of ``relax_constraints``."""

    def symmetry(self, model: nn.Module) -> str:
        """``E(3)``, or ``SE(3)`` for a network that distinguishes mirror images."""

    def batch_of(self, model: nn.Module, structures: Sequence[Atoms]) -> Any:
        """The package's own batch, with neighbours within the network's cut-off."""

    def predict(self, model: nn.Module, batch: Any) -> PeerPrediction:
        """Energies, forces and stress of a batch, which is not changed."""

    def calculator(self, model: nn.Module) -> Calculator:
        """The package's own ASE calculator of a copy of the model."""


class StoredPeer(Peer, Protocol):
    """A peer whose files can be read and written here."""

    PICKLED: bool  # whether its files are pickles, which run code when they are loaded

    def load(self, source: str) -> nn.Module:
        """The network of a file, or of a name that the package knows."""

    def save(self, model: nn.Module, path: str, *, source: str) -> None:
        """Write a projected network into a file that the package's own tools load; ``source`` is what was loaded."""

    def shift_energies(self, model: nn.Module, offsets: Mapping[int, float]) -> None:
        """Add an energy (eV) to each atom of an element, by atomic number."""


def open_peer(name: str) -> Peer:
    """The peer of that name; raises ``ValueError`` for an unknown one, and if its package is not installed."""
    return cast(Peer, _module(name))


def open_stored_peer(name: str) -> StoredPeer:
    """The same for a peer with files; raises ``ValueError`` for others."""
    peer = _module(name)
    if not hasattr(peer, "save"):
        raise ValueError(
            f"Files of `{name}` are neither read nor written here: train its network in Python and load the projected "
            "state dict, whose keys are the original ones, into your own (docs/peers.md)."
        )
    return cast(StoredPeer, peer)


def _module(name: str) -> ModuleType:
    if name not in PEERS:
        raise ValueError(f"There is no peer `{name}`; {nearest_name(name, PEERS)}")
    try:
        return import_module(f"mdrelax.peers.{name}")
    except ModuleNotFoundError as error:
        raise ValueError(f"The peer `{name}` needs its package: pip install {PEERS[name]} ({error}).") from error
