"""Runs of a pack's benchmark: one arm and one seed in a folder with its run.yaml and results.json.

Every arm of a comparison changes the relaxation of the study and nothing else. A finished run is read, not repeated; an
interrupted one is resumed.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from torch import nn

from mdrelax.base.files import write_atomically
from mdrelax.base.sections import ConfigError, Section, load, read_yaml
from mdrelax.method.certificate import Certificate
from mdrelax.runs.config_changes import refuse_changes
from mdrelax.runs.experiment import RESULTS, Experiment, run, run_folder
from mdrelax.training.ranks import joined
from mdrelax.training.settings import RelaxationConfig
from mdrelax.training.trainer import Progress

__all__ = ["ACE", "enter", "load_run", "prepare_folder", "read_result", "run_arm", "symmetry_results", "with_arm"]

SETTINGS = "run.yaml"
ACE: dict[str, Any] = {  # relaxation under ACE: no schedule and no penalty, whatever the study's are
    "controller": "ace", "schedule": "triangle", "peak": 1.0, "ramp": 0.2, "end": 1.0, "weight": 0.0,
}  # fmt: skip
Settings = TypeVar("Settings", bound=Section)


def with_arm(document: Any, arms: Mapping[str, Mapping[str, Any]]) -> Any:
    """A document of settings in which the arm's own relaxation keys replace those of the study.

    Documents without a known arm are returned as they are, for pydantic to refuse.
    """
    if not isinstance(document, dict) or document.get("arm") not in arms:
        return document
    relaxation = document.get("relaxation", {})
    given = relaxation.model_dump() if isinstance(relaxation, RelaxationConfig) else dict(relaxation)
    return {**document, "relaxation": {**given, **arms[document["arm"]]}}


def run_arm(
    experiment: Experiment[nn.Module],
    settings: Section,
    folder: Path,
    *,
    listener: Callable[[Progress], None] = lambda progress: None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run an experiment, or resume it from the folder's checkpoint; returns the content of results.json.

    Raises ``ConfigError`` if the folder contains a run with other settings, ``InUseError`` if another process trains in
    it, and ``CertificateError`` if the projected network does not have its symmetry.
    """
    with joined() as ranks, run_folder(folder, ranks) as own:
        with ranks.in_turn():
            prepare_folder(settings, own)
        if (finished := read_result(own)) is not None:
            return finished
        return run(experiment, own, restart=True, listener=listener, tell=tell).results


def enter(settings: Section, folder: Path, *, restart: bool) -> bool:
    """Write run.yaml; True if there is a checkpoint to resume from; see ``Experiment.enter``.

    Raises ``ConfigError`` for a folder with other settings, and for a finished run whose checkpoint is gone.
    """
    prepare_folder(settings, folder)
    if (folder / RESULTS).is_file() and not (folder / "checkpoints" / "last.pt").exists():
        raise ConfigError(
            f"`{folder}` is finished, but has no checkpoint any more: training it again would replace its results. "
            "Choose another folder."
        )
    return restart and (folder / "checkpoints" / "last.pt").exists()


def symmetry_results(certificate: Certificate) -> dict[str, Any]:
    """The entries of results.json on the symmetry: the records of the layers, and the errors in both precisions."""
    return {
        "layers": [record._asdict() for record in certificate.layers],
        "equivariance_error_float64": certificate.float64._asdict(),
        "equivariance_error_float32": certificate.float32._asdict(),
    }


def read_result(folder: Path) -> dict[str, Any] | None:
    """The results of a finished run, ``None`` before it has finished."""
    path = folder / RESULTS
    return json.loads(path.read_text()) if path.is_file() else None


def prepare_folder(settings: Section, folder: Path) -> None:
    """Make a run's folder with its run.yaml; raises ``ConfigError`` if it contains a run with other settings.

    Keys that a run of an older version lacks have their defaults.
    """
    saved, document = folder / SETTINGS, settings.model_dump(mode="json")
    if saved.is_file():
        found = load_run(type(settings), folder).model_dump(mode="json")
        refuse_changes(found, document, found=f"`{folder}` holds a run with other settings", choose="folder")
    write_atomically(saved, yaml.safe_dump(document, sort_keys=False).encode())


def load_run(model: type[Settings], folder: Path) -> Settings:
    """The settings in a prepared folder; raises ``ConfigError``."""
    return load(model, read_yaml(folder / SETTINGS))
