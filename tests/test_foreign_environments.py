"""The method in environments that hold torch and e3nn and nothing else of ours: what foreign_e3nn.py finds there.

In the environments of other packages their networks are relaxed (foreign_peers.py).
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from blueprint import ROOT, modules
from foreign_e3nn import EXEMPT
from mdrelax.method.certificate import LARGEST_ERROR_FLOAT64

ENVIRONMENTS = Path(os.environ.get("MDRELAX_PEERS", ROOT / ".peers"))  # as `make peers` makes them
VERSIONS = sorted(path.stem for path in (ROOT / "tests" / "environments").glob("*.txt"))


def run(python: str | Path, *arguments: str) -> dict[str, Any]:
    """What a process prints that has this checkout on its path, and the workers of the speed benchmark."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "analysis" / "benchmarks")])
    process = subprocess.run(
        [python, "-W", "ignore", *arguments], env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])  # packages print, too


def judge(said: dict[str, Any]) -> None:
    """Every module was imported without a package of ours, and each step of the method did what it promises."""
    rooms = {name for name in modules() if name.startswith(("mdrelax.method.", "mdrelax.base."))}
    assert set(said["modules"]) == rooms - EXEMPT
    assert said["ours"] == []

    small = said["small"]
    assert small["relaxed"] == ["up", "product"]
    assert small["unchanged at theta = 0"]
    assert min(small["moved at theta = 1"], small["broken by"]) > 0.1  # free maps of 0.1 on features of 1
    assert min(small["activation penalty"], small["weight penalty"]) > 0.1
    assert small["penalty reaches"] == ["product.free.weight", "up.free.weight"]
    assert small["projected"] == ["folded", "dropped"]
    assert small["certificate"]["passed"]
    assert small["certificate"]["float64"]["rotation"] < LARGEST_ERROR_FLOAT64

    network = said["e3nn's own"]
    assert {name.rpartition(".")[2] for name in network["places"]} == {"sc", "lin1", "lin2", "alpha"}
    assert network["moved"] > 0.01
    assert network["same"]


def test_the_method_needs_none_of_our_other_packages() -> None:
    """In the environment of the tests, with every package refused that an e3nn network does not need itself."""
    judge(run(sys.executable, str(ROOT / "tests" / "foreign_e3nn.py"), "alone"))


def test_importing_the_package_loads_nothing_else() -> None:
    """``import mdrelax.method...`` runs mdrelax/__init__.py, which must not ask for more than Python itself."""
    program = (
        "import json, sys; before = set(sys.modules); import mdrelax; "
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    assert set(run(sys.executable, "-c", program)) - sys.stdlib_module_names == {"mdrelax"}  # type: ignore[operator]


@pytest.mark.peer
@pytest.mark.parametrize("version", VERSIONS)
def test_the_method_runs_with_older_e3nn_and_nothing_of_ours(version: str) -> None:
    """0.4.4 has no ``so3_generators`` and a table that torch refuses to load; 0.5.6 is older than what we install."""
    python = ENVIRONMENTS / version / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{version} is not installed: make peers")
    said = run(python, str(ROOT / "tests" / "foreign_e3nn.py"))
    assert f"e3nn-{said['e3nn']}" == version
    judge(said)


@pytest.mark.peer
@pytest.mark.parametrize(("package", "n_places"), [("mace", 12), ("nequip", 11)])
def test_every_place_of_a_published_network_can_be_relaxed(package: str, n_places: int) -> None:
    """MACE and NequIP as their packages build them: theta = 1 moves energy and forces, theta = 0 does not at all.

    Their other weights are embeddings and perceptrons of scalars.
    """
    python = ENVIRONMENTS / package / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{package} is not installed: make peers")
    places = run(python, str(ROOT / "tests" / "foreign_peers.py"), package)
    assert len(places) == n_places
    for name, place in places.items():
        assert place["same"], name
        assert min(place["moved"], place["penalty"]) > 1e-4, name  # a free map of 0.1, damped by what follows


def accepted(package: str, n_steps: int) -> None:
    """Bit for bit at theta = 0 and when projected; as symmetric as the original after training, with its shape."""
    python = Path(sys.executable) if package == "sevenn" else ENVIRONMENTS / package / "bin" / "python"
    if not python.exists() or (package == "sevenn" and importlib.util.find_spec("sevenn") is None):
        pytest.skip(f"{package} is not installed: make peers, or pip install sevenn")
    said = run(python, str(ROOT / "tests" / "foreign_acceptance.py"), package, str(n_steps))
    assert said["same at theta = 0"]
    assert said["same when projected"]
    assert said["shape kept"]
    assert min(said["moved"], said["learnt"]) > 1e-4  # eV and eV/A
    floor = 1e-10 if package != "sevenn" else 1e-4  # float64; SevenNet's network is in float32
    kinds = ["rotation", "translation", "permutation", *(["reflection"] if said["symmetry"] == "E(3)" else [])]
    for kind in kinds:
        assert said["projected"][kind] < max(3 * said["original"][kind], floor), kind
    assert said["relaxed"]["rotation"] > 0.01, "the free maps do nothing: the law is not tested"


@pytest.mark.peer
@pytest.mark.parametrize("package", ["mace", "nequip", "sevenn"])
def test_a_published_network_is_itself_again_after_relaxation(package: str) -> None:
    """Through the package's own calculator, after three relaxed steps."""
    accepted(package, 3)


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize("package", ["mace", "nequip", "sevenn"])
def test_a_published_network_is_symmetric_after_two_hundred_relaxed_steps(package: str) -> None:
    """The rotation error of the projected network is the original's."""
    accepted(package, 200)


def test_the_environments_pin_what_is_in_them() -> None:
    """Each list holds the e3nn that it is named after, and not torch, which is installed first and alone."""
    for version in VERSIONS:
        lines = (ROOT / "tests" / "environments" / f"{version}.txt").read_text().splitlines()
        pins = [line for line in lines if not line.startswith("#")]
        assert version.replace("-", "==") in pins
        assert all(line.count("==") == 1 for line in pins)
        assert not [line for line in pins if line.startswith("torch==")]
