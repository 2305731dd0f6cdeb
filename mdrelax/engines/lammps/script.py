"""Script: a LAMMPS input, cut in two at the line where the model takes over.

    <box, atoms, masses>
    fix ID all external pf/callback 1 1      the model's forces are added from here on
    <fixes, thermo, dumps, runs>

LAMMPS asks for forces through a callback that can be set only between this line and the first run. Both parts run as
files, so that loops (`label`, `next`, `jump SELF`) work within each, and `include` in either.
"""

import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from mdrelax.engines.lammps.exchange import SharedError

__all__ = ["Script", "ScriptError", "read_script"]

DEFAULT_SKIN = 2.0  # Angstrom: LAMMPS' own in the units metal and real
RECIPE = "`fix mdrelax all external pf/callback 1 1`"


class ScriptError(SharedError):
    """An input script that cannot run with a model."""


class Script(NamedTuple):
    """The parts of an input."""

    before: str  # up to and including the line of the fix
    after: str
    fix: str  # its id
    skin: float  # Angstrom, of LAMMPS' neighbour lists


def read_script(path: Path) -> Script:
    """Read an input and find its fix; raises ``ScriptError`` for what would give wrong results."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScriptError(f"The input `{path}` cannot be read ({error}).") from error
    commands = list(_commands(text))
    found = [k for k, (words, _) in enumerate(commands) if words[:1] == ["fix"] and words[3:4] == ["external"]]
    if len(found) != 1:
        raise ScriptError(
            f"`{path}` must have one line {RECIPE}, and has {len(found)}: it says where the model's forces are added; "
            "write it after the atoms are read and before the first run, in the input itself, not in an `include`."
        )
    words, end = commands[found[0]]
    if words[2] != "all" or words[4:] != ["pf/callback", "1", "1"]:
        raise ScriptError(
            f"`{' '.join(words)}` in `{path}` would not apply the model to every atom in every step; write {RECIPE}."
        )
    _refuse(path, [words for words, _ in commands[: found[0]]], [words for words, _ in commands[found[0] + 1 :]])
    skins = [words[1] for words, _ in commands[: found[0]] if words[0] == "neighbor" and len(words) > 1]
    return Script(text[:end], text[end:], words[1], _skin(path, skins[-1]) if skins else DEFAULT_SKIN)


def _commands(text: str) -> list[tuple[list[str], int]]:
    """The words of each command, and the place in the text where it ends; `&` continues a line."""
    commands = []
    for match in re.finditer(r"(?:[^\n]*&[ \t]*\n)*[^\n]*(?:\n|\Z)", text):
        line = re.sub(r"&[ \t]*\n", " ", match[0])
        words = re.sub(r"#.*", "", line).split()
        if words:
            commands.append((words, match.end()))
    return commands


def _refuse(path: Path, before: list[list[str]], after: list[list[str]]) -> None:
    for words in (*before, *after):
        if words[:2] == ["run_style", "respa"]:
            raise ScriptError(
                f"`{path}` has `run_style respa`, which never asks `fix external` for forces; use verlet."
            )
        if words[0] == "atom_modify" and ("id", "no") in pairwise(words):
            raise ScriptError(f"`{path}` has `atom_modify id no`; remove it: ghost atoms are found by their ids.")
    for words in after:
        if words[0] == "comm_modify" and {"cutoff", "mode"} & set(words):
            raise ScriptError(
                f"`{' '.join(words)}` in `{path}` could take away ghost atoms that the model needs; write it before "
                "the line `fix ... external`, where it is widened as needed."
            )
        if words[0] == "clear":
            raise ScriptError(f"`{path}` has `clear` after the line `fix ... external`, which removes the model.")


def _skin(path: Path, word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ScriptError(
            f"`neighbor {word}` in `{path}` must be a plain number of Angstrom: the ghost atoms reach that far beyond "
            "the cut-off."
        ) from None
