"""Committee: networks that differ in their seed alone, trained side by side; their spread estimates their error.

    folder/config.yaml, env.json    the settings, as for a single run
    folder/member-k.yaml            those of member k: seed + k
    folder/member-k/                its run folder, see ``mdrelax.runs.train``
    folder/results.json             errors of the mean over the members, and how well the spread predicts them
    folder/data.extxyz              structures that were passed in memory

All members have the same split. Each is a process with one thread; those that were interrupted resume.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from ase import Atoms

from mdrelax.base.files import locked_folder, write_atomically
from mdrelax.base.sections import ConfigError
from mdrelax.datasets.extxyz import write_extxyz
from mdrelax.engines.committee import model_files
from mdrelax.forces.metrics import errors, load_predictions
from mdrelax.forces.spread import calibration, mean_of
from mdrelax.runs.config import Config
from mdrelax.runs.experiment import write_results
from mdrelax.runs.inputs import IN_MEMORY, prepare_folder, resolve
from mdrelax.runs.jobs import cores, run_side_by_side
from mdrelax.training.folders import RESULTS

__all__ = ["Committee", "errors_in_words", "run_committee", "train_committee"]


class Committee(NamedTuple):
    """A finished committee: ``results`` has errors of the mean, ``members`` and ``uncertainty``."""

    folder: Path
    results: dict[str, Any]

    @property
    def model_files(self) -> list[Path]:
        """The members' model files, for ``CommitteeCalculator.from_file``."""
        return model_files(self.folder)


def train_committee(
    config: Config | Mapping[str, Any] | str | Path,
    data: Sequence[Atoms] | str | Path | None = None,
    *,
    folder: str | Path,
    restart: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Committee:
    """Train ``training.committee`` networks side by side; arguments as for ``mdrelax.train``.

    Structures in memory are written to ``data.extxyz`` in the folder, from which the members read them. Raises
    ``ConfigError`` for invalid settings and fewer than two members, ``RuntimeError`` naming the runs that failed.
    """
    structures = None if data is None or isinstance(data, str | Path) else list(data)
    return run_committee(resolve(config, data), Path(folder), restart=restart, tell=tell, data=structures)


def run_committee(
    config: Config,
    folder: Path,
    *,
    restart: bool = False,
    tell: Callable[[str], None] = lambda line: None,
    data: Sequence[Atoms] | None = None,
) -> Committee:
    """``train_committee`` of checked settings."""
    number = config.training.committee
    if number < 2:
        raise ConfigError(f"A committee has at least 2 members, got `training.committee: {number}`.")
    with locked_folder(folder):
        prepare_folder(config, folder, restart=restart)
        source = config.data.source
        if source == IN_MEMORY:
            source = str(folder / "data.extxyz")
            if data is not None:
                write_extxyz(folder / "data.extxyz", data)
        places = [folder / f"member-{k}" for k in range(number)]
        for k, place in enumerate(places):
            _write_config(config, place, seed=config.training.seed + k, source=source)
        tell(f"A committee of {number} networks, {min(number, cores())} at a time; their logs are in member-*/run.log.")
        run_side_by_side(places, _command, finished=_finished, jobs=cores(), tell=tell)
        results = _results(places)
        write_results(folder, results)
    return Committee(folder, results)


def _write_config(config: Config, place: Path, *, seed: int, source: str | list[str]) -> None:
    """The settings of one member: a run of its own."""
    document = config.model_dump(mode="json") | {"standard_baseline": False, "md_picoseconds": 0.0}
    document["training"] |= {"committee": 1, "seed": seed}
    document["data"]["source"] = source
    write_atomically(place.with_suffix(".yaml"), yaml.safe_dump(document, sort_keys=False).encode())


def _command(place: Path) -> list[str]:
    config = str(place.with_suffix(".yaml"))
    return [sys.executable, "-m", "mdrelax", "train", config, "--out", str(place), "--restart", "auto"]


def _finished(place: Path) -> str | None:
    """A line on the errors of a finished member, of whose files the report is the last."""
    if not all((place / name).is_file() for name in (RESULTS, "model.safetensors", "report.html")):
        return None
    return errors_in_words(_read(place))


def errors_in_words(results: Mapping[str, Any]) -> str:
    """A line with the errors on the test frames, or on the validation frames where there are none."""
    part = next((name for name in ("test", "validation") if name in results), None)
    if part is None:
        return "there are no test frames"
    columns = (("forces", "forces_mae_meV_per_A", "meV/A"), ("energy", "energy_mae_meV", "meV"))
    known = [f"{name} {results[part][key]:.1f} {unit}" for name, key, unit in columns if key in results[part]]
    return f"{part} MAE: {', '.join(known)}"


def _read(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / RESULTS).read_text(encoding="utf-8"))
    return found


def _results(places: Sequence[Path]) -> dict[str, Any]:
    """Errors of the members and, where there are test frames, of their mean, with the calibration of the spread."""
    members = [_read(place) for place in places]
    shown = ("validation", "test", "seconds", "cpu_seconds")
    results: dict[str, Any] = {"members": [{key: each[key] for key in shown if key in each} for each in members]}
    if all((place / "test_predictions.npz").is_file() for place in places):
        mean, spread = mean_of([load_predictions(place / "test_predictions.npz") for place in places])
        results["test"] = errors(mean)
        if spread is not None:
            results["uncertainty"] = calibration(mean, spread).summary
    return results
