"""The page of a speed benchmark: the most important tables; every number is in speed.csv."""

from typing import Any

import pandas as pd

from mdrelax.analysis.markdown import markdown

__all__ = ["report"]

TABLES = [  # title, kinds of cases, column, its factor, digits behind the point
    ("Training step, ms", ("training", "nbody"), "ms_median", 1.0, 1),
    ("MD step, ms", ("md",), "ms_median", 1.0, 1),
    ("MD step, microseconds an atom", ("md",), "ms_per_atom", 1e3, 0),
    ("Times faster than the plain e3nn form", ("training", "nbody", "md"), "times_faster_than_plain", 1.0, 2),
    ("Time over the standard form's", ("training", "nbody"), "ratio_to_standard", 1.0, 2),
    ("Time over the standard form's, MD", ("md",), "ratio_to_standard", 1.0, 2),
    ("Peak memory, MB", ("training", "nbody"), "peak_MB", 1.0, 0),
    ("Peak memory, MB, MD", ("md",), "peak_MB", 1.0, 0),
    ("Fraction of the matrix limit", ("training", "nbody", "md"), "matrix_limit_used", 1.0, 2),
    ("Import, ms", ("import",), "ms_median", 1.0, 0),
]


def report(table: pd.DataFrame, limits: dict[str, Any], *, dtype: str) -> str:
    """The text of speed.md; an implementation that was dropped from a case has an empty cell."""
    parts = ["# Speed benchmark", _machine(limits, dtype)]
    for title, kinds, column, factor, digits in TABLES:
        rows = table[table.kind.isin(kinds)]
        if column not in rows or not rows[column].notna().any():
            continue
        values = factor * rows.pivot_table(index="contestant", columns="case", values=column, sort=False)
        if column in ("ratio_to_standard", "times_faster_than_plain"):  # not the references themselves
            values = values[~(values.isna() | (values == 1.0)).all(axis=1)]
        if len(values):
            parts += [f"## {title}", _table(values, digits)]
    return "\n\n".join(parts) + "\n"


def _machine(limits: dict[str, Any], dtype: str) -> str:
    return (
        f"Medians of steps taken in turns, {dtype}, {limits['threads']} threads; this machine reaches "
        f"{limits['gflop_per_s']:.0f} GFLOP/s in matrix products and {limits['gbyte_per_s']:.1f} GB/s of memory."
    )


def _table(values: pd.DataFrame, digits: int) -> str:
    header = ["", *(str(case) for case in values.columns)]
    cells = [[str(name), *("" if pd.isna(v) else f"{v:,.{digits}f}" for v in row)] for name, row in
             zip(values.index, values.to_numpy(), strict=True)]  # fmt: skip
    return markdown([header, *cells])
