"""Names: what an error says of a misspelt one."""

import difflib
from collections.abc import Iterable

__all__ = ["nearest_name"]


def nearest_name(name: str, known: Iterable[str]) -> str:
    """A clause for error messages: the known name nearest to a misspelt one, and all the known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean `{close[0]}`? " if close else ""
    return f"{hint}Known: {', '.join(names)}."
