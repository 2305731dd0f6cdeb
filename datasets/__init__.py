"""datasets: data sets and their loaders, which all return frames in eV and Angstrom.

A data set is a file, a sample shipped with the package, or a public set that was fetched by name:

    frames = load_frames("sample:ethanol")                       # shipped with the package
    frames = load_frames("rmd17_ethanol.npz")                    # MD17, rMD17, MD22
    frames = load_frames("nbody:charged")                        # simulated here, with exact labels
    frames = load_frames("mine.extxyz", energy_key="dft_energy", energy_unit="Hartree", length_unit="Bohr")
"""

if __name__ == "datasets":
    raise ImportError(
        "This folder is `mdrelax.datasets`, not the top-level package `datasets`: import it as `mdrelax.datasets`, or "
        "run Python from another folder if you meant the package of that name."
    )

import glob
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ase.io.formats import UnknownFileTypeError, filetype, ioformats
from torch_geometric.data import Data

from mdrelax.base.names import nearest_name
from mdrelax.base.reading import tell_progress
from mdrelax.datasets.catalogue import CATALOGUE, is_name
from mdrelax.datasets.checks import CheckLimits, check_frames
from mdrelax.datasets.download import Fetched, cached_path, fetch
from mdrelax.datasets.extxyz import load_ase, load_extxyz, read_atoms
from mdrelax.datasets.frames import Frames, LabelReport, data_hash, make_frame, min_distance, to_atoms
from mdrelax.datasets.generate import GenerateSettings, generate
from mdrelax.datasets.labels import LabelOptions, load_atoms
from mdrelax.datasets.md17 import load_md17, warn_about_md17_noise
from mdrelax.datasets.modelnet import is_modelnet, load_modelnet
from mdrelax.datasets.nbody import NBodyData, NBodySplit, load_nbody
from mdrelax.datasets.nbody_frames import NBODY_PREFIX, NBodyCalculator, load_nbody_frames, nbody_atoms
from mdrelax.datasets.plume import PlumeSet, PlumeSplit, PlumeTask
from mdrelax.datasets.plume_checks import check_plumes, plume_stats
from mdrelax.datasets.plume_files import is_plumes, open_plumes
from mdrelax.datasets.plume_generate import generate_plumes
from mdrelax.datasets.plume_recipes import PlumeSettings
from mdrelax.datasets.point_clouds import ModelNet, PointClouds, check_clouds, cloud_stats
from mdrelax.datasets.predictions import write_predictions
from mdrelax.datasets.sample import SAMPLES, provenance, sample_path
from mdrelax.datasets.sources import expand, joined
from mdrelax.datasets.split import Split, index_split, load_split, random_split, read_indices, save_split
from mdrelax.datasets.stats import dataset_stats

__all__ = [
    "CATALOGUE",
    "FORMATS",
    "LOADERS",
    "SAMPLES",
    "CheckLimits",
    "Fetched",
    "Frames",
    "GenerateSettings",
    "LabelOptions",
    "LabelReport",
    "ModelNet",
    "NBodyCalculator",
    "NBodyData",
    "NBodySplit",
    "PlumeSet",
    "PlumeSettings",
    "PlumeSplit",
    "PlumeTask",
    "PointClouds",
    "Split",
    "cached_path",
    "check_clouds",
    "check_frames",
    "check_plumes",
    "cloud_stats",
    "data_hash",
    "dataset_stats",
    "fetch",
    "generate",
    "generate_plumes",
    "index_split",
    "is_modelnet",
    "is_plumes",
    "is_source",
    "load",
    "load_ase",
    "load_atoms",
    "load_extxyz",
    "load_frames",
    "load_md17",
    "load_modelnet",
    "load_nbody",
    "load_nbody_frames",
    "load_split",
    "make_frame",
    "min_distance",
    "nbody_atoms",
    "open_plumes",
    "plume_stats",
    "provenance",
    "random_split",
    "read_atoms",
    "read_indices",
    "sample_path",
    "save_split",
    "to_atoms",
    "warn_about_md17_noise",
    "write_predictions",
]

LOADERS: dict[str, Callable[..., Frames]] = {
    "ase": load_ase,
    "extxyz": load_extxyz,
    "md17": load_md17,
    "nbody": load_nbody_frames,
}
FORMATS = {
    ".npz": "md17",
    ".xyz": "extxyz",
    ".extxyz": "extxyz",
    ".xyz.gz": "extxyz",
    ".extxyz.gz": "extxyz",
    ".traj": "ase",
    ".db": "ase",
}
PROGRAM_FILES = ("outcar", "vasprun")  # VASP's, whose suffix does not show the format


def load(source: str | Path, *, format: str | None = None, **options: Any) -> list[Data]:
    """The frames of a data set as a list; see ``load_frames``, which also returns isolated atoms and a report."""
    return load_frames(source, format=format, **options).data


def load_frames(source: str | Path | Sequence[str | Path], *, format: str | None = None, **options: Any) -> Frames:
    """Read a data set: a file, ``sample:NAME``, a name that was fetched, such as ``rmd17:ethanol``, or ``nbody:NAME``.

    A folder stands for the files in it whose names show a format, a pattern such as ``runs/**/OUTCAR`` for those that
    it fits; a list joins several of all these. Files whose names show nothing are read if ASE recognises them.
    The format (a key of ``LOADERS``) follows from the file's suffix unless given; options go to its loader, e.g.
    ``energy_key`` for ``extxyz``, ``labels`` for ``md17``. Options of value ``None`` count as not given. Raises
    ``ValueError`` for an unknown format or option (naming the nearest), ``FileNotFoundError`` for a missing file.
    """
    names, parts = expand(source, lambda path: _ending(path) is not None), []
    for number, name in enumerate(names, 1):
        parts.append(_load_one(name, format, options))
        tell_progress(f"{len(names)} files", number, len(names))
    return joined(parts)


def _load_one(source: str, format: str | None, options: dict[str, Any]) -> Frames:
    if is_plumes(source):
        raise ValueError(f"`{source}` holds smoke plumes and no atoms; `open_plumes` reads it.")
    path = _resolve(source)
    name = format or _format(path)
    if name not in LOADERS:
        raise ValueError(f"There is no data format `{name}`; {nearest_name(name, LOADERS)}")
    given = {key: value for key, value in options.items() if value is not None}
    known = _options(LOADERS[name])
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"The format {name} has no option `{key}`; {nearest_name(key, known)}")
        if value == "":
            raise ValueError(f"The option `{key}` is empty; leave it out for its default.")
    return LOADERS[name](path, **given)


def is_source(name: str) -> bool:
    """True for the name of a data set, a file whose name shows a data format, and a folder or pattern of files."""
    if is_name(name) or name.startswith(("sample:", NBODY_PREFIX)):
        return True
    path = Path(name).expanduser()
    if path.is_dir():
        return any(_ending(file) is not None for file in path.rglob("*"))
    return glob.has_magic(name) or (_ending(path) is not None and path.is_file())


def _recognised(path: Path) -> bool:
    """Whether ASE recognises a file by its name or content."""
    try:
        return filetype(str(path)) in ioformats
    except (UnknownFileTypeError, OSError):
        return False


def _options(loader: Callable[..., Frames]) -> list[str]:
    """The options of a loader; ``**options`` are those of ``LabelOptions``."""
    names = list(inspect.signature(loader).parameters)[1:]
    return [option for name in names for option in (LabelOptions.__annotations__ if name == "options" else (name,))]


def _resolve(source: str) -> Path:
    """The file of a source; for simulated data, its name."""
    if source.startswith("sample:"):
        return sample_path(source.removeprefix("sample:"))
    if is_name(source):
        return cached_path(source)
    if source.startswith(NBODY_PREFIX):
        return Path(source)  # simulated: there is no file
    path = Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file `{source}`; a data set is a file, `sample:NAME` ({', '.join(SAMPLES)}), a name that "
            f"`mdrelax data fetch` knows, or `{NBODY_PREFIX}NAME`, which is simulated."
        )
    return path


def _format(path: Path) -> str:
    if str(path).startswith(NBODY_PREFIX):
        return "nbody"
    if (found := _ending(path)) is not None:
        return found
    if _recognised(path):
        return "ase"
    raise ValueError(
        f"The format of `{path.name}` does not follow from its ending; known endings are {', '.join(FORMATS)}, "
        f"known names VASP's OUTCAR and vasprun.xml. Name it with `format` ({', '.join(LOADERS)})."
    )


def _ending(path: Path) -> str | None:
    """The format that the name of a file shows; None if it shows none."""
    if path.name.lower().startswith(PROGRAM_FILES):
        return "ase"
    return next((FORMATS[ending] for ending in FORMATS if path.name.lower().endswith(ending)), None)
