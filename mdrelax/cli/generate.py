"""`mdrelax data generate`: label your own molecule, or simulate smoke plumes; a repeated command resumes."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from mdrelax.cli.ending import resumes


class _MoleculeByDefault(TyperGroup):
    """`generate CH3CH2OH out.extxyz` is `generate molecule CH3CH2OH out.extxyz`."""

    by_default = "molecule"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the name of the command in front where it is not given."""
        named = not args or args[0] in (*self.commands, "--help", "-h")
        return super().parse_args(ctx, args if named else [self.by_default, *args])


app = typer.Typer(
    cls=_MoleculeByDefault,
    help="Generate a data set: `generate SOURCE OUTPUT` of a molecule, `generate plume` of smoke.",
    no_args_is_help=True,
)


@app.command()
@resumes
def molecule(
    source: Annotated[str, typer.Argument(help="A geometry file, or a molecule that ASE knows, such as CH3CH2OH.")],
    output: Annotated[Path, typer.Argument(help="The extxyz to write.")],
    frames: Annotated[int, typer.Option(help="Number of frames.")] = 700,
    temperature: Annotated[float, typer.Option(help="K, of the GFN2-xTB Langevin sampling.")] = 500.0,
    method: Annotated[
        str, typer.Option(help="Labels: GFN2-xTB, GFN1-xTB, or FUNCTIONAL/BASIS such as PBE/def2-SVP.")
    ] = "GFN2-xTB",
    interval: Annotated[float, typer.Option(help="fs between frames.")] = 100.0,
    grid_level: Annotated[int, typer.Option(help="pyscf's integration grid, 0 to 9.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
) -> None:
    """Label your own molecule (the default)."""
    from rich.progress import Progress

    from mdrelax import datasets

    settings = datasets.GenerateSettings(
        n_frames=frames, temperature=temperature, method=method, interval_fs=interval, grid_level=grid_level, seed=seed
    )
    with Progress() as bar:
        tasks = {stage: bar.add_task(stage, total=None) for stage in ("sampling", "labelling")}
        datasets.generate(
            source,
            output,
            settings=settings,
            progress=lambda stage, done, total: bar.update(tasks[stage], completed=done, total=total),
        )
    typer.echo(f"Written: {output}")


@app.command()
@resumes
def plume(
    out: Annotated[Path, typer.Option(help="The npz to write.")],
    kind: Annotated[
        Literal["rotation", "scale", "graded"],
        typer.Option(help="Which symmetry is imperfect; `graded` has ten levels of an imperfect rotation."),
    ] = "rotation",
    grid: Annotated[int, typer.Option(help="Cells along each side of the box.")] = 64,
    tasks: Annotated[int | None, typer.Option(help="The first tasks only; of `graded`, the first levels.")] = None,
    steps: Annotated[int | None, typer.Option(help="Simulated steps of each task.")] = None,
    buoyancy: Annotated[float | None, typer.Option(help="In place of 0.01, or 0.1 of `scale`.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the inflow places of `graded`.")] = 0,
    resolution: Annotated[float, typer.Option(help="Rounding of the stored stream functions.")] = 2.0**-14,
    jobs: Annotated[int, typer.Option(min=0, help="Simulations at a time; 0 is one per core.")] = 0,
) -> None:
    """Simulate smoke plumes (needs the extra `smoke`)."""
    from rich.progress import Progress

    from mdrelax import datasets
    from mdrelax.runs.jobs import cores

    settings = datasets.PlumeSettings(kind, grid, tasks, steps, buoyancy, seed, resolution)
    with Progress() as bar:
        stage = bar.add_task("simulating", total=None)
        datasets.generate_plumes(
            out,
            settings=settings,
            jobs=jobs or cores(),
            progress=lambda done, total: bar.update(stage, completed=done, total=total),
        )
    typer.echo(f"Written: {out}")
