"""`mdrelax md`: molecular dynamics with a finished model."""

import contextlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mdrelax.cli.geometries import one_structure
from mdrelax.cli.output import one_of, refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ase import Atoms

    from mdrelax.engines.md import MDResult


def md(
    model: Annotated[Path, typer.Argument(help="A model file (.safetensors), or the run folder of a committee.")],
    structure: Annotated[Path, typer.Argument(help="A structure that ASE reads.")],
    ensemble: Annotated[str, typer.Option(help="nve or nvt (Langevin).")] = "nve",
    temperature: Annotated[float, typer.Option(help="K; for NVE, of the initial momenta.")] = 300.0,
    picoseconds: Annotated[float, typer.Option("--ps", help="Length of the run in ps.")] = 10.0,
    timestep: Annotated[float, typer.Option(help="fs.")] = 0.5,
    friction: Annotated[float, typer.Option(help="Langevin friction, 1/fs.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Seed of momenta and noise.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32 or float64; the default is the model's own.")] = "",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    equilibrate: Annotated[float, typer.Option(min=0, help="ps of NVT before an NVE run.")] = 0.0,
    trajectory: Annotated[Path, typer.Option(help="Output (.traj, .extxyz).")] = Path("md.traj"),
    log: Annotated[Path, typer.Option(help="CSV with units in the column names.")] = Path("md.csv"),
    plot: Annotated[Path | None, typer.Option(help="A picture of energy drift and temperature.")] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile first (minutes) for faster steps.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace trajectory and log of an older run.")] = False,
    keep_velocities: Annotated[bool, typer.Option("--keep-velocities", help="Keep those of the structure.")] = False,
    stop_above: Annotated[
        float | None, typer.Option(min=0, help="Committee: stop where the force on an atom spreads by more, in eV/A.")
    ] = None,
    restart: Annotated[str, typer.Option(help="`auto` continues a stopped run, or a finished one with more --ps.")] = (
        "never"
    ),
) -> None:
    """Run NVE or NVT molecular dynamics; report the energy drift and the first bond that broke."""
    from rich.progress import Progress

    from mdrelax.compiled.files import file_hash
    from mdrelax.engines.committee import is_committee, model_files, open_calculator
    from mdrelax.engines.md import run_md

    one_of("--ensemble", ensemble, ("nve", "nvt"))
    one_of("--restart", restart, ("auto", "never"))
    stop = _stop(model, stop_above)
    kind: Literal["nve", "nvt"] = "nvt" if ensemble == "nvt" else "nve"
    state = log.with_name(f"{log.name}.restart")
    with _outputs(trajectory, log, state=state, overwrite=overwrite, restart=restart == "auto"):
        start = atoms = one_structure(structure)
        _say_what_moves(structure, atoms, temperature, keep=keep_velocities)
        atoms.calc = open_calculator(model, dtype=dtype or None, device=device, compile=compile)
        if equilibrate > 0 and not state.exists():
            atoms = _equilibrated(
                atoms, temperature_K=temperature, duration_ps=equilibrate, timestep_fs=timestep, seed=seed,
                friction_per_fs=friction, keep_momenta=keep_velocities,
            )  # fmt: skip
        rest = {"dtype": dtype, "device": device, "compile": compile, "equilibrate": equilibrate}
        models = model_files(model) if is_committee(model) else [model]
        origin = {"model": [file_hash(path) for path in models], "structure": file_hash(structure), **rest}
        with Progress(transient=True) as bar:
            task = bar.add_task(ensemble.upper(), total=None)
            result = run_md(
                atoms, ensemble=kind, temperature_K=temperature, duration_ps=picoseconds, timestep_fs=timestep,
                friction_per_fs=friction, seed=seed, keep_momenta=keep_velocities, trajectory=trajectory, log=log,
                restart=state, origin=origin, stop=stop,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )  # fmt: skip
    _say_how_it_went(result, ensemble, plot)
    _say_what_broke(trajectory, start)
    typer.echo(f"Trajectory: {trajectory}\nLog: {log}")


def _equilibrated(atoms: "Atoms", **settings: Any) -> "Atoms":
    """The last structure of an NVT run; raises ``ExplodedError``."""
    from mdrelax.engines.md import ExplodedError, run_md

    warm = run_md(atoms, ensemble="nvt", **settings)
    if warm.exploded:
        raise ExplodedError(f"The equilibration exploded: {warm.reason}")
    warm.atoms.calc = atoms.calc
    return warm.atoms


def _stop(model: Path, limit: float | None) -> "Callable[[Atoms], str]":
    """What ends a run early; raises ``ConfigError`` if one model, which has no spread, is to be stopped by it."""
    from mdrelax.engines.committee import is_committee
    from mdrelax.engines.md import spread_above

    if limit is None:
        return lambda system: ""
    if not is_committee(model):
        refuse(
            f"`--stop-above` needs the spread of a committee, but `{model}` is one model: name a committee's folder."
        )
    return spread_above(limit)


def _say_how_it_went(result: "MDResult", ensemble: str, plot: Path | None) -> None:
    """Length, mean temperature, why it stopped early, in NVE the drift, and a picture; raises ``ExplodedError``."""
    from mdrelax.engines.md import ExplodedError

    if result.exploded:
        raise ExplodedError(f"The run exploded: {result.reason}")
    if plot is not None:
        from mdrelax.analysis.figures import md_energy

        md_energy(result.log, n_atoms=len(result.atoms)).savefig(plot)
    done, mean = result.log["time_ps"].iloc[-1], result.log["temperature_K"].mean()
    if result.stopped:
        typer.echo(f"Stopped at {done:g} ps: {result.stopped} This frame is the last one of the trajectory.")
    typer.echo(f"{done:g} ps {ensemble.upper()} of {len(result.atoms)} atoms: mean temperature {mean:.1f} K.")
    if ensemble == "nve" and not math.isnan(result.drift_meV_per_atom_ps):
        typer.echo(f"Energy drift {result.drift_meV_per_atom_ps:+.5f} meV/atom/ps.")


def _say_what_moves(path: Path, atoms: "Atoms", temperature: float, *, keep: bool) -> None:
    """Say which velocities the run begins with where the structure has some; refuse to keep what it has not."""
    import numpy as np

    moving = bool(np.any(atoms.get_momenta()))
    if keep and not moving:
        refuse(f"`{path}` has no velocities to keep; leave out `--keep-velocities`, and they are drawn.")
    if not moving:
        return
    found = f"The velocities in `{path}` ({atoms.get_temperature():.0f} K)"
    if keep:
        typer.echo(f"{found} are kept.")
    else:
        typer.echo(f"{found} are replaced by new ones of {temperature:g} K; `--keep-velocities` continues with them.")


@contextlib.contextmanager
def _outputs(*paths: Path, state: Path, overwrite: bool, restart: bool) -> "Iterator[None]":
    """Lock the files of this run; raises ``ConfigError`` if they exist and may neither be replaced nor continued."""
    from mdrelax.base.files import locked_file

    with contextlib.ExitStack() as stack:
        for path in paths:
            stack.enter_context(locked_file(path))
        if overwrite:
            state.unlink(missing_ok=True)
        elif restart and state.exists():
            typer.echo(f"Continued from `{state}`.")
        elif state.exists():
            refuse(
                f"`{state}` is the state of a run: continue it with `--restart auto`, or replace it (`--overwrite`)."
            )
        elif not (restart and _has_not_begun(log=paths[1])):
            refuse_existing(*paths)
        yield


def _has_not_begun(log: Path) -> bool:
    """True if a run was killed before its first step, when its log has the start at most, and it had no state yet."""
    from mdrelax.engines.md_files import LOG_COLUMNS

    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else ["no log"]
    return len(lines) <= 2 and ",".join(LOG_COLUMNS).startswith("".join(lines[:1]))


def refuse_existing(*outputs: Path) -> None:
    """Raise ``ConfigError`` for a file that a new run would replace."""
    for path in outputs:
        if path.exists():
            refuse(f"`{path}` exists; name another output, or replace it with `--overwrite`.")


def _say_what_broke(trajectory: Path, start: "Atoms") -> None:
    """A line on the first bond of the initial structure that is 1.5 times as long in some frame, if any."""
    from ase.io import iread

    from mdrelax.analysis.trajectory import broken_bonds

    broken = broken_bonds(iread(trajectory), start)
    if broken is not None:
        first, second = (f"{start.symbols[k]}{k}" for k in broken.atoms)
        typer.echo(
            f"The bond {first}-{second} broke at {broken.time_fs / 1000:g} ps: {broken.length:.2f} A, at the start "
            f"{broken.reference_length:.2f} A."
        )
