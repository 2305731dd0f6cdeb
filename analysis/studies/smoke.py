"""The smoke study: networks with exact, approximate and no symmetry, standard and relaxed, by `mdrelax bench smoke`.

Errors are root mean squares of the velocity over rollouts of 20 frames, in cells per step: at later times of the
training tasks (Future), and in other tasks (Domain).
"""

import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mdrelax.analysis.studies.measures import Cell, Factor, Measure, mean, minus_first, plain
from mdrelax.analysis.studies.run_files import Config, Done, arm_runs, draw, read_arm, resolve_settings, start_arm
from mdrelax.analysis.studies.smoke_figures import (
    animation,
    errors_by_step,
    errors_by_symmetry,
    learnt_symmetry,
    read_rollouts,
    rollout_pictures,
)
from mdrelax.analysis.studies.study import Study
from mdrelax.base.files import write_atomically
from mdrelax.packs.smoke.run import ARMS, ROLLOUTS, SmokeRun

__all__ = ["DOMAIN", "FUTURE", "STUDY", "finished_runs", "set_name", "write_study"]

FUTURE = Measure("future", "RMSE, Future", "cells/step", digits=3)
DOMAIN = Measure("domain", "RMSE, Domain", "cells/step", digits=3)
PLACES = (
    "set", "steps", "best_step", "n_parameters", "n_free_parameters", "test_future", "test_domain", "validation_rmse",
    "symmetry_error", "data_symmetry_error", "inference_ms", "seconds", "cpu_seconds",
)  # fmt: skip
NEEDS = (
    "run",
    "environment",
    *PLACES,
    "future_by_step",
    "domain_by_step",
    "equivariance_error_float64",
    "equivariance_error_float32",
)
EXPLANATION = (
    "RMSE of the velocity over rollouts, cells per step; `+-` is the sample standard deviation over the seeds. `minus "
    "{first}` is the mean difference to the {first} arm over common seeds, with its 95 % t interval. `learnt symmetry "
    "error` is ||f(g x) - g f(x)|| / ||f(x)|| of one predicted frame under quarter turns, `of the data` how far the "
    "training flows are from what their symmetry predicts. CPU minutes are those of one run, inference is processor "
    "time per frame."
)


def _if_known(name: str) -> Cell:
    """A column of the summary, empty where there is no number."""
    return lambda row: f"{row[name]:.2g}" if math.isfinite(row[name]) else ""


STUDY = Study(
    title="Smoke benchmark",
    arms={arm: (f"arm={arm}",) for arm in ARMS},
    measures=(FUTURE, DOMAIN),
    columns={
        **{("kind" if name == "set" else name): name for name in PLACES},
        "validation_future": "validation_rmse",
        "validation_domain": "validation_rmse",
        "seconds_per_step": lambda results: results["cpu_seconds"] / results["steps"],
    },
    resolve=partial(resolve_settings, SmokeRun),
    read=partial(read_arm, NEEDS),
    start=partial(start_arm, SmokeRun),
    command=(sys.executable, "-m", "mdrelax", "bench", "smoke-run"),
    factors={"set": Factor(keys=lambda value: [])},
    name="{set}-{arm}-seed{seed}",
    first="rsteer",
    budget=(
        "data", "level", "preset", "sampling", "n_train", "n_validation", "n_test", "training.steps", "training.epochs",
        "training.batch_size",
    ),
    aggregates={
        name: (name, lambda column: column.mean())
        for name in ("n_parameters", "n_free_parameters", "symmetry_error", "data_symmetry_error", "inference_ms")
    },
    shown={
        "set": plain("set"),
        "arm": plain("arm"),
        "seeds": plain("seeds"),
        "{judged} Future": mean(FUTURE),
        "Domain": mean(DOMAIN),
        "Future minus {first}": minus_first(FUTURE),
        "Domain minus {first}": minus_first(DOMAIN),
        "parameters": plain("n_parameters", ",.0f"),
        "free ones": plain("n_free_parameters", ",.0f"),
        "learnt symmetry error": _if_known("symmetry_error"),
        "of the data": _if_known("data_symmetry_error"),
        "CPU minutes": plain("cpu_minutes", ".3g"),
        "inference (ms)": plain("inference_ms", ".2f"),
    },
    notes=lambda summary: [EXPLANATION],
    curve=("val_rmse", "validation RMSE (cells/step)", 1),
)  # fmt: skip


def set_name(data: str, level: int | None) -> str:
    """A set in names of folders and tables: that of its file, and the level of a graded one."""
    stem = "sample" if data.startswith("sample:") else Path(data).stem
    return stem if level is None else f"{stem}-level{level}"


def finished_runs(folder: Path) -> tuple[list[Done], list[str]]:
    """Every finished run below a folder, those to be compared together, and the names of those that have only begun.

    Raises ``ValueError`` if a file of a run cannot be read.
    """

    def levels(_: str, config: Config) -> dict[str, str]:
        return {"set": set_name(config["data"], config["level"])}

    done, begun = arm_runs(folder, NEEDS, levels)
    return STUDY.ordered(done), begun


def write_study(folder: Path, *, command: str = "") -> list[Path]:
    """Tables, record, figures and animations of the finished runs below a folder; returns the paths written.

    Raises ``ValueError`` if no run has finished, or if a file of a run cannot be read.
    """
    done, begun = finished_runs(folder)
    written = STUDY.write(folder, done, unfinished=begun, command=command)
    drawings = STUDY.drawings(folder, done, written.table)
    del drawings["errors_set"]  # sets are no numbers
    drawings |= {
        "rmse_by_step": partial(errors_by_step, done),
        "learnt_symmetry": partial(learnt_symmetry, written.table),
        "rmse_by_symmetry": partial(errors_by_symmetry, written.table, (FUTURE, DOMAIN)),
    }
    shown = {name: read_rollouts(_first_seeds(folder, done, name)) for name in _sets_to_show(done)}
    drawings |= {f"rollout_{name}": partial(rollout_pictures, rollouts) for name, rollouts in shown.items()}
    paths = [*written.paths, *draw(drawings, folder / "figures")]
    for name, rollouts in shown.items():
        if rollouts:
            paths.append(folder / "figures" / f"rollout_{name}.gif")
            write_atomically(paths[-1], animation(rollouts))
    return paths


def _sets_to_show(done: Sequence[Done]) -> list[str]:
    """Sets whose rollouts are drawn: of graded ones the first and the last level."""
    names = list(dict.fromkeys(each.run.factors["set"] for each in done))
    graded = sorted({each.run.config["level"] for each in done if each.run.config["level"] is not None})
    kept = {None, *graded[:1], *graded[-1:]}
    levels = {each.run.factors["set"]: each.run.config["level"] for each in done}
    return [name for name in names if levels[name] in kept]


def _first_seeds(folder: Path, done: Sequence[Done], name: str) -> dict[str, Path]:
    """The file of rollouts of each arm's first seed."""
    runs = [each.run for each in done if each.run.factors["set"] == name]
    return {run.factors["arm"]: folder / run.name / ROLLOUTS for run in reversed(runs)}
