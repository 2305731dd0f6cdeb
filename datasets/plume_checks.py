"""Plume checks: whether a set of plumes is sound, as `mdrelax data check` reports, and its table of statistics.

The divergence of a cell is what flows out of its four faces per step; a closed box has no flow through its walls.
"""

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from mdrelax.datasets.plume import Field, Indices, PlumeSet, PlumeSplit, PlumeTask, turned
from mdrelax.datasets.plume_recipes import SYMMETRY_STEP
from mdrelax.datasets.plume_simulator import DIVERGENCE_LIMIT

__all__ = ["SYMMETRY_LIMIT", "check_plumes", "divergence", "plume_stats", "symmetry_error"]

SYMMETRY_LIMIT = 1e-5  # relative, at step 20, of flows that differ by a quarter turn only
FASTEST = 0.5  # of the grid's width per step
SHOWN = 3  # tasks that a message names


def divergence(faces: Field) -> Field:
    """What flows out of each cell (..., H, W) per step, from the velocity (..., 2, H, W) on left and lower faces."""
    u = np.pad(faces[..., 0, :, :], [(0, 0)] * (faces.ndim - 2) + [(0, 1)])
    v = np.pad(faces[..., 1, :, :], [(0, 0)] * (faces.ndim - 3) + [(0, 1), (0, 0)])
    out: Field = np.diff(u, axis=-1) + np.diff(v, axis=-2)
    return out


def symmetry_error(faces: Field, unbiased: Field, side: int) -> float:
    """|u - g u0| / |g u0| of one frame (2, H, W): u0 is the unbiased flow, g the quarter turns to ``side``."""
    expected = turned(unbiased, side, "faces")
    return float(np.linalg.norm(faces - expected) / np.linalg.norm(expected))


def plume_stats(plumes: PlumeSet) -> pd.DataFrame:
    """One row per task: how it was made, its speeds in cells per step, and what was measured of it."""
    rows = []
    for task in plumes.tasks:
        info, faces = task.info, task.read_faces()
        rows.append(
            {
                "task": info.name,
                "side": info.side,
                "scale": info.scale,
                "buoyancy": info.buoyancy,
                "frames": len(faces),
                "grid": f"{faces.shape[2]} x {faces.shape[3]}",
                "rms_speed": float(np.sqrt(2 * np.mean(np.square(faces, dtype=np.float64)))),
                "max_velocity": float(np.abs(faces).max()),
                "divergence": float(np.abs(divergence(faces)).max()),
                "symmetry_error": info.symmetry_error,
            }
        )
    return pd.DataFrame(rows)


def check_plumes(plumes: PlumeSet, *, split: PlumeSplit | None = None) -> pd.DataFrame:
    """One row per ``check``, with ``passed`` and a ``message``: of failure, or "Not tested: ..." with the reason.

    ``split`` is the one whose parts are compared; without it, the published split if the set has all of its tasks.
    """
    measured = [_measure(task) for task in plumes.tasks]
    rows = [(name, *check(plumes, measured)) for name, check in CHECKS.items()]
    rows.append(("no test frame in training", *_check_leakage(plumes, split)))
    return pd.DataFrame(rows, columns=["check", "passed", "message"])


class _Measured(NamedTuple):
    """Of one task; the numbers of one that cannot be read are harmless."""

    error: str = ""  # the reason why it cannot be read
    divergence: float = 0.0
    speed: float = 0.1  # the largest velocity, in boxes per step
    digest: str = ""
    still: bool = False  # whether two frames in a row are equal


def _measure(task: PlumeTask) -> _Measured:
    try:
        faces = task.read_faces()
    except ValueError as error:
        return _Measured(str(error))
    return _Measured(
        divergence=float(np.abs(divergence(faces)).max()),
        speed=float(np.abs(faces).max()) / faces.shape[-1],
        digest=hashlib.sha256(faces.tobytes()).hexdigest(),
        still=bool((faces[1:] == faces[:-1]).all((1, 2, 3)).any()),
    )


Verdict = tuple[bool, str]
Check = Callable[[PlumeSet, list[_Measured]], Verdict]


def _named(plumes: PlumeSet, wrong: list[int], sentence: str) -> Verdict:
    """Passed if nothing is wrong, else the sentence with the names of the tasks."""
    names = [plumes.tasks[k].info.name for k in wrong]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return not wrong, f"{sentence} Tasks: {', '.join(names[:SHOWN])}{more}." if wrong else ""


def _check_readable(plumes: PlumeSet, measured: list[_Measured]) -> Verdict:
    errors = [each.error for each in measured if each.error]
    more = f" ({len(errors) - 1} more tasks cannot be read.)" if len(errors) > 1 else ""
    return not errors, f"{errors[0]}{more}" if errors else ""


def _check_divergence(plumes: PlumeSet, measured: list[_Measured]) -> Verdict:
    wrong = [k for k, each in enumerate(measured) if each.divergence > DIVERGENCE_LIMIT]
    return _named(
        plumes,
        wrong,
        f"The divergence reaches {max(each.divergence for each in measured):.1e} per step, above {DIVERGENCE_LIMIT:g}: "
        "(a) a pressure solve failed, (b) the velocities were interpolated to another grid, or (c) they are not on "
        "left and lower faces.",
    )


def _check_speed(plumes: PlumeSet, measured: list[_Measured]) -> Verdict:
    return _named(
        plumes,
        [k for k, each in enumerate(measured) if not 0 < each.speed < FASTEST],
        f"The largest velocity is 0 or above {FASTEST:g} of the box per step: (a) another unit than cells per step, or "
        "(b) an unstable flow.",
    )


def _check_motion(plumes: PlumeSet, measured: list[_Measured]) -> Verdict:
    wrong = [k for k, each in enumerate(measured) if each.still]
    return _named(plumes, wrong, "Two frames in a row are equal: the file was filled up, or written twice.")


def _check_copies(plumes: PlumeSet, measured: list[_Measured]) -> Verdict:
    """Levels of the graded family are sets of their own, which have the flows of side 0 in common."""
    first: dict[tuple[int, str], int] = {}
    levels = [task.info.level for task in plumes.tasks]
    wrong = [k for k, each in enumerate(measured) if each.digest and first.setdefault((levels[k], each.digest), k) != k]
    return _named(plumes, wrong, 'Another task has the same flow; as a "Domain" task it would have been trained on.')


def _check_symmetry(plumes: PlumeSet, measured: list[_Measured]) -> Verdict:
    """Level 0 of the graded family has four equal sides: as stored at step 20, its flows differ by their rounding."""
    variants: dict[str, list[PlumeTask]] = {}
    for task, each in zip(plumes.tasks, measured, strict=True):
        if plumes.kind == "graded" and task.info.level == 0 and not each.error:
            variants.setdefault(task.info.name.rpartition("_")[2], []).append(task)
    errors = {}
    for first, *others in variants.values():
        at = max(0, min(SYMMETRY_STEP - plumes.first_step, plumes.shape[0] - 1))
        unbiased = first.read_faces()[at]
        for task in others:
            side = task.info.side - first.info.side
            errors[task.info.name] = symmetry_error(task.read_faces()[at], unbiased, side)
    if not errors:
        return True, "Not tested: only the graded family has flows that should differ by a quarter turn alone."
    return _named(
        plumes,
        [plumes.index(name) for name, error in errors.items() if error > SYMMETRY_LIMIT],
        f"Flows at equal sides differ by {max(errors.values()):.1e} at step {SYMMETRY_STEP}, above {SYMMETRY_LIMIT:g}.",
    )


CHECKS: dict[str, Check] = {
    "every task readable and finite, on one grid": _check_readable,
    "no divergence": _check_divergence,
    "velocities in cells per step": _check_speed,
    "no frame twice": _check_motion,
    "no flow twice": _check_copies,
    "equal sides agree": _check_symmetry,
}


def _check_leakage(plumes: PlumeSet, split: PlumeSplit | None) -> Verdict:
    """No frame of a test window, seen or predicted, belongs to a training window."""
    split = split or _split_of(plumes)
    if split is None:
        return True, "Not tested: the set has not all tasks of a published split."
    try:
        parts = split.windows(plumes)
    except ValueError as error:
        return False, str(error)
    trained = _frames(parts.train, split.n_in + split.n_out)
    length = split.n_in + split.n_rollout
    shared = {
        "Future": len(trained & _frames(parts.future, length)),
        "Domain": len(trained & _frames(parts.domain, length)),
    }
    found = [f"{count} of {name}" for name, count in shared.items() if count]
    sentence = f"Training sees frames of the tests: {', '.join(found)}; keep their times and tasks apart."
    return not found, sentence if found else ""


def _split_of(plumes: PlumeSet) -> PlumeSplit | None:
    """The published or shipped split all of whose tasks the set has."""
    names = {task.info.name for task in plumes.tasks}
    known = {
        "rotation": [PlumeSplit.published("rotation"), PlumeSplit.sample()],
        "scale": [PlumeSplit.published("scale")],
        "graded": [PlumeSplit.graded(0)],
    }[plumes.kind]
    return next((each for each in known if {*each.train_tasks, *each.domain_tasks} <= names), None)


def _frames(rows: Indices, length: int) -> set[tuple[int, int]]:
    """The frames of windows: task, frame."""
    return {(task, start + k) for task, start in rows.tolist() for k in range(length)}
