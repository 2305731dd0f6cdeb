"""The page of the accuracy benchmark: accuracy.md, runs.csv, summary.csv and accuracy.png from the stored results."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from mdrelax.analysis.benchmarks.accuracy import MOST_OF_BUDGET, is_peer, read_results
from mdrelax.analysis.benchmarks.accuracy_times import COMPILED, read_times
from mdrelax.analysis.benchmarks.speed_figures import styles
from mdrelax.analysis.drawing import GREY, WIDTH, NothingToDrawError, log_scale, save, shared_legend, styled
from mdrelax.analysis.markdown import markdown
from mdrelax.analysis.tables import write_texts

__all__ = ["pareto", "pareto_figure", "runs_table", "summary_table", "write_accuracy"]

COLUMNS = {  # of runs.csv: place in a result
    "test_forces": "forces_mae_meV_per_A",
    "test_forces_rmse": "forces_rmse_meV_per_A",
    "test_energy": "energy_mae_meV",
    "test_energy_rmse": "energy_rmse_meV",
}
PANELS = {"ms": "MD step (ms)", "cpu_hours": "training (CPU-hours)", "n_parameters": "parameters"}
SETTING = ["molecule", "model", "budget_hours"]


def runs_table(results: Path) -> pd.DataFrame:
    """One row per stored run; ``ms`` and ``ms_ratio`` are those of its model in the timing run of its molecule."""
    rows = []
    for found in read_results(results):
        timed, name = read_times(results, found["molecule"]), found["model"].partition(":")[0]
        times, compiled = timed.get(name, {}), timed.get(f"{name}{COMPILED}", {})
        rows.append(
            {
                **{key: found[key] for key in (*SETTING, "seed")},
                **{column: found["test"].get(name, math.nan) for column, name in COLUMNS.items()},
                "cpu_hours": found["cpu_seconds"] / 3600, "budget_used": found["budget_used"],
                "steps": found["steps"], "epochs": found["epochs"], "n_parameters": found["n_parameters"],
                "ms": times.get("ms_median", math.nan), "ms_ratio": times.get("ratio", math.nan),
                "ms_compiled": compiled.get("ms_median", math.nan), "ms_reference": times.get("reference", ""),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def summary_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per molecule, model and budget: means over seeds, and the sample standard deviation of errors."""
    groups = runs.groupby(SETTING, sort=False)
    numbers = [*COLUMNS, "cpu_hours", "budget_used", "steps", "epochs", "n_parameters", "ms", "ms_ratio", "ms_compiled"]
    found = groups[numbers].mean()
    spread = groups[list(COLUMNS)].std().add_suffix("_std")
    return pd.concat([groups.size().rename("seeds"), found, spread], axis=1).reset_index()


def pareto(costs: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The places of the points that no other beats in cost and error, in the order of their costs."""
    order = np.lexsort((values, costs))
    kept, best = [], math.inf
    for place in order:
        if np.isfinite(costs[place]) and values[place] < best:
            kept.append(place)
            best = values[place]
    return np.array(kept, dtype=np.int64)


@styled
def pareto_figure(summary: pd.DataFrame) -> Figure:
    """Test force error against MD step, training time and parameters; a row of panels per molecule, all log-log.

    Lines join the budgets of a model, points grow with the budget; the grey line is the Pareto front. Raises
    ``NothingToDrawError`` without runs.
    """
    if summary.empty:
        raise NothingToDrawError("No run is stored: there is nothing to draw.")
    molecules = list(dict.fromkeys(summary.molecule))
    figure = Figure(figsize=(WIDTH, 0.5 + 3.1 * len(molecules)), layout="constrained")
    axes = figure.subplots(len(molecules), len(PANELS), squeeze=False)
    models = sorted(summary.model.unique(), key=lambda model: (is_peer(model), model))
    looks, budgets = styles(models), sorted(summary.budget_hours.unique())
    for row, molecule in zip(axes, molecules, strict=True):
        own = summary[summary.molecule == molecule]
        for ax, (column, label) in zip(row, PANELS.items(), strict=True):
            for model in models:
                _draw(ax, own[own.model == model], column, model, looks[model], budgets)
            _draw_front(ax, own[column].to_numpy(), own.test_forces.to_numpy())
            log_scale(ax, "y")
            ax.set(xlabel=label)
            if column == "cpu_hours":
                ax.set(xlim=(budgets[0] / 1.6, budgets[-1] * 1.6))
                ax.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
        row[0].set(ylabel="test force MAE (meV/Å)", title=molecule)
    shared_legend(figure)
    return figure


def _draw(
    ax: Axes, rows: pd.DataFrame, column: str, model: str, look: Mapping[str, Any], budgets: Sequence[float]
) -> None:
    """The points of a model, the larger the longer it was trained, and a line through them."""
    rows = rows[rows[column].notna()].sort_values("budget_hours")
    ax.plot([], [], label=model, **look)
    ax.plot(rows[column], rows.test_forces, **{**look, "markersize": 0.0})
    for x, y, budget in zip(rows[column], rows.test_forces, rows.budget_hours, strict=True):
        size = 4.5 + 2.0 * budgets.index(budget)
        ax.plot([x], [y], color=look["color"], marker=look["marker"], markersize=size, linestyle="")


def _draw_front(ax: Axes, costs: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> None:
    """The Pareto front as a staircase that ends right of the last point; the axis becomes logarithmic."""
    front = pareto(costs, values)
    if not len(front):
        ax.text(0.5, 0.5, "not timed yet", transform=ax.transAxes, ha="center", color=GREY)
        ax.set_xticks([])
        return
    log_scale(ax, "x")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1e6:g}M" if x >= 1e6 else _thousands(x)))
    x, y = np.append(costs[front], 1.2 * np.nanmax(costs)), np.append(values[front], values[front[-1]])
    ax.step(x, y, where="post", color=GREY, linewidth=0.9, zorder=0, label="Pareto front")


def _thousands(x: float) -> str:
    return f"{x / 1e3:g}k" if x >= 1e3 else f"{x:g}"


def page(summary: pd.DataFrame, runs: pd.DataFrame) -> str:
    """The text of accuracy.md."""
    parts = ["# Accuracy benchmark", _explanation(runs)]
    for molecule, rows in summary.groupby("molecule", sort=False):
        parts += [f"## {molecule}", _table(rows)]
    over = runs[runs.budget_used > MOST_OF_BUDGET]
    if len(over):
        names = ", ".join(
            f"{r.molecule} {r.model} {r.budget_hours:g} h ({r.budget_used:.2f})" for r in over.itertuples()
        )
        parts.append(f"Runs that used more than {MOST_OF_BUDGET:g} of their budget: {names}.")
    return "\n\n".join(parts) + "\n"


def _explanation(runs: pd.DataFrame) -> str:
    references = sorted(set(runs.ms_reference) - {""})
    ratio = f"; the ratio is to {' or '.join(references)} in the same timing run" if references else ""
    return (
        "Test errors after training for the same CPU time on the same frames, one thread a run: mean absolute ones of "
        "force components (meV/A) and of energies (meV), root mean squares in brackets, `+-` the sample standard "
        f"deviation over seeds. MD steps are taken in turns, float32, one thread, ASE{ratio}. In "
        "accuracy.png points grow with the budget, and the grey line is the Pareto front."
    )


def _table(rows: pd.DataFrame) -> str:
    """The rows of a molecule; MD steps of compiled networks have a column where there are any."""
    compiled = bool(rows.ms_compiled.notna().any())
    header = ["model", "budget, CPU-h", "seeds", "force MAE (RMSE)", "energy MAE (RMSE)", "CPU-h", "steps", "epochs",
              "parameters", "MD step, ms", "ratio", *(["compiled, ms"] if compiled else [])]  # fmt: skip
    lines = [
        [
            row["model"], f"{row['budget_hours']:g}", f"{row['seeds']}", _error(row, "test_forces"),
            _error(row, "test_energy"), f"{row['cpu_hours']:.3g}", f"{row['steps']:,.0f}", f"{row['epochs']:,.1f}",
            f"{row['n_parameters']:,.0f}", _number(row["ms"], ".1f"), _number(row["ms_ratio"], ".2f"),
            *([_number(row["ms_compiled"], ".1f")] if compiled else []),
        ]
        for row in rows.sort_values(["budget_hours", "test_forces"]).to_dict("records")
    ]  # fmt: skip
    return markdown([header, *lines])


def _error(row: Mapping[Any, Any], name: str) -> str:
    spread = f" +- {row[f'{name}_std']:.2f}" if row["seeds"] > 1 else ""
    return f"{row[name]:.2f}{spread} ({row[f'{name}_rmse']:.2f})"


def _number(value: float, form: str) -> str:
    return "" if pd.isna(value) else format(value, form)


def write_accuracy(results: Path) -> list[Path]:
    """Page, tables and figure of the results in a folder; raises ``ValueError`` if there are none."""
    runs = runs_table(results)
    if runs.empty:
        raise ValueError(f"`{results}` contains no finished run of the accuracy benchmark.")
    summary = summary_table(runs)
    texts = {
        "accuracy.md": page(summary, runs),
        "runs.csv": runs.to_csv(index=False),
        "summary.csv": summary.to_csv(index=False),
    }
    picture = results / "accuracy.png"
    save(picture, partial(pareto_figure, summary))
    return [*write_texts(results, texts), picture]
