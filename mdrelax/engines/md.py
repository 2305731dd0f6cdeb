"""Molecular dynamics, NVE or NVT, with a log, a trajectory and detection of explosions; used by ``mdrelax md``.

    NVE   velocity Verlet: conserves the energy, so its drift measures the smoothness of the potential
    NVT   Langevin (Vanden-Eijnden and Ciccotti 2006, as ASE has it): every atom feels friction and noise

Times are in fs (ps where a name says so), energies in eV, temperatures in K. Temperatures count the degrees of freedom
that move: without the six of total momentum and rotation for a molecule in NVE, three in a cell; if given momenta
translate or rotate the whole system, all 3N count.
"""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet

from mdrelax.base.names import nearest_name
from mdrelax.base.seeds import numpy_generator
from mdrelax.engines.md_files import LOG_COLUMNS, State, Writer, read_state

__all__ = [
    "LOG_COLUMNS",
    "ExplodedError",
    "MDResult",
    "degrees_of_freedom",
    "energy_drift",
    "kinetic_temperature",
    "run_md",
    "spread_above",
    "thermal_momenta",
]

Array = npt.NDArray[np.float64]
Row = dict[str, float]

EXPLOSION_FACTOR = 20.0  # a kinetic temperature this many times the usual one is no fluctuation
USUAL_TEMPERATURE = 300.0  # K: a cold run may begin at a strained geometry, which heats it
TRAJECTORY_SUFFIXES = (".traj", ".extxyz", ".xyz")
SAVE_SECONDS = 10.0  # of wall time between saved states


class ExplodedError(RuntimeError):
    """A run that was stopped because the system flew apart."""


class MDResult(NamedTuple):
    """The result of a run: ``log`` has the columns of ``LOG_COLUMNS``; ``reason`` is empty unless it exploded."""

    log: pd.DataFrame
    drift_meV_per_atom_ps: float  # slope of the total energy; NaN for NVT, which does not conserve it
    max_temperature_K: float  # over all steps, not only the logged ones
    exploded: bool
    reason: str
    atoms: Atoms  # the last structure, with momenta
    stopped: str = ""  # the sentence of ``stop`` that ended the run


def run_md(
    atoms: Atoms,
    *,
    temperature_K: float,
    duration_ps: float,
    ensemble: Literal["nve", "nvt"] = "nve",
    timestep_fs: float = 0.5,
    friction_per_fs: float = 0.01,
    seed: int = 0,
    keep_momenta: bool = False,
    trajectory: str | Path | None = None,
    trajectory_interval: int = 20,
    log: str | Path | None = None,
    log_interval: int = 10,
    restart: str | Path | None = None,
    origin: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[Atoms], str] = lambda system: "",
) -> MDResult:
    """Run molecular dynamics of ``atoms`` (which must have a calculator and is not changed).

    Momenta are drawn at ``temperature_K`` from ``seed``, without total momentum and rotation, unless ``keep_momenta``:
    then they are kept, and if they translate or rotate the whole system, the temperature counts 3N degrees of freedom.
    ``log`` is a CSV file and ``trajectory`` a ``.traj`` or ``.extxyz`` file; existing ones are replaced. They grow by a
    line and a frame every ``log_interval`` and ``trajectory_interval`` steps. ``progress(done, total)``
    is called after each logged step. A run that explodes stops, and the result has the reason. A run for which
    ``stop(system)`` returns a sentence after a step ends there, with the frame of that step (``spread_above``).

    ``restart`` is a file that holds the state of the run every ten seconds and at its end. If it exists, the run is
    continued from there, and log and trajectory are, bit for bit, those of a run that was never stopped; with a longer
    ``duration_ps`` a finished run goes on. ``origin`` are further settings that a continued run must share (JSON).

    Raises ``ValueError`` for settings that make no sense, or are not those of the run to be continued, ``InUseError``
    for files that another run writes, and the calculator's own errors.
    """
    _check_structure(atoms, ensemble, trajectory)
    _check_positive(temperature_K=temperature_K, duration_ps=duration_ps, timestep_fs=timestep_fs)
    _check_positive(friction_per_fs=friction_per_fs, trajectory_interval=trajectory_interval, log_interval=log_interval)
    if restart is not None and log is None:
        raise ValueError("`restart` needs a `log`: the rows before the restart are read from it.")
    system = atoms.copy()
    system.calc = atoms.calc
    rng = numpy_generator(seed, "dynamics")
    settings = {
        "ensemble": ensemble, "temperature_K": temperature_K, "timestep_fs": timestep_fs, "seed": seed,
        "friction_per_fs": friction_per_fs, "keep_momenta": keep_momenta, "log_interval": log_interval,
        "trajectory_interval": trajectory_interval, "numbers": system.numbers.tolist(), "pbc": system.pbc.tolist(),
        "masses": system.get_masses().tolist(), **(origin or {}),
    }  # fmt: skip
    state = None if restart is None else read_state(Path(restart), settings)
    if state is not None:
        state.restore(system, rng)
    elif not keep_momenta:
        system.set_momenta(thermal_momenta(system, temperature_K, rng))
    timestep, friction = timestep_fs * units.fs, friction_per_fs / units.fs
    run = _Run(
        system, _integrator(system, ensemble, timestep, temperature_K, friction, rng), rng, settings,
        freedom=degrees_of_freedom(system, "nvt" if _drifts(system) else ensemble) if state is None else state.freedom,
        steps=max(1, round(duration_ps * 1000 / timestep_fs)), restart=None if restart is None else Path(restart),
        stop=stop,
    )  # fmt: skip
    with Writer(log, trajectory, state) as writer:
        hottest, reason, stopped = run.go(writer, state, progress)
        rows = writer.rows()
    table = pd.DataFrame(rows, columns=list(LOG_COLUMNS)).astype({"step": int})
    drift = math.nan if ensemble == "nvt" else energy_drift(table.time_ps, table.total_energy_eV, len(system))
    return MDResult(table, drift, hottest, bool(reason), reason, system, stopped)


def spread_above(limit: float) -> Callable[[Atoms], str]:
    """A ``stop`` for ``run_md``: the largest spread of an atom's force, in eV/A, is above ``limit``.

    The system's calculator is a ``CommitteeCalculator``. Raises ``ValueError`` unless the limit is positive.
    """
    _check_positive(stop_above=limit)

    def stop(system: Atoms) -> str:
        spread = system.calc.get_property("forces_spread", system)
        worst = int(spread.argmax())
        if spread[worst] <= limit:
            return ""
        return (
            f"The forces on atom {worst} ({system.symbols[worst]}) spread by {spread[worst]:.3g} eV/A, over {limit:g}."
        )

    return stop


def thermal_momenta(atoms: Atoms, temperature_K: float, rng: np.random.Generator) -> Array:
    """Momenta (N, 3) in ASE's unit sqrt(amu eV), drawn from the Maxwell-Boltzmann distribution of a temperature.

    The total momentum is removed and, if no direction is periodic, the total angular momentum; the other degrees of
    freedom have kT/2 each. Constraints (``atoms.constraints``) are left to ASE, and then nothing is removed.
    """
    masses = atoms.get_masses()[:, None]  # (N, 1) amu
    momenta = rng.standard_normal((len(atoms), 3)) * np.sqrt(masses * units.kB * temperature_K)
    if atoms.constraints:
        return momenta
    return momenta - _drift(atoms, momenta)


def degrees_of_freedom(atoms: Atoms, ensemble: str) -> int:
    """The number of degrees of freedom with kinetic energy, at least 1.

    Langevin noise (``"nvt"``) reaches all of them; in ``"nve"`` the conserved total momentum (3) and, if no direction
    is periodic, the rotations (3, or 2 for a linear molecule) are excluded, and so are ASE's constraints.
    """
    free = int(atoms.get_number_of_degrees_of_freedom())
    if ensemble == "nve" and not atoms.constraints:
        free -= 3
        if not atoms.pbc.any():
            inertia = _inertia(atoms)
            free -= int(np.linalg.matrix_rank(inertia, tol=1e-8 * np.linalg.norm(inertia, 2)))  # numpy 1 has no rtol
    return max(free, 1)


def kinetic_temperature(kinetic_energy_eV: float, freedom: int) -> float:
    """Temperature in K of a kinetic energy shared by ``freedom`` degrees of freedom: 2 E / (freedom kB)."""
    return 2.0 * kinetic_energy_eV / (freedom * units.kB)


def energy_drift(time_ps: npt.ArrayLike, energy_eV: npt.ArrayLike, n_atoms: int) -> float:
    """Slope of the total energy against time in meV/atom/ps, by least squares.

    NaN for fewer than two times and for energies that are not finite; ``ValueError`` for shapes that do not fit.
    """
    time, energy = np.asarray(time_ps, dtype=float), np.asarray(energy_eV, dtype=float)
    if time.shape != energy.shape or time.ndim != 1 or n_atoms < 1:
        raise ValueError(
            f"`energy_drift` needs as many times as energies and at least one atom, got shapes {time.shape} and "
            f"{energy.shape} and {n_atoms} atoms."
        )
    if np.unique(time).size < 2 or not np.isfinite(energy).all():
        return math.nan
    centred = time - time.mean()
    return float(1000.0 * (centred @ (energy - energy.mean())) / (centred @ centred) / n_atoms)


# --- the loop ---


class _Run(NamedTuple):
    """A run that is ready to begin, or to be continued."""

    system: Atoms
    integrator: VelocityVerlet | Langevin
    rng: np.random.Generator
    settings: dict[str, Any]
    freedom: int
    steps: int
    restart: Path | None
    stop: Callable[[Atoms], str]

    def go(self, writer: Writer, state: State | None, progress: Callable[[int, int], None]) -> tuple[float, str, str]:
        """Step to the end; returns the highest temperature, why it exploded and why it stopped."""
        temperature_K, log_every = self.settings["temperature_K"], self.settings["log_interval"]
        hottest, usual, first = (
            (0.0, temperature_K, 0) if state is None else (state.hottest, state.usual, state.step + 1)
        )
        saved, reason, stopped = -math.inf, "", ""
        for step in range(first, self.steps + 1):
            if step:
                self.integrator.step()
            row = _measure(self.system, step, self.settings["timestep_fs"], self.freedom)
            hottest = max(hottest, row["temperature_K"])
            usual = usual if step else max(temperature_K, row["temperature_K"], USUAL_TEMPERATURE)
            reason = _explosion(row, usual)
            stopped = "" if reason else self.stop(self.system)
            ends, regular = bool(reason or stopped) or step == self.steps, step % log_every == 0
            if regular:
                writer.log(row)
                progress(step, self.steps)
            framed = step % self.settings["trajectory_interval"] == 0
            if framed and not reason:
                writer.frame(self.system, step * self.settings["timestep_fs"])
            if self.restart is not None and not reason and (ends or time.monotonic() - saved > SAVE_SECONDS):
                rest = {"settings": self.settings, "step": step, "freedom": self.freedom}
                writer.save(self.restart, self.system, self.rng, hottest=hottest, usual=usual, **rest)
                saved = time.monotonic()
            if ends and not regular:  # after the state: a longer run has no such row
                writer.log(row)
                progress(step, self.steps)
            if stopped and not framed:
                writer.frame(self.system, step * self.settings["timestep_fs"])
            if reason or stopped:
                break
        if first > self.steps and (first - 1) % log_every:  # nothing was left to do: only its last row was cut
            row = _measure(self.system, first - 1, self.settings["timestep_fs"], self.freedom)
            writer.log(row)
        return hottest, reason, stopped


def _integrator(
    system: Atoms, ensemble: str, timestep: float, temperature_K: float, friction: float, rng: np.random.Generator
) -> VelocityVerlet | Langevin:
    if ensemble == "nve":
        return VelocityVerlet(system, timestep)
    # `fixcm=True` would not sample the canonical distribution (ASE 3.28 deprecates it): the centre may drift.
    return Langevin(system, timestep, temperature_K=temperature_K, friction=friction, fixcm=False, rng=rng)


def _measure(system: Atoms, step: int, timestep_fs: float, freedom: int) -> Row:
    potential, kinetic = float(system.get_potential_energy()), float(system.get_kinetic_energy())
    force = float(np.linalg.norm(system.get_forces(), axis=1).max())
    values = (step, step * timestep_fs / 1000, potential, kinetic, potential + kinetic)
    return dict(zip(LOG_COLUMNS, (*values, kinetic_temperature(kinetic, freedom), force), strict=True))


def _explosion(row: Row, usual_K: float) -> str:
    """The reason why the run must stop, as a sentence; empty if there is none.

    ``usual_K`` is the largest of the target, the temperature at the start and 300 K.
    """
    when = f"after {row['time_ps']:.4g} ps (step {row['step']:.0f})"
    advice = "shorten the time step, start from a relaxed geometry, or train on hotter frames"
    if not all(math.isfinite(value) for value in row.values()):
        return f"The energy or a force is not a finite number {when}; {advice}."
    if row["temperature_K"] > EXPLOSION_FACTOR * usual_K:
        return (
            f"The kinetic temperature is {row['temperature_K']:.0f} K {when}, more than {EXPLOSION_FACTOR:.0f} times "
            f"{usual_K:.0f} K, the largest of the target, the start and 300 K: the simulation exploded; {advice}."
        )
    return ""


def _drift(atoms: Atoms, momenta: Array) -> Array:
    """The part of the momenta (N, 3) that translates and, if no direction is periodic, rotates the whole system."""
    masses = atoms.get_masses()[:, None]  # (N, 1) amu
    drift = masses * momenta.sum(axis=0) / masses.sum()
    if not atoms.pbc.any():
        arms = atoms.positions - atoms.get_center_of_mass()
        turning = np.cross(arms, momenta - drift).sum(axis=0)
        spin = np.linalg.pinv(_inertia(atoms), rcond=1e-8) @ turning  # angular velocity
        drift += masses * np.cross(spin, arms)
    return drift


def _drifts(atoms: Atoms) -> bool:
    """Whether motion of the whole system has more than rounding, a millionth, of the kinetic energy."""
    momenta, masses = atoms.get_momenta(), atoms.get_masses()[:, None]
    return bool((_drift(atoms, momenta) ** 2 / masses).sum() > 1e-6 * (momenta**2 / masses).sum())


def _inertia(atoms: Atoms) -> Array:
    """Inertia tensor (3, 3) about the centre of mass in amu A^2."""
    arms = atoms.positions - atoms.get_center_of_mass()
    weighted = arms * atoms.get_masses()[:, None]
    return float((weighted * arms).sum()) * np.eye(3) - weighted.T @ arms


# --- check ---


def _check_structure(atoms: Atoms, ensemble: str, trajectory: str | Path | None) -> None:
    if len(atoms) == 0:
        raise ValueError("`run_md` needs at least one atom, got none.")
    if atoms.calc is None:
        raise ValueError("`atoms` has no calculator; set `atoms.calc = MDRelaxCalculator.from_file(...)` first.")
    if ensemble not in ("nve", "nvt"):
        raise ValueError(f"Unknown `ensemble` {ensemble!r}; {nearest_name(str(ensemble), ('nve', 'nvt'))}")
    if trajectory is not None and Path(trajectory).suffix not in TRAJECTORY_SUFFIXES:
        raise ValueError(f"`trajectory` must end in one of {', '.join(TRAJECTORY_SUFFIXES)}, got `{trajectory}`.")


def _check_positive(**settings: float) -> None:
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise ValueError(f"`{name}` must be > 0 and finite, got {value}.")
