"""Plume files: one npz per set, and the published folders of ``raw_data_*.pt``; both are read task by task.

    plumes = open_plumes("rotation.npz")       # made by `mdrelax data generate plume`
    plumes = open_plumes("sample:plume")       # a small rotation set that the package ships
    plumes = open_plumes("Data/Rotation")      # as the notebook of Wang et al. 2022 writes them

An npz holds a header (``plumes``, JSON: settings, versions and the description of every task) and the stream function
of each task: integers (T, H - 1, W - 1) on the inner nodes of the grid, in multiples of the header's resolution, each
frame as its difference from the one before. So a file is a third of the published ones, and its flows are free of
divergence however much they are rounded.
"""

import json
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mdrelax.base.files import whole_file
from mdrelax.base.names import nearest_name
from mdrelax.datasets.plume import SAMPLINGS, Field, PlumeInfo, PlumeSet, PlumeTask, Sampling
from mdrelax.datasets.plume_simulator import velocity_of
from mdrelax.datasets.sample import sample_path

__all__ = ["is_plumes", "open_plumes", "write_plumes"]

HEADER = "plumes"  # the array whose presence makes an npz a set of plumes
VERSION = 1  # of the layout
SAMPLE = "sample:plume"
PUBLISHED = re.compile(r"raw_data_(\d+)(?:_(\d+))?\.pt")
DAMAGE = (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, KeyError)


def is_plumes(source: str | Path) -> bool:
    """Whether a source holds plumes: ``sample:plume``, an npz with their header, or a folder with ``raw_data_*.pt``."""
    path = Path(source).expanduser()
    if path.is_dir():
        return any(path.glob("raw_data_*.pt"))
    if str(source) == SAMPLE or path.suffix != ".npz":
        return str(source) == SAMPLE
    try:
        with zipfile.ZipFile(path) as archive:
            return f"{HEADER}.npy" in archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False


def open_plumes(source: str | Path, *, sampling: Sampling = "centres") -> PlumeSet:
    """Open a set of plumes; the velocities of a task are read when they are asked for.

    Args:
        source: An npz of `mdrelax data generate plume`, ``sample:plume``, or a folder with ``raw_data_*.pt``.
        sampling: Where the velocities are: in the ``centres`` of the cells, where a quarter turn of the arrays is one
            of the flow, or on left and lower ``faces``, as the published files have them.

    Raises ``FileNotFoundError`` if there is nothing, and ``ValueError`` naming the file if it is cut off or holds
    something else; what is wrong inside a task is found when its velocity is read.
    """
    if sampling not in SAMPLINGS:
        raise ValueError(f"There is no sampling `{sampling}`; {nearest_name(sampling, SAMPLINGS)}")
    name = str(source)
    path = sample_path(name.removeprefix("sample:")) if name.startswith("sample:") else Path(source).expanduser()
    if path.is_dir():
        return _open_published(path, sampling)
    if not path.is_file():
        raise FileNotFoundError(
            f"There are no plumes `{source}`: name an npz made by `mdrelax data generate plume`, a folder with "
            f"`raw_data_*.pt`, or `{SAMPLE}`."
        )
    return _open_npz(path, sampling)


def _tasks(infos: Sequence[PlumeInfo], read: Callable[[PlumeInfo], Field], sampling: Sampling) -> tuple[PlumeTask, ...]:
    return tuple(PlumeTask(info, lambda info=info: read(info), sampling) for info in infos)  # type: ignore[misc]


def _checked(faces: Field, shape: Sequence[int], source: str) -> Field:
    """The faces as float32; raises ``ValueError`` naming the file for another grid, channels missing and NaN."""
    if faces.ndim != 4 or faces.shape[1] != 2:
        raise ValueError(
            f"`{source}` has the shape {tuple(faces.shape)}; a plume is (frames, 2, H, W), the velocity along x and y."
        )
    if faces.shape[2] != faces.shape[3]:
        raise ValueError(f"`{source}` has a grid of {faces.shape[2]} x {faces.shape[3]} cells; it must be square.")
    if tuple(faces.shape) != tuple(shape):
        raise ValueError(
            f"`{source}` has the shape {tuple(faces.shape)}, but the first file of its set {tuple(shape)}; "
            "all tasks of a set have the same frames and grid."
        )
    if not np.isfinite(faces).all():
        frame = int(np.argwhere(~np.isfinite(faces))[0, 0])
        raise ValueError(f"`{source}` has a velocity that is NaN or infinite in frame {frame}; make it again.")
    return np.asarray(faces, dtype=np.float32)


# --- one npz ---


def write_plumes(
    out: Path, infos: Sequence[PlumeInfo], folder: Path, *, first_step: int, header: dict[str, Any]
) -> None:
    """Write a set from the stream functions of its tasks, ``NAME.npy`` in ``folder``; see the head of this file.

    ``first_step`` is the step of the simulation that the first frames show, ``header`` what the file says besides.
    """
    first = np.load(folder / f"{infos[0].name}.npy", mmap_mode="r", allow_pickle=False)
    shape = [len(first), 2, first.shape[1] + 1, first.shape[2] + 1]
    described = {"first_step": first_step, "tasks": [info._asdict() for info in infos]}
    document = {"version": VERSION, "shape": shape, **header, **described}
    with whole_file(out) as file, zipfile.ZipFile(file, "w") as archive:
        _add(archive, HEADER, np.array(json.dumps(document)))
        for info in infos:
            _add(archive, info.name, np.load(folder / f"{info.name}.npy", allow_pickle=False))


def _add(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    """One member, with a fixed date, so that the same arrays are the same file."""
    member = zipfile.ZipInfo(f"{name}.npy")
    member.compress_type = zipfile.ZIP_DEFLATED
    with archive.open(member, "w", force_zip64=True) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)


def _open_npz(path: Path, sampling: Sampling) -> PlumeSet:
    try:
        document = json.loads(str(_member(path, HEADER)))
    except DAMAGE as error:
        raise ValueError(
            f"`{path}` is cut off, or no set of plumes ({error}); generate it again with `mdrelax data generate plume`."
        ) from error
    if document.get("version") != VERSION:
        raise ValueError(f"`{path}` has the layout {document.get('version')}, this mdrelax reads {VERSION}; update it.")
    settings, shape = document["settings"], tuple(document["shape"])

    def read(info: PlumeInfo) -> Field:
        source = f"{path}/{info.name}"
        try:
            steps = _member(path, info.name)
        except DAMAGE as error:
            raise ValueError(f"`{source}` is damaged ({error}); generate the set again.") from error
        inner = np.cumsum(steps, axis=0, dtype=np.int64) * settings["resolution"]
        psi = np.pad(inner, ((0, 0), (1, 1), (1, 1)))  # zero on the walls
        return _checked(velocity_of(psi), shape, source)

    infos = [PlumeInfo.from_json(fields) for fields in document["tasks"]]
    return PlumeSet(settings["kind"], _tasks(infos, read, sampling), shape, str(path), document["first_step"])


def _member(path: Path, name: str) -> np.ndarray:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return np.asarray(archive[name])


# --- published files ---


def _open_published(folder: Path, sampling: Sampling) -> PlumeSet:
    found = {path: PUBLISHED.fullmatch(path.name) for path in folder.glob("raw_data_*.pt")}
    numbers = {path: tuple(int(n) for n in match.groups() if n is not None) for path, match in found.items() if match}
    if not numbers:
        raise FileNotFoundError(
            f"The folder `{folder}` has no `raw_data_*.pt`, the files of a published set of plumes."
        )
    if len({len(number) for number in numbers.values()}) > 1 or any(n[1:] > (3,) for n in numbers.values()):
        raise ValueError(
            f"`{folder}` is neither the rotation set (`raw_data_27_2.pt`: strength, side 0 to 3) nor the scale set "
            "(`raw_data_27.pt`); the translation set is not supported."
        )
    paths = sorted(numbers, key=numbers.__getitem__)
    shape = _read_pt(paths[0]).shape
    by_name = {"_".join(map(str, numbers[path])): path for path in paths}

    def read(info: PlumeInfo) -> Field:
        path = by_name[info.name]
        return _checked(_read_pt(path), shape, str(path))

    infos = [_published_info(name) for name in by_name]
    kind = "scale" if len(numbers[paths[0]]) == 1 else "rotation"
    return PlumeSet(kind, _tasks(infos, read, sampling), tuple(shape), str(folder))  # type: ignore[arg-type]


def _published_info(name: str) -> PlumeInfo:
    """What the name of a published file tells."""
    number, _, side = name.partition("_")
    return PlumeInfo(name, side=int(side)) if side else PlumeInfo(name, scale=1 + 0.1 * int(number))


def _read_pt(path: Path) -> Field:
    """The tensor in a file of ``torch.save``, as it is; only tensors are read, never objects."""
    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything on a broken file
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise ValueError(
            f"`{path}` cannot be read as a tensor ({reason}); it is (a) cut off, (b) another kind of file, or (c) "
            "holds objects other than tensors, which are refused."
        ) from error
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(
            f"`{path}` holds a {type(tensor).__name__}; a published plume is one tensor (frames, 2, H, W)."
        )
    return tensor.numpy()
