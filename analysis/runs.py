"""Runs: a table of training runs with the settings in which they differ, for searches.

Errors are those on validation frames: test errors must not influence the choice of settings.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mdrelax.analysis.tables import read_json, read_optional, short_names
from mdrelax.runs.config_changes import read_saved
from mdrelax.runs.pretrain import LABELS
from mdrelax.training.folders import differing_keys

__all__ = ["find_runs", "layers_of_runs", "table_of_runs"]

ERRORS = {  # column: that of metrics.csv
    "train_forces": "train_forces_mae_meV_per_A",
    "validation_forces": "val_forces_mae_meV_per_A",
    "validation_energy": "val_energy_mae_meV",
}


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The given run folders (with config.yaml and metrics.csv), and those inside the given folders at any depth.

    First stages (``mdrelax.runs.pretrain``) are left out, because their errors are those on other labels. Raises
    ``ValueError`` if a folder contains none.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        own = sorted(
            path.parent for path in folder.rglob("metrics.csv")
            if (path.parent / "config.yaml").is_file() and not (path.parent / LABELS).is_file()
        )  # fmt: skip
        if not own:
            raise ValueError(f"There is no run in `{folder}`: no folder in it has config.yaml and metrics.csv.")
        found |= dict.fromkeys(own)
    return list(found)


def table_of_runs(places: Sequence[Path]) -> pd.DataFrame:
    """One row per run, best first: its name, the config keys in which the runs differ, its last validation, its cost.

    Forces in meV/A, energies in meV, mean absolute errors. A run that is not finished has fewer ``steps_done``; its
    ``cpu_minutes`` are not known.
    """
    configs = [read_saved(place / "config.yaml") for place in places]
    names = _names(places)
    rows = [
        {"run": name, **settings, **_reached(place)}
        for name, settings, place in zip(names, differing_keys(configs), places, strict=True)
    ]
    return pd.DataFrame(rows).sort_values("validation_forces", kind="stable", ignore_index=True)


def layers_of_runs(places: Sequence[Path]) -> pd.DataFrame:
    """The free maps of the relaxed runs during training, layers.csv of each with its name; empty without any."""
    parts = []
    for name, place in zip(_names(places), places, strict=True):
        if (place / "layers.csv").is_file():
            part = pd.read_csv(place / "layers.csv")
            part.insert(0, "run", name)
            parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _names(places: Sequence[Path]) -> list[str]:
    """Paths without their common prefix."""
    return short_names([place.resolve().as_posix() for place in places], "/")


def _reached(place: Path) -> dict[str, Any]:
    metrics = pd.read_csv(place / "metrics.csv")
    last = metrics.iloc[-1]
    names = ("results.json", "env.json")  # of a run that has finished, and has begun
    results, environment = (read_optional(place / name, read_json, {}, remedy="Restore it.") for name in names)
    return {
        "steps_done": int(last["step"]),
        **{name: float(last.get(column, math.nan)) for name, column in ERRORS.items()},
        "cpu_minutes": results.get("cpu_seconds", math.nan) / 60,
        "date": environment.get("date", ""),
    }
