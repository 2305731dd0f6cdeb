"""The energy drift of a model: NVE from the final state of a short Langevin run."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ase import Atoms

    from mdrelax.engines.md import MDResult

FRICTION_PER_FS = 0.02


def nve_after_langevin(
    atoms: "Atoms",
    *,
    temperature_K: float,
    warm_up_ps: float,
    duration_ps: float,
    timestep_fs: float = 0.5,
    log: Path,
    trajectory: Path | None = None,
    trajectory_interval: int = 20,
    seed: int = 0,
) -> "MDResult":
    """The result of the NVE run; if the warm-up explodes, its result, and NVE is not run.

    Log and trajectory are those of the NVE run only, and older ones are removed.
    """
    from mdrelax.engines.md import run_md

    for path in (log, trajectory):
        if path is not None:
            path.unlink(missing_ok=True)
    warm = run_md(
        atoms, ensemble="nvt", temperature_K=temperature_K, duration_ps=warm_up_ps, friction_per_fs=FRICTION_PER_FS,
        timestep_fs=timestep_fs, seed=seed,
    )  # fmt: skip
    if warm.exploded:
        return warm._replace(reason=f"In the warm-up: {warm.reason}")
    warm.atoms.calc = atoms.calc
    return run_md(
        warm.atoms, temperature_K=temperature_K, duration_ps=duration_ps, timestep_fs=timestep_fs, seed=seed, log=log,
        trajectory=trajectory, trajectory_interval=trajectory_interval,
    )  # fmt: skip
