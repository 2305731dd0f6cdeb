"""Runs of a pack's benchmark: one arm and one seed in a folder with its run.yaml and results.json.

Every arm of a comparison changes the relaxation of the study and nothing else. A finished run is read, not repeated; an
interrupted one is resumed.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mdrelax.base.sections import Section
from mdrelax.method.certificate import Certificate
from mdrelax.runs.experiment import Experiment, run, run_folder
from mdrelax.training.folders import RESULTS, prepare_folder
from mdrelax.training.ranks import joined
from mdrelax.training.settings import RelaxationConfig
from mdrelax.training.trainer import Progress

__all__ = ["ACE", "read_result", "run_arm", "symmetry_results", "with_arm"]

ACE: dict[str, Any] = {  # relaxation under ACE: no schedule and no penalty, whatever the study's are
    "controller": "ace", "schedule": "triangle", "peak": 1.0, "ramp": 0.2, "end": 1.0, "weight": 0.0,
}  # fmt: skip


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
