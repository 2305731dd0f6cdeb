"""Factors and measures of a study, paired differences of arms, and their text form."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

__all__ = [
    "Cell",
    "Factor",
    "Measure",
    "judged_by",
    "main_setting",
    "mean",
    "minus_first",
    "paired_difference",
    "plain",
    "verdict",
]

CONFIDENCE = 0.95

Cell = Callable[[Mapping[Any, Any]], str]  # of a row of the summary


class Measure(NamedTuple):
    """An error or a score by which arms are compared: the columns ``test_NAME`` and ``validation_NAME`` of runs.csv."""

    name: str
    label: str
    unit: str = ""
    scale: float = 1.0  # factor for display
    digits: int = 0  # least number of significant digits of a mean, which has at least two decimals
    higher_is_better: bool = False

    @property
    def axis(self) -> str:
        """Label and unit as in a figure."""
        unit = self.unit.replace("/A", "/Å").replace("1e-3", "10⁻³")
        return f"{self.label} ({unit})" if unit else self.label

    def text(self, value: float, *, like: float | None = None, sign: str = "") -> str:
        """A value as text, with as many decimals as ``like``."""
        shown = abs(self.scale * (value if like is None else like))
        decimals = max(2, self.digits - 1 - int(np.floor(np.log10(shown)))) if 0 < shown < np.inf else 2
        return f"{self.scale * value:{sign}.{decimals}f}"


class Factor(NamedTuple):
    """A quantity varied besides arm and seed. A value sets the config key of that name, or those of ``keys``."""

    nouns: tuple[str, str] = ("", "")  # singular and plural; none: the value is a name
    known: Sequence[Any] = ()  # allowed values, in the order of tables; empty: any number
    keys: Callable[[Any], Sequence[str]] | None = None  # section.key=value, which the user may override
    log: bool = False  # the axis of figures

    def words(self, value: Any) -> str:
        """A value with its noun."""
        return f"{value:,} {self.nouns[value != 1]}" if self.nouns[0] else str(value)


# --- comparisons ---


def judged_by(table: pd.DataFrame, measures: Sequence[Measure]) -> str:
    """`test`, or `validation` if no run has a test error, as in a search; ``table`` has one row per run."""
    names = [f"test_{measure.name}" for measure in measures]
    return "test" if table.reindex(columns=names).notna().any(axis=None) else "validation"


def main_setting(table: pd.DataFrame, names: Sequence[str]) -> tuple[Any, ...]:
    """The setting (a value of each named factor) of most arms, then of most runs, then the largest."""
    if not names:
        return ()
    groups = table.groupby(list(names), sort=False)
    return max((runs["arm"].nunique(), len(runs), setting[::-1]) for setting, runs in groups)[-1][::-1]


def paired_difference(table: pd.DataFrame, column: str, arm: str, first: str) -> dict[str, float]:
    """A column of an arm minus that of the first one, seed by seed; ``table`` has one row per run of one setting.

    ``pairs`` (seeds that both have), ``mean``, ``std`` (sample standard deviation), and ``low`` and ``high``, Student's
    95 % interval of the mean; NaN with too few pairs.
    """
    values = table.pivot_table(index="seed", columns="arm", values=column).reindex(columns=[arm, first])
    difference = (values[arm] - values[first]).dropna()
    pairs, average, std = len(difference), difference.mean(), difference.std()
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, max(pairs - 1, 1)) * std / np.sqrt(max(pairs, 1))
    return {"pairs": pairs, "mean": average, "std": std, "low": average - reach, "high": average + reach}


def verdict(summary: pd.DataFrame, measure: Measure) -> str:
    """A sentence for each arm after the first: its difference, and whether its interval excludes zero."""
    first, sentences = summary.iloc[0], []
    kind = "" if first["judged_by"] == "test" else f"{first['judged_by']} "
    for _, row in summary.iloc[1:].iterrows():
        difference, low, high = (row[f"{measure.name}_minus_first{end}"] for end in ("", "_low", "_high"))
        if not row["pairs"]:
            sentences.append(f"{row['arm']} has no finished pair with {first['arm']}.")
            continue
        share = 100 * abs(difference) / first[f"{first['judged_by']}_{measure.name}"]
        what = f"{kind}{measure.label}{' (higher is better)' if measure.higher_is_better else ''}"
        direction = "lower" if difference < 0 else "higher"
        words = f"{row['arm']}'s {what} is {share:.1f} % {direction} than {first['arm']}'s"
        if pd.isna(low):
            sentences.append(f"{words}; one pair of runs, so this may be chance.")
        else:
            sure = low > 0 or high < 0
            sentences.append(f"{words}; the 95 % interval of the difference {'excludes' if sure else 'includes'} zero.")
    return " ".join(sentences)


# --- cells of a page ---


def plain(name: str, form: str = "", scale: float = 1.0) -> Cell:
    """A column of the summary, unchanged or in a format."""
    return lambda row: format(row[name] if scale == 1.0 else scale * row[name], form)


def mean(measure: Measure, part: str | None = None) -> Cell:
    """Mean +- sample standard deviation of a measure, on test or validation data; default: the data compared."""

    def cell(row: Mapping[Any, Any]) -> str:
        name = f"{part or row['judged_by']}_{measure.name}"
        spread = f" +- {measure.text(row[f'{name}_std'], like=row[name])}" if row["seeds"] > 1 else ""
        return measure.text(row[name], like=row[name]) + spread if math.isfinite(row[name]) else ""

    return cell


def minus_first(measure: Measure) -> Cell:
    """The paired difference of an arm and its interval; empty for the first arm."""

    def cell(row: Mapping[Any, Any]) -> str:
        if not row["pairs"]:
            return ""
        like, name = row[f"{row['judged_by']}_{measure.name}"], f"{measure.name}_minus_first"
        found, low, high = (measure.text(row[f"{name}{end}"], like=like, sign="+") for end in ("", "_low", "_high"))
        return f"{found} [{low}, {high}]" if row["pairs"] > 1 else found

    return cell
