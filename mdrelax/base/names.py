"""Names: suggestions for misspelt ones in error messages."""

import difflib
from collections.abc import Iterable

__all__ = ["nearest_name"]


def nearest_name(name: str, known: Iterable[str]) -> str:
    """A clause for error messages: the known name nearest to a misspelt one, and all the known names."""
    names = sorted(known)
    folded = {str.lower(each): each for each in names}
    close = [folded[each] for each in difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)]
    listed = f"nown: {', '.join(names)}."
    return f"did you mean `{close[0]}`? K{listed}" if close else f"k{listed}"
