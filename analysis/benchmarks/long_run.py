"""One long MD run: what must be kept, measured from its log, its trajectory and samples of the process.

| kept | measured as |
| --- | --- |
| total energy (NPT: the conserved quantity) | slope of a linear fit, and the deviations from that line |
| bonds of the first frame | largest length in units of the first one; above 1.5 is broken |
| centre of mass (of a molecule) | largest displacement, after the total momentum was set to zero |
| angular momentum about it (of a molecule) | largest magnitude in units of hbar, after it was set to zero |
| memory and open files of the process | after a tenth of the run, in the middle and at the end |
"""

import json
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from ase import Atoms, units
from ase.io import iread

from mdrelax.analysis.trajectory import bond_lengths, bonds
from mdrelax.base.allocator import open_files, resident_memory
from mdrelax.base.files import write_atomically
from mdrelax.base.provenance import environment
from mdrelax.compiled import file_hash
from mdrelax.datasets.structure_files import read_structures
from mdrelax.engines.ase import MDRelaxCalculator
from mdrelax.engines.md import energy_drift, run_md
from mdrelax.engines.npt import run_npt
from mdrelax.engines.nve import FRICTION_PER_FS

__all__ = ["BROKEN", "RESULT", "LongRun", "kept_by", "long_run", "memory_of"]

RESULT = "result.json"
BROKEN = 1.5  # times the length in the first frame
HBAR = 0.6582119569 * units.fs  # CODATA 2018, eV fs, in ASE's units of angular momentum
SAMPLES = 100
FRAME_FS = 50.0
LOG_STEPS = 20


class LongRun(NamedTuple):
    """The settings of a run."""

    system: str
    temperature: float  # K
    picoseconds: float
    ensemble: Literal["nve", "npt"] = "nve"
    compiled: bool = True  # the model is a .pt2 file
    timestep: float = 0.5  # fs
    warm_up: float = 1.0  # ps of Langevin dynamics before NVE
    seed: int = 0

    @property
    def name(self) -> str:
        """The name of its folder, and of its result file."""
        return f"{self.system}-{self.ensemble}-{self.temperature:g}K" + ("" if self.compiled else "-plain")


def long_run(run: LongRun, model: Path, structure: Path, folder: Path) -> dict[str, Any]:
    """Run it in ``folder``, measure it and write ``RESULT`` there; returns that document.

    A stopped NVE run is continued, and a finished one by more ``picoseconds``; NPT begins again. A run that explodes
    has the reason in ``exploded``. Raises ``ValueError`` for a folder with a run of other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    load = MDRelaxCalculator.from_compiled if run.compiled else MDRelaxCalculator.from_file
    atoms = read_structures(structure)[-1]
    atoms.calc = load(model)
    samples, trajectory = Samples(folder / "samples.csv"), folder / "trajectory.traj"
    if run.ensemble == "nve":
        log, exploded = _nve(run, atoms, folder, trajectory, samples, file_hash(model))
    else:
        log, exploded = _npt(run, atoms, trajectory, samples), ""
    time_ps, energy = log.time_ps.to_numpy(), log[log.columns.intersection(["conserved_eV", "total_energy_eV"])[0]]
    document = {
        **run._asdict(),
        "exploded": exploded,
        "atoms": len(atoms),
        "steps": round(1000 * time_ps[-1] / run.timestep),
        **_conserved(time_ps, energy.to_numpy(), len(atoms)),
        "mean_temperature_K": float(log.temperature_K.mean()),
        **({"mean_volume_A3_per_atom": float(log.volume_A3.mean() / len(atoms))} if "volume_A3" in log else {}),
        **kept_by(iread(trajectory) if trajectory.exists() else []),
        **memory_of(pd.read_csv(samples.path)),
        "environment": environment(device="cpu", seed=run.seed),
    }
    write_atomically(folder / RESULT, (json.dumps(document, indent=1) + "\n").encode())
    return document


def _nve(
    run: LongRun, atoms: Atoms, folder: Path, trajectory: Path, samples: "Samples", model: str
) -> tuple[pd.DataFrame, str]:
    """Velocity Verlet from a thermal geometry, with new momenta that neither translate nor rotate.

    Returns the log, and the reason if it exploded.
    """
    state, start = folder / "state.json", atoms
    settings: dict[str, Any] = {"temperature_K": run.temperature, "timestep_fs": run.timestep, "seed": run.seed}
    if not state.exists():
        samples.path.unlink(missing_ok=True)
        warm = run_md(
            atoms, ensemble="nvt", duration_ps=run.warm_up, friction_per_fs=FRICTION_PER_FS, log_interval=LOG_STEPS,
            **settings,
        )  # fmt: skip
        start = warm.atoms
        start.calc = atoms.calc
    result = run_md(
        start, duration_ps=run.picoseconds, **settings, log=folder / "log.csv", log_interval=LOG_STEPS,
        trajectory=trajectory, trajectory_interval=round(FRAME_FS / run.timestep), restart=state,
        origin={"model": model, "warm_up": run.warm_up}, progress=samples,
    )  # fmt: skip
    return result.log, result.reason


def _npt(run: LongRun, atoms: Atoms, trajectory: Path, samples: "Samples") -> pd.DataFrame:
    """The log of a run without pressure."""
    samples.path.unlink(missing_ok=True)
    result = run_npt(
        atoms, temperature_K=run.temperature, duration_ps=run.picoseconds, timestep_fs=run.timestep, seed=run.seed,
        trajectory=trajectory, interval=LOG_STEPS, progress=samples,
    )  # fmt: skip
    return result.log


def _conserved(time_ps: npt.NDArray[np.float64], energy: npt.NDArray[np.float64], n_atoms: int) -> dict[str, float]:
    """Slope of the conserved energy, and its root-mean-square deviation from that line, in meV per atom (and ps)."""
    slope = energy_drift(time_ps, energy, n_atoms)
    rest = 1000 * energy / n_atoms - slope * time_ps
    return {"drift_meV_per_atom_ps": slope, "fluctuation_meV_per_atom": float(rest.std())}


# --- what a trajectory keeps ---


def kept_by(frames: Iterable[Atoms]) -> dict[str, Any]:
    """Bonds, centre of mass and angular momentum of frames with momenta; the last two for molecules only.

    ``largest_stretch`` is infinite if a distance is not finite.
    """
    found: dict[str, Any] = {"bonds": 0, "largest_stretch": 0.0}
    for number, frame in enumerate(frames):
        if number == 0:
            first, pairs = frame, bonds(frame)
            reference, found["bonds"] = bond_lengths(frame, pairs), len(pairs)
        _enlarge(found, "largest_stretch", bond_lengths(frame, pairs) / reference)
        if not frame.pbc.any():
            with np.errstate(invalid="ignore"):  # of positions that are not finite
                moved = frame.get_center_of_mass() - first.get_center_of_mass()
                turning = np.cross(frame.positions - frame.get_center_of_mass(), frame.get_momenta()).sum(axis=0)
            _enlarge(found, "centre_of_mass_A", np.array([np.linalg.norm(moved)]))
            _enlarge(found, "angular_momentum_hbar", np.array([np.linalg.norm(turning) / HBAR]))
    return {**found, "broken": not found["largest_stretch"] <= BROKEN}


def _enlarge(found: dict[str, Any], name: str, values: npt.NDArray[np.float64]) -> None:
    """Replace a number by the largest of it and the values; by infinity if any is not finite."""
    largest = float(values.max(initial=found.get(name, 0.0)))
    found[name] = largest if math.isfinite(largest) else math.inf


# --- the process ---


class Samples:
    """Samples of the process, a hundred in a run, as lines of a file that a continued run appends to."""

    def __init__(self, path: Path) -> None:
        self.path, self.stretch, self.next = path, f"{os.getpid()}-{time.time_ns()}", 0

    def __call__(self, done: int, total: int) -> None:
        """Take a sample if it is time for one: the ``progress`` of a run."""
        if done < self.next and done < total:
            return
        self.next = done + max(1, total // SAMPLES)
        new = not self.path.exists()
        with self.path.open("a", encoding="utf-8") as file:
            if new:
                file.write("stretch,step,resident_MB,open_files,cpu_seconds\n")
            cpu = time.process_time()
            file.write(f"{self.stretch},{done},{resident_memory():.2f},{open_files():.0f},{cpu:.2f}\n")


def memory_of(samples: pd.DataFrame) -> dict[str, Any]:
    """Resident size, open files and speed in the longest part of a run that one process made.

    Three samples, at a tenth of that part, in its middle and at its end, and the steps per second of processor time.
    """
    parts = [part.reset_index(drop=True) for _, part in samples.groupby("stretch")]
    longest = max(parts, key=lambda part: part.step.iloc[-1] - part.step.iloc[0])
    last = len(longest) - 1
    rows = longest.iloc[[min(last, max(1, last // 10)), last // 2, last]]
    seconds = longest.cpu_seconds.iloc[-1] - longest.cpu_seconds.iloc[0]
    return {
        "processes": len(parts),
        "sampled_steps": rows.step.tolist(),
        "resident_MB": rows.resident_MB.tolist(),
        "open_files": rows.open_files.astype(int).tolist(),
        "steps_per_cpu_second": (longest.step.iloc[-1] - longest.step.iloc[0]) / max(seconds, 0.01),
    }
