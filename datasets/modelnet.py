"""ModelNet: shapes of 10 or 40 classes as point clouds, in the forms in which they are handed on.

    data = load_modelnet("modelnet:solids")          # eight kinds of analytic solids, made here
    data = load_modelnet("modelnet:40")              # fetched: `mdrelax data fetch modelnet:40`
    data = load_modelnet("folder or zip file")       # of one of the three forms

| form | files | upright |
| --- | --- | --- |
| h5 | `ply_data_train*.h5`, `ply_data_test*.h5` (`data`, `label`), `shape_names.txt`: `modelnet40_ply_hdf5_2048` | y |
| off | `CLASS/train/*.off`, `CLASS/test/*.off`, as ModelNet10 and ModelNet40 are published (Wu et al., CVPR 2015) | z |
| npz | `*train*.npz`, `*test*.npz`: `points` (M, P, 3), `labels`, `classes`, and `names` or not | z |

Integer points are fractions of their type's largest number. Points of meshes are drawn once, by area, and kept in the
user's cache. The published sets have no validation part; it is drawn here from the training set, class by class.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from mdrelax.base.seeds import numpy_generator
from mdrelax.datasets.array_cache import cached_arrays
from mdrelax.datasets.catalogue import CATALOGUE
from mdrelax.datasets.download import cached_path, data_folder
from mdrelax.datasets.meshes import parse_off, sample_surface
from mdrelax.datasets.point_clouds import ModelNet, PointClouds, point_clouds
from mdrelax.datasets.solids import SOLIDS, solid_points

__all__ = ["MODELNET_PREFIX", "is_modelnet", "load_modelnet", "require_modelnet"]

MODELNET_PREFIX = "modelnet:"
SOLIDS_NAME = MODELNET_PREFIX + "solids"
N_SOLIDS = {"train": 320, "test": 160}  # shapes, all classes together
N_SAMPLED = 2048  # points drawn on a mesh or solid, as many as the h5 form has
Members = Mapping[str, Callable[[], bytes]]  # files by their path in a folder or archive
Part = dict[str, Any]  # the arguments of ``point_clouds``


def is_modelnet(source: str) -> bool:
    """Whether a source can only be point clouds: ``modelnet:...``, a zip archive, or a folder of clouds or meshes."""
    if source.startswith(MODELNET_PREFIX) or source.endswith(".zip"):
        return True
    folder = Path(source).expanduser()
    return folder.is_dir() and any(next(folder.rglob(kind), None) for kind in ("*.h5", "*.off", "*train*.npz"))


def load_modelnet(
    source: str | Path = SOLIDS_NAME,
    *,
    n_points: int = 1024,
    validation: float = 0.1,
    split_seed: int = 0,
    cache: str | Path | None = None,
) -> ModelNet:
    """Read a set of shapes.

    Args:
        source: ``modelnet:solids``, a fetched name, a folder, or a zip archive.
        n_points: Points of each shape: the first ones of the file.
        validation: The fraction of each class of the training set that becomes the validation part; 0 < it < 1.
        split_seed: Which ones: the same seed, the same shapes.
        cache: Where points drawn on meshes are kept; the user's cache unless given.

    Raises ``FileNotFoundError`` for a source that is not there, ``ValueError`` for files that are cut off or hold what
    they must not, naming the file, and ``ImportError`` for h5 files without h5py.
    """
    if not 0 < validation < 1:
        raise ValueError(f"`validation` must lie between 0 and 1, got {validation}.")
    if n_points < 1:
        raise ValueError(f"`n_points` must be at least 1, got {n_points}.")
    if str(source) == SOLIDS_NAME:
        train, test = (_solids(part, max(n_points, N_SAMPLED)) for part in ("train", "test"))
    else:
        train, test = _from_files(_place(str(source)), cache)
    if unknown := sorted(set(test["classes"]) - set(train["classes"])):
        raise ValueError(f"`{test['source']}` has a class `{unknown[0]}` that the training set has not.")
    test["labels"] = np.array([train["classes"].index(name) for name in test["classes"]])[test["labels"]]
    test["classes"] = train["classes"]
    rest, held = _split(point_clouds(**train, n_points=n_points), validation, split_seed)
    return ModelNet(rest, held, point_clouds(**test, n_points=n_points))


def require_modelnet(source: str | Path) -> None:
    """Raise ``FileNotFoundError`` if there is no such set of shapes, ``ValueError`` for an unknown name."""
    if str(source) != SOLIDS_NAME:
        _place(str(source))


def _place(source: str) -> Path:
    if source.startswith(MODELNET_PREFIX):
        if source not in CATALOGUE:
            known = ", ".join([SOLIDS_NAME, *(name for name in CATALOGUE if name.startswith(MODELNET_PREFIX))])
            raise ValueError(f"There are no point clouds `{source}`; known: {known}, or a folder or zip file.")
        return cached_path(source)
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"There is no folder or zip file `{source}`; point clouds made here: `{SOLIDS_NAME}`.")
    return path


def _split(clouds: PointClouds, fraction: float, seed: int) -> tuple[PointClouds, PointClouds]:
    """The clouds without, and those of, the validation part: at least one of each class, and never all of one."""
    order = torch.from_numpy(numpy_generator(seed, "split").permutation(len(clouds.labels)))
    held = torch.zeros(len(order), dtype=torch.bool)
    for label, name in enumerate(clouds.classes):
        members = order[clouds.labels[order] == label]
        if len(members) == 1:
            raise ValueError(f"The class `{name}` has one training shape; two are needed, one of them for validation.")
        held[members[: min(max(1, round(fraction * len(members))), max(len(members) - 1, 0))]] = True
    everything = torch.arange(len(order))
    return clouds.take(everything[~held]), clouds.take(everything[held])


# --- made here ---


def _solids(part: str, n_points: int) -> Part:
    """Shapes of all kinds in turn; every shape has a random stream of its own."""
    first, classes = (0, 1_000_000)[part == "test"], list(SOLIDS)
    labels = np.arange(N_SOLIDS[part]) % len(classes)
    streams = [numpy_generator(0, "structures", first + k) for k in range(len(labels))]
    points = [solid_points(classes[label], n_points, rng) for label, rng in zip(labels, streams, strict=True)]
    names = [f"{classes[label]}_{part}_{k:04d}" for k, label in enumerate(labels)]
    return {"points": points, "labels": labels, "classes": classes, "names": names, "source": SOLIDS_NAME}


# --- read from files ---


def _from_files(path: Path, cache: str | Path | None) -> tuple[Part, Part]:
    members = _members(path)
    ending = next((ending for ending in READERS if any(name.endswith(ending) for name in members)), None)
    if ending is None:
        raise ValueError(f"`{path}` holds no point clouds: it has no files ending in {', '.join(READERS)}.")
    read, own = READERS[ending], {name: get for name, get in members.items() if name.endswith((ending, ".txt"))}
    parts = []
    for part in ("train", "test"):
        if not (files := [name for name in own if name.endswith(ending) and part in _part_of(name)]):
            raise ValueError(f"`{path}` has no {ending} file with `{part}` in its name or folder.")
        parts.append(read(path, own, sorted(files), cache))
    return parts[0], parts[1]


def _part_of(name: str) -> str:
    """Where a member's part stands: in its own name, of meshes in its folder's."""
    path = PurePosixPath(name)
    return path.parent.name if path.suffix == ".off" else path.name


def _members(path: Path) -> Members:
    """The files of a folder or zip archive by name, each with what reads it."""
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]
        return {file.relative_to(path).as_posix(): file.read_bytes for file in files}
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.startswith("__MACOSX")]
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"`{path}` is cut off or no zip archive ({error}); fetch it again.") from error
    return {name: _reader(path, name) for name in names if not PurePosixPath(name).name.startswith(".")}


def _reader(path: Path, name: str) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            with zipfile.ZipFile(path) as archive:
                return archive.read(name)
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise ValueError(f"`{path}`: its member `{name}` is damaged ({error}); fetch it again.") from error

    return read


def _read_npz(path: Path, members: Members, files: list[str], cache: str | Path | None) -> Part:
    parts = []
    for name in files:
        source = f"{path}/{name}"
        try:
            with np.load(io.BytesIO(members[name]()), allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
        except Exception as error:  # numpy, zipfile, zlib and tokenize raise anything for a damaged file
            raise ValueError(f"`{source}` is cut off or no npz file ({error!s:.200}).") from error
        if missing := sorted({"points", "labels", "classes"} - set(arrays)):
            raise ValueError(f"`{source}` lacks {', '.join(missing)}; it has {', '.join(sorted(arrays)) or 'nothing'}.")
        parts.append((source, arrays["points"], arrays["labels"], arrays.get("names")))
    return _joined(parts, tuple(str(name) for name in arrays["classes"]), str(path))


def _read_h5(path: Path, members: Members, files: list[str], cache: str | Path | None) -> Part:
    listing = next((get for name, get in members.items() if name.endswith("shape_names.txt")), None)
    if listing is None:
        raise ValueError(f"`{path}` lacks `shape_names.txt`, which names the classes of its h5 files, one per line.")
    parts = [(f"{path}/{name}", *_h5_arrays(f"{path}/{name}", members[name]())) for name in files]
    upright = [(source, points[..., [0, 2, 1]] * [1, -1, 1], labels, None) for source, points, labels in parts]
    return _joined(upright, tuple(listing().decode().split()), str(path))


def _h5_arrays(source: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    try:
        import h5py
    except ImportError as error:
        raise ImportError("Reading h5 files needs h5py; install it with `pip install mdrelax[modelnet]`.") from error
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            if missing := sorted({"data", "label"} - set(file)):
                raise ValueError(
                    f"`{source}` lacks {', '.join(missing)}; it has {', '.join(sorted(file)) or 'nothing'}."
                )
            return np.asarray(file["data"]), np.asarray(file["label"])
    except OSError as error:
        raise ValueError(f"`{source}` is cut off or no h5 file ({error}).") from error


def _joined(parts: list[tuple[str, np.ndarray, np.ndarray, Any]], classes: tuple[str, ...], source: str) -> Part:
    """Several files as one part; each is checked by itself, so that an error names its file."""
    clouds = []
    for own, points, labels, names in parts:
        points = points / np.iinfo(points.dtype).max if np.issubdtype(points.dtype, np.integer) else points
        shown = [f"shape {k}" for k in range(len(points))] if names is None else [str(name) for name in names]
        clouds.append(point_clouds(points, labels, classes=classes, names=shown, source=own))
    return {
        "points": np.concatenate([cloud.points for cloud in clouds]),
        "labels": np.concatenate([cloud.labels for cloud in clouds]),
        "names": [name for cloud in clouds for name in cloud.names],
        "classes": classes,
        "source": source,
    }


def _read_off(path: Path, members: Members, files: list[str], cache: str | Path | None) -> Part:
    """Points drawn on each mesh from a random stream of its own, kept for the next time."""
    classes = sorted({PurePosixPath(name).parent.parent.name for name in files})
    labels = [classes.index(PurePosixPath(name).parent.parent.name) for name in files]

    def compute() -> dict[str, np.ndarray]:
        return {"points": np.stack([_points_of(path, name, members[name]()) for name in files])}

    folder = data_folder() / "modelnet" if cache is None else Path(cache).expanduser()
    points = cached_arrays(folder / f"off-{_fingerprint(path, files)}-{N_SAMPLED}.npz", compute)["points"]
    names = [PurePosixPath(name).stem for name in files]
    return {"points": points, "labels": labels, "classes": classes, "names": names, "source": str(path)}


def _points_of(path: Path, name: str, content: bytes) -> np.ndarray:
    vertices, triangles = parse_off(content, name=f"{path}/{name}")
    seed = int.from_bytes(hashlib.sha256(PurePosixPath(name).name.encode()).digest()[:6], "little")
    stream = numpy_generator(0, "points", seed)
    drawn = sample_surface(vertices, triangles, N_SAMPLED, generator=stream, name=f"{path}/{name}")
    return (drawn - drawn.mean(0)).astype(np.float32)


def _fingerprint(path: Path, files: list[str]) -> str:
    """Of the files' names, sizes and times: another content is sampled anew."""
    digest = hashlib.sha256()
    for file in [path / name for name in files] if path.is_dir() else [path]:
        state = file.stat()
        digest.update(f"{file.name} {state.st_size} {state.st_mtime_ns}\n".encode())
    digest.update("\n".join(files).encode())
    return digest.hexdigest()[:16]


READERS: dict[str, Callable[[Path, Members, list[str], str | Path | None], Part]] = {
    ".h5": _read_h5, ".npz": _read_npz, ".off": _read_off,
}  # fmt: skip
