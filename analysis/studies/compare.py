"""Compare: paired training runs of several arms, and what they say together.

An arm is a config with some keys changed. All arms of a seed share data, split, order of frames, rotations, initial
weights, optimiser and number of steps; only their own keys differ. Runs are resumable and go side by side.

| file | holds |
| --- | --- |
| runs.csv | a row a run: test and validation errors, cost |
| summary.csv | a row an arm: mean and spread over seeds, paired difference from the first arm with its interval |
| compare.json | the command, the configs, versions, machine, and every run's own results |
| figures/*.png, report.html | what there is to see, and one offline page with all of it |

Errors are mean absolute ones, forces over components. Arms are judged by the test frames, or by the validation
frames where runs have no test frames (``data.test=0``), as in a search.
"""

import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from mdrelax.analysis.studies.statistics import half_interval
from mdrelax.base.files import write_atomically
from mdrelax.base.names import nearest_name
from mdrelax.base.provenance import portable
from mdrelax.base.sections import ConfigError
from mdrelax.runs.config import load_config
from mdrelax.runs.config_changes import changed_keys, read_saved
from mdrelax.runs.jobs import run_side_by_side

__all__ = [
    "ARMS",
    "ERRORS",
    "PairedRun",
    "collect",
    "found_by",
    "judged_by",
    "plan",
    "read_results",
    "run_all",
    "split_arms",
    "summarize",
    "without_folders",
    "write_tables",
]

ARMS: dict[str, tuple[str, ...]] = {  # what each changes in the config
    "standard": ("relaxation.schedule=off",),
    "relaxed": (),
    "relaxed-weight": ("relaxation.penalty=weight",),
    "relaxed-activation": ("relaxation.penalty=activation",),
    "relaxed-fold": ("relaxation.projection=fold",),
    "relaxed-drop": ("relaxation.projection=drop",),
    "relaxed-no-penalty": ("relaxation.weight=0",),
}
ERRORS = {  # column of runs.csv: where it stands in results.json
    "test_forces": ("test", "forces_mae_meV_per_A"),
    "test_energy": ("test", "energy_mae_meV"),
    "validation_forces": ("validation", "forces_mae_meV_per_A"),
    "validation_energy": ("validation", "energy_mae_meV"),
}
COST = ("steps", "best_step", "seconds", "cpu_seconds", "peak_MB", "n_parameters", "n_free_parameters")


class PairedRun(NamedTuple):
    """One arm with one seed."""

    arm: str
    seed: int
    config: dict[str, Any]  # resolved

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.arm}-{self.seed}"


def plan(
    base: Mapping[str, Any], *, arms: Sequence[str], seeds: Sequence[int], overrides: Sequence[str] = ()
) -> list[PairedRun]:
    """The runs, seeds outermost, so that a first comparison is there early.

    An arm is a name of ``ARMS``, or ``name:key=value;key=value`` with the keys that it changes. Raises ``ConfigError``
    for an unknown arm, a name twice, a config that cannot be used, two arms that are one, and when there is nothing to
    run.
    """
    changes = dict(_arm(text) for text in arms)
    if len(changes) < len(arms) or not changes or not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError("Name at least one arm and one seed, each once.")
    runs = []
    for seed in seeds:
        for arm, keys in changes.items():
            own = ["standard_baseline=false", f"training.seed={seed}", *keys]
            runs.append(PairedRun(arm, seed, load_config(base, overrides=[*overrides, *own]).model_dump(mode="json")))
    for one, other in combinations(runs[: len(changes)], 2):
        if not changed_keys(one.config, other.config):
            raise ConfigError(f"The arms `{one.arm}` and `{other.arm}` are the same run with this config; name one.")
    return runs


def split_arms(text: str) -> list[str]:
    """The arms in a comma-separated list; a comma within brackets, as in ``training.betas=[0.9,0.99]``, is no end."""
    return re.split(r",(?![^\[]*\])", text)


def _arm(text: str) -> tuple[str, tuple[str, ...]]:
    name, colon, keys = text.partition(":")
    if colon:
        return name, tuple(keys.split(";"))
    if name not in ARMS:
        raise ConfigError(
            f"There is no arm `{name}`; {nearest_name(name, ARMS)} One of your own is written name:key=value;key=value."
        )
    return name, ARMS[name]


def run_all(
    configs: Mapping[Path, Mapping[str, Any]],
    *,
    jobs: int,
    command: Sequence[str] = (sys.executable, "-m", "mdrelax", "train"),
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Train what is not finished, ``jobs`` at a time, with one thread each; raises as ``run_side_by_side``.

    ``configs`` are the resolved config of each run folder; a copy goes to ``configs`` beside it. A run with another
    config in its folder is refused by the training itself.
    """
    for place, config in configs.items():
        path = _config_path(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, yaml.safe_dump(dict(config), sort_keys=False).encode())

    def training(place: Path) -> list[str]:
        return [*command, str(_config_path(place)), "--out", str(place), "--restart", "auto"]

    run_side_by_side(list(configs), training, finished=lambda place: _line(place, configs[place]), jobs=jobs, tell=tell)


def _config_path(place: Path) -> Path:
    return place.parent / "configs" / f"{place.name}.yaml"


def _line(place: Path, config: Mapping[str, Any]) -> str | None:
    """What a finished run found, in a line; None where ``read_results`` has none."""
    results = read_results(place, config)
    if results is None:
        return None
    row = _errors(results)
    return (
        f"validation forces {row['validation_forces']:.2f} meV/A, energy {row['validation_energy']:.2f} meV "
        f"after {results['cpu_seconds'] / 60:.1f} CPU-min"
    )


def read_results(place: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a run with this config that is finished, report and all, says of itself; None for others.

    Raises ``ValueError`` for a file that cannot be read.
    """
    path, saved = place / "results.json", place / "config.yaml"
    if not all(file.is_file() for file in (path, saved, place / "report.html")):
        return None
    if changed_keys(read_saved(saved), config):
        return None  # of another budget or recipe, which may not stand among these
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        return results if results["validation"] else None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"`{path}` cannot be read ({error!r}); delete it and run again.") from error


def _errors(results: Mapping[str, Any]) -> dict[str, float]:
    return {name: results.get(part, {}).get(key, math.nan) for name, (part, key) in ERRORS.items()}


def collect(runs: Sequence[PairedRun], results: Mapping[str, Mapping[str, Any] | None]) -> pd.DataFrame:
    """A row for each finished run: arm, seed, errors in meV and meV/A, cost, and NVE drift where there was MD.

    ``results`` are those of each run by its name, None where it has not finished.
    """
    rows = []
    for run in runs:
        if (found := results[run.name]) is not None:
            rows.append({"arm": run.arm, "seed": run.seed, **found_by(found)})
    return pd.DataFrame(rows)


def found_by(results: Mapping[str, Any]) -> dict[str, float]:
    """The columns of runs.csv that a run's results fill: errors, cost, how its forces behave.

    ``unstable`` is true where the NVE run, or the warm-up before it, exploded or broke a bond.
    """
    md = results.get("md") or {}
    return {
        **_errors(results),
        **{key: results.get(key, math.nan) for key in COST},
        "nve_drift": md.get("drift_meV_per_atom_per_ps", math.nan),
        "unstable": bool(md.get("exploded") or md.get("broken_bond")),
        "net_force": results.get("net_force_meV_per_A", math.nan),
        "net_torque": results.get("net_torque_meV", math.nan),
    }


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """A row an arm, in the order of the table: seeds, means, sample standard deviations, paired differences.

    ``forces_minus_first`` is the mean over common seeds of the force error minus that of the first arm, with its 95 % t
    interval (``_low``, ``_high``; NaN for one pair) and ``pairs``; the same for energies. They are those on the frames
    that ``judged_by`` names. ``unstable`` counts the runs whose dynamics was.
    """
    first, part = table.arm.iloc[0], judged_by(table)
    rows = []
    for arm, group in table.groupby("arm", sort=False):
        row: dict[str, Any] = {"arm": arm, "seeds": len(group), "judged_by": part}
        for name in ERRORS:
            row[name], row[f"{name}_std"] = group[name].mean(), group[name].std()
        row["cpu_minutes"] = group.cpu_seconds.mean() / 60
        row["peak_MB"] = group.peak_MB.mean()
        row["n_parameters"] = int(group.n_parameters.iloc[0])
        row["worst_nve_drift"], row["unstable"] = group.nve_drift.abs().max(), int(group.unstable.sum())
        for quantity in ("forces", "energy"):
            row |= _paired(table, str(arm), first, f"{part}_{quantity}", quantity) if arm != first else {}
        rows.append(row)
    return pd.DataFrame(rows)


def judged_by(table: pd.DataFrame) -> str:
    """`test`, or `validation` where no run has a test error; ``table`` as ``collect`` gives it."""
    return "test" if table[["test_forces", "test_energy"]].notna().any(axis=None) else "validation"


def _paired(table: pd.DataFrame, arm: str, first: str, column: str, quantity: str) -> dict[str, float]:
    errors = table.pivot_table(index="seed", columns="arm", values=column)
    if arm not in errors or first not in errors:
        return {"pairs": 0}
    difference = (errors[arm] - errors[first]).dropna()
    n, name = len(difference), f"{quantity}_minus_first"
    mean, reach = difference.mean(), half_interval(difference.std(), n)
    return {"pairs": n, name: mean, f"{name}_low": mean - reach, f"{name}_high": mean + reach}


def without_folders(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config whose data files have lost the path to them, which means nothing on another machine."""
    data = {key: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
            for key, value in config["data"].items()}  # fmt: skip
    return {**config, "data": data}


def write_tables(folder: Path, runs: Sequence[PairedRun], *, command: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write runs.csv, summary.csv and compare.json; returns the two tables. Raises ``ValueError`` without any run.

    A run in the folder that was made with another config than the one planned counts as unfinished.
    """
    results = {run.name: read_results(folder / run.name, run.config) for run in runs}
    table = collect(runs, results)
    if table.empty:
        raise ValueError(f"No run in `{folder}` has finished yet.")
    summary = summarize(table)
    document = {
        "command": portable(command),
        "unfinished": [run.name for run in runs if results[run.name] is None],
        "summary": json.loads(summary.to_json(orient="records")),
        "runs": [
            {"name": run.name, "arm": run.arm, "seed": run.seed, "config": without_folders(run.config), **found}
            for run in runs
            if (found := results[run.name]) is not None
        ],
    }
    contents = {
        "runs.csv": table.to_csv(index=False),
        "summary.csv": summary.to_csv(index=False),
        "compare.json": json.dumps(document, indent=2) + "\n",
    }
    for name, text in contents.items():
        write_atomically(folder / name, text.encode())
    return table, summary
