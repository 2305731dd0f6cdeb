"""`mdrelax data`: fetch public data sets, generate your own, describe and check them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mdrelax.cli import generate
from mdrelax.cli.ending import resumes
from mdrelax.cli.options import with_label_options

Source = Annotated[str, typer.Argument(help="A file or folder, sample:NAME, a fetched name or modelnet:solids.")]

app = typer.Typer(help="Fetch, generate, describe and check data sets.", no_args_is_help=True)
app.add_typer(generate.app, name="generate")


@app.command()
@resumes
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
def stats(
    data: Source,
    *,
    reading: dict[str, Any],
    plot: Annotated[Path | None, typer.Option(help="Of plumes: draw some of the flows into this png.")] = None,
) -> None:
    """Counts, elements, ranges and units; of point clouds, shapes per class and part; of plumes, the tasks."""
    from mdrelax import datasets

    if datasets.is_plumes(data):
        _plume_stats(data, plot)
        return
    if plot is not None:
        raise ValueError(f"`--plot` draws plumes; `{data}` holds none.")
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

    if datasets.is_plumes(data):
        table = datasets.check_plumes(datasets.open_plumes(data))
    elif datasets.is_modelnet(data):
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


def _plume_stats(source: str, plot: Path | None) -> None:
    """Print the table of a set of plumes; draw it if asked to."""
    from mdrelax import datasets
    from mdrelax.cli.output import tell_table

    plumes = datasets.open_plumes(source)
    frames, _, height, width = plumes.shape
    typer.echo(f"{plumes.source}: {plumes.kind} set, {len(plumes.tasks)} tasks, {frames} frames, {height} x {width}")
    tell_table(datasets.plume_stats(plumes))
    if plot is not None:
        from mdrelax.analysis.drawing import save
        from mdrelax.analysis.plume_figures import plume_figure

        save(plot, lambda: plume_figure(plumes))
        typer.echo(f"Written: {plot}")
