"""The N-body study: every arm at every depth and training-set size, by `mdrelax bench nbody`.

Errors are mean squared errors of positions, shown in units of 1e-3 of the simulation's length squared.
"""

import sys
from collections.abc import Mapping
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from mdrelax.analysis.studies.measures import Factor, Measure, main_setting, mean, minus_first, plain
from mdrelax.analysis.studies.run_files import Done, arm_runs, draw, read_arm, resolve_settings, start_arm
from mdrelax.analysis.studies.study import Study
from mdrelax.base.names import nearest_name
from mdrelax.base.sections import ConfigError
from mdrelax.packs.nbody.run import ARMS, NBodyRun

__all__ = ["MSE", "PUBLISHED", "STUDY", "finished_runs", "recipe", "write_study"]

# Test MSE of charged particles with 3,000 training trajectories and 4 layers, as arXiv 2505.13631 quotes them. Its own
# method, ACE, was trained with other epochs, another rate and corrected centring.
PUBLISHED = {"EGNN": 7.1e-3, "SEGNN": 5.6e-3, "SEGNN, relaxed": 4.9e-3, "ACE": 3.8e-3}
PUBLISHED_TASK = {"data": "charged", "n_train": 3000, "n_test": 2000, "n_layers": 4}
RECIPES = ("ace", "published", "tuned")
MSE = Measure("mse", "MSE", "1e-3", scale=1e3, digits=3)
PLACES = (
    "steps", "best_step", "n_parameters", "n_free_parameters", "test_mse", "test_median",
    "test_share_of_worst_twentieth", "validation_mse", "seconds", "cpu_seconds",
)  # fmt: skip
NEEDS = ("run", "environment", *PLACES, "equivariance_error_float64", "equivariance_error_float32")
EXPLANATION = (
    "`+-` is the sample standard deviation over the seeds. `minus {first}` is the mean difference to the {first} arm "
    "over common seeds, with its 95 % t interval. CPU minutes are those of one run."
)


def recipe(name: str = "tuned") -> dict[str, Any]:
    """A shipped recipe as a document: loss, optimiser and relaxation, the same for all arms; raises ``ConfigError``."""
    if name not in RECIPES:
        raise ConfigError(f"There is no recipe `{name}`; {nearest_name(name, RECIPES)}")
    text = (resources.files("mdrelax") / "presets" / "nbody" / f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


STUDY = Study(
    title="N-body benchmark",
    arms={arm: (f"arm={arm}",) for arm in ARMS},
    measures=(MSE,),
    columns={
        **{name: name for name in PLACES},
        "equivariance_error": lambda results: max(results["equivariance_error_float64"].values()),
    },
    resolve=partial(resolve_settings, NBodyRun),
    read=partial(read_arm, NEEDS),
    start=partial(start_arm, NBodyRun),
    command=(sys.executable, "-m", "mdrelax", "bench", "nbody-run"),
    factors={
        "n_layers": Factor(("layer", "layers")),
        "n_train": Factor(("training trajectory", "training trajectories"), log=True),
    },
    name="{arm}-layers{n_layers}-train{n_train}-seed{seed}",
    first="standard",
    budget=("data", "n_test", "n_validation", "training.steps", "training.epochs", "training.batch_size"),
    shown={
        "arm": plain("arm"),
        "layers": plain("n_layers"),
        "n_train": plain("n_train"),
        "seeds": plain("seeds"),
        "test MSE (1e-3)": mean(MSE),
        "minus {first} (1e-3)": minus_first(MSE),
        "CPU minutes": plain("cpu_minutes", ".3g"),
    },
    notes=lambda summary: [EXPLANATION],
    curve=("val_mse", "validation MSE (10⁻³), projected network", 1e3),
)


def finished_runs(folder: Path) -> tuple[list[Done], list[str]]:
    """Every finished run below a folder, sorted by setting, and the names of unfinished ones.

    Raises ``ValueError`` if a file of a run cannot be read.
    """
    done, begun = arm_runs(folder, NEEDS, lambda _, config: {name: config[name] for name in STUDY.factors})
    return STUDY.ordered(done), begun


def write_study(folder: Path, *, command: str = "") -> list[Path]:
    """Tables, record and figures of the finished runs below a folder; returns the paths written.

    Raises ``ValueError`` if no run has finished, or if a file of a run cannot be read.
    """
    done, begun = finished_runs(folder)
    written = STUDY.write(folder, done, unfinished=begun, command=command)
    task = done[0].run.config | dict(zip(STUDY.factors, main_setting(written.table, list(STUDY.factors)), strict=True))
    published: Mapping[str, float] = PUBLISHED if all(task[k] == v for k, v in PUBLISHED_TASK.items()) else {}
    drawings = STUDY.drawings(folder, done, written.table, published=published)
    return [*written.paths, *draw(drawings, folder / "figures")]
