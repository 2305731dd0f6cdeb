"""The point-cloud study: standard and relaxed vector neurons, ablations and comparators, by `mdrelax bench modelnet`.

Accuracies are in per cent: of all test shapes, and the mean over classes.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from mdrelax.analysis.drawing import panels, styled
from mdrelax.analysis.studies.measures import Factor, Measure, mean, minus_first, plain
from mdrelax.analysis.studies.run_files import Config, Done, arm_runs, draw, read_arm, resolve_settings, start_arm
from mdrelax.analysis.studies.study import Study
from mdrelax.packs.modelnet.run import ARMS, ModelNetRun

__all__ = ["ACCURACY", "STUDY", "confusion", "finished_runs", "write_study"]

MOST_NUMBERED = 20  # classes of a confusion matrix whose cells are numbered
ACCURACY = Measure("accuracy", "accuracy", "%", scale=100, higher_is_better=True)
CLASS_ACCURACY = Measure("class_accuracy", "class accuracy", "%", scale=100, higher_is_better=True)
PLACES = (
    "steps", "best_step", "n_parameters", "n_free_parameters", "test_accuracy", "test_class_accuracy", "test_loss",
    "validation_accuracy", "validation_class_accuracy", "validation_loss", "inference_ms", "seconds", "cpu_seconds",
)  # fmt: skip
NEEDS = (
    "run",
    "environment",
    "classes",
    *PLACES,
    "confusion",
    "equivariance_error_float64",
    "equivariance_error_float32",
)
EXPLANATION = (
    "`+-` is the sample standard deviation over the seeds. `minus {first}` is the mean difference to the {first} arm "
    "over common seeds, with its 95 % t interval. CPU minutes are those of one run, inference is processor time per "
    "shape. `rotation error` is the largest change of a score under rotations (float64), relative to the terms that "
    "scores are summed from."
)


STUDY = Study(
    title="ModelNet benchmark",
    arms={arm: (f"arm={arm}",) for arm in ARMS},
    measures=(ACCURACY, CLASS_ACCURACY),
    columns={
        **{name: name for name in PLACES},
        "rotation_error": lambda results: results["equivariance_error_float64"]["rotation"],
        "seconds_per_step": lambda results: results["cpu_seconds"] / results["steps"],
    },
    resolve=partial(resolve_settings, ModelNetRun),
    read=partial(read_arm, NEEDS),
    start=partial(start_arm, ModelNetRun),
    command=(sys.executable, "-m", "mdrelax", "bench", "modelnet-run"),
    factors={"penalty": Factor(("lambda", "lambda"), keys=lambda value: [f"relaxation.weight={value}"], log=True)},
    name="{arm}-lambda{penalty}-seed{seed}",
    first="standard",
    budget=(
        "data", "protocol", "network", "preset", "n_points", "n_train", "n_test", "training.steps", "training.epochs",
        "training.batch_size",
    ),
    aggregates={
        name: (name, lambda column: column.mean())
        for name in ("n_parameters", "n_free_parameters", "inference_ms", "rotation_error")
    },
    shown={
        "arm": plain("arm"),
        "lambda": plain("penalty"),
        "seeds": plain("seeds"),
        "{judged} accuracy (%)": mean(ACCURACY),
        "class accuracy (%)": mean(CLASS_ACCURACY),
        "minus {first} (%)": minus_first(ACCURACY),
        "parameters": plain("n_parameters", ",.0f"),
        "free ones": plain("n_free_parameters", ",.0f"),
        "CPU minutes": plain("cpu_minutes", ".3g"),
        "inference (ms)": plain("inference_ms", ".2f"),
        "rotation error": plain("rotation_error", ".0e"),
    },
    notes=lambda summary: [EXPLANATION],
    curve=("val_error", "validation error (%), projected network", 100),
)  # fmt: skip


def finished_runs(folder: Path) -> tuple[list[Done], list[str]]:
    """Every finished run below a folder, those to be compared together, and the names of those that have only begun.

    Raises ``ValueError`` if a file of a run cannot be read.
    """
    done, begun = arm_runs(folder, NEEDS, lambda name, config: {"penalty": _penalty_weight(name, config)})
    return STUDY.ordered(done), begun


def _penalty_weight(name: str, config: Config) -> float:
    """Lambda of a run, from its folder's name; arms without a penalty keep that of their row."""
    return float(name.partition("-lambda")[2].partition("-seed")[0] or config["relaxation"]["weight"])


def write_study(folder: Path, *, command: str = "") -> list[Path]:
    """Tables, record and figures of the finished runs below a folder; returns the paths written.

    Raises ``ValueError`` if no run has finished, or if a file of a run cannot be read.
    """
    done, begun = finished_runs(folder)
    written = STUDY.write(folder, done, unfinished=begun, command=command)
    drawings = STUDY.drawings(folder, done, written.table)
    drawings["confusion"] = partial(confusion, done)
    return [*written.paths, *draw(drawings, folder / "figures")]


@styled
def confusion(done: Sequence[Done]) -> Figure:
    """Which class test shapes are taken for: of the standard and the relaxed arm, all seeds together.

    A cell is the share of its row's shapes, in per cent.
    """
    counts: dict[str, npt.NDArray[np.int64]] = {}
    for run, results in done:
        arm = run.factors["arm"]
        if arm in ("standard", "relaxed"):
            counts[arm] = counts.get(arm, np.int64(0)) + np.array(results["confusion"])
    classes = done[0].results["classes"] if done else []
    figure, axes = panels(len(counts), "neither the standard nor the relaxed arm has finished", height=5.0)
    for ax, (arm, table) in zip(axes, counts.items(), strict=True):
        shares = 100 * table / np.maximum(table.sum(1, keepdims=True), 1)
        ax.imshow(shares, cmap="cividis", vmin=0, vmax=100, aspect="auto")
        for (row, column), share in np.ndenumerate(shares):
            if share >= 1 and len(classes) <= MOST_NUMBERED:
                ax.text(
                    column, row, f"{share:.0f}", ha="center", va="center", color="w" if share < 50 else "k", fontsize=7
                )
        ax.set_xticks(range(len(classes)), classes, rotation=90, fontsize=7)
        ax.set_yticks(range(len(classes)), classes if ax is axes[0] else [""] * len(classes), fontsize=7)
        ax.set(title=f"{arm} (%)", xlabel="taken for")
        ax.grid(visible=False)
    axes[0].set_ylabel("class")
    return figure
