"""MD steps of the models of the accuracy benchmark, in turns: one run of the speed benchmark's machinery per molecule.

The ratio of medians within such a run is what can be compared; milliseconds of different runs cannot. Each molecule has
its file times-MOLECULE.json.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mdrelax.analysis.benchmarks.accuracy import is_peer, timed
from mdrelax.analysis.benchmarks.implementations import CASES, Implementation
from mdrelax.analysis.benchmarks.interleaved import Rules, run_cases
from mdrelax.analysis.benchmarks.workers import Worker, start
from mdrelax.analysis.tables import read_json, read_optional
from mdrelax.base.files import write_atomically
from mdrelax.base.provenance import environment

__all__ = ["COMPILED", "REFERENCE", "measure_times", "read_times"]

REFERENCE = "mace"  # or the first model, where it was not timed
COMPILED = ":compiled"  # after the name of one of ours
LONGEST = 600.0  # s of an answer


def measure_times(
    molecules: Sequence[str],
    models: Sequence[str],
    results: Path,
    *,
    venvs: Path,
    rules: Rules,
    command: str,
    compiled: bool = False,
    tell: Callable[[str], None] = lambda line: None,
    start: Callable[..., Worker] = start,
) -> list[Path]:
    """Time an MD step of each model on each molecule that is a case of `bench speed`; returns the files.

    With ``compiled``, our networks are timed compiled ahead of time, too (minutes for each). Models that are not
    installed are left out with one line.
    """
    names = list(dict.fromkeys(model.partition(":")[0] for model in models))
    names += [f"{name}{COMPILED}" for name in names if compiled and not is_peer(name)]
    workers = [timed(name, venvs) for name in names]
    for each in workers:
        if not each.installed:
            tell(f"{each.name} is left out, it is not installed (`make peers`)")
    here, paths = [each for each in workers if each.installed], []
    for molecule in molecules:
        case = CASES.get(f"md-{molecule}")
        if case is None:
            tell(f"MD steps of {molecule} are not timed: `bench speed` has no such case.")
            continue

        def begin(worker: Implementation) -> Worker:
            return start(worker, longest=LONGEST)

        table, versions = run_cases([case], here, begin, rules=rules, tell=tell)
        if table.empty:
            tell(f"MD steps of {molecule} are not timed: no model was left.")
            continue
        median = table.set_index("contestant").ms_median
        reference = REFERENCE if REFERENCE in median else str(median.index[0])
        rows = table.assign(ratio=table.ms_median / median[reference])
        document = {
            "molecule": molecule, "reference": reference, "command": command, "rules": rules._asdict(),
            "environment": {**environment(device="cpu", seed=0), "threads": 1}, "versions": versions,
            "rows": json.loads(rows.to_json(orient="records")),
        }  # fmt: skip
        results.mkdir(parents=True, exist_ok=True)
        paths.append(results / f"times-{molecule}.json")
        write_atomically(paths[-1], (json.dumps(document, indent=1) + "\n").encode())
    return paths


def read_times(results: Path, molecule: str) -> dict[str, dict[str, Any]]:
    """``ms_median``, ``ratio`` and more of each timed model; none without a file."""
    path = results / f"times-{molecule}.json"
    found = read_optional(path, read_json, {"rows": [], "reference": ""}, remedy="Delete it and time again.")
    return {row["contestant"]: {**row, "reference": found["reference"]} for row in found["rows"]}
