"""Structure files: extended xyz and other formats that ASE reads, periodic or not, of mixed sizes and elements.

Labels and units are read as in ``labels``, and cells in the spellings of ``dialects``.
"""

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Unpack

from ase import Atoms, io

from mdrelax.base.files import whole_file
from mdrelax.base.places import frame_name
from mdrelax.base.reading import tell_progress
from mdrelax.datasets.dialects import standard_comment
from mdrelax.datasets.frames import Frames
from mdrelax.datasets.labels import LabelOptions, load_atoms

__all__ = ["load_ase", "load_extxyz", "read_ase", "read_atoms", "refuse_absurd_counts", "write_extxyz"]

WIDE = re.compile(r":[A-Za-z]:(\d{5,})")  # a column of so many numbers for each atom, in `Properties`
PBC = re.compile(r'\bpbc="([^"]*)"', re.IGNORECASE)
TRUTHS = {"t", "f", "true", "false", "0", "1"}
PROPERTIES = re.compile(r'Properties="?([^\s"]*)', re.IGNORECASE)  # name:type:width of each column
ASE_FORMATS = {"outcar": "vasp-out", "vasprun": "vasp-xml"}  # beginning of the file name -> ASE's format


def load_extxyz(path: str | Path, *, labelled: bool = True, **options: Unpack[LabelOptions]) -> Frames:
    """Read an extxyz file (also ``.gz``) into frames in eV and Angstrom, isolated atoms apart; see ``load_atoms``."""
    return load_atoms(read_atoms(path), source=Path(path).name, labelled=labelled, **options)


def load_ase(path: str | Path, *, labelled: bool = True, **options: Unpack[LabelOptions]) -> Frames:
    """Read a file of another program through ASE, for instance a VASP ``OUTCAR``; see ``load_atoms``.

    ASE converts the content to eV and Angstrom, with its own sign of the stress. Raises the errors of ``read_ase``.
    """
    frames = read_ase(path)
    options["energy_unit"] = options.get("energy_unit") or "eV"
    options["length_unit"] = options.get("length_unit") or "Angstrom"
    return load_atoms(frames, source=Path(path).name, labelled=labelled, **options)


def read_ase(path: str | Path) -> list[Atoms]:
    """All structures of a file that ASE reads; raises ``ValueError`` if it cannot, or if there are none."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file `{path}`.")
    name = next((ASE_FORMATS[start] for start in ASE_FORMATS if path.name.lower().startswith(start)), None)
    try:
        read = io.read(path, index=":", format=name)
    except Exception as error:  # ASE's readers raise anything on a broken line
        raise ValueError(
            f"`{path}` cannot be read by ASE ({type(error).__name__}: {error!s:.200}); it is cut off or another format."
        ) from error
    frames = [atoms for atoms in read if isinstance(atoms, Atoms)]
    if not frames:
        raise ValueError(f"`{path}` holds no structures.")
    return frames


def read_atoms(path: str | Path) -> list[Atoms]:
    """All frames of an (ext)xyz file as ASE atoms.

    Raises ``ValueError`` if the file is empty or cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file `{path}`.")
    frames: list[Atoms] = []
    try:
        lines = list(_lines(path))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ValueError(_unreadable(path, 0, error)) from error
    _require_whole(path, lines)
    text = "".join(lines)
    stream = StringIO(text)
    try:
        for atoms in io.iread(stream, index=":", format="extxyz"):
            frames.append(atoms)
            tell_progress(path.name, stream.tell(), len(text))
    except Exception as error:  # ASE's reader raises anything on a broken line
        raise ValueError(_unreadable(path, len(frames), error)) from error
    if not frames:
        raise ValueError(f"`{path}` is empty: it holds no frames.")
    return frames


def refuse_absurd_counts(path: Path) -> None:
    """Raise ``ValueError`` for a file in the (ext)xyz form that announces more atoms than it has lines.

    ASE would count to 10^12. Files in other forms pass.
    """
    if path.suffix == ".xyz" or path.name.endswith("extxyz"):
        with path.open(errors="replace") as file:
            _require_whole(path, list(file))


def _require_whole(path: Path, lines: Sequence[str]) -> None:
    """Raise ``ValueError`` if a frame announces more atoms than lines follow."""
    place = number = 0
    while place < len(lines):
        word = lines[place].strip()
        if not word.lstrip("+-").isdecimal():
            return  # a blank line at the end, or no extxyz, which its reader explains
        left = len(lines) - place - 2
        if len(word) > 15 or not 0 <= int(word) <= left:
            announced = f"frame {number} announces {word:.20} atoms, and {max(left, 0)} lines of atoms follow"
            raise ValueError(
                f"`{path}` cannot be read as extxyz ({announced}); from there on it is cut off, has a wrong number of "
                "atoms or another format."
            )
        if damage := _damage(lines[place + 1], lines[place + 2 : place + 3] if int(word) else []):
            raise ValueError(f"`{path}` cannot be read as extxyz (frame {number} {damage}).")
        place += int(word) + 2
        while place < len(lines) and lines[place].startswith("VEC"):  # the lattice vectors of some programs
            place += 1
        number += 1


def _damage(comment: str, first: Sequence[str]) -> str:
    """A clause on impossible columns or periodicity in a frame's second line and first atom; empty if there are none.

    ASE drops numbers without a column, and takes any word of ``pbc`` for true.
    """
    if wide := WIDE.search(comment):
        return f"announces a column of {wide[1]:.20} numbers; its `Properties` are damaged"
    if given := PROPERTIES.search(comment):
        fields = given[1].split(":")
        if len(fields) % 3:
            return "has a column without its name, type or width; its `Properties` are damaged"
        widths = [int(width) for width in fields[2::3] if width.isdecimal()]
        if first and len(widths) == len(fields) // 3 and len(first[0].split()) > sum(widths):
            columns, named = len(first[0].split()), sum(widths)
            remedy = f"name the others too: Properties={given[1]:.100}:forces:R:{columns - named}, if they are forces"
            return f"has {columns} columns, and its `Properties` name {named}; {remedy}"
    if (periodic := PBC.search(comment)) and not set(re.split(r"[\s,]+", periodic[1].strip("[] ").lower())) <= TRUTHS:
        return f'has `pbc="{periodic[1]:.20}"`, which is three of T and F'
    return ""


def _unreadable(path: Path, number: int, error: Exception) -> str:
    if isinstance(error, KeyError) and str(error.args[0]).isalnum():
        symbol = str(error.args[0])
        remedy = "write deuterium and tritium as H" if symbol in ("D", "T") else "write chemical symbols"
        return f"There is an atom of unknown element `{symbol:.20}` in {frame_name(number, path.name)}; {remedy}."
    return (
        f"`{path}` cannot be read as extxyz from {frame_name(number, path.name)} on ({type(error).__name__}: "
        f"{error!s:.200}); it is cut off or another format."
    )


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file, comments in ASE's spelling."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        for line in file:
            yield standard_comment(line) if "=" in line else line


def write_extxyz(path: Path, frames: Sequence[Atoms]) -> None:
    """Write frames unchanged; the file replaces ``path`` atomically."""
    with whole_file(path) as file:
        text = StringIO()
        io.write(text, frames, format="extxyz")
        file.write(text.getvalue().encode())
