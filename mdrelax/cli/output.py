"""Output of subcommands: tables on the screen and in files, and errors for invalid options."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd

PATIENCE = 1.0  # seconds
BAR = 30  # characters
PRECISIONS = ("float32", "float64")


def refuse(sentence: str) -> NoReturn:
    """Raise ``ConfigError``, chained to the error that is being handled, if any."""
    from mdrelax.base.sections import ConfigError

    raise ConfigError(sentence)


def one_of(option: str, given: str, known: "Sequence[str]") -> str:
    """The given value of an option; raises ``ConfigError`` if it is not a known one."""
    if given not in known:
        refuse(f"`{option}` must be {' or '.join(known)}, got {given!r}.")
    return given


@contextlib.contextmanager
def reading_bar() -> "Iterator[None]":
    """A bar on the terminal while a file is read that takes more than a second."""
    import sys
    import time

    from mdrelax.base.reading import listening

    if not sys.stderr.isatty():
        yield
        return
    began: dict[str, float] = {}
    shown = False

    def listen(name: str, done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - began.setdefault(name, now) > PATIENCE or shown:
            blocks = BAR * done // max(total, 1)
            bar = f"\rreading {name} [{'#' * blocks}{' ' * (BAR - blocks)}] {100 * done // max(total, 1)} %"
            sys.stderr.write("\r\x1b[K" if done >= total else bar)
            sys.stderr.flush()
            shown = done < total
        if done >= total:
            began.pop(name, None)

    with listening(listen):
        yield


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
