"""Bad words of a command line, made from the commands themselves: every option of every verb gets what it cannot mean.

``VERBS`` has a valid invocation of each verb; one word of it is spoilt, or an option added, in each case.
"""

import inspect
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer
from typer.models import ArgumentInfo, OptionInfo

__all__ = ["VERBS", "Bad", "commands", "spoilt_words"]


class Bad(NamedTuple):
    """One bad input: how it is made, the words of the command, and words of which the message has one."""

    kind: str
    words: list[str]
    named: tuple[str, ...]  # the option, the value or the file
    full_disk: bool = False


# Placeholders: {x} is a good file of that name (trials/bad_files.py), {new} a place where nothing is.
LONG_RUN = '{"system": "ethanol", "temperature": 300, "picoseconds": 0.001, "compiled": false}'
VERBS: dict[str, list[str]] = {
    "train": ["{config}", "--out", "{new}"],
    "fine-tune": ["{model}", "{frames}", "--out", "{new}", "--steps", "2"],
    "md": ["{model}", "{water}", "--ps", "0.001", "--trajectory", "{new}.traj", "--log", "{new}.csv"],
    "vibrations": ["{model}", "{water}", "--out", "{new}", "--no-relax"],
    "phonons": ["{model}", "{crystal}", "--out", "{new}", "--supercell", "1,1,1", "--no-relax"],
    "audit": ["{model}", "{frames}", "--structures", "1", "--operations", "1"],
    "eval": ["{model}", "{frames}", "--out", "{new}"],
    "project": ["{run}", "--output", "{new}.safetensors"],
    "export": ["{model}", "--out", "{new}.pt2"],
    "predict": ["{model}", "{frames}", "{new}.extxyz"],
    "compare": ["{config}", "--out", "{new}", "--seeds", "0"],
    "runs": ["{run}"],
    "report": ["{run}"],
    "info": ["{model}"],
    "data fetch": ["rmd17:ethanol"],
    "data stats": ["{frames}"],
    "data check": ["{frames}"],
    "data select": ["{run}", "{frames}", "--output", "{new}.extxyz"],
    "data convert": ["{frames}", "--output", "{new}.extxyz"],
    "data split": ["{frames}", "--out", "{new}"],
    "data generate molecule": ["{water}", "{new}.extxyz", "--frames", "1"],
    "data generate plume": ["--out", "{new}.npz", "--tasks", "1", "--steps", "2"],
    "config template": [],
    "config validate": ["{config}"],
    "config schema": [],
    "bench modelnet": ["--out", "{new}"],
    "bench modelnet-run": ["{run}"],
    "bench smoke": ["--out", "{new}"],
    "bench smoke-run": ["{run}"],
    "bench smoke-speed": ["--out", "{new}"],
    "bench nbody": ["--out", "{new}"],
    "bench nbody-run": ["{run}"],
    "bench nbody-md": ["{model}", "--out", "{new}"],
    "bench rmd17": ["--out", "{new}", "--data", "{new}"],
    "bench speed": ["--out", "{new}", "--cases", "ethanol-b8", "--no-peers"],
    "bench operators": ["--out", "{new}"],
    "bench backbones": ["--out", "{new}"],
    "bench ranks": ["--out", "{new}", "--source", "{frames}"],
    "bench hessians": ["--out", "{new}"],
    "bench smoothness": ["--out", "{new}"],
    "bench lammps": ["--out", "{new}"],
    "bench lammps-nve": ["--out", "{new}"],
    "bench lammps-paper": [],
    "bench torch-sim": ["--out", "{new}"],
    "bench long-md": ["--out", "{new}", "--data", "{new}"],
    "bench long-md-run": [LONG_RUN, "{model}", "{water}", "{new}"],
    "bench pretrain": ["--out", "{new}", "--data", "{new}"],
    "bench accuracy": ["--out", "{new}", "--data", "{new}"],
}

NOT_WHOLE = ("abc", "1.5", "", "1e400", "٣²")
NOT_NUMBERS = ("abc", "", "1,5", "0x1p", "--", "ﾟ")
IMPOSSIBLE = ("nan", "inf", "-inf", "-1", "-1e300")  # for every float option of every verb
BELOW = ("-7", "-99999999999999999999")  # for every whole number
WORDS = ("nonsense", "x" * 4000, "../../etc/passwd", "naïve😀", "a=b=c", "{", "a\tb")
OWN_STEPS = {  # options that mean something at any value, or whose meaning depends on the data
    "--energy-key", "--forces-key", "--stress-key",
}  # fmt: skip
ANY_SEED = {"--seed"}
LISTS = {"runs", "data convert", "data split"}  # take any number of words


class Option(NamedTuple):
    """An option of a verb and the type of its value."""

    name: str
    kind: type


def commands(app: typer.Typer) -> Iterator[tuple[str, typing.Callable[..., Any]]]:
    """The words of every verb, and its function."""
    for command in app.registered_commands:
        function = command.callback
        if function is not None:
            yield command.name or function.__name__.replace("_", "-"), function
    for group in app.registered_groups:
        inner = group.typer_instance
        if inner is not None:
            yield from ((f"{group.name} {name}", function) for name, function in commands(inner))


def options(function: typing.Callable[..., Any]) -> Iterator[Option]:
    """The options of a verb that take a value."""
    for name, parameter in inspect.signature(function).parameters.items():
        inner = getattr(parameter.annotation, "__metadata__", ())
        info = next((one for one in inner if isinstance(one, OptionInfo)), None)
        if info is None or any(isinstance(one, ArgumentInfo) for one in inner):
            continue
        kinds = _types(typing.get_args(parameter.annotation)[0])
        if bool not in kinds:
            written = [word for word in (info.default, *(info.param_decls or ())) if isinstance(word, str)]
            shown = next((word for word in written if word.startswith("-")), f"--{name.replace('_', '-')}")
            yield Option(shown, next((kind for kind in (int, float, Path) if kind in kinds), str))


def _types(annotation: Any) -> set[Any]:
    inner = typing.get_args(annotation)
    return {annotation} | {kind for one in inner for kind in _types(one)}


def spoilt_words(app: typer.Typer) -> Iterator[Bad]:
    """Every verb with an unknown option, without its arguments, and with each option's bad values."""
    for name, function in commands(app):
        good = [*name.split(), *VERBS[name]]
        yield Bad("unknown option", [*good, "--nonsense"], ("--nonsense",))
        if name not in LISTS:
            yield Bad("too many words", [*good, "one", "two\u200b", "three"], ("one", "two"))
        if name != "info" and VERBS[name] and not VERBS[name][0].startswith("--"):
            yield Bad("missing argument", name.split(), ("Missing",))
        for option in options(function):
            for kind, value in _bad_values(option):
                yield Bad(
                    kind,
                    [*good, option.name, value],
                    (option.name, option.name.strip("-").replace("-", "_"), value[:40], repr(value)[1:-1]),
                )
        yield from _without_value(good, function)
    yield Bad("unknown verb", ["trian", "x.yaml"], ("trian",))
    yield Bad("unknown verb", ["data", "fech", "rmd17:ethanol"], ("fech",))
    yield Bad("unknown verb", ["bench", "ünïcode"], ("ünïcode",))


def _without_value(good: list[str], function: typing.Callable[..., Any]) -> Iterator[Bad]:
    last = next(iter(options(function)), None)
    if last is not None:
        yield Bad("option without value", [*good, last.name], (last.name,))


def _bad_values(option: Option) -> Iterator[tuple[str, str]]:
    if option.kind is int:
        yield from (("no whole number", value) for value in NOT_WHOLE)
        yield from (("impossible number", value) for value in BELOW if option.name not in ANY_SEED)
    elif option.kind is float:
        yield from (("no number", value) for value in NOT_NUMBERS)
        yield from (("impossible number", value) for value in IMPOSSIBLE)
    elif option.kind is str and option.name not in OWN_STEPS:
        yield from (("unknown word", value) for value in WORDS)
