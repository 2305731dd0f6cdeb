"""`mdrelax runs`: a table of training runs and the settings in which they differ."""

from pathlib import Path
from typing import Annotated

import typer


def runs(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some at any depth.")],
    out: Annotated[Path | None, typer.Option(help="Folder for runs.csv, runs.json and layers.csv.")] = None,
) -> None:
    """List training runs, best validation error first, with the settings in which they differ."""
    from mdrelax.analysis.runs import find_runs, layers_of_runs, table_of_runs
    from mdrelax.analysis.tables import write_table
    from mdrelax.base.files import write_atomically
    from mdrelax.base.provenance import command_line

    places = find_runs(folders)
    table = table_of_runs(places)
    typer.echo(table.to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep=""))
    if out is not None:
        work = "training runs, errors on validation frames"
        for path in write_table(table, out, command=command_line(), work=work, name="runs"):
            typer.echo(path)
        layers = layers_of_runs(places)
        if len(layers):
            write_atomically(out / "layers.csv", layers.to_csv(index=False).encode())
            typer.echo(out / "layers.csv")
