"""The files of a molecular dynamics run: log, trajectory, and the state from which a killed run is continued.

Log and trajectory are closed after each line and frame. The state (JSON, every digit of positions, momenta, cell and of
the thermostat's generator, with the lengths of the two files) is replaced atomically; a continued run cuts the files
back to it and repeats the steps since, bit for bit.
"""

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.io.trajectory import Trajectory

from mdrelax.base.files import locked_file, write_atomically
from mdrelax.base.names import printable
from mdrelax.base.sealed import SEAL, seal, unseal

__all__ = ["LOG_COLUMNS", "State", "Writer", "read_state", "rounded"]

Row = dict[str, float]
LOG_COLUMNS = (
    "step",
    "time_ps",
    "potential_energy_eV",
    "kinetic_energy_eV",
    "total_energy_eV",
    "temperature_K",
    "max_force_eV_per_A",
)
FRAME_UNITS = "time_fs fs, positions A, mdrelax_energy eV, mdrelax_forces eV/A, momenta sqrt(amu*eV)"
FORMAT_VERSION = 2  # version 1 had no hash


class State(NamedTuple):
    """A run after a whole step."""

    settings: dict[str, Any]  # of the run, which a continued one must share
    step: int
    positions: list[list[float]]  # Angstrom
    momenta: list[list[float]]  # sqrt(amu eV)
    cell: list[list[float]]  # Angstrom
    generator: dict[str, Any]  # the state of numpy's bit generator
    hottest: float  # K, so far
    usual: float  # K
    freedom: int  # degrees of freedom that temperatures count
    log_bytes: int
    trajectory_bytes: int  # of a text trajectory
    frames: int

    def restore(self, system: Atoms, generator: np.random.Generator) -> None:
        """Put positions, momenta, cell and random numbers back."""
        system.set_cell(self.cell)
        system.positions[:] = self.positions
        system.arrays["momenta"] = np.array(self.momenta)  # as they were: constraints have acted on them already
        generator.bit_generator.state = self.generator


def read_state(path: Path, settings: Mapping[str, Any]) -> State | None:
    """The state in a file, or None if there is none.

    Raises ``ValueError`` for a damaged file, and for the state of a run with other ``settings``, naming one of them.
    """
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format_version"] != 1 or SEAL in document:
            document = unseal(document)
        if document.pop("format_version") not in (1, FORMAT_VERSION):
            raise ValueError("another format version")
        state = State(**document)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"`{path}` is damaged or not the state of a simulation ({error!s:.100}); delete it and begin again."
        ) from error
    given = json.loads(json.dumps(dict(settings)))
    for name in sorted({*given, *state.settings}):
        if given.get(name) != state.settings.get(name):
            before = printable(f"another `{name:.60}` ({state.settings.get(name)!s:.60}, now")
            raise ValueError(
                f"`{path}` belongs to a run with {before} {given.get(name)!s:.60}); continue it with the same "
                "settings, or name other outputs."
            )
    return state


def rounded(row: Row) -> Row:
    """A row as the log has it: 12 digits."""
    return {name: float(f"{row[name]:.12g}") for name in LOG_COLUMNS}


class Writer:
    """Writes the files of a run, which it locks; with a ``state`` the files are continued from there."""

    def __init__(self, log: str | Path | None, trajectory: str | Path | None, state: State | None = None) -> None:
        self._log = None if log is None else Path(log)
        self._trajectory = None if trajectory is None else Path(trajectory)
        self._state, self._frames = state, 0 if state is None else state.frames
        self._kept: list[Row] = []  # the rows of a run without a log; others stay in the file only
        self._locks = ExitStack()

    def __enter__(self) -> Self:
        with self._locks:
            for path in filter(None, (self._log, self._trajectory)):
                self._locks.enter_context(locked_file(path))
            if self._state is None:
                self._begin()
            else:
                self._cut(self._state)
            self._locks = self._locks.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._locks.close()

    def _begin(self) -> None:
        if self._trajectory is not None:
            self._trajectory.unlink(missing_ok=True)
        if self._log is not None:
            self._log.write_text(",".join(LOG_COLUMNS) + "\n", encoding="utf-8")

    def _cut(self, state: State) -> None:
        """Remove what was written after the state; raises ``ValueError`` if something before it is missing."""
        if self._log is not None:
            _truncate(self._log, state.log_bytes)
        if self._trajectory is None or not state.frames:
            return
        if self._trajectory.suffix == ".traj":
            _keep_frames(self._trajectory, state.frames)
        else:
            _truncate(self._trajectory, state.trajectory_bytes)

    def rows(self) -> list[Row]:
        """The rows of the log so far, each as ``rounded``."""
        if self._log is None:
            return self._kept
        lines = self._log.read_text(encoding="utf-8").splitlines()[1:]
        return [dict(zip(LOG_COLUMNS, map(float, line.split(",")), strict=True)) for line in lines]

    def log(self, row: Row) -> None:
        """One line of the CSV file, or a row in memory without one."""
        if self._log is None:
            self._kept.append(rounded(row))
        else:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(",".join(f"{row[name]:.12g}" for name in LOG_COLUMNS) + "\n")

    def frame(self, system: Atoms, time_fs: float) -> None:
        """One frame; in extxyz under this package's own keys, with the units in the first frame."""
        if self._trajectory is None:
            return
        self._frames += 1
        energy, forces = system.get_potential_energy(), system.get_forces()
        frame = _bare(system)
        frame.info["time_fs"] = time_fs
        if self._trajectory.suffix == ".traj":
            frame.calc = SinglePointCalculator(frame, energy=energy, forces=forces)
            with Trajectory(str(self._trajectory), "a") as file:
                file.write(frame)
            return
        if not self._trajectory.exists():
            frame.info["units"] = FRAME_UNITS
        frame.info["mdrelax_energy"] = energy
        frame.arrays["mdrelax_forces"] = forces
        write(self._trajectory, frame, format="extxyz", append=True)

    def save(self, path: Path, system: Atoms, generator: np.random.Generator, **rest: Any) -> None:
        """Write the state; ``rest`` are the fields of ``State`` that are neither of the system nor of the files."""
        sizes = [
            0 if file is None or not file.exists() else file.stat().st_size for file in (self._log, self._trajectory)
        ]
        state = State(
            positions=system.positions.tolist(), momenta=system.get_momenta().tolist(), cell=system.cell.tolist(),
            generator=dict(generator.bit_generator.state), log_bytes=sizes[0], trajectory_bytes=sizes[1],
            frames=self._frames, **rest,
        )  # fmt: skip
        write_atomically(path, json.dumps(seal({"format_version": FORMAT_VERSION, **state._asdict()})).encode())


def _truncate(path: Path, size: int) -> None:
    if not path.is_file() or path.stat().st_size < size:
        raise ValueError(
            f"`{path}` lacks what was written before the last saved state; begin again with other outputs."
        )
    os.truncate(path, size)


def _keep_frames(path: Path, number: int) -> None:
    """Keep the first frames of an ASE trajectory; its index at the end is written again."""
    try:
        with Trajectory(str(path)) as old:
            if len(old) == number:
                return
            frames = [old[k] for k in range(number)]
    except Exception as error:  # ASE raises anything for a damaged trajectory
        raise ValueError(
            f"`{path}` lacks what was written before the last saved state ({type(error).__name__}); begin again with "
            "other outputs."
        ) from error
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    for frame in frames:
        with Trajectory(str(part), "a") as file:
            file.write(frame)
    os.replace(part, path)


def _bare(system: Atoms) -> Atoms:
    """A copy without the labels and notes of the starting structure, which do not belong to this geometry."""
    frame = system.copy()
    frame.info.clear()
    for name in set(frame.arrays) - {"numbers", "positions", "momenta", "masses", "tags"}:
        del frame.arrays[name]
    return frame
