"""Trial: the lowest versions of everything that mdrelax needs, in an environment of their own.

    python tests/trials/versions.py
    python tests/trials/versions.py --python python3.11 python3.12 --out docs/results/trials/versions.json

Makes a virtual environment, installs the pinned torch (first and alone: a resolver may bring gigabytes of CUDA
libraries with another), then the package with `-c constraints-lowest.txt`, and runs the tests of ``CORE`` there. torch
itself is therefore tried in its pinned version only, and a Python for which that torch cannot be had is not tried.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[k]) for k in (1, 2)]

from trials.findings import Findings

ROOT = Path(__file__).resolve().parents[2]
LOWEST = ROOT / "constraints-lowest.txt"
TOOLS = ("pytest", "packaging", "setuptools>=77", "build")  # for the tests themselves, in any version

# Every dependency, and test files that use most of what mdrelax uses of it.
CORE: dict[str, tuple[str, ...]] = {
    "ase": ("test_calculator", "test_extxyz", "test_md", "test_md_restart"),
    "e3nn": ("test_o3", "test_relaxation", "test_equiformer"),
    "equiformer-pytorch": ("test_equiformer_pytorch",),
    "jinja2": ("test_report",),
    "matplotlib": ("test_figures",),
    "numpy": ("test_md17", "test_datasets"),
    "pandas": ("test_study", "test_nbody_study"),
    "pooch": ("test_download",),
    "pydantic": ("test_config", "test_config_changes"),
    "PyYAML": ("test_absurd_input",),
    "rich": ("test_cli",),
    "safetensors": ("test_modelfile", "test_hostile_files", "test_golden"),
    "scipy": ("test_harmonic", "test_vibrations"),
    "torch": ("test_trainer", "test_checkpoint"),
    "torch-geometric": ("test_loader", "test_graph"),
    "typer": ("test_cli", "test_sentences"),
    "vesin": ("test_neighbors",),
}


def lowest() -> dict[str, str]:
    """The versions in constraints-lowest.txt, by name."""
    lines = [line for line in LOWEST.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def floors() -> dict[str, str]:
    """The lower ends of the ranges of pyproject.toml, by name; extras left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [re.match(r"([\w.-]+)>=([\w.]+)", text) for text in project["dependencies"]]
    return {match[1]: match[2] for match in found if match is not None}


def tests() -> list[str]:
    """The test files of ``CORE``, each once."""
    return [f"tests/{name}.py" for name in sorted({name for names in CORE.values() for name in names})]


def _run(words: Sequence[str | Path]) -> tuple[int, str]:
    """Run a command in the checkout, without our import path; its exit code and what it said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run([*map(str, words)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def trial(python: str, folder: Path, *, local_torch: bool) -> dict[str, Any]:
    """Install the lowest versions in a new environment and run the tests; the counts and what went wrong.

    An interpreter that is not here, or has no such torch, is not tried.

    ``local_torch`` takes torch from pip's own folders of wheels (find-links) only.
    """
    own = folder / "bin" / "python"
    pip = [own, "-m", "pip", "--no-input", "install", "--quiet"]
    try:
        code, said = _run([python, "--version"])
    except OSError as error:
        code, said = 1, str(error)
    if code:
        return {"python": Path(python).name.removeprefix("python"), "not_tried": "not here", "said": _last(said)}
    version = said.strip().removeprefix("Python ")
    torch = [*pip, *(["--no-index", "--no-deps"] if local_torch else []), f"torch=={lowest()['torch']}"]
    for words in ([python, "-m", "venv", folder], torch):
        code, said = _run(words)
        if code:
            return {"python": version, "not_tried": "no torch", "said": _last(said)}
    code, said = _run([*pip, "-c", LOWEST, *TOOLS, copied(folder.with_name(f"{folder.name}-sources"))])
    if code:
        return {"python": version, "findings": [f"cannot be installed: {_last(said)}"]}
    code, said = _run([own, "-m", "pip", "list", "--format", "json"])
    installed = {each["name"].lower().replace("_", "-"): each["version"] for each in json.loads(said.splitlines()[0])}
    # Old versions warn of what newer ones have changed: warnings are no errors here.
    code, said = _run([own, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "filterwarnings=", *tests()])
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", said[-500:])}
    wrong = [line[:300] for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return {
        "python": version,
        "versions": {name: installed.get(name.lower(), "missing").partition("+")[0] for name in lowest()},
        "tests": counts,
        "findings": wrong or ([] if code == 0 else [f"pytest ended with {code}: {_last(said)}"]),
    }


def copied(folder: Path) -> Path:
    """A copy of what is installed: pip builds in the folder, and would leave its traces in the checkout."""
    for name in ("mdrelax", "analysis", "datasets", "potentials"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, dirs_exist_ok=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def _last(said: str) -> str:
    """The last line of what a command said."""
    return (said.strip().splitlines() or ["nothing was said"])[-1][:300]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="interpreters, an environment for each")
    parser.add_argument("--local-torch", action="store_true", help="take torch from pip's folders of wheels only")
    parser.add_argument("--folder", type=Path, help="where to make environments that are kept")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    given = parser.parse_args()
    found = Findings("versions", seed=0)
    found.notes["environments"] = environments = []
    with tempfile.TemporaryDirectory(prefix="mdrelax-lowest-") as scratch:
        for number, python in enumerate(given.python):
            place = (given.folder or Path(scratch)) / f"venv-{number}"
            environments.append(trial(python, place, local_torch=given.local_torch))
            record(found, environments[-1])
    print(json.dumps(environments, indent=1))
    return found.finish(given.out)


def record(found: Findings, result: dict[str, Any]) -> None:
    """Count the tests of an environment, and report what failed in it."""
    kind = f"Python {result['python']}"
    if "not_tried" in result:
        found.count(f"{kind} (not tried: {result['not_tried']})", 0)
    for word, number in result.get("tests", {}).items():
        found.count(f"{kind} {word}", number)
    for finding in result.get("findings", []):
        found.report(kind, finding, f"python tests/trials/versions.py --python python{result['python']}")


if __name__ == "__main__":
    sys.exit(main())
