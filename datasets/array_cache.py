"""Array cache: arrays that a computation gives again at will, kept in npz files beside the downloads."""

import os
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

__all__ = ["cached_arrays"]

Arrays = dict[str, np.ndarray]

DAMAGE = (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, AttributeError, KeyError, NotImplementedError)


def cached_arrays(path: Path, compute: Callable[[], Arrays]) -> Arrays:
    """The arrays in ``path``, else those that ``compute`` gives, which are then kept there.

    A file that is cut off or damaged (every array has its checksum) is made anew. The file appears when it is whole;
    where it cannot be written, a warning says so and the arrays are returned all the same.
    """
    kept = _read(path)
    if kept is not None:
        return kept
    arrays = compute()
    try:
        _write(path, arrays)
    except OSError as error:
        warnings.warn(
            f"`{path}` could not be written ({error.strerror or error}), so the data will be computed again next time; "
            "name a folder that can be written to with MDRELAX_CACHE.",
            UserWarning,
            stacklevel=2,
        )
    return arrays


def _read(path: Path) -> Arrays | None:
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except DAMAGE:
        return None


def _write(path: Path, arrays: Arrays) -> None:
    """Write beside ``path`` under a name of its own, so that two processes do not meet, and move it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
