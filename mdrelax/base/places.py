"""Places: the names of structures in messages. Frames are counted from 0, as ASE counts them in ``x.extxyz@7``."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["frame_name", "naming"]


def frame_name(number: int, source: str | None = None) -> str:
    """The name of a frame in messages.

    >>> from mdrelax.base.places import frame_name
    >>> frame_name(7, "x.extxyz"), frame_name(7)
    ('frame 7 of `x.extxyz`', 'frame 7')
    """
    return f"frame {number}" if source is None else f"frame {number} of `{source}`"


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Put a place in front of the ``ValueError`` that is raised inside: "Frame 7 of `x.extxyz`: ..."."""
    try:
        yield
    except ValueError as error:
        raise type(error)(f"{place[0].upper()}{place[1:]}: {error}") from error
