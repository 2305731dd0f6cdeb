"""Langevin dynamics of ASE atoms, with random numbers of an explicit generator: the same numbers, the same frames."""

import numpy as np
from ase import Atoms
from ase import units as ase_units

__all__ = ["langevin", "thermal_momenta"]


def thermal_momenta(atoms: Atoms, temperature: float, rng: np.random.Generator) -> np.ndarray:
    """Momenta (N, 3) in ASE's unit out of the Maxwell-Boltzmann distribution at ``temperature`` (K)."""
    widths = np.sqrt(atoms.get_masses() * ase_units.kB * temperature)[:, None]
    return rng.standard_normal((len(atoms), 3)) * widths


def langevin(
    atoms: Atoms,
    *,
    duration_fs: float,
    temperature: float,
    timestep_fs: float,
    friction_per_fs: float,
    rng: np.random.Generator,
) -> None:
    """Move ``atoms`` in place for ``duration_fs`` at ``temperature`` (K), at least one step; the centre of mass rests.

    Forces are those of the atoms' calculator, whose errors are raised.
    """
    from ase.constraints import FixCom
    from ase.md.langevin import Langevin

    atoms.set_constraint(FixCom())
    dynamics = Langevin(
        atoms,
        timestep_fs * ase_units.fs,
        temperature_K=temperature,
        friction=friction_per_fs / ase_units.fs,
        rng=rng,
        fixcm=False,
    )
    dynamics.run(max(1, round(duration_fs / timestep_fs)))
