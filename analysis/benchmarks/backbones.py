"""Speed of the potentials on ethanol: a training step and an MD step of every preset, timed in turns.

A small run of the speed benchmark: every potential standard and relaxed (theta = 0.5, activation penalty at 32 rows).
"""

from collections.abc import Callable, Sequence

import pandas as pd

from mdrelax.analysis.benchmarks.implementations import CASES, Case, Implementation, mdrelax_implementation
from mdrelax.analysis.benchmarks.interleaved import Rules, run_cases
from mdrelax.analysis.benchmarks.structures import MOLECULES
from mdrelax.analysis.benchmarks.workers import Process, Worker
from mdrelax.potentials import PRESETS

__all__ = ["backbone_times"]

SIZES = ("tiny", "small")
KINDS = ("training", "training, relaxed", "MD")
LONGEST = 300.0  # seconds that a worker may take to respond


def _process(implementation: Implementation) -> Worker:
    return Process(implementation, longest=LONGEST)


def backbone_times(
    *,
    batch_size: int = 5,
    repeats: int = 15,
    sizes: Sequence[str] = SIZES,
    tell: Callable[[str], None] = lambda name: None,
    start: Callable[[Implementation], Worker] = _process,
) -> pd.DataFrame:
    """Median milliseconds with quartiles and parameter counts, one row per potential, preset and kind of step."""
    n_atoms = batch_size * len(MOLECULES["ethanol"]())
    cases = [Case(f"ethanol-b{batch_size}", "training", "ethanol", batch_size, n_atoms), CASES["md-ethanol"]]
    names = [f"{potential}-{size}{form}" for potential in PRESETS for size in sizes for form in ("", ":relaxed")]
    rules = Rules(repeats=repeats)
    table, _ = run_cases(
        cases, [mdrelax_implementation(name)._replace(counted=False) for name in names], start, rules=rules, tell=tell
    )
    n_parameters = table.groupby("contestant").n_parameters.first()  # of the standard form, without free maps
    table["n_parameters"] = [n_parameters[name.partition(":")[0]] for name in table.contestant]
    table["step"] = [_label(name, kind) for name, kind in zip(table.contestant, table.kind, strict=True)]
    columns = ["ms_lower_quartile", "ms_median", "ms_upper_quartile", "n_parameters"]
    steps = [f"{potential} {size}: {kind}" for potential in PRESETS for size in sizes for kind in KINDS]
    return table.set_index("step")[columns].reindex(steps)


def _label(implementation: str, kind: str) -> str:
    network, _, form = implementation.partition(":")
    potential, _, size = network.rpartition("-")
    return f"{potential} {size}: {'MD' if kind == 'md' else 'training, relaxed' if form else 'training'}"
