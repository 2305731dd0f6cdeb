"""The wheel holds everything and nothing else, and the package imports in every install mode.

Everything is built without a network, and from a copy of the sources: setuptools leaves its build folder behind.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from blueprint import ROOMS, ROOT, package_sources

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SHIPPED = ("pyproject.toml", "README.md", "LICENSE", *ROOMS)
JUNK = shutil.ignore_patterns("__pycache__", "*.pyc", ".*", "*.egg-info")
IMPORT_ALL = "import mdrelax, mdrelax.analysis, mdrelax.datasets, mdrelax.potentials; print(mdrelax.__file__)"


def python(*arguments: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run this interpreter in ``cwd``, with ``path`` first on its import path instead of ours."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def build(source: Path, out: Path) -> Path:
    """The wheel of a source tree or sdist."""
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    result = python("-m", "pip", "wheel", *offline, "-w", str(out), str(source), cwd=out)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


def copy_of_the_sources(folder: Path) -> Path:
    """What a clone has of the package, in a folder of its own."""
    for name in SHIPPED:
        source = ROOT / name
        _ = (
            shutil.copytree(source, folder / name, ignore=JUNK)
            if source.is_dir()
            else shutil.copy(source, folder / name)
        )
    return folder


def files_of_the_tree() -> Iterator[str]:
    """Every file of the four rooms, under its name inside a wheel."""
    for folder, name in ROOMS.items():
        for path in sorted((ROOT / folder).rglob("*")):
            relative = path.relative_to(ROOT / folder)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
            if path.is_file() and not hidden and path.suffix != ".pyc":
                yield f"{name.replace('.', '/')}/{relative.as_posix()}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built once."""
    return build(copy_of_the_sources(tmp_path_factory.mktemp("clone")), tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed in it, and nothing else."""
    target = tmp_path_factory.mktemp("site")
    options = ["--no-index", "--no-deps", "--disable-pip-version-check", "--target", str(target)]
    result = python("-m", "pip", "install", *options, str(wheel), cwd=target)
    assert result.returncode == 0, result.stdout + result.stderr
    return target


# --- the list of packages and the wheel ------------------------------------------------------------------------------


def test_packages_in_pyproject_are_those_of_the_tree():
    """A nested package missing from the list would silently be left out of the wheel."""
    in_tree = {source.module for source in package_sources() if source.path.name == "__init__.py"}
    assert sorted(in_tree) == sorted(PROJECT["tool"]["setuptools"]["packages"])


def test_every_module_is_in_a_package():
    """A folder of modules has an ``__init__.py``: without it the checkout finds it and the wheel loses it."""
    folders = {source.path.parent for source in package_sources()}
    bare = [str(folder.relative_to(ROOT)) for folder in sorted(folders) if not (folder / "__init__.py").is_file()]
    assert not bare, f"Folders of modules without __init__.py: {bare}"


def test_every_file_of_the_rooms_is_in_the_wheel(wheel: Path):
    """Modules, ``py.typed``, presets, templates and sample data: what the tree has, the wheel has."""
    missing = sorted(set(files_of_the_tree()) - set(zipfile.ZipFile(wheel).namelist()))
    assert not missing, f"Left out of the wheel (packages or package-data in pyproject.toml): {missing}"
    assert "mdrelax/py.typed" in zipfile.ZipFile(wheel).namelist()


def test_nothing_else_is_in_the_wheel(wheel: Path):
    """The tree and its metadata: no tests, no runs, no top-level ``datasets`` to shadow the well-known package."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not re.match(r"mdrelax-[^/]+\.dist-info/", name)}
    assert sorted(names - set(files_of_the_tree())) == []
    assert {name.split("/")[0] for name in names} == {"mdrelax"}


def test_the_wheel_stays_small(wheel: Path):
    """The shipped data set and everything else fit into 3 MB: nothing was put in by mistake."""
    assert wheel.stat().st_size < 3e6


@pytest.mark.slow
def test_the_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path):
    """sdist -> wheel gives the files of the wheel built from the tree."""
    clone, dist, again = (tmp_path / name for name in ("clone", "dist", "again"))
    for folder in (clone, dist, again):
        folder.mkdir()
    options = ["--sdist", "--no-isolation", "--outdir", str(dist)]
    result = python("-m", "build", *options, str(copy_of_the_sources(clone)), cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    (sdist,) = dist.glob("*.tar.gz")
    assert zipfile.ZipFile(build(sdist, again)).namelist() == zipfile.ZipFile(wheel).namelist()


# --- importing -------------------------------------------------------------------------------------------------------


def test_the_installed_package_imports_from_anywhere(installed: Path, tmp_path: Path):
    """The rooms import from inside the installed package, whatever the current folder."""
    result = python("-c", IMPORT_ALL, cwd=tmp_path, path=installed)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).is_relative_to(installed)


def test_the_checkout_imports_without_installation():
    """The rooms beside ``mdrelax/`` import in the repository's root."""
    result = python("-c", IMPORT_ALL, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).resolve() == ROOT / "mdrelax" / "__init__.py"


@pytest.mark.parametrize("room", ["analysis", "datasets", "potentials"])
def test_tools_see_every_room_in_a_checkout(room: str):
    """A relative link in mdrelax/ leads type checkers and editors to each room that stands beside it."""
    assert os.readlink(ROOT / "mdrelax" / room) == f"../{room}"


def test_the_checkout_imports_without_links(tmp_path: Path):
    """Where git makes no links (Windows), the rooms beside the package are found as well."""
    for folder in ("mdrelax", "analysis", "datasets", "potentials"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for room in ("analysis", "datasets", "potentials"):
        (tmp_path / "mdrelax" / room).unlink()
    result = python("-c", IMPORT_ALL, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).is_relative_to(tmp_path)


def test_a_top_level_datasets_is_refused_with_a_sentence():
    """In the root, ``import datasets`` finds our room: it says so instead of posing as the well-known package."""
    result = python("-c", "import datasets", cwd=ROOT)
    assert result.returncode != 0
    assert "mdrelax.datasets" in result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("room", sorted(PROJECT["tool"]["setuptools"]["packages"]))
def test_a_room_says_what_it_is(room: str):
    """The docstring of a face is a sentence, not a repetition of its name."""
    (face,) = (source for source in package_sources() if source.module == room)
    assert len((ast.get_docstring(face.tree) or "").split()) >= 4, f"{face.at(1)} {room} needs a caption."


def test_the_command_opens_the_door(installed: Path, tmp_path: Path):
    """``mdrelax`` and ``python -m mdrelax`` both reach ``mdrelax.__main__:main``, and the door answers ``--help``."""
    (script,) = _scripts(installed)
    assert (script.name, script.value) == ("mdrelax", "mdrelax.__main__:main")
    result = python("-m", "mdrelax", "--help", cwd=tmp_path, path=installed)
    assert result.returncode == 0, result.stderr
    assert "train" in result.stdout


def _scripts(installed: Path) -> list[metadata.EntryPoint]:
    (distribution,) = metadata.distributions(name="mdrelax", path=[str(installed)])
    return list(distribution.entry_points.select(group="console_scripts"))


# --- versions --------------------------------------------------------------------------------------------------------


def test_one_version_everywhere(wheel: Path):
    """``mdrelax.__version__`` is the source; the wheel, the citation and the changelog follow it."""
    text = (ROOT / "mdrelax" / "__init__.py").read_text(encoding="utf-8")
    (version,) = re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert wheel.name.startswith(f"mdrelax-{version}-")
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_constraints_pin_every_dependency_inside_its_range():
    """What CI installs is what pyproject.toml promises; torch stands first because it is installed first."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {_plain(name): version for name, _, version in (line.partition("==") for line in lines if "==" in line)}
    assert next(iter(pins)) == "torch"
    project = PROJECT["project"]
    named = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    wanted = [Requirement(text) for text in named if not text.startswith("mdrelax[")]
    outside = [str(need) for need in wanted if not need.specifier.contains(pins.get(_plain(need.name), "0"))]
    assert not outside, f"Without a pin in constraints.txt, or pinned outside their range: {outside}"


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_interpreter_is_one_that_the_project_names():
    """``requires-python`` and the Makefile's check name the same versions, and this one is among them."""
    promised = SpecifierSet(PROJECT["project"]["requires-python"])
    assert promised.contains(".".join(map(str, sys.version_info[:3])))
    (low, high) = re.search(r"not \((\d, \d+)\) <= .* <= \((\d, \d+)\)", (ROOT / "Makefile").read_text()).groups()
    (low, high) = (tuple(map(int, bound.split(", "))) for bound in (low, high))
    for minor in range(9, 20):
        assert promised.contains(f"3.{minor}.0") == (low <= (3, minor) <= high)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_refuses_an_old_python_with_a_sentence(tmp_path: Path):
    """Instead of a resolver's riddle: the versions that work, the one that was found, and what to type."""
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    old.chmod(0o755)
    command = ["make", "venv", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0
    assert "mdrelax needs Python 3.11, 3.12 or 3.13" in result.stderr
    assert "Python 3.9.2" in result.stderr
    assert not (tmp_path / "venv").exists()
