"""Options shared by several subcommands, declared once."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

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

LABEL_OPTIONS = {  # of ``mdrelax.datasets.load_frames``
    "format": "extxyz, md17 or ase, if the file's ending does not tell.",
    "labels": "rMD17 files: `revised` or `original` labels.",
    "energy_key": "extxyz: the key of the energies.",
    "forces_key": "extxyz: the key of the forces.",
    "stress_key": "extxyz: the key of the stress.",
    "energy_unit": "The file's unit of energy.",
    "length_unit": "The file's unit of length.",
    "forces_unit": "The file's unit of force, if not energy/length.",
    "stress_unit": "extxyz: the unit of stress, such as GPa, if not energy/length^3.",
    "forces_sign": "extxyz: `opposite` if the file's forces are gradients.",
    "stress_sign": "extxyz: `opposite` if compression is positive.",
}


def with_label_options(verb: Callable[..., None]) -> Callable[..., None]:
    """The subcommand with all ``LABEL_OPTIONS``, whose values it receives as the dict ``reading``."""
    own = inspect.signature(verb)
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[str | None, typer.Option(help=text)],
        )
        for name, text in LABEL_OPTIONS.items()
    ]
    kept = [parameter for name, parameter in own.parameters.items() if name != "reading"]
    signature = own.replace(parameters=[*kept, *options])

    @functools.wraps(verb)
    def command(**given: Any) -> None:
        reading = {name: given.pop(name) for name in LABEL_OPTIONS}
        verb(**given, reading=reading)

    setattr(command, "__signature__", signature)  # noqa: B010 - where typer reads the options
    command.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return command
