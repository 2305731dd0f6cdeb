"""ModelCalculator: what the ASE calculators of one force field and of a committee share.

They differ in how ``members`` become results: a subclass says so in ``_predicted``.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from mdrelax.base.allocator import keep_freed_memory
from mdrelax.base.places import frame_name, naming
from mdrelax.engines.results import (
    Results,
    add_dispersion,
    changes,
    check_structure,
    graph_of_one,
    has_volume,
    own_copy,
    refuse_relaxed,
)
from mdrelax.forces.dispersion import D3
from mdrelax.forces.forcefield import ForceField
from mdrelax.structures.graph import Graph, collate
from mdrelax.structures.neighbors import VerletList

__all__ = ["ModelCalculator", "refuse_other_devices"]


class ModelCalculator(Calculator):
    """An ASE calculator of one or more force fields with the same elements, cut-off and physics.

    Arguments and errors are those of ``MDRelaxCalculator``. Dispersion, the same in all members, is computed once.
    """

    # ASE's interface: mutable, and declared on the instance.
    implemented_properties: list[str] = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012
    ignored_changes: set[str] = {"initial_charges", "initial_magmoms"}  # noqa: RUF012 (the models do not read these)

    def __init__(
        self,
        members: Sequence[ForceField],
        *,
        dtype: str | None = None,
        device: str | torch.device = "cpu",
        skin: float = 0.5,
        keep_memory: bool = True,
    ) -> None:
        super().__init__()
        if keep_memory:
            keep_freed_memory()
        for member in members:
            refuse_relaxed(member)
        self.members = [own_copy(member, dtype, device) for member in members]
        self.device = device
        self.conservative = all(member.conservative for member in members)
        if not self.conservative:
            self.implemented_properties = [name for name in self.implemented_properties if name != "stress"]
        self.neighbors = VerletList(self.members[0].cutoff, skin)
        functional = self.members[0].physics.dispersion
        self.dispersion = None if functional is None else D3(functional)

    @abstractmethod
    def _predicted(self, graph: Graph, sizes: Sequence[int], volumes: Sequence[bool]) -> list[Results]:
        """The results of the learnt part for structures of these sizes; stress for those with a volume."""

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """The changes since the last calculation, bitwise: ASE's comparison costs more than a small network."""
        return changes(self.atoms, atoms)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Calculate all properties of ``atoms`` into ``self.results``; ASE's cache decides when this is called."""
        structure = check_structure(self.atoms if atoms is None else atoms, properties)
        self.atoms = structure.copy()  # reference of ``check_state``
        self.results = {}  # so that an error below does not leave the results of another structure
        graph = self._graph_of(structure)
        (self.results,) = self._evaluate(graph, [structure], energies="energies" in properties)

    def calculate_many(
        self, structures: Sequence[Atoms], *, batch_size: int = 32, source: str | None = None
    ) -> list[Results]:
        """The results of many structures, ``batch_size`` per pass of the network; a dict for each.

        Leaves the cache alone. Errors as in ``calculate``, each begins with "Frame 7: ", counted from 0, or with
        "Frame 7 of `x.extxyz`: " if ``source`` names the file of the structures.
        """
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be >= 1, got {batch_size}.")
        results: list[Results] = []
        for start in range(0, len(structures), batch_size):
            chunk = structures[start : start + batch_size]
            graphs = []
            for number, atoms in enumerate(chunk, start):
                with naming(frame_name(number, source)):
                    graphs.append(graph_of_one(atoms, self.members[0], self.device))
            results += self._evaluate(collate(graphs), chunk, energies=True)
        return results

    def _graph_of(self, atoms: Atoms) -> Graph:
        return self.neighbors.graph(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc)

    def _evaluate(self, graph: Graph, structures: Sequence[Atoms], *, energies: bool) -> list[Results]:
        """The results of each structure; with dispersion, those of its atoms only on request."""
        volumes = [self.conservative and has_volume(atoms) for atoms in structures]
        results = self._predicted(graph.to(self.device), [len(atoms) for atoms in structures], volumes)
        for atoms, result in zip(structures, results, strict=True):
            add_dispersion(self.dispersion, atoms, result, energies=energies)
        return results


def refuse_other_devices(device: str | torch.device) -> None:
    """Raise ``ValueError`` for a device that models are not compiled for."""
    if torch.device(device).type != "cpu":
        raise ValueError(f"Models are compiled for the CPU only, got the device `{device}`; leave out `compile`.")
