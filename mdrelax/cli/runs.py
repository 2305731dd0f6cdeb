"""`mdrelax runs`: a table of training runs and the settings in which they differ."""

from pathlib import Path
from typing import Annotated

import typer


def runs(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some at any depth.")],
    out: Annotated[Path | None, typer.Option(help="Keep the table as runs.csv and runs.json in this folder.")] = None,
) -> None:
    """List training runs, best validation error first, with the settings in which they differ."""
    from mdrelax.analysis.runs import find_runs, table_of_runs
    from mdrelax.analysis.tables import write_table
    from mdrelax.provenance import command_line

    table = table_of_runs(find_runs(folders))
    typer.echo(table.to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep=""))
    if out is not None:
        work = "training runs, errors on validation frames"
        for path in write_table(table, out, command=command_line(), work=work, name="runs"):
            typer.echo(path)
