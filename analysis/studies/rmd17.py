"""The rMD17 study: does relaxation pay on molecules? Every arm with every seed on each molecule, at one budget.

Runs are those of ``mdrelax compare``: paired, resumable, one thread each. What a finished run found is kept as one
small file MOLECULE-ARM-SEED.json, and a run whose file is there is not run again: a study of days goes on anywhere from
that folder alone.

| file | holds |
| --- | --- |
| MOLECULE-ARM-SEED.json | config, errors, cost, certificate, curves, versions, machine, date, command |
| runs.csv | a row a run |
| summary.csv | a row a molecule and arm: mean and spread over seeds, paired difference from the first arm |
| study.md, study.png | the tables beside published errors, and the learning curves |
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mdrelax.analysis.drawing import save
from mdrelax.analysis.studies.arm_figures import in_order
from mdrelax.analysis.studies.compare import (
    PairedRun,
    found_by,
    plan,
    read_results,
    run_all,
    summarize,
    without_folders,
)
from mdrelax.analysis.studies.rmd17_report import molecule_curves, report
from mdrelax.base.files import write_atomically
from mdrelax.base.names import nearest_name
from mdrelax.base.sections import ConfigError
from mdrelax.runs.config_changes import refuse_changes, with_defaults

__all__ = ["MOLECULES", "StudyRun", "collect", "plan_study", "run_study", "summarize_study", "write_study"]

# Optimiser steps of a run: about an hour on one core, compiled. A step of aspirin takes twice as long.
MOLECULES = {"ethanol": 50_000, "malonaldehyde": 50_000, "uracil": 50_000, "aspirin": 25_000}
CURVE = ("step", "theta", "val_forces_mae_meV_per_A", "val_energy_mae_meV", "train_forces_mae_meV_per_A")
LAYERS = ("step", "layer", "norm", "distance")  # of the free maps through training


class StudyRun(NamedTuple):
    """One arm with one seed on one molecule."""

    molecule: str
    run: PairedRun

    @property
    def name(self) -> str:
        """Of its result file, without the ending."""
        return f"{self.molecule}-{self.run.name}"


def plan_study(
    base: Mapping[str, Any],
    *,
    molecules: Sequence[str],
    arms: Sequence[str],
    seeds: Sequence[int],
    data: Path | None = None,
    overrides: Sequence[str] = (),
) -> list[StudyRun]:
    """The runs, seeds outermost, then molecules. ``data`` is a folder with rmd17_MOLECULE_{train,test}_01.npz.

    Without it the fetched trajectories are used. Raises ``ConfigError`` for an unknown molecule, a missing file, and
    what ``compare.plan`` refuses.
    """
    runs = []
    for molecule in molecules:
        if molecule not in MOLECULES:
            raise ConfigError(f"The study has no molecule `{molecule}`; {nearest_name(molecule, MOLECULES)}")
        own = [*_data_keys(molecule, data), f"training.steps={MOLECULES[molecule]}", *overrides]
        runs += [StudyRun(molecule, run) for run in plan(base, arms=arms, seeds=seeds, overrides=own)]
    return sorted(runs, key=lambda each: seeds.index(each.run.seed))


def _data_keys(molecule: str, folder: Path | None) -> list[str]:
    if folder is None:
        return [f"data.source=rmd17:{molecule}"]
    parts = {"source": "train", "test_source": "test"}
    files = {key: folder / f"rmd17_{molecule}_{part}_01.npz" for key, part in parts.items()}
    missing = [path.name for path in files.values() if not path.is_file()]
    if missing:
        raise ConfigError(f"`--data {folder}` lacks {', '.join(missing)}.")
    return [*(f"data.{key}={path.resolve()}" for key, path in files.items()), "data.test=null"]


def run_study(
    runs: Sequence[StudyRun],
    folder: Path,
    results: Path,
    *,
    jobs: int,
    command: str,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Train what has no result file, in ``folder``, and keep each result in ``results`` as soon as it is there.

    Raises ``ConfigError`` where a result file is of another recipe than the one planned.
    """
    _check_recipes(runs, read_study(results))
    waiting = {folder / each.molecule / each.run.name: each for each in runs if not _path(results, each).is_file()}
    places = {place: each.run.config for place, each in waiting.items()}

    def keep(line: str) -> None:
        store(waiting, results, command=command)  # first: telling may fail
        tell(line)

    store(waiting, results, command=command)
    run_all(places, jobs=jobs, tell=keep)


def _check_recipes(runs: Sequence[StudyRun], documents: Sequence[Mapping[str, Any]]) -> None:
    """A study compares runs of one recipe and budget: results of another may not stand among them."""
    plans = {(each.molecule, each.run.arm): each.run.config for each in runs}
    budgets = {each.molecule: each.run.config for each in runs}
    for document in documents:
        molecule, arm, saved = document["molecule"], document["arm"], document["config"]
        if (molecule, arm) in plans:
            old, new = (_recipe(config) for config in (saved, plans[molecule, arm]))
        elif molecule in budgets:  # an arm that is not planned now; of it the budget is known
            old, new = (_budget(config) for config in (saved, budgets[molecule]))
        else:
            continue
        found = f"`{molecule}-{arm}-{document['seed']}.json` is the result of another config"
        refuse_changes(old, new, found=found, choose="`--results`")


def _recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    """What all runs of an arm share: the config without the seed, and without how fast the machine steps."""
    known = with_defaults(without_folders(config))
    training = {key: value for key, value in known["training"].items() if key not in ("seed", "compile")}
    return {**known, "training": training}


def _budget(config: Mapping[str, Any]) -> dict[str, Any]:
    """What all arms of a molecule share at least: the data and the number of steps."""
    recipe = _recipe(config)
    return {"data": recipe["data"], "training": {"steps": recipe["training"]["steps"]}}


def store(places: Mapping[Path, StudyRun], results: Path, *, command: str) -> None:
    """Write the result file of every run that has finished in its folder and has none yet."""
    for place, each in places.items():
        path = _path(results, each)
        if path.is_file() or (found := read_results(place, each.run.config)) is None:
            continue
        curves = {"curve": _columns(place / "metrics.csv", CURVE)}
        if (place / "layers.csv").is_file():
            curves["layers"] = _columns(place / "layers.csv", LAYERS)
        document = {"molecule": each.molecule, "arm": each.run.arm, "seed": each.run.seed, "command": command,
                    "config": without_folders(each.run.config), **found, **curves}  # fmt: skip
        results.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(document, indent=1) + "\n").encode())


def _columns(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    table = pd.read_csv(path)
    return {name: table[name].tolist() for name in names if name in table}


def _path(results: Path, each: StudyRun) -> Path:
    return results / f"{each.name}.json"


def read_study(results: Path) -> list[dict[str, Any]]:
    """The documents of all result files in a folder, by molecule, arm and seed; none where there is no folder."""
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in results.glob("*-*-*.json")]
    arms = in_order(document["arm"] for document in documents)
    known = list(MOLECULES)
    return sorted(documents, key=lambda d: (known.index(d["molecule"]), arms.index(d["arm"]), d["seed"]))


def collect(documents: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row a run: molecule, and the columns of ``compare.collect``."""
    rows = [{**{key: d[key] for key in ("molecule", "arm", "seed")}, **found_by(d)} for d in documents]
    return pd.DataFrame(rows)


def summarize_study(table: pd.DataFrame) -> pd.DataFrame:
    """``compare.summarize`` of each molecule, with the largest number of steps."""
    parts = []
    for molecule, group in table.groupby("molecule", sort=False):
        summary = summarize(group)
        summary.insert(0, "molecule", molecule)
        summary["steps"] = group.groupby("arm", sort=False).steps.max().to_numpy()
        parts.append(summary)
    return pd.concat(parts, ignore_index=True)


def write_study(results: Path) -> list[Path]:
    """Tables, page and figure of the result files in a folder; raises ``ValueError`` where there are none."""
    documents = read_study(results)
    if not documents:
        raise ValueError(f"No run of the study has a result file in `{results}` yet.")
    table = collect(documents)
    summary = summarize_study(table)
    contents = {
        "runs.csv": table.to_csv(index=False),
        "summary.csv": summary.to_csv(index=False),
        "study.md": report(summary),
    }
    paths = []
    for name, text in contents.items():
        paths.append(results / name)
        write_atomically(paths[-1], text.encode())
    picture = results / "study.png"
    save(picture, lambda: molecule_curves(documents))
    return [*paths, picture]
