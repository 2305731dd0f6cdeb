"""The end of a command: signals end it with their usual exit codes, and output that nobody reads does not.

    Ctrl-C   SIGINT    130
    SIGTERM            143   (batch systems at a time limit; a parent process that is gone)

The sentence names the command that resumes: one with the option `--restart` resumes by `--restart auto`, one declared
by ``resumes`` if it is repeated. Output that cannot be written (`mdrelax train ... | head -1`, a full disk behind `>`)
is dropped: the words are lost, the run is not.
"""

import contextlib
import errno
import inspect
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO, TypeVar

import typer

from mdrelax.runs.jobs import ELASTIC

__all__ = ["end_of", "lost_words", "received", "resumes", "resuming_command", "stop_when_terminated"]

NAMES = {signal.SIGINT: "Interrupted (Ctrl-C)", signal.SIGTERM: "Terminated (SIGTERM)"}
INITIALIZING = "_initializing"  # of the spec of a module: importlib's own mark
REPEATED = "If interrupted, the same command resumes."

Verb = TypeVar("Verb", bound=Callable[..., None])

_received: list[signal.Signals] = []


def stop_when_terminated(end_at_once: Callable[[], None] | None = None) -> None:
    """Let SIGINT and SIGTERM raise ``KeyboardInterrupt``, so that files are closed and child processes are ended too.

    While torch is being imported, an exception would abort the process within its C++ part, so ``end_at_once`` is
    called first, which does not return. Nothing has begun by then.
    torchrun sends SIGTERM to all ranks when one has failed; a rank that is ending by then keeps its own reason.
    A signal that is ignored when the process starts (SIGINT under ``nohup`` or in the background) stays ignored.
    """
    _received.clear()

    def interrupt(number: int, _: object) -> None:
        if number == signal.SIGTERM and ELASTIC in os.environ and sys.exception() is not None:
            return
        _received.append(signal.Signals(number))
        torch = getattr(sys.modules.get("torch"), "__spec__", None)
        if end_at_once is not None and getattr(torch, INITIALIZING, False):
            end_at_once()
        raise KeyboardInterrupt

    for number in NAMES:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


def received() -> bool:
    """True if a signal has asked this process to end."""
    return bool(_received)


def resumes(verb: Verb) -> Verb:
    """Decorate a subcommand that resumes if it is repeated after an interruption; its help says so."""
    verb.__doc__ = f"{inspect.cleandoc(verb.__doc__ or '')}\n\n{REPEATED}"
    vars(verb)["resumes"] = True
    return verb


def end_of(app: typer.Typer, arguments: Sequence[str]) -> tuple[str, int]:
    """The sentence and the exit code of an interrupted command, 128 + the number of the first signal."""
    number = _received[0] if _received else signal.SIGINT
    command, continues = resuming_command(app, arguments)
    remedy = f"resume with `{command}`." if continues else f"`{command}` starts again from the beginning."
    return f"{NAMES[number]}; {remedy}", 128 + number


def resuming_command(app: typer.Typer, arguments: Sequence[str]) -> tuple[str, bool]:
    """The command to type after an interruption, and whether it resumes; ``arguments`` are those of `mdrelax`."""
    words, command = list(arguments), _command(app, arguments)
    continues = hasattr(getattr(command, "callback", None), "resumes")
    if any(parameter.name == "restart" for parameter in getattr(command, "params", [])):
        words = [word for word in _without(words, "--restart") if word != "--overwrite"] + ["--restart", "auto"]
        continues = True
    return shlex.join(["mdrelax", *words]), continues


def _command(app: typer.Typer, words: Sequence[str]) -> Any:
    """The subcommand that the first words name, or the one that a group takes for all other words; else None."""
    found: Any = typer.main.get_command(app)
    for word in words:
        if not hasattr(found, "commands"):
            break
        found = found.commands.get(word) or found.commands.get(getattr(found, "by_default", None))
    return found


def _without(words: Sequence[str], option: str) -> list[str]:
    """The words of a command without an option and its value."""
    return [
        word
        for before, word in zip(["", *words], words, strict=False)
        if option not in (before, word) and not word.startswith(f"{option}=")
    ]


class _Forgiving:
    """A text stream whose failed writes are dropped, as are all words after the first failure."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or drop the words."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        """Write, or drop the words."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush, or drop the words."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Point the descriptor at nothing: what is left in buffers could never be flushed, not even at the exit."""
        self.failure = self.failure or error
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def lost_words(app: typer.Typer, arguments: Sequence[str]) -> Iterator[None]:
    """Inside the context a failure to print ends nothing.

    A full disk behind the output is reported at the end, with exit code 1 for commands whose result is what they print.
    """
    before = sys.stdout, sys.stderr
    out, err = (_Forgiving(stream or io.StringIO()) for stream in before)  # None: closed (`>&-`)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        out.flush()
        full = out.failure is not None and out.failure.errno != errno.EPIPE
        if out.failure is not None and full:
            typer.echo(f"Some of the output could not be written ({out.failure.strerror}).", err=True)
        err.flush()
        sys.stdout, sys.stderr = before
    if full and not resuming_command(app, arguments)[1]:
        sys.exit(1)
