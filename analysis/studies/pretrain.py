"""The pre-training study: what is a network worth that was pre-trained on xTB labels, for few and for many DFT frames?

Learning curves on the four rMD17 molecules, by `mdrelax bench pretrain`, at equal budgets:

| arm | before the DFT frames | steps on the DFT frames |
| --- | --- | --- |
| pre-trained | labels, ``pretrain.steps`` steps on them | the rest of ``training.steps`` |
| scratch | nothing | as many as the pre-trained network |
| scratch-long | nothing | ``training.steps``, and those that cost as much CPU time as the labels |

All arms of a seed have the same training and validation frames, drawn with that seed, and are never relaxed.
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mdrelax.analysis.drawing import WIDTH, NothingToDrawError, log_scale, shared_legend, styled
from mdrelax.analysis.studies import forces
from mdrelax.analysis.studies.arm_figures import arm_style, in_order
from mdrelax.analysis.studies.forces import ENERGY, FORCES
from mdrelax.analysis.studies.measures import Factor, mean, minus_first, plain
from mdrelax.analysis.studies.rmd17 import MOLECULES, data_keys
from mdrelax.analysis.studies.run_files import Config, Done, Run, draw, read_results
from mdrelax.analysis.studies.study import Study
from mdrelax.base.sections import ConfigError
from mdrelax.runs.config import load_config
from mdrelax.runs.config_changes import read_saved

__all__ = ["BASE", "SIZES", "STUDY", "finished_runs", "learning_curve", "study_of", "write_study"]

SIZES = (50, 100, 200, 450, 950)
BASE = [  # overrides of the preset rmd17-ethanol
    "training.steps=19000", "pretrain.steps=12000", "pretrain.frames=20000", "relaxation.schedule=off",
    "md_picoseconds=0",
]  # fmt: skip
ARM = "arm="  # the key of an arm, which is none of a config
ARMS = ("scratch", "scratch-long", "pre-trained")
# CPU time of a labelled frame over that of a compiled step of `small` with five frames, on one core.
LABEL_STEPS = {"ethanol": 0.5, "malonaldehyde": 0.7, "uracil": 0.7, "aspirin": 0.8}
EXPLANATION = (
    "Force and energy errors are mean absolute ones on the test frames (meV/A, meV), `+-` is the sample standard "
    "deviation over seeds, each with its own training frames; 50 more DFT frames validate. `minus {first}` is the mean "
    "difference of force errors over common seeds, with its 95 % t interval. Steps are those of both stages, CPU-h "
    "those of one run on one core, the labels included. `scratch` has the steps of the fine-tuning alone, "
    "`scratch-long` the CPU time of the whole pre-trained run."
)


def _resolve(base: Config, changes: Sequence[str]) -> dict[str, Any]:
    """The config of an arm, from that of the pre-trained one; raises ``ConfigError``."""
    own = [change for change in changes if not change.startswith((ARM, "molecule="))]
    arm, molecule = (next((c.partition("=")[2] for c in changes if c.startswith(k)), "") for k in (ARM, "molecule="))
    config = load_config(base, overrides=[*own, "standard_baseline=false"])
    steps, pretrain = config.training.steps or 0, config.pretrain
    if pretrain is None:
        raise ConfigError("`bench pretrain` compares runs with and without `pretrain`: leave that section in.")
    document = config.model_dump(mode="json")
    document["data"]["seed"] = config.training.seed
    document["pretrain"]["seed"] = config.training.seed
    if arm != "pre-trained":
        labels = round(LABEL_STEPS[molecule] * pretrain.frames)
        document["pretrain"] = None
        document["training"]["steps"] = steps + labels if arm == "scratch-long" else steps - pretrain.steps_of(steps)
    return load_config(document).model_dump(mode="json")


def _keys(folder: Path | None, molecule: str) -> list[str]:
    return [*data_keys(folder, molecule), f"molecule={molecule}"]


def study_of(data: Path | None = None) -> Study:
    """The study on the fetched trajectories, or on a folder with rmd17_MOLECULE_{train,test}_01.npz."""
    return forces.STUDY._replace(
        title="Pre-training study",
        arms={arm: (f"{ARM}{arm}",) for arm in ARMS},
        resolve=_resolve,
        factors={
            "molecule": Factor(known=tuple(MOLECULES), keys=partial(_keys, data)),
            "n_train": Factor(("DFT frame", "DFT frames"), keys=lambda n: [f"data.train={n}"], log=True),
        },
        name="{molecule}/{arm}-{n_train}-{seed}",
        first="scratch",
        own_arms=False,
        budget=("data",),
        seeds=("data.seed", "pretrain.seed"),
        shown={
            "molecule": plain("molecule"),
            "DFT frames": plain("n_train"),
            "arm": plain("arm"),
            "seeds": plain("seeds"),
            "steps": plain("steps", ","),
            "CPU-h": plain("cpu_minutes", ".2f", 1 / 60),
            "force MAE": mean(FORCES),
            "minus {first}": minus_first(FORCES),
            "energy MAE": mean(ENERGY),
        },
        notes=lambda summary: [EXPLANATION],
        page="study.md",
        record="study.json",
    )


STUDY = study_of()


def finished_runs(folder: Path) -> tuple[list[Done], list[str]]:
    """Every finished run below a folder, by molecule, size and arm, and the names of those that have only begun."""
    done, begun = [], []
    for place in sorted(path.parent for path in folder.glob("*/*/config.yaml")):
        found = re.fullmatch(r"(.+)-(\d+)-(\d+)", place.name)
        if found is None or found[1] not in ARMS or place.parent.name not in MOLECULES:
            continue
        factors = {"molecule": place.parent.name, "n_train": int(found[2]), "arm": found[1], "seed": int(found[3])}
        name = f"{place.parent.name}/{place.name}"
        results = read_results(place / "results.json", ("validation", "cpu_seconds"))
        if results is None or not (place / "report.html").is_file():
            begun.append(name)
            continue
        done.append(Done(Run(name, factors, read_saved(place / "config.yaml")), results))
    return sorted(done, key=_order), begun


def _order(each: Done) -> tuple[int, int, int, int]:
    factors = each.run.factors
    molecule, arm = list(MOLECULES).index(factors["molecule"]), ARMS.index(factors["arm"])
    return molecule, factors["n_train"], arm, factors["seed"]


@styled
def learning_curve(table: pd.DataFrame) -> Figure:
    """Test force MAE against the number of DFT frames, one panel per molecule; both axes are logarithmic.

    ``table`` has one row per run. Lines join the means over seeds, dots are single seeds.
    """
    known = table[table["test_forces"].notna()] if "test_forces" in table else table[:0]
    molecules = [molecule for molecule in MOLECULES if molecule in set(known["molecule"])] if len(known) else []
    if not molecules:
        raise NothingToDrawError("No run has a test error: there is nothing to draw.")
    rows, columns = -(-len(molecules) // 2), min(2, len(molecules))
    figure = Figure(figsize=(WIDTH if columns == 2 else 0.6 * WIDTH, 3.0 * rows), layout="constrained")
    axes: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    arms = in_order(known["arm"])
    for ax, molecule in zip(axes, molecules, strict=False):
        own = known[known["molecule"] == molecule]
        for arm in arms:
            runs = own[own["arm"] == arm]
            colour, marker = arm_style(arm, arms)
            means = runs.groupby("n_train")["test_forces"].mean()
            ax.plot(means.index, means, color=colour, marker=marker, markersize=4.5, label=arm)
            ax.plot(runs["n_train"], runs["test_forces"], ".", color=colour, markersize=4, alpha=0.6)
        log_scale(ax, "x")
        log_scale(ax, "y")
        ticks = sorted(own["n_train"].unique())
        ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        ax.set(title=molecule, xlabel="DFT training frames", ylabel=f"test {FORCES.axis}")
    for ax in axes[len(molecules) :]:
        ax.set_visible(False)
    shared_legend(figure)
    return figure


def write_study(folder: Path, *, command: str = "") -> list[Path]:
    """Page, tables, record and figures of the finished runs below a folder; raises ``ValueError`` if there are none."""
    done, begun = finished_runs(folder)
    written = STUDY.write(folder, done, unfinished=begun, command=command)
    return [*written.paths, *draw({"learning_curve": partial(learning_curve, written.table)}, folder / "figures")]
