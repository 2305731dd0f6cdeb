"""`mdrelax md`: molecular dynamics with a finished model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mdrelax.cli.structures import read_structures

if TYPE_CHECKING:
    pass


def md(
    model: Annotated[Path, typer.Argument(help="A model file (.safetensors).")],
    structure: Annotated[Path, typer.Argument(help="A structure that ASE reads.")],
    ensemble: Annotated[str, typer.Option(help="nve or nvt (Langevin).")] = "nve",
    temperature: Annotated[float, typer.Option(help="K; for NVE that of the initial momenta.")] = 300.0,
    picoseconds: Annotated[float, typer.Option("--ps", help="Length of the run in ps.")] = 10.0,
    timestep: Annotated[float, typer.Option(help="fs.")] = 0.5,
    friction: Annotated[float, typer.Option(help="Langevin friction, 1/fs.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Seed of momenta and noise.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32 or float64; the default is the model's own.")] = "",
    equilibrate: Annotated[float, typer.Option(help="ps of NVT before an NVE run.")] = 0.0,
    trajectory: Annotated[Path, typer.Option(help="Output (.traj, .extxyz).")] = Path("md.traj"),
    log: Annotated[Path, typer.Option(help="CSV with units in the column names.")] = Path("md.csv"),
    plot: Annotated[Path | None, typer.Option(help="A picture of energy drift and temperature.")] = None,
) -> None:
    """Run NVE or NVT molecular dynamics and report the energy drift."""
    from rich.progress import Progress

    from mdrelax.calculator import MDRelaxCalculator
    from mdrelax.config import ConfigError
    from mdrelax.dynamics import ExplodedError, run_md

    if ensemble not in ("nve", "nvt"):
        raise ConfigError(f"`--ensemble` must be nve or nvt, got {ensemble!r}.")
    kind: Literal["nve", "nvt"] = "nvt" if ensemble == "nvt" else "nve"
    atoms = read_structures(structure)[-1]
    atoms.calc = MDRelaxCalculator.from_file(model, dtype=dtype or None)
    if equilibrate > 0:
        warm = run_md(
            atoms, ensemble="nvt", temperature_K=temperature, duration_ps=equilibrate, timestep_fs=timestep, seed=seed,
            friction_per_fs=friction,
        )  # fmt: skip
        warm.atoms.calc, atoms = atoms.calc, warm.atoms
    with Progress(transient=True) as bar:
        task = bar.add_task(ensemble.upper(), total=None)
        result = run_md(
            atoms, ensemble=kind, temperature_K=temperature, duration_ps=picoseconds, timestep_fs=timestep,
            friction_per_fs=friction, seed=seed, trajectory=trajectory, log=log,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    if result.exploded:
        raise ExplodedError(f"The run exploded: {result.reason}")
    if plot is not None:
        from mdrelax.analysis.figures import md_energy

        md_energy(result.log, n_atoms=len(atoms)).savefig(plot)
    mean = result.log["temperature_K"].mean()
    typer.echo(f"{picoseconds:g} ps {ensemble.upper()} of {len(atoms)} atoms: mean temperature {mean:.1f} K.")
    if ensemble == "nve":
        typer.echo(f"Energy drift {result.drift_meV_per_atom_ps:+.5f} meV/atom/ps.")
    typer.echo(f"Trajectory: {trajectory}\nLog: {log}")
