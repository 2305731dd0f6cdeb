"""The study of force fields: runs of `mdrelax train`, compared by `mdrelax compare` and by the benchmarks on molecules.

Errors are mean absolute ones, forces over components. Arms are compared on the test frames, or on the validation frames
if runs have no test frames (``data.test=0``), as in a search.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from mdrelax.analysis.studies.measures import Measure, mean, minus_first, plain
from mdrelax.analysis.studies.run_files import Config, Results, read_results
from mdrelax.analysis.studies.study import Study
from mdrelax.base.files import write_atomically
from mdrelax.packs.arm_runs import ACE
from mdrelax.runs.config import load_config
from mdrelax.runs.config_changes import read_saved
from mdrelax.training.folders import changed_keys

__all__ = ["ARMS", "ENERGY", "FORCES", "STUDY"]

ARMS: dict[str, tuple[str, ...]] = {
    "standard": ("relaxation.schedule=off",),
    "relaxed": (),
    "relaxed-weight": ("relaxation.penalty=weight",),
    "relaxed-activation": ("relaxation.penalty=activation",),
    "relaxed-fold": ("relaxation.projection=fold",),
    "relaxed-drop": ("relaxation.projection=drop",),
    "relaxed-no-penalty": ("relaxation.weight=0",),
    "ace": tuple(f"relaxation.{key}={value}" for key, value in ACE.items()),
}
FORCES = Measure("forces", "force MAE", "meV/A")
ENERGY = Measure("energy", "energy MAE", "meV")


def _resolve(base: Config, changes: Sequence[str]) -> dict[str, Any]:
    return load_config(base, overrides=[*changes, "standard_baseline=false"]).model_dump(mode="json")


def _read(place: Path, config: Config) -> Results | None:
    """The results of a run with this config that has finished, including its report; None for others.

    A run with another budget or recipe is not included.
    """
    saved = place / "config.yaml"
    if not (saved.is_file() and (place / "report.html").is_file()) or changed_keys(read_saved(saved), config):
        return None
    return read_results(place / "results.json", ("validation", "cpu_seconds"))


def _start(place: Path, config: Config) -> list[str]:
    """A copy of the config next to the folder; training itself refuses a folder with another one."""
    path = place.parent / "configs" / f"{place.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, yaml.safe_dump(dict(config), sort_keys=False).encode())
    return [str(path), "--out", str(place), "--restart", "auto"]


def _cost(name: str, results: Results) -> float:
    """Steps or CPU seconds of a run, with those of its pre-training and of the labels; NaN for a missing result."""
    before = results.get("pretrained") or {}
    return results.get(name, math.nan) + before.get(name, 0) + before.get(f"labels_{name}", 0)


def _unstable(results: Results) -> bool:
    """Whether the NVE run, or the warm-up before it, exploded or broke a bond."""
    md = results.get("md") or {}
    return bool(md.get("exploded") or md.get("broken_bond"))


STUDY = Study(
    title="comparison",
    arms=ARMS,
    measures=(FORCES, ENERGY),
    columns={
        "test_forces": "test.forces_mae_meV_per_A",
        "test_energy": "test.energy_mae_meV",
        "validation_forces": "validation.forces_mae_meV_per_A",
        "validation_energy": "validation.energy_mae_meV",
        **{
            name: name for name in (
                "best_step", "seconds", "peak_MB", "n_parameters", "n_free_parameters",
            )
        },
        "steps": partial(_cost, "steps"),
        "cpu_seconds": partial(_cost, "cpu_seconds"),
        "nve_drift": "md.drift_meV_per_atom_per_ps",
        "unstable": _unstable,
        "net_force": "net_force_meV_per_A",
        "net_torque": "net_torque_meV",
    },
    resolve=_resolve,
    read=_read,
    start=_start,
    own_arms=True,
    aggregates={
        "peak_MB": ("peak_MB", lambda values: values.mean()),
        "n_parameters": ("n_parameters", lambda values: int(values.iloc[0])),
        "worst_nve_drift": ("nve_drift", lambda values: values.abs().max()),
        "unstable": ("unstable", lambda values: int(values.sum())),
        "steps": ("steps", lambda values: values.max()),
    },
    shown={
        "arm": plain("arm"),
        "seeds": plain("seeds"),
        "{judged} forces, meV/A": mean(FORCES),
        "forces minus {first}": minus_first(FORCES),
        "{judged} energy, meV": mean(ENERGY),
        "energy minus {first}": minus_first(ENERGY),
        "validation forces, meV/A": mean(FORCES, "validation"),
    },
    curve=("val_forces_mae_meV_per_A", "validation force MAE (meV/Å), projected network", 1.0),
    page=None,
    record="compare.json",
)  # fmt: skip
