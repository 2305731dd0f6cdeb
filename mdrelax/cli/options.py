"""Options shared by several subcommands, declared once."""

from typing import Annotated

import typer

Arms = Annotated[
    str,
    typer.Option(
        help="Comma-separated; the first is compared with. standard, relaxed, relaxed-weight, relaxed-fold, ... or "
        "your own, name:key=value;key=value."
    ),
]
Seeds = Annotated[str, typer.Option(help="Comma-separated seeds; each arm runs with each seed in each setting.")]
Override = Annotated[list[str] | None, typer.Option("-r", help="section.key=value for all runs, any number of times.")]
Jobs = Annotated[int, typer.Option(min=0, help="Number of parallel runs, one thread each; 0: one per core.")]
Compile = Annotated[
    bool | None, typer.Option("--compile/--no-compile", help="torch.compile; default: if there is a C++ compiler.")
]
OnlyReport = Annotated[bool, typer.Option(help="Train nothing: write tables and report of the finished runs.")]
