"""Output of subcommands: tables on the screen and in files, and errors for invalid options."""

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    import pandas as pd


def refuse(sentence: str) -> NoReturn:
    """Raise ``ConfigError``, chained to the error that is being handled, if any."""
    from mdrelax.base.sections import ConfigError

    raise ConfigError(sentence)


def tell_table(table: "pd.DataFrame", form: str = ".4g", *, missing: str = "NaN") -> None:
    """Print a table, with a format for its decimal numbers."""
    typer.echo(table.to_string(index=False, float_format=lambda value: format(value, form), na_rep=missing))


def keep_table(table: "pd.DataFrame", folder: Path, *, work: str, name: str) -> None:
    """Write NAME.csv, and NAME.json with command, versions and machine; ``work`` describes the rows."""
    from mdrelax.analysis.tables import write_table
    from mdrelax.base.provenance import command_line

    for path in write_table(table, folder, command=command_line(), work=work, name=name):
        typer.echo(path)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    from mdrelax.base.files import write_atomically

    write_atomically(path, text.encode())
