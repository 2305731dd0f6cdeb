"""Names in error messages: suggestions for misspelt ones, and foreign ones made printable."""

import difflib
from collections.abc import Iterable

__all__ = ["nearest_name", "printable"]

MOST = 16  # names in a message


def nearest_name(name: str, known: Iterable[str]) -> str:
    """A clause for error messages: the name nearest to a misspelt one, and the known ones (of many, the nearest)."""
    names = sorted(known)
    shown = difflib.get_close_matches(name, names, n=MOST, cutoff=0.0) if len(names) > MOST else names
    rest = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    folded = {str.lower(each): each for each in names}
    close = [folded[each] for each in difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)]
    listed = f"nown: {', '.join(shown)}{rest}."
    return f"did you mean `{close[0]}`? K{listed}" if close else f"k{listed}"


def printable(text: str) -> str:
    r"""The text with escapes for what a terminal would obey or cannot show: files may hold such names on purpose.

    >>> from mdrelax.base.names import printable
    >>> print(printable("energy \x1b[2J \ud800"))
    energy \x1b[2J \ud800
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
