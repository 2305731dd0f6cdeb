"""N-body data: five particles and their positions 1,000 steps later, simulated or read from published npy files.

    data = load_nbody()                              # charged particles: 3,000 training, 2,000 + 2,000 other systems
    data = load_nbody("gravity", n_train=1000)       # the first 1,000 of the same training set
    data = load_nbody("folder/with/npy/files")       # as written by the code of EGNN and SEGNN

The task of EGNN (Satorras et al. 2021, arXiv:2102.09844): from positions and velocities in frame 30 to the positions
in frame 40, frame k being the state after 100 (k + 1) steps; see the simulator for the trajectories. EGNN draws
10,000 training trajectories, of which the first 3,000 are used, and then validation and test. Here every part
has its own stream of random numbers: its size affects no other part, and a smaller part is the start of a larger one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from mdrelax.base.names import nearest_name
from mdrelax.datasets.array_cache import cached_arrays
from mdrelax.datasets.download import data_folder
from mdrelax.datasets.frames import require_finite
from mdrelax.datasets.nbody_simulator import (
    PROTOCOLS,
    SYSTEMS,
    Protocol,
    Trajectories,
    forces,
    integrate,
    potential_energy,
    simulate,
)

__all__ = [
    "PROTOCOLS",
    "SYSTEMS",
    "NBodyData",
    "NBodySplit",
    "Protocol",
    "Trajectories",
    "cache_folder",
    "forces",
    "integrate",
    "load_nbody",
    "potential_energy",
    "simulate",
]

Array = npt.NDArray[np.float64]

VERSION = 1  # of the simulated numbers; raised when they change, so that old files are not read
PARTS = ("train", "validation", "test")  # their order determines their random numbers
FILE_PARTS = {"train": "train", "validation": "valid", "test": "test"}  # names of the published files
CHARGES = ("charges", "mass")


class NBodySplit(NamedTuple):
    """M systems of n particles: the state in the input frame, and the positions in the target frame.

    All are float64; ``charges`` are +1 or -1, masses for gravity (all 1), signs for springs.
    """

    positions: torch.Tensor  # (M, n, 3)
    velocities: torch.Tensor  # (M, n, 3)
    charges: torch.Tensor  # (M, n)
    targets: torch.Tensor  # (M, n, 3)


class NBodyData(NamedTuple):
    """The three parts of an N-body data set."""

    train: NBodySplit
    validation: NBodySplit
    test: NBodySplit


def load_nbody(
    source: str | Path = "charged",
    *,
    n_train: int = 3000,
    n_validation: int = 2000,
    n_test: int = 2000,
    seed: int = 0,
    input_frame: int = 30,
    target_frame: int = 40,
    cache: str | Path | None = None,
) -> NBodyData:
    """The data set ``charged``, ``gravity`` or ``springs``, simulated at first use, or a folder of published npy files.

    Simulated data are stored in ``cache`` (default: the user's cache). Of npy files the first trajectories are
    used; ``seed`` and ``cache`` have no effect on them. Raises ``ValueError`` for an unknown system, for sizes or
    frames out of range, and for files with wrong shapes or numbers; ``FileNotFoundError`` for missing files.
    """
    sizes = dict(zip(PARTS, (n_train, n_validation, n_test), strict=True))
    frames = (input_frame, target_frame)
    _check_request(sizes, seed, frames)
    if source in SYSTEMS:
        folder = cache_folder(cache)
        return NBodyData(*(_simulated(str(source), part, sizes[part], seed, frames, folder) for part in PARTS))
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise ValueError(f"There is no N-body system and no folder `{source}`; {nearest_name(str(source), SYSTEMS)}")
    return NBodyData(*(_from_files(folder, part, sizes[part], frames) for part in PARTS))


def cache_folder(cache: str | Path | None = None) -> Path:
    """The folder of simulated data: the given one, else ``nbody`` in the folder of the downloads."""
    return data_folder() / "nbody" if cache is None else Path(cache).expanduser()


def _check_request(sizes: dict[str, int], seed: int, frames: tuple[int, int]) -> None:
    for part, size in sizes.items():
        if size < 1:
            raise ValueError(f"`n_{part}` must be at least 1, got {size}.")
    if seed < 0:
        raise ValueError(f"`seed` must be 0 or larger, got {seed}.")
    if not 0 <= frames[0] < frames[1]:
        raise ValueError(
            f"`input_frame` must be 0 or later and before `target_frame`, got {frames[0]} and {frames[1]}."
        )


# --- simulate ---


def _simulated(system: str, part: str, size: int, seed: int, frames: tuple[int, int], folder: Path) -> NBodySplit:
    """One part, from the cache or from the simulator, which stops at the target frame."""

    def compute() -> dict[str, np.ndarray]:
        generator = np.random.default_rng([seed, PARTS.index(part)])
        n_steps = (frames[1] + 1) * PROTOCOLS[system].record_every
        made = simulate(system, size, generator=generator, n_steps=n_steps)
        return _pick(made.positions, made.velocities, made.charges, frames)

    name = f"{system}-v{VERSION}-seed{seed}-{part}{size}-frames{frames[0]}to{frames[1]}.npz"
    return _split(cached_arrays(folder / name, compute), name)


def _pick(positions: Array, velocities: Array, charges: Array, frames: tuple[int, int]) -> dict[str, np.ndarray]:
    """The arrays of a split, by name."""
    start, end = frames
    arrays = (positions[:, start], velocities[:, start], charges, positions[:, end])
    return dict(zip(NBodySplit._fields, arrays, strict=True))


def _split(arrays: dict[str, np.ndarray], source: str) -> NBodySplit:
    """The split as tensors; raises ``ValueError`` that names the first number that is not finite."""
    for name, values in arrays.items():
        require_finite(name, values, source=source)
    return NBodySplit(*(torch.tensor(arrays[name], dtype=torch.float64) for name in NBodySplit._fields))


# --- read published files ---


def _from_files(folder: Path, part: str, size: int, frames: tuple[int, int]) -> NBodySplit:
    """One part out of ``loc_PART*.npy``, ``vel_PART*.npy`` and ``charges_PART*.npy`` (or ``mass_PART*.npy``)."""
    paths = [_find(folder, names, FILE_PARTS[part]) for names in (("loc",), ("vel",), CHARGES)]
    positions, velocities, charges = (_read(path) for path in paths)
    _check_shapes(paths, positions, velocities, charges)
    n_trajectories, n_frames = positions.shape[:2]
    if size > n_trajectories:
        raise ValueError(f"`n_{part}` must be at most {n_trajectories}, the trajectories in `{paths[0]}`, got {size}.")
    if frames[1] >= n_frames:
        raise ValueError(
            f"`target_frame` must be at most {n_frames - 1}, the last frame in `{paths[0]}`, got {frames[1]}."
        )
    first = slice(size)
    rows = (_rows(positions[first]), _rows(velocities[first]), charges[first].reshape(size, -1))
    return _split(_pick(*rows, frames), paths[0].name)


def _find(folder: Path, names: Sequence[str], part: str) -> Path:
    """The one file of a kind and part."""
    patterns = [f"{name}_{part}*.npy" for name in names]
    found = sorted(path for pattern in patterns for path in folder.glob(pattern))
    if not found:
        raise FileNotFoundError(
            f"The folder `{folder}` has no file {' or '.join(patterns)}; name the folder that the generator of EGNN or "
            f"SEGNN wrote, or one of {', '.join(SYSTEMS)} to simulate."
        )
    if len(found) > 1:
        raise ValueError(
            f"The folder `{folder}` has {len(found)} files {' or '.join(patterns)}: "
            f"{', '.join(path.name for path in found)}; leave those of one data set in it."
        )
    return found[0]


def _read(path: Path) -> Array:
    """The array in an npy file, memory-mapped, so that only the parts used later are read."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"`{path}` cannot be read as an npy file ({error}); it is (a) cut off, (b) another kind of file, or (c) "
            "holds pickled objects, which are refused."
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise ValueError(f"`{path}` is not an array of real numbers; make it again.")
    return array


def _check_shapes(paths: Sequence[Path], positions: Array, velocities: Array, charges: Array) -> None:
    if positions.ndim != 4 or 3 not in positions.shape[2:]:
        raise ValueError(
            f"`{paths[0]}` has the shape {positions.shape}; expected is (trajectories, frames, 3, particles)."
        )
    n_bodies = positions.shape[3] if positions.shape[2] == 3 else positions.shape[2]
    expected = (positions.shape[0], n_bodies)
    if velocities.shape != positions.shape or charges.shape not in (expected, (*expected, 1)):
        raise ValueError(
            f"`{paths[0].name}`, `{paths[1].name}` and `{paths[2].name}` do not belong together: their shapes are "
            f"{positions.shape}, {velocities.shape} and {charges.shape}; make them again together."
        )


def _rows(vectors: Array) -> Array:
    """Vectors as rows (M, T, n, 3): the files have (M, T, 3, n), but for SEGNN's simulator of gravity."""
    return vectors.transpose(0, 1, 3, 2) if vectors.shape[2] == 3 else vectors
