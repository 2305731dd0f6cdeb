"""Documents: YAML as data, within limits, so that no text of a few lines takes minutes or gigabytes to read.

Aliases are followed only as far as the document stays small; nesting is bounded; a key that stands twice, of which YAML
would silently take the last, is an error.
"""

from typing import Any

import yaml

__all__ = ["DocumentError", "read_document"]

DEEPEST = 40  # lists and mappings inside each other
MOST_VALUES = 100_000  # aliases replaced by what they stand for
LONGEST = 10_000_000  # characters


class DocumentError(ValueError):
    """A text that is no YAML, or one beyond the limits; the message is a clause that says why and where."""


def read_document(text: str) -> Any:
    """The content of a YAML text; raises ``DocumentError``."""
    if len(text) > LONGEST:
        raise DocumentError(f"it has {len(text):,} characters, and {LONGEST:,} at most are read")
    try:
        _Limits().check(text)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DocumentError(_problem(error)) from error
    except ValueError as error:  # a number of thousands of digits, a date that does not exist
        raise error if isinstance(error, DocumentError) else DocumentError(f"{error!s:.100}") from error


class _Limits:
    """Walks over a document's events, which are not built into anything yet."""

    def __init__(self) -> None:
        self.open: list[
            list[Any]
        ] = []  # of each open collection: its size, its anchor, its keys, whether a key is next
        self.sizes: dict[str, int] = {}  # of what each anchor names

    def check(self, text: str) -> None:
        """Raise ``DocumentError`` for a text beyond the limits."""
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            mark = event.start_mark
            place = "" if mark is None else f"(line {mark.line + 1}, column {mark.column + 1})"
            if isinstance(event, yaml.CollectionStartEvent):
                if len(self.open) >= DEEPEST:
                    raise DocumentError(f"it is nested deeper than {DEEPEST} levels {place}")
                self._next_key(None, place)
                self.open.append([1, event.anchor, set() if isinstance(event, yaml.MappingStartEvent) else None, True])
            elif isinstance(event, yaml.CollectionEndEvent):
                size, anchor, *_ = self.open.pop()
                self._add(size, anchor, place)
            elif isinstance(event, yaml.ScalarEvent):
                self._next_key(event.value, place)
                self._add(1, event.anchor, place)
            elif isinstance(event, yaml.AliasEvent):
                self._next_key(None, place)
                if event.anchor not in self.sizes:
                    raise DocumentError(f"`*{event.anchor:.40}` refers to nothing before it, or to itself {place}")
                self._add(self.sizes[event.anchor], None, place)

    def _add(self, size: int, anchor: str | None, place: str) -> None:
        if anchor is not None:
            self.sizes[anchor] = size
        if self.open:
            self.open[-1][0] += size
            size = self.open[-1][0]
        if size > MOST_VALUES:
            raise DocumentError(f"it has more than {MOST_VALUES:,} values, those of aliases included {place}")

    def _next_key(self, key: str | None, place: str) -> None:
        """Note a key of the innermost mapping, in which keys and values take turns."""
        if not self.open or self.open[-1][2] is None:
            return
        collection = self.open[-1]
        if collection[3] and key is not None:
            if key in collection[2]:
                raise DocumentError(f"the key `{key:.40}` stands twice {place}")
            collection[2].add(key)
        collection[3] = not collection[3]


def _problem(error: yaml.YAMLError) -> str:
    """What is wrong and where, in a line of bounded length."""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be parsed"
    mark = getattr(error, "problem_mark", None)
    place = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
    return f"{problem!s:.120}{place}"
