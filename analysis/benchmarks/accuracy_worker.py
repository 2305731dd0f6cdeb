"""Our networks as workers of the accuracy benchmark: `python -m mdrelax.analysis.benchmarks.accuracy_worker FOLDER`.

The files are those of ``peers.training``; task.json has ``model``, ``compile`` and ``overrides`` too. A model is a
potential and its preset, ``equiformer-small``, trained by the preset `rmd17-ethanol` without relaxation, or with it:
``equiformer-small:relaxed``.

The number of steps is set before the run. A trial of a few steps measures the CPU time of the first step (compilation),
of a later one and of a validation, and plan.json keeps the number that fits the budget. Of the trial its compilation is
part of the measured time, because the run finds the compiled code in torch's cache. A run that was killed resumes
from its checkpoint.
"""

import contextlib
import json
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from mdrelax import potentials
from mdrelax.analysis.benchmarks.peers.training import VALIDATION_SHARE, VALIDATIONS, Frames, read_molecule
from mdrelax.analysis.tables import read_json
from mdrelax.base.files import whole_file, write_atomically
from mdrelax.base.provenance import software_versions
from mdrelax.engines.ase import MDRelaxCalculator
from mdrelax.runs.config import Config, load_config
from mdrelax.runs.inputs import IN_MEMORY, open_config
from mdrelax.runs.jobs import end_with_parent
from mdrelax.runs.train import run_training
from mdrelax.training.trainer import Progress

__all__ = ["Costs", "config_of", "index_files", "plan_of", "train"]

RECIPE = "rmd17-ethanol"
TRIAL = 25  # steps
COMPILING = 5  # of them, which are not typical
MARGIN = 0.97  # of the budget, because steps differ
WARM_UP = 0.05  # of the steps at most


class Costs(NamedTuple):
    """CPU seconds of the parts of a run."""

    first: float  # of what happens once: compilation
    step: float
    validation: float


class _TrialOver(Exception):
    """The trial has been measured."""


def config_of(
    task: Mapping[str, Any], data: Mapping[str, Any], *, steps: int, validations: int = VALIDATIONS
) -> Config:
    """The config of a run on a section ``data``; raises ``ConfigError`` for overrides that cannot be."""
    network, _, form = task["model"].partition(":")
    potential, _, preset = network.rpartition("-")
    base = open_config(RECIPE, []).model_dump(mode="json")
    base["data"], base["md_picoseconds"] = {**data, "source": IN_MEMORY, "test": None}, 0.0
    base["potential"] |= {"name": potential, "preset": preset}
    base["training"] |= {
        "validate_every": max(1, steps // validations),
        "compile": task["compile"],
        "seed": task["seed"],
    }
    given = list(task["overrides"]) if form == "relaxed" else ["relaxation.schedule=off", *task["overrides"]]
    wanted, longest = load_config(base, overrides=given), int(WARM_UP * steps)
    warm_up = [f"training.warmup_steps={longest}"] if wanted.training.warmup_steps > longest else []
    return load_config(wanted.model_dump(mode="json"), overrides=[f"training.steps={steps}", *warm_up])


def index_files(folder: Path, n_train: int, n_validation: int) -> dict[str, str]:
    """The section ``data`` for frames of which the first ones are for training, the others for validation."""
    section, parts = {}, {"train": range(n_train), "validation": range(n_train, n_train + n_validation)}
    for name, numbers in parts.items():
        write_atomically(folder / f"{name}.csv", "".join(f"{k}\n" for k in numbers).encode())
        section[f"{name}_indices"] = str(folder / f"{name}.csv")
    return section


def plan_of(costs: Costs, budget: float) -> dict[str, Any]:
    """Steps and validations that fit a budget of CPU seconds, at least one of each."""
    affordable = VALIDATION_SHARE * budget / costs.validation if costs.validation else VALIDATIONS
    validations = max(1, min(VALIDATIONS, int(affordable)))
    left = MARGIN * budget - costs.first - validations * costs.validation
    return {"steps": max(1, int(left / costs.step)), "validations": validations, "costs": costs._asdict()}


def train(folder: Path) -> None:
    """Train in a folder with a task.json; writes predictions.npz and trained.json."""
    task = read_json(folder / "task.json")
    molecule = read_molecule(Path(task["data"]))
    frames = [*_labelled(molecule.numbers, molecule.train), *_labelled(molecule.numbers, molecule.validation)]
    n_train = len(molecule.train.energies)
    data = index_files(folder, n_train, len(molecule.validation.energies))
    if not (folder / "plan.json").is_file():
        costs = _measure(config_of(task, data, steps=TRIAL), frames)
        write_atomically(folder / "plan.json", json.dumps(plan_of(costs, task["budget"])).encode())
    plan = read_json(folder / "plan.json")
    config = config_of(task, data, steps=plan["steps"], validations=plan["validations"])
    compilers = _children()
    outcome = run_training(config, folder / "run", potentials, restart=True, data=frames)
    seconds = plan["costs"]["first"] + outcome.fit.cpu_seconds + _children() - compilers
    calculator, found = MDRelaxCalculator(outcome.fit.model), []
    for positions in molecule.test.positions:
        atoms = Atoms(molecule.numbers, positions, calculator=calculator)
        found.append((atoms.get_potential_energy(), atoms.get_forces()))
    energies, forces = zip(*found, strict=True)
    with whole_file(folder / "predictions.npz") as file:
        np.savez(file, energies=np.array(energies) + molecule.mean_energy, forces=np.array(forces))
    document = {
        "cpu_seconds": seconds, "steps": outcome.fit.steps, "best_step": outcome.fit.best_step,
        "epochs": outcome.fit.steps * config.training.batch_size / n_train,
        "n_parameters": outcome.results["n_parameters"], "plan": plan,
        "validation_loss": outcome.results["validation"]["forces_mae_meV_per_A"], "recipe": _recipe(config),
        "versions": software_versions(),
    }  # fmt: skip
    write_atomically(folder / "trained.json", json.dumps(document, indent=1).encode())


def _labelled(numbers: Any, frames: Frames) -> list[Atoms]:
    """Atoms with their labels, eV and eV/A."""
    found = []
    for positions, energy, forces in zip(*frames, strict=True):
        atoms = Atoms(numbers, positions)
        atoms.calc = SinglePointCalculator(atoms, energy=float(energy), forces=forces)
        found.append(atoms)
    return found


def _measure(config: Config, frames: list[Atoms]) -> Costs:
    """Train for a few steps in a folder of its own, with one validation at their end."""
    settings = config.model_dump(mode="json")
    settings["training"] |= {"steps": 2 * TRIAL, "validate_every": TRIAL}
    times = [_seconds()]

    def listen(progress: Progress) -> None:
        times.append(_seconds())
        if progress.step == TRIAL:
            raise _TrialOver

    with tempfile.TemporaryDirectory(prefix="mdrelax-trial-") as place, contextlib.suppress(_TrialOver):
        run_training(load_config(settings), Path(place) / "run", potentials, data=frames, listener=listen)
    steps = np.diff(times)
    typical = float(np.median(steps[COMPILING:-1]))
    first = float(steps[:COMPILING].sum()) - COMPILING * typical
    return Costs(max(0.0, first), typical, max(0.0, float(steps[-1]) - typical))


def _seconds() -> float:
    """CPU seconds of this process and of the compilers that it started."""
    return time.process_time() + _children()


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _recipe(config: Config) -> dict[str, Any]:
    """The settings that define the training, without paths."""
    return {**config.model_dump(mode="json"), "data": None}


if __name__ == "__main__":
    end_with_parent()
    train(Path(sys.argv[1]))
