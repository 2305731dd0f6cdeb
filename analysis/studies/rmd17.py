"""The rMD17 study: does relaxation pay on molecules? Every arm with every seed on each molecule, at one budget.

Runs are those of ``mdrelax compare``: paired, resumable, one thread each. The result of a finished run is stored
as one small file MOLECULE-ARM-SEED.json (config, errors, cost, certificate, curves, versions, machine, date, command),
and runs with a file are skipped, so that a study of days can be resumed anywhere from that folder alone.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from mdrelax.analysis.drawing import save
from mdrelax.analysis.markdown import markdown
from mdrelax.analysis.studies import forces
from mdrelax.analysis.studies.arm_figures import RunTables, learning_curves
from mdrelax.analysis.studies.forces import ENERGY, FORCES
from mdrelax.analysis.studies.measures import Factor, mean, minus_first, plain
from mdrelax.analysis.studies.run_files import Done, Run, portable_config
from mdrelax.analysis.studies.study import Study
from mdrelax.base.files import write_atomically
from mdrelax.base.sections import ConfigError
from mdrelax.runs.jobs import ONE_THREAD_EACH, Start

__all__ = ["MOLECULES", "STUDY", "data_keys", "read_study", "run_study", "store", "study_of", "write_study"]

# Optimiser steps of a run: about an hour on one core, compiled. A step of aspirin takes twice as long.
MOLECULES = {"ethanol": 50_000, "malonaldehyde": 50_000, "uracil": 50_000, "aspirin": 25_000}
CURVES = {  # stored columns of a run's tables
    "curve": ("metrics.csv", ("step", "theta", "val_forces_mae_meV_per_A", "val_energy_mae_meV",
                              "train_forces_mae_meV_per_A")),
    "layers": ("layers.csv", ("step", "layer", "norm", "distance")),
}  # fmt: skip
EXPLANATION = (
    "950 training frames, errors on the test frames: mean absolute ones of force components (meV/A) and energies "
    "(meV), `+-` the sample standard deviation over seeds. `minus {first}` is the mean difference of force errors "
    "over common seeds, with its 95 % t interval. CPU-h are one run's hours on one core. NVE drift: the largest of the "
    "runs at 300 K, meV/atom/ps; a run that exploded or broke a bond is counted beside it."
)
PUBLISHED = {  # energy / force in meV and meV/A, 950 training frames
    "rMD17, the official splits (from the MACE paper, arXiv 2206.07697)": {
        "MACE": {"ethanol": (0.4, 2.1), "malonaldehyde": (0.8, 4.1), "uracil": (0.5, 2.1), "aspirin": (2.2, 6.6)},
        "NequIP": {"ethanol": (0.4, 2.8), "malonaldehyde": (0.8, 5.1), "uracil": (0.4, 3.1), "aspirin": (2.3, 8.2)},
    },
    "original MD17, other labels (arXiv 2206.11990)": {"Equiformer, L = 2": {"aspirin": (5.3, 7.2)}},
}


def _keys(folder: Path | None, molecule: str) -> list[str]:
    """Data and budget of a molecule."""
    return [*data_keys(folder, molecule), f"training.steps={MOLECULES[molecule]}"]


def data_keys(folder: Path | None, molecule: str) -> list[str]:
    """The data of a molecule, fetched or in a folder; raises ``ConfigError`` for a folder that lacks its files."""
    if folder is None:
        return [f"data.source=rmd17:{molecule}"]
    parts = {"source": "train", "test_source": "test"}
    files = {key: folder / f"rmd17_{molecule}_{part}_01.npz" for key, part in parts.items()}
    missing = [path.name for path in files.values() if not path.is_file()]
    if missing:
        raise ConfigError(f"`--data {folder}` lacks {', '.join(missing)}.")
    return [*(f"data.{key}={path.resolve()}" for key, path in files.items()), "data.test=null"]


def _drift(row: Mapping[Any, Any]) -> str:
    drift = "" if pd.isna(row["worst_nve_drift"]) else f"{row['worst_nve_drift']:.4f}"
    return f"{drift} ({row['unstable']} unstable)".strip() if row["unstable"] else drift


def _notes(summary: pd.DataFrame) -> list[str]:
    return [EXPLANATION, "Published, energy / force:", published(list(dict.fromkeys(summary.molecule)))]


def published(molecules: Sequence[str]) -> str:
    """The published errors of some molecules as a table."""
    rows = [["", "data", *molecules]]
    for data, networks in PUBLISHED.items():
        for network, errors in networks.items():
            if set(errors) & set(molecules):
                cells = [f"{errors[m][0]} / {errors[m][1]}" if m in errors else "" for m in molecules]
                rows.append([network, data, *cells])
    return markdown(rows)


def study_of(data: Path | None = None) -> Study:
    """The study on the fetched trajectories, or on a folder with rmd17_MOLECULE_{train,test}_01.npz."""
    return forces.STUDY._replace(
        title="rMD17 study",
        factors={"molecule": Factor(known=tuple(MOLECULES), keys=partial(_keys, data))},
        name="{molecule}/{arm}-{seed}",
        shown={
            "molecule": plain("molecule"),
            "arm": plain("arm"),
            "seeds": plain("seeds"),
            "steps": plain("steps", ","),
            "CPU-h": plain("cpu_minutes", ".2f", 1 / 60),
            "force MAE": mean(FORCES),
            "minus {first}": minus_first(FORCES),
            "energy MAE": mean(ENERGY),
            "NVE drift": _drift,
        },
        notes=_notes,
        page="study.md",
        record=None,  # the result files are
    )


STUDY = study_of()


def run_study(
    runs: Sequence[Run],
    folder: Path,
    results: Path,
    *,
    jobs: int,
    command: str,
    start: Start = ONE_THREAD_EACH,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Train the runs without a result file in ``folder``, and store each result in ``results`` when it is finished.

    Raises ``ConfigError`` if a result file has another recipe than the planned one.
    """
    STUDY.refuse_mixtures(runs, read_study(results))
    waiting = [run for run in runs if not _path(results, run).is_file()]

    def keep(line: str) -> None:
        store(waiting, folder, results, command=command)  # first, because printing may fail
        tell(line)

    store(waiting, folder, results, command=command)
    missing = [run for run in waiting if not _path(results, run).is_file()]
    STUDY.run(missing, folder, jobs=jobs, start=start, tell=keep)


def store(runs: Sequence[Run], folder: Path, results: Path, *, command: str) -> None:
    """Write the result file of every finished run that has none yet."""
    missing = [run for run in runs if not _path(results, run).is_file()]
    for run, found in STUDY.finished(missing, folder):
        document = {**run.factors, "command": command, "config": portable_config(run.config), **found}
        for key, (name, columns) in CURVES.items():
            if (folder / run.name / name).is_file():
                table = pd.read_csv(folder / run.name / name)
                document[key] = {column: table[column].tolist() for column in columns if column in table}
        results.mkdir(parents=True, exist_ok=True)
        write_atomically(_path(results, run), (json.dumps(document, indent=1) + "\n").encode())


def _path(results: Path, run: Run) -> Path:
    return results / f"{run.name.replace('/', '-')}.json"


def read_study(results: Path) -> list[Done]:
    """The runs of all result files in a folder, by molecule, arm and seed; none if there is no folder."""
    done = []
    for path in results.glob("*-*-*.json"):
        document = json.loads(path.read_text(encoding="utf-8"))
        factors = {key: document[key] for key in ("molecule", "arm", "seed")}
        done.append(Done(Run(path.name, factors, document["config"]), document))
    return STUDY.ordered(done)


def write_study(results: Path) -> list[Path]:
    """Tables, page and figure of the result files in a folder; raises ``ValueError`` if there are none."""
    done = read_study(results)
    written = STUDY.write(results, done)
    column, label, scale = STUDY.curve
    curves = [
        RunTables(run.factors["arm"], run.factors["seed"], pd.DataFrame(found["curve"]), panel=run.factors["molecule"])
        for run, found in done
    ]
    save(results / "study.png", partial(learning_curves, curves, column, label, scale=scale))
    return [*written.paths, results / "study.png"]
