"""An N-body study: what a folder of finished runs says, as tables, figures and one file to check every number with.

| file | holds |
| --- | --- |
| study.md | the summary, to be read |
| summary.csv | a row a setting: mean and spread over seeds, and the paired difference to the standard arm |
| runs.csv | a row a run |
| study.json | commands, settings, versions, machine, and what each run says of itself |
| figures/*.png | those that have something to show |

Runs that have not finished are left out, and counted. Errors are mean squared errors of positions.
"""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mdrelax.analysis.drawing import NothingToDrawError, png
from mdrelax.analysis.studies.arm_figures import RunTables, learning_curves, lie_derivatives
from mdrelax.analysis.studies.nbody_figures import arms_overview, main_setting, mse_against
from mdrelax.analysis.studies.nbody_grid import ERRORS, KEYS, collect, summarize
from mdrelax.analysis.studies.nbody_report import report
from mdrelax.analysis.studies.statistics import half_interval
from mdrelax.base.files import write_atomically
from mdrelax.base.provenance import portable
from mdrelax.datasets.nbody import SYSTEMS
from mdrelax.packs.nbody.run import ARMS, read_result
from mdrelax.runs.config_changes import changed_keys

__all__ = ["PUBLISHED", "paired_differences", "write_study"]

# Test MSE of charged particles with 3,000 training trajectories and 4 layers, as arXiv 2505.13631 quotes them. Its own
# method, ACE, was trained with other epochs, another rate and corrected centring.
PUBLISHED = {"EGNN": 7.1e-3, "SEGNN": 5.6e-3, "SEGNN, relaxed": 4.9e-3, "ACE": 3.8e-3}
PUBLISHED_TASK = {"data": "charged", "n_train": 3000, "n_test": 2000, "n_layers": 4}

VALIDATION = "validation MSE (10⁻³), projected network"
FIGURES = ("mse_layers", "mse_train_size", "learning_curves", "lie_derivatives", "arms")
OF_A_RUN = (  # what study.json repeats from a run's results.json, beside its settings and environment
    *ERRORS, "best_step", "steps", "seconds", "cpu_seconds", "n_parameters", "n_free_parameters",
    "equivariance_error_float64", "equivariance_error_float32",
)  # fmt: skip
VARIED = {"arm", "n_layers", "n_train", "training.seed"}  # in which the runs of a study may differ; and
ARM_KEYS = {f"relaxation.{key}" for changes in ARMS.values() for key in changes}  # in these, from arm to arm

Document = dict[str, Any]


def write_study(folder: Path, *, command: str = "") -> list[Path]:
    """Write tables, figures and study.json of the finished runs below a folder; returns the paths written.

    ``command`` is kept in study.json, with those given before for the same folder. Raises ``ValueError`` when no run
    has finished, or when a file of a run cannot be read.
    """
    results, unfinished = _read_runs(folder)
    table = collect(folder)
    twice = table.duplicated([*KEYS, "seed"])
    if twice.any():
        arm, n_layers, n_train, seed = table.loc[twice, [*KEYS, "seed"]].iloc[0]
        raise ValueError(
            f"`{folder}` holds the run {arm}, {n_layers} layers, {n_train} trajectories, seed {seed} twice; move the "
            "copy somewhere else."
        )
    summary = _ordered(summarize(table).merge(paired_differences(table), on=KEYS, how="left"))
    summary["pairs"] = summary["pairs"].fillna(0).astype(int)
    study = _study(results, unfinished, _commands(folder / "study.json", portable(command)))
    contents = {
        "study.md": report(
            summary, unfinished=unfinished, unlike=_unlike([result["run"] for result in results.values()])
        ),
        "summary.csv": summary.to_csv(index=False),
        "runs.csv": _ordered(table).to_csv(index=False),
        "study.json": json.dumps(study, indent=2) + "\n",
    }
    for name, text in contents.items():
        write_atomically(folder / name, text.encode())
    return [*(folder / name for name in contents), *_draw(folder, table, results)]


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    """Rows that are to be compared stand together: by depth, training set, then arm."""
    order = table["arm"].map(list(ARMS).index)
    return table.iloc[np.lexsort((order, table["n_train"], table["n_layers"]))].reset_index(drop=True)


def paired_differences(table: pd.DataFrame) -> pd.DataFrame:
    """Test error of every arm minus that of the standard arm, seed by seed, a row a setting; ``table`` has a row a run.

    Columns: ``pairs`` (seeds that both have), ``minus_standard`` (mean), ``minus_standard_std`` (sample standard
    deviation), ``minus_standard_low`` and ``_high`` (95 % t interval of the mean; NaN for one pair).
    """
    key = ["n_layers", "n_train", "seed"]
    standard = table.loc[table["arm"] == "standard", [*key, "test_mse"]]
    pairs = table[table["arm"] != "standard"].merge(standard, on=key, suffixes=("", "_standard"))
    pairs["difference"] = pairs["test_mse"] - pairs["test_mse_standard"]
    found = pairs.groupby(KEYS)["difference"].agg(["count", "mean", "std"]).reset_index()
    found.columns = pd.Index([*KEYS, "pairs", "minus_standard", "minus_standard_std"])
    reach = half_interval(found["minus_standard_std"], found["pairs"])
    return found.assign(
        minus_standard_low=found["minus_standard"] - reach, minus_standard_high=found["minus_standard"] + reach
    )


# --- read ---


def _read_runs(folder: Path) -> tuple[dict[str, Document], list[str]]:
    """What every finished run says of itself by name, and the names of the runs that have not finished."""
    results, unfinished = {}, []
    for place in sorted({path.parent for name in ("run.yaml", "results.json") for path in folder.glob(f"*/{name}")}):
        try:
            result = read_result(place)
            lacking = [name for name in ("run", "environment", *OF_A_RUN) if name not in (result or {})]
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"`{place / 'results.json'}` cannot be read ({error}); delete it and run again."
            ) from error
        if result is None:
            unfinished.append(place.name)
        elif lacking:
            raise ValueError(f"`{place / 'results.json'}` lacks {', '.join(lacking)}; delete it and run again.")
        else:
            results[place.name] = result
    if not results:
        begun = f": {len(unfinished)} have begun" if unfinished else ""
        raise ValueError(f"`{folder}` holds no finished run of the N-body benchmark{begun}.")
    return results, unfinished


def _read_table(path: Path) -> pd.DataFrame | None:
    """A table of a run, None without it."""
    if not path.is_file():
        return None
    try:
        return pd.read_csv(path)
    except ValueError as error:
        raise ValueError(f"`{path}` cannot be read ({error}); delete it to do without.") from error


# --- study.json ---


def _study(results: Mapping[str, Document], unfinished: Sequence[str], commands: Sequence[str]) -> Document:
    """The document of study.json: what all runs share once, what they do not share run by run."""
    configs = {name: _without_place(result["run"]) for name, result in results.items()}
    config = _shared(list(configs.values()))
    machine = _shared([result["environment"] for result in results.values()])
    return {
        "benchmark": "nbody",
        "command": commands[-1] if commands else None,
        "earlier_commands": list(commands[:-1]),
        "config": config,
        "environment": machine,
        "unfinished": list(unfinished),
        "runs": [
            {
                "name": name,
                "seed": result["run"]["training"]["seed"],
                **{key: result[key] for key in OF_A_RUN},
                "config": _beyond(configs[name], config),
                "environment": _beyond(result["environment"], machine),
            }
            for name, result in results.items()
        ],
    }


def _shared(documents: Sequence[Document]) -> Document:
    """What all documents say alike, section by section."""
    found: Document = {}
    for key, value in documents[0].items():
        if all(isinstance(document.get(key), dict) for document in documents):
            if inner := _shared([document[key] for document in documents]):
                found[key] = inner
        elif all(key in document and document[key] == value for document in documents):
            found[key] = value
    return found


def _beyond(document: Document, shared: Document) -> Document:
    """What a document says that ``shared`` does not."""
    found: Document = {}
    for key, value in document.items():
        if isinstance(value, dict) and isinstance(shared.get(key), dict):
            if inner := _beyond(value, shared[key]):
                found[key] = inner
        elif key not in shared:
            found[key] = value
    return found


def _without_place(config: Document) -> Document:
    """Settings whose data folder has lost the path to it, which means nothing on another machine."""
    return config if config["data"] in SYSTEMS else {**config, "data": Path(config["data"]).name}


def _commands(path: Path, command: str) -> list[str]:
    """The commands that an older study.json knows and this one, last, each once."""
    known: list[str | None] = []
    with contextlib.suppress(OSError, ValueError, AttributeError):  # none yet, or none of ours
        old = json.loads(path.read_text(encoding="utf-8"))
        known = [*old.get("earlier_commands", []), old.get("command")]
    return [*(text for text in known if text and text != command), *([command] if command else [])]


def _unlike(configs: Sequence[Document]) -> list[str]:
    """The settings in which runs differ that ought to be alike: beside what is varied, and beside what makes an arm."""

    def changes(one: Document, other: Document) -> set[str]:
        return {line.partition(":")[0] for line in changed_keys(one, other)}

    found: set[str] = set()
    for config in configs:
        of_same_arm = next(other for other in configs if other["arm"] == config["arm"])
        found |= changes(config, of_same_arm) | (changes(config, configs[0]) - ARM_KEYS)
    return sorted(found - VARIED)


# --- figures ---


def _draw(folder: Path, table: pd.DataFrame, results: Mapping[str, Document]) -> list[Path]:
    """Every figure that has something to show; curves are those of the setting with most arms and runs."""
    setting = main_setting(table)
    runs = [run for name, result in results.items() if (run := _tables(folder / name, result, setting)) is not None]
    task = {**next(iter(results.values()))["run"], "n_layers": setting[0], "n_train": setting[1]}
    published = PUBLISHED if all(task[key] == value for key, value in PUBLISHED_TASK.items()) else {}
    drawings: dict[str, Callable[[], Figure]] = {
        "mse_layers": partial(mse_against, table, "n_layers"),
        "mse_train_size": partial(mse_against, table, "n_train"),
        "learning_curves": partial(learning_curves, runs, "val_mse", VALIDATION, scale=1e3),
        "lie_derivatives": partial(lie_derivatives, runs),
        "arms": partial(arms_overview, table, published=published),
    }
    paths = [folder / "figures" / f"{name}.png" for name in FIGURES]
    for path in paths:
        path.unlink(missing_ok=True)  # an older picture must not stand beside new numbers
        with contextlib.suppress(NothingToDrawError):
            write_atomically(path, png(drawings[path.stem]()))
    return [path for path in paths if path.is_file()]


def _tables(place: Path, result: Document, setting: tuple[int, int]) -> RunTables | None:
    """The tables of a run of that setting, None for others and where metrics.csv is gone."""
    run = result["run"]
    metrics = _read_table(place / "metrics.csv")
    if (run["n_layers"], run["n_train"]) != setting or metrics is None:
        return None
    return RunTables(run["arm"], run["training"]["seed"], metrics, _read_table(place / "layers.csv"))
