"""Driver: a model inside a running LAMMPS, as the callback of a `fix external`.

    LAMMPS   positions, ids and types of local and ghost atoms  ->  ``Domain``
    ``Domain``  energies, forces, virials of the local atoms    ->  LAMMPS, in its units

Energy and virial of the fix are included in `pe`, `press` and minimisations, as of any potential; energies and virials
of single atoms in `compute pe/atom` and `compute stress/atom`. Unless LAMMPS' own communication reaches as far as the
model needs, it is widened (`comm_modify cutoff`).
"""

import ctypes
import re
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mdrelax.base.units import EV_PER_KCAL_MOL
from mdrelax.engines.lammps.domain import Atoms, Domain, Halo, halo_width
from mdrelax.engines.lammps.exchange import SharedError
from mdrelax.engines.lammps.models import elements_by_mass, warn_of_masses
from mdrelax.engines.lammps.script import Script, ScriptError
from mdrelax.forces.forcefield import ForceField

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

__all__ = ["ENERGY_UNITS", "Driver", "Timing", "abort", "rank_report", "run_script", "summary"]

ENERGY_UNITS = {"metal": 1.0, "real": EV_PER_KCAL_MOL}  # eV; lengths are Angstrom in both
DoublePointer = ctypes.POINTER(ctypes.c_double)


class Timing(NamedTuple):
    """Where the wall time (s) between the first and the last evaluation of a rank went."""

    steps: int
    wall: float
    network: float  # waiting for other ranks and copying rows not included
    exchange: float
    prepare: float  # neighbour lists and owners of ghosts
    finish: float  # forces, virials, sums at owners


class Driver:
    """A model that computes the forces of a LAMMPS instance through its `fix external`.

    Args:
        lammps: An instance of ``lammps.lammps`` in which the fix has just been made.
        comm: The communicator of that instance.
        force_field: A frozen copy, in the precision and on the device to compute with.
        elements: The atomic number of each LAMMPS type.
        halo: See ``domain``.
        script: The input, whose fix and skin are used.

    Raises ``ScriptError`` for units, ids, types or communicators with which results would be wrong.
    """

    def __init__(
        self, lammps: Any, comm: "Intracomm", force_field: ForceField, elements: list[int], halo: Halo, script: Script
    ) -> None:
        self.lammps, self.fix = lammps, script.fix
        self.energy_unit = _check(lammps, comm, elements, force_field.elements)
        if comm.rank == 0:
            warn_of_masses(_masses(lammps), elements)
        self.number_of = np.array([0, *elements])
        self.domain = Domain(force_field, comm, halo=halo, margin=script.skin)
        self.failure: BaseException | None = None
        self._start: tuple[float, list[float]] | None = None
        self._end = 0.0
        _widen(lammps, comm, halo_width(force_field, halo) + script.skin)
        lammps.set_fix_external_callback(self.fix, self._callback, self)

    @property
    def timing(self) -> Timing:
        """The steps after the first evaluation, which also fills caches."""
        work = self.domain.work
        if self._start is None:
            return Timing(0, 0.0, 0.0, 0.0, 0.0, 0.0)
        network, exchange, prepare, finish = np.subtract(_times(self.domain), self._start[1]).tolist()
        wall = self._end - self._start[0]
        return Timing(work.evaluations - 1, wall, network - exchange, exchange, prepare, finish)

    def _callback(self, _: Any, step: int, n_local: int, ids: Any, positions: Any, forces: Any) -> None:
        """Fill ``forces`` of the local atoms. A failure here cannot be raised through LAMMPS, so it ends all ranks."""
        try:
            self._evaluate(step, n_local, forces)
        except BaseException as error:
            self.failure = error
            abort(self.domain.comm, error, f"in step {step}")

    def _evaluate(self, step: int, n_local: int, forces: Any) -> None:
        if self.lammps.extract_global("respa_levels") is not None:
            raise ScriptError("`run_style respa` never asks `fix external` for forces; use `run_style verlet`.")
        result = self.domain.evaluate(self._atoms(step, n_local))
        energies, virials = result.energies / self.energy_unit, result.virials / self.energy_unit
        if n_local:
            forces[:] = result.forces / self.energy_unit
        totals = np.concatenate([[energies.sum()], virials.sum(axis=0)])
        summed = np.empty_like(totals)
        self.domain.comm.Allreduce(totals, summed)
        if not np.isfinite(summed).all():
            raise SharedError("The energy or the virial is not finite; shorten the time step, or relax the structure.")
        self._hand_over(summed, energies, virials)
        if self.domain.comm.rank == 0:
            _flush()  # a killed run loses nothing that LAMMPS has written
        self._end = time.perf_counter()
        if self._start is None:
            self._start = self._end, _times(self.domain)

    def _atoms(self, step: int, n_local: int) -> Atoms:
        n_all, n_lists = self.lammps.extract_setting("nall"), int(self.lammps.get_thermo("nbuild"))
        if not n_all:
            nothing = np.empty(0, np.int64)
            return Atoms(np.empty((0, 3)), nothing, nothing, 0, self._box(), step, n_lists)
        extract = self.lammps.numpy.extract_atom
        positions = np.array(extract("x", nelem=n_all, dim=3))
        ids = np.array(extract("id", nelem=n_all), dtype=np.int64).reshape(-1)
        types = np.array(extract("type", nelem=n_all)).reshape(-1)
        return Atoms(positions, ids, self.number_of[types], n_local, self._box(), step, n_lists)

    def _box(self) -> Any:
        """See ``Atoms.box``."""
        low, high, xy, yz, xz, periodic, _ = self.lammps.extract_box()
        sides = np.subtract(high, low)
        vectors = np.array([[sides[0], 0, 0], [xy, sides[1], 0], [xz, yz, sides[2]]])
        return np.concatenate(
            [[np.where(periodic, low, 0.0)], np.where(np.array(periodic)[:, None], vectors, np.eye(3))]
        )

    def _hand_over(self, totals: Any, energies: Any, virials: Any) -> None:
        """Give LAMMPS the total energy and virial, the same on every rank, and those of the local atoms."""
        self.lammps.fix_external_set_energy_global(self.fix, float(totals[0]))
        self.lammps.fix_external_set_virial_global(self.fix, totals[1:].tolist())
        library, handle, name = self.lammps.lib, self.lammps.lmp, self.fix.encode()
        library.lammps_fix_external_set_energy_peratom(handle, name, energies.ctypes.data_as(DoublePointer))
        rows = virials.ctypes.data + virials.strides[0] * np.arange(len(virials), dtype=np.uint64)
        pointers = rows.ctypes.data_as(ctypes.POINTER(DoublePointer))
        library.lammps_fix_external_set_virial_peratom(handle, name, pointers)


def run_script(
    lammps: Any, comm: "Intracomm", script: Script, force_field: ForceField, elements: list[int], halo: Halo
) -> Driver:
    """Run an input with a model; returns its driver. Collective.

    Raises ``ScriptError``, and whatever LAMMPS raises for its own errors.
    """
    with tempfile.TemporaryDirectory(prefix="mdrelax-") as folder:  # rank 0 reads the files
        parts = [Path(folder) / name for name in ("before", "after")]
        for path, text in zip(parts, (script.before, script.after), strict=True):
            path.write_text(text, encoding="utf-8")
        lammps.file(str(parts[0]))
        driver = Driver(lammps, comm, force_field, elements, halo, script)
        lammps.file(str(parts[1]))
        comm.Barrier()
    if not driver.domain.work.evaluations:
        raise ScriptError("The input ended without a run: the model was never evaluated.")
    return driver


def rank_report(driver: Driver) -> dict[str, float]:
    """Times (s), counts and largest resident memory (MiB) of a rank."""
    work = driver.domain.work
    counts = {name: getattr(work, name) for name in ("local", "ghosts", "remote", "rows", "edges", "searches")}
    unit = 1024**2 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return {**driver.timing._asdict(), **counts, "memory_MiB": memory}


def summary(ranks: list[dict[str, float]]) -> str:
    """A line on the run of all ranks."""
    steps, wall = ranks[0]["steps"], max(rank["wall"] for rank in ranks)
    atoms, ghosts, remote = (sum(rank[name] for rank in ranks) for name in ("local", "ghosts", "remote"))
    start = f"mdrelax: {steps:.0f} steps of {atoms:.0f} atoms on {len(ranks)} ranks"
    if not steps:
        return start
    share = sum(rank["network"] for rank in ranks) / (len(ranks) * wall)
    return (
        f"{start}, {1e6 * wall / steps / atoms:.4g} us per atom and step, {100 * share:.1f} % in the network; "
        f"{ghosts / atoms:.3g} ghosts per atom, {remote / atoms:.3g} from other ranks"
    )


def abort(comm: "Intracomm", error: BaseException, where: str) -> None:
    """Write the sentence of an error and end every rank; what LAMMPS has written so far is flushed.

    Errors of all ranks at once are told by rank 0 alone. LAMMPS' own are a plain ``Exception`` on all ranks, or of a
    class of its own on some of them.
    """
    of_all, of_some = type(error) is Exception, type(error).__module__.startswith("lammps")
    expected = isinstance(error, ValueError | OSError | RuntimeError) or of_all or of_some
    said = str(getattr(error, "message", error)).strip()
    text = said if expected else "".join(traceback.format_exception(error))
    if comm.rank and (isinstance(error, SharedError) or of_all):
        comm.Barrier()  # until rank 0 has spoken and ends this one
    sys.stderr.write(f"mdrelax, rank {comm.rank} of {comm.size}, {where}: {text}\n")
    sys.stderr.flush()
    _flush()
    comm.Abort(1)


def _flush() -> None:
    """Write out what the C library, and so LAMMPS, holds back."""
    ctypes.CDLL(None).fflush(None)


def _masses(lammps: Any) -> list[float]:
    """The mass of each type (g/mol); none if the atoms have masses of their own."""
    found = lammps.extract_atom("mass")
    return [float(found[kind + 1]) for kind in range(lammps.extract_setting("ntypes"))] if found else []


def _check(lammps: Any, comm: "Intracomm", elements: list[int], known: Sequence[int]) -> float:
    """The energy unit in eV; raises ``ScriptError``."""
    units = lammps.extract_global("units")
    if units not in ENERGY_UNITS:
        raise ScriptError(f"The input has `units {units}`; write `units metal` or `units real`.")
    n_types = lammps.extract_setting("ntypes")
    if n_types != len(elements):
        raise ScriptError(
            f"The box has {n_types} atom types and `--elements` names {len(elements)}; name the element of each type, "
            f"in order{elements_by_mass(_masses(lammps), known)}."
        )
    if lammps.extract_setting("world_size") != comm.size:
        raise ScriptError(
            f"LAMMPS runs on {lammps.extract_setting('world_size')} ranks and MPI on {comm.size}: install "
            "`lammps[mpi]`, and start with the `mpirun` of that installation."
        )
    return ENERGY_UNITS[units]


def _widen(lammps: Any, comm: "Intracomm", reach: float) -> None:
    """Let ghosts reach at least as far (Angstrom) as the model needs; raises ``ScriptError``."""
    settings = _information(lammps, comm)
    if "without atom IDs" in settings:
        raise ScriptError("The model finds the owners of ghost atoms by their ids; remove `atom_modify id no`.")
    found = re.search(r"Communication cutoff = (\S+)", settings)
    if found is None:
        raise ScriptError("The model needs one communication cut-off for all types; write `comm_modify mode single`.")
    if float(found[1]) < reach:
        lammps.command(f"comm_modify cutoff {reach!r}")


def _information(lammps: Any, comm: "Intracomm") -> str:
    """The output of LAMMPS' command `info system communication`, which rank 0 writes."""
    with tempfile.TemporaryDirectory(prefix="mdrelax-") as folder:
        path = Path(folder) / "information"
        lammps.command(f"info system communication out overwrite {path}")
        text = path.read_text(encoding="utf-8") if comm.rank == 0 else ""
    settings: str = comm.bcast(text)
    return settings


def _times(domain: Domain) -> list[float]:
    work = domain.work
    return [work.network, work.exchange, work.prepare, work.finish]
