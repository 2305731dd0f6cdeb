"""Plume worker: a process that simulates tasks one after another, on one core and with its own global settings.

    python -m mdrelax.datasets.plume_worker FOLDER

Reads one plan per line of its input (JSON), writes the task into FOLDER and answers with a line: the description of
the task with what was measured, or an error. It ends with its input. (phiflow's precision, JAX's 64 bits and Python's
hash seed belong to a process: in one of its own they are nobody else's.)
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mdrelax.base.files import whole_file
from mdrelax.datasets.plume import PlumeInfo, turned
from mdrelax.datasets.plume_recipes import SYMMETRY_STEP, PlumePlan
from mdrelax.datasets.plume_simulator import PlumeRun, resample, simulate, velocity_of

__all__ = ["main", "run_plan"]


def run_plan(plan: PlumePlan, *, resolution: float, path: Path) -> PlumeInfo:
    """Simulate a task and write its stream function into an npy file; returns its description, now with measures.

    The file holds integers (T, H - 1, W - 1), multiples of ``resolution`` on the inner nodes, each frame as its
    difference from the one before.
    """
    streams, divergence = simulate(plan.run)
    cells = plan.counterpart.cells
    stored = np.rint(resample(streams, cells)[plan.skip :, 1:-1, 1:-1] / resolution).astype(np.int32)
    with whole_file(path, shared=True) as file:  # a killed run's worker may still be at it
        np.save(file, np.diff(stored, axis=0, prepend=np.int32(0)))
    error = _symmetry_error(plan, resample(streams[:SYMMETRY_STEP][-1], cells))
    return plan.info._replace(divergence=divergence, symmetry_error=error)


def _symmetry_error(plan: PlumePlan, stream: np.ndarray) -> float:
    """|u - g u0| / |g u0|, u0 being the unbiased counterpart and g the turn (or change of scale) that maps it here."""
    counterpart, _ = simulate(plan.counterpart)
    expected = turned(velocity_of(counterpart[-1]), plan.info.side, "faces")
    return float(np.linalg.norm(velocity_of(stream) - expected) / np.linalg.norm(expected))


def main(folder: Path) -> None:
    """Answer requests until the input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        plan = _plan(request["plan"])
        answer: dict[str, Any] = {"name": plan.info.name}
        try:
            made = run_plan(plan, resolution=request["resolution"], path=folder / f"{plan.info.name}.npy")
            answer["info"] = made._asdict()
        except OSError as error:
            answer.update(error=error.strerror or str(error), type="OSError")
        except (ValueError, ImportError) as error:
            answer.update(error=str(error), type=type(error).__name__)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _plan(fields: dict[str, Any]) -> PlumePlan:
    info, runs = fields["info"], [fields[key] for key in ("run", "counterpart")]
    first, second = (PlumeRun(**{**run, "inflow": tuple(run["inflow"]), "force": tuple(run["force"])}) for run in runs)
    return PlumePlan(PlumeInfo.from_json(info), first, second, fields["skip"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
