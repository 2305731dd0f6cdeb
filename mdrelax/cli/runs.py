"""`mdrelax runs`: a table of training runs and the settings in which they differ."""

from pathlib import Path
from typing import Annotated

import typer

from mdrelax.cli.output import keep_table, tell_table, write_text


def runs(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that contain some at any depth.")],
    out: Annotated[Path | None, typer.Option(help="Folder for runs.csv, runs.json and layers.csv.")] = None,
) -> None:
    """List training runs, best validation error first, with the settings in which they differ."""
    from mdrelax.analysis.runs import find_runs, layers_of_runs, table_of_runs

    places = find_runs(folders)
    table = table_of_runs(places)
    tell_table(table, missing="")
    if out is not None:
        keep_table(table, out, work="training runs, errors on validation frames", name="runs")
        layers = layers_of_runs(places)
        if len(layers):
            write_text(out / "layers.csv", layers.to_csv(index=False))
            typer.echo(out / "layers.csv")
