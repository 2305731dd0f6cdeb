"""Options that several verbs share, declared once."""

from typing import Annotated

import typer

Arms = Annotated[
    str,
    typer.Option(
        help="Comma-separated; the first is compared with. standard, relaxed, relaxed-weight, relaxed-fold, ... or "
        "your own, name:key=value;key=value."
    ),
]
Seeds = Annotated[str, typer.Option(help="Comma-separated seeds, each a run of every arm in every setting.")]
Override = Annotated[list[str] | None, typer.Option("-r", help="section.key=value for all runs, any number of times.")]
Jobs = Annotated[int, typer.Option(min=0, help="Runs side by side, one thread each; 0: one per core.")]
Compile = Annotated[
    bool | None, typer.Option("--compile/--no-compile", help="torch.compile; default: where a C++ compiler is.")
]
OnlyReport = Annotated[bool, typer.Option(help="Train nothing: write tables and report of what there is.")]
