"""Domain: the model's energies and forces for the atoms of one rank, with ghosts around them.

LAMMPS gives each rank its own atoms and, behind them, ghosts: periodic images of its own atoms and copies of atoms of
other ranks. Edges need no cell, since ghosts have the positions of the images. A ghost has the features of the atom
that it is a copy of, so that

    own image     -> the row of the local atom
    remote atom   -> ``exchange``: its features come from its owner, layer by layer
                  -> ``wide``: its features are computed here as well, from a halo of ``n_rounds`` cut-offs

On one rank nothing is remote, and both are the same. Each rank computes the energies of its own atoms. The gradient g
of their sum with respect to an edge vector r from target i to source j gives

    F_i += g    F_j -= g    W_i -= r (x) g        and what remote atoms get is added to their owners'

W is the virial in LAMMPS' sign. Lengths in Angstrom, energies in eV, forces in eV/A, all in float64.
"""

import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mdrelax.engines.lammps.exchange import Ids, Plan, SharedError, make_plan
from mdrelax.forces.forcefield import ForceField
from mdrelax.structures.graph import Edges
from mdrelax.structures.neighbors import VerletList

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

__all__ = ["Atoms", "Domain", "Halo", "Result", "Work", "halo_width"]

Array = npt.NDArray[np.float64]
Halo = Literal["exchange", "wide"]
SKIN = 0.5  # Angstrom, of our own neighbour list; independent of the skin of LAMMPS
ORDER = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))  # of LAMMPS' symmetric tensors


class Atoms(NamedTuple):
    """The atoms of a rank: its own, then ghosts."""

    positions: Array  # (N, 3) Angstrom
    ids: Ids  # (N,) those of ghosts are their owners'
    numbers: Ids  # (N,) atomic numbers
    n_local: int
    box: Array  # (4, 3) the origin and, in rows, the lattice vectors; a unit vector where not periodic
    step: int
    n_lists: int  # how often LAMMPS has chosen ghosts in this run, without its start


def _ghosts_are_new(last: Atoms | None, atoms: Atoms) -> bool:
    """Whether LAMMPS has chosen ghosts since ``last``; in a small box they may be the same ones again.

    It does so at the start of each run, which repeats the last step.
    """
    if last is None or atoms.n_lists != last.n_lists or not np.array_equal(last.ids, atoms.ids):
        return True
    return atoms.n_lists == 0 and atoms.step == last.step


class Result(NamedTuple):
    """Energies, forces and virials of the local atoms of a rank."""

    energies: Array  # (n_local,) eV
    forces: Array  # (n_local, 3) eV/A
    virials: Array  # (n_local, 6) eV, in LAMMPS' order xx, yy, zz, xy, xz, yz; summed over all atoms, the virial


class _Rows(NamedTuple):
    """The edges that a rank evaluates, between the rows of the network."""

    which: Tensor  # (E,) among the neighbour list
    pairs: Tensor  # (2, E) rows of source and target
    atoms: Tensor  # (R,) an atom of each row, the local ones first


class Work:
    """Wall times (s) and counts of a rank: times are sums over evaluations, other numbers those of the last one."""

    def __init__(self) -> None:
        self.prepare = self.network = self.exchange = self.finish = 0.0  # exchange is part of network
        self.evaluations = self.searches = 0
        self.local = self.ghosts = self.remote = self.rows = self.edges = 0


class Domain:
    """The atoms of one rank over a sequence of evaluations, in which every rank takes part.

    Args:
        force_field: A frozen copy, in the precision and on the device to compute with.
        comm: The communicator that LAMMPS runs on.
        halo: Where the features of remote atoms come from.
        margin: How far (Angstrom) ghosts reach beyond ``halo_width``.
    """

    def __init__(self, force_field: ForceField, comm: "Intracomm", *, halo: Halo, margin: float) -> None:
        self.force_field, self.comm, self.halo, self.margin = force_field, comm, halo, margin
        self.device = force_field.scale.device
        self.neighbors = VerletList(force_field.cutoff, SKIN)
        self.work = Work()
        self._followed: Atoms | None = None  # when the ghosts last changed
        self._plan, self._row_of = Plan(comm, [], 0, 0), torch.empty(0, dtype=torch.int64)

    def evaluate(self, atoms: Atoms) -> Result:
        """Energies, forces and virials of the local atoms. Collective.

        Raises ``ValueError`` for coinciding atoms and positions that are not finite, and on every rank ``SharedError``
        for atoms that have moved too far since LAMMPS chose the ghosts.
        """
        times = [time.perf_counter()]
        self._follow(atoms)
        species = self.force_field.species_of(torch.from_numpy(atoms.numbers).to(self.device))
        found = self.neighbors.graph(atoms.positions, atoms.numbers).edge_index.to(self.device)
        rows = self._local_edges(found, atoms) if self.halo == "exchange" else self._halo_edges(found, atoms)
        vectors = _vectors(torch.from_numpy(atoms.positions).to(self.device), found[:, rows.which])
        edges = Edges(rows.pairs, vectors.to(self.force_field.dtype), **self._ghosts(atoms.n_local))
        times.append(time.perf_counter())
        energies, gradient = self.force_field.potential.energies_and_gradient(species[rows.atoms], edges)
        times.append(time.perf_counter())
        energies, gradient = self.force_field.in_eV(
            species[rows.atoms], rows.pairs, vectors, energies.detach(), gradient.detach()
        )
        shares = self._to_owners(rows, vectors, gradient).cpu().numpy()  # (n_local, 9)
        result = Result(energies.cpu().numpy(), shares[:, :3], np.ascontiguousarray(shares[:, 3:]))
        times.append(time.perf_counter())
        self._count(atoms, rows, times)
        return result

    def _follow(self, atoms: Atoms) -> None:
        """Look up the owners of the ghosts if those of any rank are new; raises if an atom moved too far."""
        from mpi4py import MPI

        last = self._followed
        changed = _ghosts_are_new(last, atoms)
        moved = 0.0 if last is None or changed else _approach(last, atoms, halo_width(self.force_field, self.halo))
        largest = np.empty(2)
        self.comm.Allreduce(np.array([float(changed), moved]), largest, MPI.MAX)
        if largest[0]:
            self._plan, self._row_of = make_plan(self.comm, atoms.ids, atoms.n_local, self.device)
            self._followed = atoms
        elif largest[1] > self.margin * (1 + 1e-9):
            raise SharedError(
                f"Since LAMMPS last chose the ghost atoms, two atoms may have come nearer by {largest[1]:.3g} A, by "
                f"their motion and the strain of the box, and the skin is {self.margin:g} A; let it choose them more "
                "often (`neigh_modify every 1 delay 0 check no`), shorten the time step, or widen the skin "
                "(`neighbor X bin`) in a line before `fix ... external`."
            )

    def _local_edges(self, found: Tensor, atoms: Atoms) -> _Rows:
        """Edges into local atoms; edges are sorted by target, and local atoms come first."""
        which = torch.arange(int(torch.searchsorted(found[1].contiguous(), atoms.n_local)), device=self.device)
        first = self._row_of.new_zeros(self._plan.n_local + self._plan.n_remote)
        first[self._row_of] = torch.arange(len(self._row_of), device=self.device)
        first[: atoms.n_local] = torch.arange(atoms.n_local, device=self.device)
        return _Rows(which, torch.stack([self._row_of[found[0, which]], found[1, which]]), first)

    def _halo_edges(self, found: Tensor, atoms: Atoms) -> _Rows:
        """Edges into local atoms, and into remote images less than ``n_rounds`` edges away from one."""
        numbers = torch.arange(len(self._row_of), device=self.device)
        source = torch.where(self._row_of < atoms.n_local, self._row_of, numbers)[found[0]]
        reached = numbers < atoms.n_local
        needed = reached[found[1]]
        for _ in range(_n_rounds(self.force_field) - 1):
            reached[source[needed]] = True
            needed = reached[found[1]]
        reached[source[needed]] = True
        row = reached.long().cumsum(0) - 1
        index = torch.stack([row[source[needed]], row[found[1, needed]]])
        return _Rows(needed.nonzero().flatten(), index, reached.nonzero().flatten())

    def _ghosts(self, n_local: int) -> dict[str, Any]:
        """The arguments of ``Edges`` that describe remote atoms; on one rank there are none."""
        if self.comm.size == 1:
            return {}
        return {"n_local": n_local, "exchange": self._plan.exchange if self.halo == "exchange" else None}

    def _to_owners(self, rows: _Rows, vectors: Tensor, gradient: Tensor) -> Tensor:
        """Forces and virials (n_local, 9) of the local atoms, including the shares that other ranks computed."""
        source, target = self._row_of[rows.atoms][rows.pairs]
        total = gradient.new_zeros(self._plan.n_local + self._plan.n_remote, 9)
        total[:, :3].index_add_(0, target, gradient).index_add_(0, source, gradient, alpha=-1)
        virials = torch.stack([vectors[:, a] * gradient[:, b] for a, b in ORDER], dim=1)  # (E, 6)
        total[:, 3:].index_add_(0, target, virials, alpha=-1)
        return self._plan.add(total)

    def _count(self, atoms: Atoms, rows: _Rows, times: list[float]) -> None:
        work = self.work
        begun, prepared, evaluated, finished = times
        work.prepare += prepared - begun
        work.network += evaluated - prepared
        work.finish += finished - evaluated
        work.exchange += self._plan.take_seconds()
        work.evaluations += 1
        work.searches, work.edges, work.rows = self.neighbors.searches, rows.pairs.shape[1], len(rows.atoms)
        work.local, work.ghosts, work.remote = atoms.n_local, len(atoms.ids) - atoms.n_local, self._plan.n_remote


def halo_width(force_field: ForceField, halo: Halo) -> float:
    """How far ghosts must reach, in Angstrom: one cut-off, or one for each round of messages.

    Raises ``ValueError`` for a wide halo if the network does not state how far its energies reach.
    """
    return force_field.cutoff * (_n_rounds(force_field) if halo == "wide" else 1)


def _n_rounds(force_field: ForceField) -> int:
    rounds = force_field.potential.n_rounds
    if rounds is None:
        raise ValueError(
            f"The network `{type(force_field.potential).__name__}` does not state how far its energies reach "
            "(`n_rounds`), which a wide halo needs; use `--halo exchange`."
        )
    return rounds


def _vectors(positions: Tensor, pairs: Tensor) -> Tensor:
    """Vectors (E, 3) from target to source."""
    return positions.index_select(0, pairs[0]) - positions.index_select(0, pairs[1])


def _approach(before: Atoms, now: Atoms, halo: float) -> float:
    """By how much two atoms within ``halo`` Angstrom of each other may have approached since ``before``.

    With the strain A of the box, x = A (x_0 + d), atoms at a distance of ``halo`` were further apart by at most
    (|A^-1| - 1) halo + 2 |d|.
    """
    strain_back = np.linalg.solve(now.box[1:], before.box[1:])  # acts on row vectors
    n = now.n_local
    moved = (now.positions[:n] - now.box[0]) @ strain_back - (before.positions[:n] - before.box[0])
    largest = float(np.sqrt(np.square(moved).sum(axis=1).max(initial=0.0)))
    return max(0.0, float(np.linalg.norm(strain_back, 2)) - 1) * halo + 2 * largest
