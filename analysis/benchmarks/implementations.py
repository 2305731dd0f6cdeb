"""The implementations that the speed benchmark times, and the cases it times them on, by name."""

import importlib.util
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from mdrelax.analysis.benchmarks.peers.protocol import Structure
from mdrelax.analysis.benchmarks.structures import MOLECULES, shaken, to_structure, water_box
from mdrelax.base.names import nearest_name

__all__ = [
    "CASES",
    "NO_NETWORK",
    "PACKAGES",
    "PEERS",
    "Case",
    "Implementation",
    "cases",
    "implementations",
    "mdrelax_implementation",
    "structures_of",
    "thread_settings",
]

HERE = Path(__file__).parent
BATCHES = (1, 8, 32)
WATER_SIDES = (4, 6, 8, 12, 19)  # 192, 648, 1,536, 5,184 and 20,577 atoms


class Case(NamedTuple):
    """A task: a training step on a number of copies of a molecule, or an MD step of it."""

    name: str
    kind: str  # training, md, nbody or import
    molecule: str = ""
    size: int = 1  # copies, or molecules along the edge of a box of water
    n_atoms: int = 0


class Implementation(NamedTuple):
    """A network in its own process."""

    name: str
    command: tuple[str, ...]
    folder: Path  # where the process starts
    environment: dict[str, str]
    kinds: tuple[str, ...]
    ours: bool = True
    counted: bool = False  # whether operations and bytes are counted
    cutoff: float = 5.0  # Angstrom

    @property
    def installed(self) -> bool:
        """Whether its Python exists."""
        return Path(self.command[0]).exists()


class Peer(NamedTuple):
    """An implementation of another package."""

    venv: str
    module: str
    argument: str = ""


PEERS = {
    "mace-128": Peer("mace", "mace", "128"),
    "mace-64": Peer("mace", "mace", "64"),
    "nequip-l2": Peer("nequip", "nequip", "l2"),
    "nequip-M": Peer("nequip", "nequip", "M"),
    "torchmdnet-et": Peer("torchmdnet", "torchmdnet", "equivariant-transformer"),
    "torchmdnet-tensornet": Peer("torchmdnet", "torchmdnet", "tensornet"),
    "painn-128": Peer("schnetpack", "schnetpack"),
}
# The imports of a program that runs MD with the package.
PACKAGES = {
    "mace": "mace.calculators",
    "nequip": "nequip.integrations.ase",
    "torchmdnet": "torchmdnet.calculators",
    "schnetpack": "peers.schnetpack",  # which restores a name that it needs
}
MDRELAX_IMPORT = "mdrelax.engines.ase"
FORMS = ("", ":relaxed", ":relaxed-weight", ":projected")
NO_NETWORK = "no-network"  # the cost of an MD step apart from the network
MDRELAX = [
    NO_NETWORK,
    *(f"equiformer-{size}{form}" for size in ("tiny", "small", "md17") for form in FORMS),
    "equiformer-small:plain",
    "equiformer-md17:plain",
    "segnn-tiny",
    "segnn-small",
    "equiformer-pytorch-tiny",
    "equiformer-pytorch-small",
]
NBODY = ["segnn-nbody:plain", *(f"segnn-nbody{form}" for form in FORMS)]
COMPILED = [
    *(f"{network}:compiled" for network in ("equiformer-tiny", "equiformer-small", "equiformer-md17", "segnn-tiny")),
    *(
        f"equiformer-{size}:{form}compiled-training"
        for size in ("tiny", "small", "md17")
        for form in ("", "relaxed-", "relaxed-weight-")
    ),
    *(f"segnn-nbody:{form}compiled" for form in ("", "relaxed-", "relaxed-weight-", "projected-")),
]


def _cases() -> Iterable[Case]:
    for molecule, build in MOLECULES.items():
        for batch in BATCHES:
            yield Case(f"{molecule}-b{batch}", "training", molecule, batch, batch * len(build()))
    for molecule, build in MOLECULES.items():
        yield Case(f"md-{molecule}", "md", molecule, 1, len(build()))
    for side in WATER_SIDES:
        yield Case(f"md-water-{3 * side**3}", "md", "water", side, 3 * side**3)
    yield Case("nbody", "nbody", n_atoms=500)
    yield Case("import", "import")


CASES = {case.name: case for case in _cases()}


def structures_of(case: Case) -> list[Structure]:
    """The message to a worker for a case."""
    if case.molecule == "water":
        return [to_structure(water_box(case.size))]
    if not case.molecule:
        return []
    atoms = MOLECULES[case.molecule]()
    copies = shaken(atoms, case.size) if case.kind == "training" else [atoms]
    return [to_structure(each) for each in copies]


def cases(patterns: Sequence[str]) -> list[Case]:
    """The cases whose names match one of the patterns; raises ``ValueError`` for a pattern that matches none."""
    return [CASES[name] for name in _matching("case", patterns, list(CASES))]


def implementations(
    patterns: Sequence[str],
    *,
    peers: bool,
    venvs: Path,
    compiled: bool = False,
    settings: Mapping[str, str] | None = None,
) -> list[Implementation]:
    """The implementations whose names match; peers from the virtual environments in a folder.

    ``settings`` are environment variables for all of them. Raises ``ValueError`` for a pattern that matches none.
    """
    extra = dict(settings or {})
    everyone = [mdrelax_implementation(name, extra) for name in (*MDRELAX, *NBODY, *(COMPILED if compiled else ()))]
    everyone += [_mdrelax_import(extra)]
    if peers:
        everyone += [_peer(name, venvs, extra) for name in PEERS]
        everyone += [_peer_import(venv, venvs, extra) for venv in PACKAGES]
    by_name = {each.name: each for each in everyone}
    return [by_name[name] for name in _matching("contestant", patterns, list(by_name))]


def thread_settings(threads: int | None) -> dict[str, str]:
    """Environment variables for a number of threads; default: the user's environment."""
    return {} if threads is None else {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def _matching(what: str, patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise ValueError(f"There is no {what} `{pattern}`; {nearest_name(pattern, names)}")
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]


def _environment(extra: Mapping[str, str], path: Path | None = None) -> dict[str, str]:
    """The user's environment without Python's variables, and with ``path`` to import from."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**inherited, **extra, **({} if path is None else {"PYTHONPATH": str(path)})}


def _home() -> Path:
    """The folder that contains mdrelax, in a checkout and in a wheel."""
    spec = importlib.util.find_spec("mdrelax")
    if spec is None or spec.origin is None:
        raise ImportError("mdrelax itself was not found.")
    return Path(spec.origin).parents[1]


def mdrelax_implementation(name: str, extra: Mapping[str, str] | None = None) -> Implementation:
    """One of ours, by its name in ``mdrelax_worker``."""
    command = (sys.executable, "-m", "mdrelax.analysis.benchmarks.mdrelax_worker", name)
    kinds = ("nbody",) if "nbody" in name else ("md",) if name == NO_NETWORK else _kinds(name.partition(":")[2])
    counted = "compiled" not in name and name != NO_NETWORK  # operations of compiled code are not visible
    return Implementation(name, command, HERE, _environment(extra or {}, _home()), kinds, counted=counted)


def _kinds(form: str) -> tuple[str, ...]:
    """The kinds of steps of a form: free maps are for training, potentials compiled ahead of time for MD."""
    if form.startswith("relaxed") or form.endswith("training"):
        return ("training",)
    return ("md",) if form == "compiled" else ("training", "md")


def _mdrelax_import(extra: Mapping[str, str]) -> Implementation:
    command = (sys.executable, "-c", f"import {MDRELAX_IMPORT}")
    return Implementation("mdrelax", command, HERE, _environment(extra, _home()), ("import",))


def _python(venv: str, venvs: Path) -> Path:
    folder = "Scripts" if os.name == "nt" else "bin"
    return (venvs / venv / folder / "python").absolute()


def _peer(name: str, venvs: Path, extra: Mapping[str, str]) -> Implementation:
    peer = PEERS[name]
    python = _python(peer.venv, venvs)
    command = (str(python), "-m", f"peers.{peer.module}", *([peer.argument] if peer.argument else []))
    return Implementation(name, command, HERE, _environment(extra), ("training", "md"), False)


def _peer_import(venv: str, venvs: Path, extra: Mapping[str, str]) -> Implementation:
    python = _python(venv, venvs)
    command = (str(python), "-c", f"import {PACKAGES[venv]}")
    return Implementation(venv, command, HERE, _environment(extra), ("import",), False)
