"""Constant pressure: a periodic cell with thermostat and isotropic barostat, and the quantity that they conserve.

    H' = E + K + p V + (energies of thermostat and barostat)       Martyna, Tobias and Klein, J. Chem. Phys. 101, 4177

as ASE integrates it (``IsotropicMTKNPT``). A drift of H' has the same causes as one of the energy in NVE, and stress
that is not the derivative of the energy shows in it as well.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from ase import Atoms, units
from ase.md.nose_hoover_chain import IsotropicMTKNPT

from mdrelax.base.seeds import numpy_generator
from mdrelax.engines.md import energy_drift, kinetic_temperature, thermal_momenta
from mdrelax.engines.md_files import Writer

__all__ = ["NPTResult", "run_npt"]

THERMOSTAT_FS, BAROSTAT_FS = 100.0, 1000.0  # characteristic times: ASE's advice for steps of 1 fs


class NPTResult(NamedTuple):
    """The result of a run; ``log`` has time_ps, conserved_eV, temperature_K and volume_A3 of every logged step."""

    log: pd.DataFrame
    drift_meV_per_atom_ps: float  # slope of the conserved quantity
    atoms: Atoms  # the last structure, with momenta


def run_npt(
    atoms: Atoms,
    *,
    temperature_K: float,
    duration_ps: float,
    pressure_GPa: float = 0.0,
    timestep_fs: float = 1.0,
    seed: int = 0,
    trajectory: str | Path | None = None,
    interval: int = 20,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> NPTResult:
    """Run a periodic system with a calculator at constant pressure; ``atoms`` is not changed.

    Momenta are drawn at ``temperature_K`` from ``seed``, without total momentum. A row of the log and a frame of the
    trajectory (as in ``run_md``) are taken every ``interval`` steps, and then ``progress(done, total)`` is called.
    Raises ``ValueError`` for a system that is not periodic in three directions, for a temperature, duration or step
    that is not positive, and if the energy stops being a finite number; and the calculator's own errors.
    """
    if not atoms.pbc.all():
        raise ValueError(f"A barostat needs a system that is periodic in three directions, got pbc {atoms.pbc}.")
    if min(temperature_K, duration_ps, timestep_fs, interval) <= 0:
        raise ValueError(
            "`temperature_K`, `duration_ps`, `timestep_fs` and `interval` must be > 0, got "
            f"{temperature_K}, {duration_ps}, {timestep_fs} and {interval}."
        )
    system = atoms.copy()
    system.calc = atoms.calc
    system.set_momenta(thermal_momenta(system, temperature_K, numpy_generator(seed, "dynamics")))
    integrator = IsotropicMTKNPT(
        system, timestep_fs * units.fs, temperature_K=temperature_K, pressure_au=pressure_GPa * units.GPa,
        tdamp=THERMOSTAT_FS * units.fs, pdamp=BAROSTAT_FS * units.fs,
    )  # fmt: skip
    steps, rows = max(1, round(duration_ps * 1000 / timestep_fs)), []
    with Writer(None, trajectory) as writer:
        for step in range(steps + 1):
            if step:
                integrator.step()
            if step % interval and step != steps:
                continue
            rows.append(_row(integrator, system, step * timestep_fs / 1000))
            if not pd.notna(rows[-1]["conserved_eV"]):
                raise ValueError(f"The energy is not a finite number after {step} steps: shorten the time step.")
            writer.frame(system, step * timestep_fs)
            progress(step, steps)
    log = pd.DataFrame(rows)
    return NPTResult(log, energy_drift(log.time_ps, log.conserved_eV, len(system)), system)


def _row(integrator: IsotropicMTKNPT, system: Atoms, time_ps: float) -> dict[str, float]:
    kinetic = float(system.get_kinetic_energy())
    return {
        "time_ps": time_ps,
        "conserved_eV": integrator.get_conserved_energy(),
        "temperature_K": kinetic_temperature(kinetic, 3 * len(system)),  # the thermostat counts all of them
        "volume_A3": float(system.get_volume()),
    }
