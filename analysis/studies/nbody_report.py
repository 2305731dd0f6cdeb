"""The report of an N-body study: its summary as a Markdown table, aligned for the terminal too, and what it means."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mdrelax.analysis.markdown import markdown

__all__ = ["report"]

HEADER = ["arm", "layers", "n_train", "seeds", "test MSE (1e-3)", "minus standard (1e-3)", "CPU minutes"]
EXPLANATION = (
    "`+-` is the sample standard deviation over the seeds. `minus standard` is the mean difference to the standard arm "
    "over common seeds, with its 95 % t interval. CPU minutes are those of one run."
)


def report(summary: pd.DataFrame, *, unfinished: Sequence[str] = (), unlike: Sequence[str] = ()) -> str:
    """The text of study.md for a table with a row a setting; names of runs left out, settings that should be alike."""
    notes = [EXPLANATION]
    if unlike:
        notes.append(f"Runs are compared that differ in more than they should: {', '.join(unlike)}.")
    if unfinished:
        notes.append(f"Left out, not finished ({len(unfinished)}): {', '.join(unfinished)}.")
    table = markdown([HEADER, *(_cells(row) for row in summary.to_dict("records"))])
    return "\n\n".join(["# N-body benchmark", table, *notes]) + "\n"


def _cells(row: Mapping[Any, Any]) -> list[str]:
    """A row in words; the mean error has three digits or two decimals, and what stands beside it as many."""
    error = 1e3 * row["test_mse"]
    decimals = max(2, 2 - int(np.floor(np.log10(error)))) if error > 0 else 2

    def shown(name: str, sign: str = "") -> str:
        return f"{1e3 * row[name]:{sign}.{decimals}f}"

    spread = f" +- {shown('test_mse_std')}" if row["seeds"] > 1 else ""
    difference = shown("minus_standard", "+") if row["pairs"] else ""
    if row["pairs"] > 1:
        difference += f" [{shown('minus_standard_low', '+')}, {shown('minus_standard_high', '+')}]"
    numbers = [str(row[name]) for name in ("arm", "n_layers", "n_train", "seeds")]
    return [*numbers, shown("test_mse") + spread, difference, f"{row['cpu_minutes']:.3g}"]
