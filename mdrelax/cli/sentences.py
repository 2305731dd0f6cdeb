"""Refusals as single sentences: wrong words of a command line, numbers that are none, and messages of any length."""

import functools
import inspect
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import typer
from typer.models import OptionInfo

from mdrelax.base.names import printable
from mdrelax.cli.output import refuse

__all__ = ["memory_sentence", "one_line", "refuse_endless_numbers", "usage_sentence"]

LONGEST_WORD = 120  # characters of a word in a message: a path, a key, a value
LONGEST = 600  # characters of a message
NO_ARGUMENTS = "NoArgsIsHelpError"  # click's exception in which a bare `mdrelax md` shows its help


def usage_sentence(error: Any) -> str:
    """One of click's usage errors as a sentence that names the command and its help; empty for a request for help.

    What click says ends without a full stop or with several lines of usage, depending on its version.
    """
    if type(error).__name__ == NO_ARGUMENTS:
        return ""
    command = getattr(getattr(error, "ctx", None), "command_path", "mdrelax")
    said = error.format_message().strip().rstrip(".")
    return f"{said}{' See' if said.endswith('?') else '; see'} `{command} --help`."


def memory_sentence(error: BaseException) -> str:
    """The sentence for memory that could not be had (torch on CPU or GPU, numpy, Python); empty for other errors.

    >>> from mdrelax.cli.sentences import memory_sentence
    >>> memory_sentence(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64000 bytes."))
    'The memory does not suffice (64000 bytes more were needed): take a smaller network, batch or structure.'
    """
    said, known = str(error), ("can't allocate memory", "out of memory", "Unable to allocate")
    if not isinstance(error, MemoryError) and not any(words in said for words in known):
        return ""
    wanted = re.search(r"allocate ([\d.]+ \w+)", said)
    needed = f" ({wanted[1]} more were needed)" if wanted else ""
    return f"The memory does not suffice{needed}: take a smaller network, batch or structure."


def one_line(message: str) -> str:
    """A message in whose words (a value of thousands of letters, say) and length nothing is endless.

    Control characters are written as escapes; lines of a message that has several stay lines, each as short.

    >>> from mdrelax.cli.sentences import one_line
    >>> len(one_line(f"There is no file `{4000 * 'x'}`."))
    137
    """
    return "\n".join(_shortened(line) for line in message.splitlines())


def _shortened(line: str) -> str:
    shown = re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda word: f"{word[0][:60]}...{word[0][-57:]}", printable(line))
    return shown if len(shown) <= LONGEST else f"{shown[:360]} ... {shown[-200:]}"


def refuse_endless_numbers(app: typer.Typer) -> None:
    """Let every command refuse NaN and infinite values of its options, before it does anything."""
    for command in app.registered_commands:
        if command.callback is not None:
            command.callback = _checked(command.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            refuse_endless_numbers(group.typer_instance)


def _checked(verb: Callable[..., None]) -> Callable[..., None]:
    names = dict(_option_names(verb))

    @functools.wraps(verb)
    def command(**given: Any) -> None:
        for name, value in given.items():
            if isinstance(value, float) and not math.isfinite(value):
                refuse(f"`{names[name]}` must be a finite number, got {value}.")
        verb(**given)

    return command


def _option_names(verb: Callable[..., None]) -> Iterator[tuple[str, str]]:
    """The parameters of a command, and how its options are written."""
    for name, parameter in inspect.signature(verb).parameters.items():
        options = [one for one in getattr(parameter.annotation, "__metadata__", ()) if isinstance(one, OptionInfo)]
        written = [word for one in options for word in (one.default, *(one.param_decls or ())) if isinstance(word, str)]
        yield name, next((word for word in written if word.startswith("-")), f"--{name.replace('_', '-')}")
