"""`mdrelax data`: fetch public data sets, generate your own, describe and check them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mdrelax.cli.options import with_label_options

Source = Annotated[str, typer.Argument(help="A file, sample:NAME, a fetched name or modelnet:solids.")]

app = typer.Typer(help="Fetch, generate, describe and check data sets.", no_args_is_help=True)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="Such as rmd17:ethanol.")],
    from_file: Annotated[Path | None, typer.Option(help="Take this file instead of downloading.")] = None,
) -> None:
    """Download a public data set, verify it and keep it in the data folder."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from mdrelax import datasets

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None, visible=False)
        fetched = datasets.fetch(
            name,
            from_file=from_file,
            progress=lambda done, total: bar.update(task, completed=done, total=total or None, visible=True),
        )
    typer.echo(f"{fetched.path}\n{fetched.verdict}")


@app.command()
@with_label_options
def stats(data: Source, *, reading: dict[str, Any]) -> None:
    """Counts, elements and ranges with their units; of point clouds, shapes per class and part."""
    from mdrelax import datasets

    if datasets.is_modelnet(data):
        typer.echo(datasets.cloud_stats(datasets.load_modelnet(data)._asdict()).to_string())
        return
    frames = datasets.load_frames(data, **reading)
    typer.echo(frames.report)
    typer.echo(datasets.dataset_stats(frames.data).to_string())


@app.command()
@with_label_options
def check(data: Source, *, reading: dict[str, Any]) -> None:
    """Compare lengths, forces, stress and energies with each other; exit code 3 if a check fails."""
    from mdrelax import datasets

    if datasets.is_modelnet(data):
        table = datasets.check_clouds(datasets.load_modelnet(data)._asdict())
    else:
        frames = datasets.load_frames(data, **reading)
        typer.echo(frames.report)
        table = datasets.check_frames(frames.data)
    for _, row in table.iterrows():
        state = "FAILED" if not row["passed"] else "untried" if row["message"] else "ok"
        typer.echo(f"{state:7} {row['check']}{': ' if row['message'] else ''}{row['message']}")
    if not table["passed"].all():
        raise ValueError("Some checks failed; see the table above.")


@app.command()
def generate(
    source: Annotated[str, typer.Argument(help="A geometry file, or a molecule that ASE knows, such as CH3CH2OH.")],
    output: Annotated[Path, typer.Argument(help="The extxyz to write.")],
    frames: Annotated[int, typer.Option(help="Number of frames.")] = 700,
    temperature: Annotated[float, typer.Option(help="K, of the GFN2-xTB Langevin sampling.")] = 500.0,
    method: Annotated[
        str, typer.Option(help="Labels: GFN2-xTB, or FUNCTIONAL/BASIS such as PBE/def2-SVP.")
    ] = "GFN2-xTB",
    interval: Annotated[float, typer.Option(help="fs between frames.")] = 100.0,
    grid_level: Annotated[int, typer.Option(help="pyscf's integration grid, 0 to 9.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
) -> None:
    """Generate a data set of your own molecule; an interrupted run resumes if the command is repeated."""
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
