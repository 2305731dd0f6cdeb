"""Smoke plumes: 2D flows of rising smoke whose symmetry is imperfect, as tasks, sets of tasks and training windows.

    plumes = open_plumes("rotation.npz")             # made by `mdrelax data generate plume` (plume_files.py)
    split = PlumeSplit.published(plumes.kind)
    parts = split.windows(plumes)
    inputs, targets = read_windows(plumes, parts.train[:16], split.n_in, split.n_out)

A task is one simulation in a closed box: smoke flows in at one place next to a wall and is pushed away from that wall.
Its velocity has the shape (T, 2, H, W): component 0 is along x, the last axis of the grid, component 1 along y, the
axis before it; lengths are in cells of the stored grid, times in steps. The sets and their splits are those of Wang,
Walters and Yu, "Approximately Equivariant Networks for Imperfectly Symmetric Dynamics", ICML 2022 (arXiv 2201.11969).

The simulator has its velocities on a staggered grid: x components on the left faces of the cells, y components on their
lower faces, and zero on the walls. Published files store these ``faces``. A quarter turn maps the centres of cells to
centres, but left faces to lower or upper ones, so only the arrays of ``centres`` (means over opposite faces) of a
symmetric flow are symmetric under ``rot90``. They are the default.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mdrelax.base.names import nearest_name

__all__ = [
    "KINDS",
    "SAMPLINGS",
    "Kind",
    "PlumeInfo",
    "PlumeSet",
    "PlumeSplit",
    "PlumeTask",
    "PlumeWindows",
    "Sampling",
    "at_centres",
    "read_windows",
    "turned",
    "windows",
]

Kind = Literal["rotation", "scale", "graded"]
Sampling = Literal["centres", "faces"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SAMPLINGS: tuple[Sampling, ...] = get_args(Sampling)
Field = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]


class PlumeInfo(NamedTuple):
    """How one task was simulated, and what was measured of it; NaN where a file does not say."""

    name: str  # "27_2" (strength 27, side 2), "8" (scale 8), "3_1_0" (level 3, side 1, variant 0)
    buoyancy: float = np.nan  # velocity gained per step and unit of smoke, in cells of the simulation
    side: int = 0  # quarter turns, counterclockwise, from the wall y = 0 to the wall at which smoke flows in
    inflow: tuple[float, float] = (np.nan, np.nan)  # (x, y) of its centre, in cells of the stored grid
    scale: float = 1.0  # cells of the simulation along one cell of the stored grid
    level: int = 0  # of the graded family; 0 is symmetric
    seed: int = 0  # of the random variants of the graded family
    divergence: float = np.nan  # the largest one of all simulated cells and steps, per step
    symmetry_error: float = np.nan  # at step 20, relative to the flow that symmetry predicts from the unbiased one

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "PlumeInfo":
        """The description whose ``_asdict`` went through JSON, which has no tuples."""
        return cls(**{**fields, "inflow": tuple(fields["inflow"])})


@dataclass(frozen=True)
class PlumeTask:
    """One simulation: its description, and its velocity, which is read when it is asked for and then kept."""

    info: PlumeInfo
    read_faces: Callable[[], Field]  # (T, 2, H, W), float32
    sampling: Sampling = "centres"

    @cached_property
    def velocity(self) -> Field:
        """The velocity (T, 2, H, W), float32, in cells per step; x along the last axis is component 0.

        Raises ``ValueError`` if the file is damaged or holds NaN.
        """
        faces = self.read_faces()
        return at_centres(faces) if self.sampling == "centres" else faces


@dataclass(frozen=True)
class PlumeSet:
    """Tasks of one kind on one grid."""

    kind: Kind
    tasks: tuple[PlumeTask, ...]
    shape: tuple[int, int, int, int]  # (T, 2, H, W) of every task
    source: str  # the file or folder, for messages
    first_step: int = 2  # of the simulation, shown in frame 0; the published files leave out the first one

    def index(self, name: str) -> int:
        """The place of a task in ``tasks``; raises ``ValueError`` for an unknown name, naming the nearest."""
        names = [task.info.name for task in self.tasks]
        if name not in names:
            raise ValueError(f"`{self.source}` has no task `{name}`; {nearest_name(name, names)}")
        return names.index(name)


def at_centres(faces: Field) -> Field:
    """The velocity (..., 2, H, W) in the centres of the cells, from that on left and lower faces of a closed box."""
    right, upper = np.zeros_like(faces[..., 0, :, :]), np.zeros_like(faces[..., 1, :, :])
    right[..., :-1], upper[..., :-1, :] = faces[..., 0, :, 1:], faces[..., 1, 1:, :]
    return (faces + np.stack([right, upper], axis=-3)) / 2


def turned(velocity: Field, quarter_turns: int, sampling: Sampling = "centres") -> Field:
    """A field (..., 2, H, W) turned counterclockwise about the centre of its box: its grid and its components.

    For ``faces`` the box must be closed, because right and upper walls are not stored: H = W, and zero on the walls.
    """
    for _ in range(quarter_turns % 4):
        x, y = (np.rot90(velocity[..., k, :, :], -1, axes=(-2, -1)) for k in (0, 1))  # rows count upwards: -1
        if sampling == "faces":  # lower faces have become right ones
            y = np.concatenate([np.zeros_like(y[..., :1]), y[..., :-1]], axis=-1)
        velocity = np.stack([-y, x], axis=-3)
    return velocity


# --- windows ---


def windows(
    plumes: PlumeSet,
    tasks: Sequence[str],
    times: Iterable[int],
    n_in: int,
    n_out: int,
    *,
    lag: int = 2,
) -> Indices:
    """Windows of ``n_in`` frames to see and ``n_out`` to predict, as rows (M, 2): task, first frame.

    The window of time t begins at frame t + ``lag``; the published code leaves out two frames. Raises ``ValueError``
    for an unknown task and for a window that ends after the last frame.
    """
    places = [plumes.index(name) for name in tasks]
    starts = np.array(sorted(times), dtype=np.int64) + lag
    if n_in < 1 or n_out < 1:
        raise ValueError(f"`n_in` and `n_out` must be at least 1, got {n_in} and {n_out}.")
    n_frames = plumes.shape[0]
    if len(starts) and not (starts[0] >= 0 and starts[-1] + n_in + n_out <= n_frames):
        raise ValueError(
            f"`{plumes.source}` has {n_frames} frames, but windows of {n_in} + {n_out} frames begin at frames "
            f"{starts[0]} to {starts[-1]}; choose times from {-lag} to {n_frames - n_in - n_out - lag}."
        )
    return np.stack(np.meshgrid(np.array(places, dtype=np.int64), starts, indexing="ij"), -1).reshape(-1, 2)


def read_windows(plumes: PlumeSet, rows: Indices, n_in: int, n_out: int) -> tuple[Tensor, Tensor]:
    """The frames of windows: inputs (M, n_in, 2, H, W) and targets (M, n_out, 2, H, W), float32."""
    whole = np.stack([plumes.tasks[task].velocity[start : start + n_in + n_out] for task, start in rows])
    frames = torch.from_numpy(whole)
    return frames[:, :n_in], frames[:, n_in:]


class PlumeWindows(NamedTuple):
    """The windows of the four parts of a split, each (M, 2): task, first frame."""

    train: Indices
    validation: Indices
    future: Indices
    domain: Indices


ROTATION_TRAIN = (
    "27_2", "33_0", "3_2", "28_3", "9_0", "12_3", "22_1", "8_3", "30_1", "25_0", "16_3", "11_2", "23_2",
    "29_0", "36_3", "26_1", "1_0", "35_2", "19_2", "34_1", "4_3", "2_1", "7_2", "31_2", "17_0",
)  # fmt: skip
ROTATION_DOMAIN = ("6_1", "14_1", "15_2", "10_1", "18_1", "20_3", "24_3", "13_0", "21_0", "5_0")
SCALE_TRAIN = (
    "27", "9", "7", "11", "4", "26", "35", "2", "29", "10", "34", "12", "37", "28",
    "18", "24", "8", "14", "1", "31", "25", "0", "19", "15", "36", "3", "20", "13",
)  # fmt: skip
SCALE_DOMAIN = ("5", "30", "16", "23", "33", "6", "17", "22", "21", "32")


@dataclass(frozen=True)
class PlumeSplit:
    """Which tasks and times are for what: training, validation (to choose by), and two tests.

    "Future" is later times of the training tasks, "Domain" the earlier times of other tasks. Times are half-open ranges
    of the starts of windows.
    """

    train_tasks: tuple[str, ...]
    domain_tasks: tuple[str, ...]
    train_times: tuple[int, int] = (0, 160)
    validation_times: tuple[int, int] = (160, 200)
    future_times: tuple[int, int] = (200, 250)
    domain_times: tuple[int, int] = (0, 100)
    n_in: int = 10  # frames seen
    n_out: int = 6  # frames predicted in training and validation
    n_rollout: int = 20  # frames predicted in the tests
    lag: int = 2  # frames left out at the start

    @classmethod
    def published(cls, kind: Kind) -> "PlumeSplit":
        """The split of the published rotation or scale set (run_model.py of Wang et al.).

        Raises ``ValueError`` for the graded family, see ``graded``.
        """
        if kind == "graded":
            raise ValueError("The graded family has one split per level: `PlumeSplit.graded(level)`.")
        train, domain = (ROTATION_TRAIN, ROTATION_DOMAIN) if kind == "rotation" else (SCALE_TRAIN, SCALE_DOMAIN)
        return cls(train, domain)

    @classmethod
    def graded(cls, level: int) -> "PlumeSplit":
        """The split of one level of the graded family: two variants of each side to train on, a third for "Domain"."""
        names = [tuple(f"{level}_{side}_{variant}" for side in range(4)) for variant in range(3)]
        return cls(
            names[0] + names[1], names[2],
            train_times=(0, 40), validation_times=(40, 50), future_times=(58, 76), domain_times=(0, 40),
        )  # fmt: skip

    @classmethod
    def sample(cls) -> "PlumeSplit":
        """The split of the small rotation set that the package ships (``open_plumes("sample:plume")``)."""
        return cls(
            ("1_0", "2_1", "3_2", "4_3"), ("5_0", "6_1"),
            train_times=(0, 8), validation_times=(8, 10), future_times=(14, 17), domain_times=(0, 8),
            n_in=4, n_out=3, n_rollout=5, lag=0,
        )  # fmt: skip

    def windows(self, plumes: PlumeSet) -> PlumeWindows:
        """The windows of the four parts; raises ``ValueError`` where the set lacks a task or ends too early."""
        parts = (
            (self.train_tasks, self.train_times, self.n_out),
            (self.train_tasks, self.validation_times, self.n_out),
            (self.train_tasks, self.future_times, self.n_rollout),
            (self.domain_tasks, self.domain_times, self.n_rollout),
        )
        return PlumeWindows(
            *(windows(plumes, tasks, range(*times), self.n_in, n, lag=self.lag) for tasks, times, n in parts)
        )
