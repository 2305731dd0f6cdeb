"""Reading: how far a long file has been read, for whoever wants to show it.

with listening(lambda name, done, total: ...):
load_frames("long.extxyz")
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

__all__ = ["Listener", "listening", "tell_progress"]

Listener = Callable[[str, int, int], None]  # of a file's name, the part that has been read, and the whole

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call ``listener`` while files are read inside the ``with`` statement."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


def tell_progress(name: str, done: int, total: int) -> None:
    """Tell the listener, if there is one, that ``done`` of ``total`` characters (or files) of ``name`` are read."""
    listener = _listener.get()
    if listener is not None:
        listener(name, done, total)
