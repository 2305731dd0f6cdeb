"""A grid of N-body runs: every arm, depth, training-set size and seed in a folder of its own, side by side.

Each run is a process with one thread, so runs do not wait for each other's threads and cost what they say. Finished
runs are kept, interrupted ones go on from their last checkpoint.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml
from pydantic import ValidationError

from mdrelax.base.names import nearest_name
from mdrelax.base.sections import ConfigError, apply_overrides, explain
from mdrelax.packs.nbody.run import ARMS, NBodyRun, prepare_folder, read_result
from mdrelax.runs.jobs import run_side_by_side

__all__ = ["ERRORS", "Grid", "collect", "plan", "recipe", "run_all", "summarize"]

RECIPES = ("published", "tuned")
ERRORS = ("test_mse", "test_median", "test_share_of_worst_twentieth", "validation_mse")
KEYS = ["arm", "n_layers", "n_train"]  # what a row of the summary is about


class Grid(NamedTuple):
    """What is varied; every combination is a run."""

    arms: Sequence[str] = ("standard", "relaxed")
    seeds: Sequence[int] = (0, 1, 2)
    layers: Sequence[int] = (4,)
    train_sizes: Sequence[int] = (3000,)


def recipe(name: str = "tuned") -> dict[str, Any]:
    """A shipped recipe as a document: loss, optimiser and relaxation, the same for all arms; raises ``ConfigError``."""
    if name not in RECIPES:
        raise ConfigError(f"There is no recipe `{name}`; {nearest_name(name, RECIPES)}")
    text = (resources.files("mdrelax") / "presets" / "nbody" / f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def plan(grid: Grid, *, base: dict[str, Any], overrides: Sequence[str] = ()) -> list[NBodyRun]:
    """The runs of a grid, seeds outermost, so that a first comparison is there early; raises ``ConfigError``."""
    for arm in grid.arms:
        if arm not in ARMS:
            raise ConfigError(f"There is no arm `{arm}`; {nearest_name(arm, ARMS)}")
    if not all(grid):
        raise ConfigError("The grid is empty: name at least one arm, seed, number of layers and training-set size.")
    document = apply_overrides(base, overrides)
    runs = []
    for seed, size, layers, arm in product(grid.seeds, grid.train_sizes, grid.layers, grid.arms):
        training = {**document.get("training", {}), "seed": seed}
        try:
            runs.append(NBodyRun(**{**document, "arm": arm, "n_layers": layers, "n_train": size, "training": training}))
        except ValidationError as error:
            raise explain(error, NBodyRun) from error
    return runs


def run_all(
    runs: Sequence[NBodyRun],
    folder: Path,
    *,
    jobs: int,
    command: Sequence[str] = (sys.executable, "-m", "mdrelax", "bench", "nbody-run"),
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Run what is not finished, ``jobs`` at a time; ``command`` gets the run's folder as its last word.

    Raises ``ConfigError`` for a folder with other settings, ``RuntimeError`` naming the runs that failed.
    """
    for run in runs:
        prepare_folder(run, folder / run.name())
    run_side_by_side(
        [folder / run.name() for run in runs],
        lambda place: [*command, str(place)],
        finished=_outcome, jobs=jobs, tell=tell,
    )  # fmt: skip


def _outcome(place: Path) -> str | None:
    result = read_result(place)
    if result is None:
        return None
    return f"validation MSE {1e3 * result['validation_mse']:.3f}e-3 after {result['seconds'] / 60:.1f} min"


def collect(folder: Path) -> pd.DataFrame:
    """One row for each finished run below a folder; MSE in units of length squared, times in seconds."""
    results = [result for path in sorted(folder.glob("*/")) if (result := read_result(path)) is not None]
    return pd.DataFrame([_row(result) for result in results])


def _row(result: dict[str, Any]) -> dict[str, Any]:
    run, error = result["run"], result["equivariance_error_float64"]
    return {
        **{key: run[key] for key in KEYS},
        "seed": run["training"]["seed"],
        **{key: result[key] for key in ("steps", "best_step", "n_parameters", "n_free_parameters")},
        **{key: result[key] for key in ERRORS},
        "seconds": result["seconds"],
        "cpu_seconds": result["cpu_seconds"],
        "equivariance_error": max(error.values()),
    }


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread (sample standard deviation; NaN of one seed) over the seeds, a row a setting."""
    groups = table.groupby(KEYS, sort=True)
    summary = groups.agg(
        seeds=("seed", "count"),
        test_mse=("test_mse", "mean"),
        test_mse_std=("test_mse", "std"),
        validation_mse=("validation_mse", "mean"),
        cpu_minutes=("cpu_seconds", lambda seconds: seconds.mean() / 60),
    )
    return summary.reset_index()
