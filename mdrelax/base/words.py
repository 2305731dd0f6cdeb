"""What a command says: its warnings without a place in our code, and the last sentence of one that failed."""

import contextlib
import sys
import warnings
from collections.abc import Iterator

__all__ = ["last_sentence", "warnings_in_words"]


def last_sentence(output: str) -> str:
    r"""The last sentence of an output, on one line with the indented lines that belong to it; empty if it said nothing.

    >>> from mdrelax.base.words import last_sentence
    >>> last_sentence("step 1\nThe folder is in use:\n  end the other run.\n")
    'The folder is in use: end the other run.'
    """
    said = [line.rstrip() for line in output.splitlines() if line.strip()]
    first = next((i for i in reversed(range(len(said))) if not said[i].startswith(" ")), 0)
    return " ".join(line.strip() for line in said[first:])


@contextlib.contextmanager
def warnings_in_words() -> Iterator[None]:
    """Print only the message of a warning; the line of code that raised it means nothing to a user."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        sys.stderr.write(f"Warning: {message}\n")

    shown, warnings.showwarning = warnings.showwarning, show
    try:
        yield
    finally:
        warnings.showwarning = shown
