"""The speed benchmark: training and MD steps of our networks and of other packages, timed in turns in one run.

``implementations`` defines what is timed, ``interleaved`` how; this module makes the table with ratios and fractions of
the machine's limits, and writes the files.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mdrelax.analysis.benchmarks.implementations import Case, Implementation, mdrelax_implementation
from mdrelax.analysis.benchmarks.interleaved import Rules, run_cases
from mdrelax.analysis.benchmarks.peers import process_memory
from mdrelax.analysis.benchmarks.speed_figures import scaling
from mdrelax.analysis.benchmarks.speed_report import report
from mdrelax.analysis.benchmarks.workers import Worker, start
from mdrelax.analysis.drawing import save
from mdrelax.analysis.tables import write_table, write_texts

__all__ = [
    "Speed",
    "measure",
    "memory_rules",
    "printed",
    "with_limits",
    "with_ratios",
    "write_speed",
]

LIMITS = "limits"  # the name of the worker that times the machine itself
LIBRARY = "equiformer-pytorch"  # one of our networks after another package's: also a reference
TOGETHER = 0.4  # of the free memory at the start: limit of all workers between steps
SHOWN = [
    "ms_median", "ms_lower_quartile", "ms_upper_quartile", "repeats", "ms_per_atom", "peak_MB", "n_parameters",
    "matrix_limit_used", "memory_limit_used", "ratio_to_standard", "times_faster_than_plain",
]  # fmt: skip


class Speed(NamedTuple):
    """A finished run."""

    table: pd.DataFrame
    versions: dict[str, dict[str, str]]  # of each implementation's packages
    limits: dict[str, Any]  # rates that the machine reaches
    rules: Rules


def measure(
    cases: Sequence[Case],
    implementations: Sequence[Implementation],
    *,
    rules: Rules,
    settings: Mapping[str, str] | None = None,
    longest: float = 300.0,
    tell: Callable[[str], None] = lambda line: None,
    keep: Callable[["Speed"], object] = lambda speed: None,
    start: Callable[..., Worker] = start,
) -> Speed:
    """Time the implementations on the cases; those that are not installed are left out with one line.

    ``settings`` are environment variables for the worker that times the machine; a worker may take ``longest``
    seconds to respond; ``keep`` is called with the results so far after every case.
    """
    here = [each for each in implementations if each.installed]
    for each in implementations:
        if not each.installed:
            tell(f"{each.name} is left out, it is not installed (`make peers`)")
    machine = start(mdrelax_implementation(LIMITS, settings), longest=longest)
    limits: dict[str, Any] = {}
    peers = [each.name for each in here if "md" in each.kinds and (not each.ours or each.name.startswith(LIBRARY))]

    def finished(table: pd.DataFrame, versions: dict[str, dict[str, str]]) -> Speed:
        return Speed(with_limits(with_ratios(table, peers), limits), dict(versions), dict(limits), rules)

    def keep_rows(table: pd.DataFrame, versions: dict[str, dict[str, str]]) -> None:
        for name, value in machine.ask("limits", dtype=rules.dtype).items():  # the best values of the run
            limits[name] = max(value, limits.get(name, 0))
        if len(table):
            keep(finished(table, versions))

    try:
        table, versions = run_cases(
            cases, here, lambda each: start(each, longest=longest), rules=rules, tell=tell, keep=keep_rows
        )
    finally:
        machine.close()
    if table.empty:
        raise ValueError(
            "Nothing was timed: no chosen implementation takes part in a chosen case, or all were left out."
        )
    return finished(table, versions)


def with_ratios(table: pd.DataFrame, references: Sequence[str]) -> pd.DataFrame:
    """Milliseconds per atom and ratios of medians within each case.

    ``ratio_to_standard`` compares a relaxed or projected form with the standard one, compiled ones with the compiled;
    ``times_faster_than_plain`` compares with the network's plain e3nn form, ``times_faster_than_X`` with X.
    """
    median = table.set_index(["case", "contestant"]).ms_median
    result = table.assign(
        ms_per_atom=table.ms_median / table.n_atoms.where(table.n_atoms > 0),
        ratio_to_standard=_ratios(table, median, lambda name: _standard(name, references)) ** -1,
        times_faster_than_plain=_ratios(table, median, lambda name: name.partition(":")[0] + ":plain"),
    )
    for reference in references:
        result[f"times_faster_than_{reference}"] = _ratios(table, median, partial(_same, reference))
    return result


def _same(reference: str, name: str) -> str:
    """One implementation as the reference for all."""
    return reference


def _standard(name: str, peers: Sequence[str]) -> str:
    """The standard network of a form; peers have none."""
    if name in peers:
        return ""
    network, _, form = name.partition(":")
    _, compiled, training = form.partition("compiled")
    return f"{network}:{compiled}{training}" if compiled else network


def _ratios(table: pd.DataFrame, median: "pd.Series[float]", reference: Callable[[str], str]) -> "pd.Series[float]":
    """Median of the reference in the same case divided by the row's own; NaN without a reference."""
    names = zip(table.case, table.contestant, strict=True)
    other = [median.get((case, reference(name))) for case, name in names]
    return pd.Series(other, index=table.index, dtype=float) / table.ms_median


def with_limits(table: pd.DataFrame, limits: dict[str, Any]) -> pd.DataFrame:
    """Counted operations and bytes per second, as fractions of the machine's limits."""
    counted = table.reindex(columns=[*table.columns, *(name for name in ("gflop", "gbyte") if name not in table)])
    seconds = counted.ms_median / 1e3
    return counted.assign(
        matrix_limit_used=counted.gflop / seconds / limits["gflop_per_s"],
        memory_limit_used=counted.gbyte / seconds / limits["gbyte_per_s"],
    )


def printed(speed: Speed) -> str:
    """The table as text, case by case, without empty columns, followed by the machine's limits."""
    parts = []
    for case, rows in speed.table.groupby("case", sort=False):
        shown = rows.set_index("contestant").reindex(columns=SHOWN).dropna(axis=1, how="all").sort_values("ms_median")
        shown = shown.astype({name: "Int64" for name in ("n_parameters",) if name in shown})
        parts.append(f"{case}\n{shown.to_string(float_format=lambda value: f'{value:.4g}', na_rep='')}\n")
    limits = speed.limits
    parts.append(
        f"limits with {limits['threads']} threads, {speed.rules.dtype}: matrix product {limits['gflop_per_s']:.0f} "
        f"GFLOP/s, memory {limits['gbyte_per_s']:.1f} GB/s"
    )
    return "\n".join(parts)


def write_speed(speed: Speed, folder: Path, *, command: str) -> list[Path]:
    """speed.csv, speed.json with all data needed to check it, speed.md to read, and speed.png if MD was timed."""
    more = {"rules": speed.rules._asdict(), "limits": speed.limits, "versions": speed.versions}
    work = (
        "training step: energies, forces, squared errors, backward, Adam; MD step: velocity Verlet with ASE; nbody: "
        "forward, squared error, backward, Adam of 100 systems of 5 particles; import: a fresh process"
    )
    paths = write_table(speed.table, folder, command=command, work=work, name="speed", more=more)
    paths += write_texts(folder, {"speed.md": report(speed.table, speed.limits, dtype=speed.rules.dtype)})
    picture = folder / "speed.png"
    return paths if save(picture, partial(scaling, speed.table)) is None else [*paths, picture]


def memory_rules(most_GB: float | None = None) -> dict[str, float]:
    """Memory limits of a worker (0: its share of the free memory) and of all together, in MB."""
    return {"memory_MB": 1e3 * (most_GB or 0.0), "together_MB": TOGETHER * process_memory.available()}
