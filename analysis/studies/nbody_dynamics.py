"""N-body dynamics: does a force field trained on the simulator's labels move particles as the simulator does?

The same starts are run by ASE's velocity Verlet (order 2) with the model and with the exact potential. At each time t

    divergence      d(t) = sqrt( mean over particles of |x_model - x_exact|^2 )
    energy drift    (E(t) - E(0)) of either run in its own energy, per particle
    sensitivity     d(t) of an exact run whose start was moved by a random 1e-3: growth of a small error by chaos alone

Lengths are in Angstrom, energies in eV, times in the simulator's unit (``datasets.nbody_frames``).
"""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.md.verlet import VelocityVerlet
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mdrelax.analysis.drawing import BLUE, GREY, VERMILION, panels, save, shared_legend, styled
from mdrelax.analysis.tables import write_texts
from mdrelax.base.provenance import environment
from mdrelax.datasets.nbody_frames import SOFTENING, SPECIES, NBodyCalculator
from mdrelax.datasets.nbody_simulator import PROTOCOLS, simulate

__all__ = ["compare_dynamics", "dynamics_figure", "starts", "write_comparison"]

PERTURBATION = 1e-3  # Angstrom, of every coordinate
TIME = 0.1  # the simulator records a frame every 0.1
TEST_STREAM = 77  # of random numbers: trajectories that are in no training set

Array = npt.NDArray[np.float64]


def starts(system: str, n_starts: int, *, frame: int = 10, seed: int = 0) -> list[Atoms]:
    """States of the softened system from new trajectories, as atoms of mass 1 with velocities."""
    protocol = PROTOCOLS[system]._replace(softening=SOFTENING[system], largest_force=None, half_kick=True)
    generator = np.random.default_rng([seed, TEST_STREAM])
    found = simulate(
        system, n_starts, generator=generator, n_steps=(frame + 1) * protocol.record_every, protocol=protocol
    )
    states = zip(found.positions[:, frame], found.velocities[:, frame], found.charges, strict=True)
    structures = []
    for positions, velocities, charges in states:
        numbers = [SPECIES[system][int(charge)] for charge in charges]
        atoms = Atoms(numbers, positions, masses=np.ones(len(numbers)))
        atoms.set_velocities(velocities)
        structures.append(atoms)
    return structures


def compare_dynamics(
    calculator: Calculator,
    system: str,
    *,
    n_starts: int = 10,
    duration: float = 2.0,
    timestep: float = 0.005,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per start and recorded time; see the module for the columns. A run that explodes gives infinities."""
    exact, rng, rows = NBodyCalculator(system), np.random.default_rng(seed), []
    every = max(1, round(TIME / timestep))
    n_records = round(duration / timestep) // every
    for number, atoms in enumerate(starts(system, n_starts, seed=seed)):
        nudged = atoms.copy()
        nudged.positions += PERTURBATION * rng.standard_normal(atoms.positions.shape)
        truth, shifted, model = (
            _run(each, with_calculator, timestep, every, n_records)
            for each, with_calculator in ((atoms, exact), (nudged, exact), (atoms, calculator))
        )
        for k in range(n_records + 1):
            rows.append(
                {
                    "start": number, "time": k * every * timestep,
                    "divergence": _distance(model[0][k], truth[0][k]),
                    "sensitivity": _distance(shifted[0][k], truth[0][k]),
                    "displacement": _distance(truth[0][k], truth[0][0]),
                    "energy_drift_model": (model[1][k] - model[1][0]) / len(atoms),
                    "energy_drift_exact": (truth[1][k] - truth[1][0]) / len(atoms),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def write_comparison(
    calculator: Calculator, system: str, folder: Path, *, n_starts: int, duration: float, command: str, seed: int = 0
) -> list[str]:
    """dynamics.csv, dynamics.json and dynamics.png in ``folder``; returns lines that summarise the results."""
    table = compare_dynamics(calculator, system, n_starts=n_starts, duration=duration, seed=seed)
    at = {time: rows for time, rows in table.groupby(table.time.round(6)) if time > 0}
    medians = {
        f"{time:g}": {name: float(rows[name].median()) for name in ("divergence", "sensitivity", "displacement")}
        for time, rows in at.items()
    }
    last = at[max(at)]
    drifts = {name: float(last[name].abs().median()) for name in ("energy_drift_model", "energy_drift_exact")}
    record = {
        "command": command, "system": system, "starts": n_starts, "medians_by_time": medians,
        "median_absolute_energy_drift_eV_per_particle": drifts, "environment": environment(device="cpu", seed=seed),
    }  # fmt: skip
    texts = {"dynamics.csv": table.to_csv(index=False), "dynamics.json": json.dumps(record, indent=2)}
    paths = write_texts(folder, texts)
    save(folder / "dynamics.png", lambda: dynamics_figure(table))
    middle = medians.get("1", medians[min(medians, key=float)])
    return [
        f"after time 1: divergence {middle['divergence']:.4f}, distance travelled {middle['displacement']:.4f}, "
        f"start moved by 0.001: {middle['sensitivity']:.4f} (medians of {n_starts} starts, Angstrom)",
        f"energy drift at the end: model {1e3 * drifts['energy_drift_model']:.3f}, simulator "
        f"{1e3 * drifts['energy_drift_exact']:.3f} meV a particle",
        *map(str, [*paths, folder / "dynamics.png"]),
    ]


def _run(atoms: Atoms, calculator: Calculator, timestep: float, every: int, n_records: int) -> tuple[Array, Array]:
    """Positions (T, n, 3) and total energies (T,) at the recorded times, the start included."""
    moving = atoms.copy()
    moving.calc = calculator
    dynamics = VelocityVerlet(moving, timestep)  # ASE's unit of time is the simulator's
    positions, energies = [moving.positions.copy()], [float(moving.get_total_energy())]
    for _ in range(n_records):
        try:
            dynamics.run(every)
            positions.append(moving.positions.copy())
            energies.append(float(moving.get_total_energy()))
        except ValueError:  # the calculator refuses positions that are not finite
            positions.append(np.full_like(positions[0], np.inf))
            energies.append(np.inf)
    return np.array(positions), np.array(energies)


def _distance(a: Array, b: Array) -> float:
    return float(np.sqrt(np.square(a - b).sum(1).mean()))


@styled
def dynamics_figure(table: pd.DataFrame) -> Figure:
    """Divergence, sensitivity and displacement against time; energy drifts of model and exact run.

    Lines are medians over the starts, bands the middle half. Raises ``NothingToDrawError`` for an empty table.
    """
    figure, axes = panels(2 if len(table) else 0, "`table` has no rows")
    curves = {
        "divergence": ("model against simulator", VERMILION),
        "sensitivity": ("simulator, start moved by 0.001", BLUE),
        "displacement": ("distance travelled", GREY),
    }
    for name, (label, colour) in curves.items():
        _band(axes[0], table[table.time > 0], name, label, colour)
    axes[0].set(yscale="log", title="distance of positions (Å, RMS over particles)", xlabel="time (simulator's unit)")
    for name, label, colour in (("energy_drift_model", "", VERMILION), ("energy_drift_exact", "", BLUE)):
        _band(axes[1], table.assign(**{name: 1e3 * table[name]}), name, label, colour)
    axes[1].set(title="total energy − start (meV per particle)", xlabel="time (simulator's unit)")
    shared_legend(figure)
    return figure


def _band(ax: Axes, table: pd.DataFrame, name: str, label: str, colour: str) -> None:
    """Median line and quartile band of a column against time."""
    groups = table.groupby("time")[name]
    lower, middle, upper = (groups.quantile(q) for q in (0.25, 0.5, 0.75))
    ax.plot(middle.index, middle, color=colour, label=label or None)
    ax.fill_between(middle.index, lower, upper, color=colour, alpha=0.2, linewidth=0)
