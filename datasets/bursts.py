"""Bursts: short Langevin trajectories from many geometries, whose frames xTB labels while it moves them.

A burst begins at one of the starting geometries, with momenta and noise of its own seed and an SCF of its own, so that
burst b depends on the geometries, the settings and b alone. Bursts take the geometries in turn, in a random order; the
first burst from each geometry has the geometry itself as its first frame. A burst ends early where an SCF does not
converge, or where a force is larger than ``LARGEST_FORCE``.

    frames = label_bursts(starts, 20_000, settings=BurstSettings())

Labels cost time, so they are kept: one journal per ``burst_key`` and version of tblite in the user's cache, with a row
per burst. Another run with the same geometries and settings finds them there, an interrupted one resumes at the next
burst, and one that needs more frames adds to them. One process writes at a time, and others wait for it.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from torch_geometric.data import Data

from mdrelax.base.files import InUseError, locked_file
from mdrelax.datasets.download import data_folder
from mdrelax.datasets.frames import place_of
from mdrelax.datasets.journal import Journal, packed, unpacked
from mdrelax.datasets.labelling import XTB_HEAVIEST, lowest_spin, xtb_calculator
from mdrelax.datasets.langevin import langevin, thermal_momenta

__all__ = ["BurstSettings", "LabelledBursts", "burst_key", "check_starts", "label_bursts", "starts_from"]

LARGEST_FORCE = 100.0  # eV/Angstrom; bonds break at a tenth of it
MOST_FAILURES = 20  # bursts in a row without a frame
WAIT_SECONDS = 1.0  # between two looks at a lock
VERSION = 1  # of the journal's rows, and of the rules above

Progress = Callable[[int, int], None]


class BurstSettings(NamedTuple):
    """All settings that, beside the starting geometries, determine the bursts. Times in fs, the temperature in K."""

    method: str = "GFN2-xTB"
    temperature: float = 600.0
    burst_frames: int = 20
    interval_fs: float = 10.0
    timestep_fs: float = 1.0
    friction_per_fs: float = 0.01
    seed: int = 0


class LabelledBursts(NamedTuple):
    """Frames with ``REF_energy``, ``REF_forces`` and, for cells, ``REF_stress``; the burst of each; what they cost."""

    frames: list[Atoms]
    bursts: list[int]
    cpu_seconds: float  # of the bursts, whenever they were labelled


def starts_from(data: Sequence[Data], method: str) -> list[Atoms]:
    """The frames as starting geometries, with their charges; lone atoms, which do not move, are left out.

    Raises as ``check_starts``, and ``ValueError`` if there is nothing to move.
    """
    check_starts(data, method)
    starts = []
    for frame in data:
        if len(frame.z) > 1:
            atoms = Atoms(frame.z.numpy(), frame.pos.numpy(), cell=frame.cell[0].numpy(), pbc=frame.pbc[0].numpy())
            atoms.info["charge"] = round(frame.get("charge", 0.0))
            starts.append(atoms)
    if not starts:
        raise ValueError("There is no starting geometry with two atoms or more, so that there is nothing to sample.")
    return starts


def check_starts(data: Sequence[Data], method: str) -> None:
    """Raise ``ValueError`` naming the first frame that ``method`` cannot label, and why."""
    for index, frame in enumerate(data):
        if (why := _why_not(frame, method)) is not None:
            raise ValueError(f"{method} cannot label {place_of(frame, index)}: {why}")


def _why_not(frame: Data, method: str) -> str | None:
    heaviest, pbc = int(frame.z.max()), frame.pbc[0]
    charge, spin = frame.get("charge", 0.0), frame.get("spin")
    if heaviest > XTB_HEAVIEST:
        return (
            f"it has {chemical_symbols[heaviest]}, and the method knows H to {chemical_symbols[XTB_HEAVIEST]} only. "
            "Leave such frames out, or train without `pretrain`."
        )
    if bool(pbc.any()) and not bool(pbc.all()):
        axes = "".join(np.array(list("abc"))[pbc.numpy()])
        return (
            f"it is periodic along {axes} only, and tblite would repeat it along all three directions. Set pbc to "
            "T T T in a cell with vacuum, or train without `pretrain`."
        )
    if charge != round(charge):
        return f"its charge is {charge:g}, which is no whole number of electrons. Correct the charge, or leave it out."
    lowest = lowest_spin(Atoms(frame.z.numpy()), round(charge))
    if spin is not None and len(frame.z) > 1 and spin not in (lowest, lowest + 1, lowest / 2):
        return (
            f"its spin is {spin:g}, and pre-training labels the state of lowest spin, with {lowest} unpaired electrons "
            f"(charge {charge:g}). Leave such frames out, or train without `pretrain`."
        )
    return None


def burst_key(starts: Sequence[Atoms], settings: BurstSettings) -> str:
    """A hash of all that decides the bursts but tblite itself: geometries, charges and settings."""
    digest = hashlib.sha256(json.dumps({"version": VERSION, **settings._asdict()}, sort_keys=True).encode())
    for atoms in starts:
        for array in (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, [atoms.info.get("charge", 0)]):
            digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes() + b";")
    return digest.hexdigest()


def label_bursts(
    starts: Sequence[Atoms],
    n_frames: int,
    *,
    settings: BurstSettings | None = None,
    folder: Path | None = None,
    progress: Progress = lambda done, total: None,
    tell: Callable[[str], None] = lambda line: None,
) -> LabelledBursts:
    """The first ``n_frames`` frames of the bursts from ``starts``, labelled now or earlier.

    Args:
        starts: Geometries of at least two atoms, as ``starts_from`` returns them.
        n_frames: Number of frames.
        settings: The settings of the bursts.
        folder: Where the labels are kept; default: the user's cache, see ``data_folder``.
        progress: Called with the frames so far and in all, after each new burst.
        tell: Called with a sentence if another process labels the same bursts; its labels are waited for.

    Raises ``ImportError`` without tblite, ``RuntimeError`` if no SCF converges, ``OSError`` if the folder cannot be
    written to.
    """
    settings = BurstSettings() if settings is None else settings
    xtb_calculator(settings.method)
    header = {"key": burst_key(starts, settings), "tblite": metadata.version("tblite"), **settings._asdict()}
    name = f"{header['key'][:24]}-{header['tblite']}.journal"
    path = (data_folder() / "bursts" if folder is None else folder) / name
    turn = [starts[k] for k in np.random.default_rng([settings.seed]).permutation(len(starts))]
    with _lock(path, tell):
        journal = Journal(path, header)
        rows = _all_rows(journal, turn, n_frames, settings, progress)
    return _assembled(rows, turn, n_frames)


@contextlib.contextmanager
def _lock(path: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a journal; wait while another process holds it."""
    told = False
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked_file(path))
                break
            except InUseError as error:
                if not told:
                    tell(f"Waiting for the labels of the same frames: {str(error).partition(';')[0]}.")
                told = True
                time.sleep(WAIT_SECONDS)
        yield


def _all_rows(
    journal: Journal, turn: Sequence[Atoms], n_frames: int, settings: BurstSettings, progress: Progress
) -> list[dict[str, Any]]:
    """The journal's rows that hold the first ``n_frames`` frames; those that are missing are made and added."""
    rows = journal.rows("burst")
    done, failures = sum(row["frames"] for row in rows), 0
    while done < n_frames:
        row = _burst(turn, len(rows), settings)
        failures = 0 if row["frames"] else failures + 1
        if failures == MOST_FAILURES:
            raise RuntimeError(
                f"{settings.method} found no frame in {MOST_FAILURES} bursts one after the other: the SCF of the "
                f"starting geometries does not converge, or their forces are above {LARGEST_FORCE:g} eV/A. Check the "
                "charges and the unit of length, or train without `pretrain`."
            )
        journal.add(row)
        rows.append(row)
        done += row["frames"]
        progress(min(done, n_frames), n_frames)
    return rows


def _burst(turn: Sequence[Atoms], burst: int, settings: BurstSettings) -> dict[str, Any]:
    """The row of a burst: positions (A) and labels (eV, eV/A, eV/A^3) of its frames."""
    begun, start = time.process_time(), turn[burst % len(turn)]
    charge = int(start.info.get("charge", 0))
    atoms = Atoms(start.numbers, start.positions, cell=start.cell, pbc=start.pbc)
    atoms.calc = xtb_calculator(settings.method, charge=charge, spin=lowest_spin(start, charge))
    rng = np.random.default_rng([settings.seed, burst])
    atoms.set_momenta(thermal_momenta(atoms, settings.temperature, rng))
    found: list[dict[str, np.ndarray]] = []
    with contextlib.suppress(RuntimeError):  # ASE's and tblite's errors: the SCF did not converge
        if burst < len(turn):
            found.append(_labels(atoms))
        while len(found) < settings.burst_frames:
            langevin(
                atoms, duration_fs=settings.interval_fs, temperature=settings.temperature,
                timestep_fs=settings.timestep_fs, friction_per_fs=settings.friction_per_fs, rng=rng,
            )  # fmt: skip
            found.append(_labels(atoms))
    calm = [not (np.abs(each["forces"]) > LARGEST_FORCE).any() for each in found]
    kept = found[: calm.index(False)] if False in calm else found
    columns = {name: packed(np.stack([each[name] for each in kept])) for name in (kept[0] if kept else ())}
    seconds = time.process_time() - begun
    return {"kind": "burst", "index": burst, "frames": len(kept), "cpu_seconds": seconds, **columns}


def _labels(atoms: Atoms) -> dict[str, np.ndarray]:
    """Positions and labels of a frame; the stress of cells only."""
    found = {
        "positions": atoms.positions.copy(),
        "energy": np.array(atoms.get_potential_energy()),
        "forces": atoms.get_forces(apply_constraint=False),
    }
    if atoms.pbc.all():
        found["stress"] = atoms.get_stress(voigt=False, apply_constraint=False)
    if not all(np.isfinite(each).all() for each in found.values()):
        raise RuntimeError("The labels are not finite.")
    return found


def _assembled(rows: Sequence[Mapping[str, Any]], turn: Sequence[Atoms], n_frames: int) -> LabelledBursts:
    """The first ``n_frames`` frames of the rows."""
    frames: list[Atoms] = []
    bursts: list[int] = []
    cpu_seconds = 0.0
    for row in rows:
        if (wanted := min(row["frames"], n_frames - len(frames))) <= 0:
            continue
        start = turn[row["index"] % len(turn)]
        n, cpu_seconds = row["frames"], cpu_seconds + row["cpu_seconds"]
        positions, forces = (unpacked(row[name], n, len(start), 3) for name in ("positions", "forces"))
        energies = unpacked(row["energy"], n)
        stresses = unpacked(row["stress"], n, 3, 3) if "stress" in row else None
        for k in range(wanted):
            atoms = Atoms(start.numbers, positions[k], cell=start.cell, pbc=start.pbc)
            atoms.info |= {"config_type": "burst", "REF_energy": float(energies[k])}
            atoms.arrays["REF_forces"] = forces[k]
            if stresses is not None:
                atoms.info["REF_stress"] = stresses[k]
            if start.info.get("charge"):
                atoms.info["charge"] = start.info["charge"]
            frames.append(atoms)
            bursts.append(row["index"])
    return LabelledBursts(frames, bursts, cpu_seconds)
