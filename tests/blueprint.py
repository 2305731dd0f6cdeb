"""Reading the house: the sources of the package and its tests as syntax trees, and what they import.

The laws are in test_house.py (who may import whom) and test_house_manners.py (sizes, names and words).
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]

# Folder -> the name it is imported by.
ROOMS = {
    "mdrelax": "mdrelax",
    "analysis": "mdrelax.analysis",
    "datasets": "mdrelax.datasets",
    "potentials": "mdrelax.potentials",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Source(NamedTuple):
    """One file of the repository."""

    path: Path
    module: str  # dotted name, of a package the package's name
    tree: ast.Module
    n_lines: int

    def at(self, line: int) -> str:
        """The place ``file:line``."""
        return f"{self.path.relative_to(ROOT)}:{line}"


class Import(NamedTuple):
    """One import of something of ours."""

    source: Source
    line: int
    target: str  # the module, or the face of a package

    def __str__(self) -> str:
        return f"{self.source.at(self.line)} {self.source.module} imports {self.target}"


def _read(path: Path, module: str) -> Source:
    text = path.read_text(encoding="utf-8")
    return Source(path, module, ast.parse(text, str(path)), len(text.splitlines()))


def _module_name(path: Path, folder: Path, name: str) -> str:
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join((name, *(part for part in parts if part != "__init__")))


@cache
def package_sources() -> tuple[Source, ...]:
    """Every module of the four rooms."""
    folders = [(ROOT / folder, name) for folder, name in ROOMS.items()]
    found = [
        (path, _module_name(path, folder, name)) for folder, name in folders for path in sorted(folder.rglob("*.py"))
    ]
    return tuple(_read(path, module) for path, module in found)


@cache
def sources_of_tests() -> tuple[Source, ...]:
    """Every file of tests/."""
    return tuple(_read(path, f"tests.{path.stem}") for path in sorted((ROOT / "tests").rglob("*.py")))


@cache
def modules() -> frozenset[str]:
    """The dotted names of all modules of the package."""
    return frozenset(source.module for source in package_sources())


@cache
def imports() -> tuple[Import, ...]:
    """All imports of ours in ours, those inside functions and under TYPE_CHECKING included."""
    return tuple(found for source in package_sources() for found in _imports_of(source))


def _imports_of(source: Source) -> Iterator[Import]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = absolute(source, node)
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules() else base for alias in node.names]
        else:
            continue
        yield from (Import(source, node.lineno, name) for name in sorted(set(names)) if name.split(".")[0] == "mdrelax")


def absolute(source: Source, node: ast.ImportFrom) -> str:
    """The module that a ``from ... import`` names, relative ones resolved against the package of the file."""
    if not node.level:
        return node.module or ""
    package = source.module.split(".") if source.path.name == "__init__.py" else source.module.split(".")[:-1]
    parts = package[: len(package) - node.level + 1]
    return ".".join([*parts, *([node.module] if node.module else [])])


def functions(source: Source) -> Iterator[Function]:
    """Every function and method of a file, nested ones too."""
    return (node for node in ast.walk(source.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def broken(law: str, offences: list[str]) -> str:
    """The message of a broken law: the law, then one offence a line."""
    return "\n".join([law, *offences])


def dotted(node: ast.expr) -> str:
    """The name ``a.b.c`` of a chain of attributes; empty for anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def top_level_names(node: ast.AST) -> list[str]:
    """What stands before the first dot of an absolute import; nothing for other nodes."""
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    return [(node.module or "").split(".")[0]] if isinstance(node, ast.ImportFrom) and not node.level else []
