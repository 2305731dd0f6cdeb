"""Array cache: arrays that can be recomputed, stored in npz files next to the downloads."""

import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mdrelax.base.files import whole_file

__all__ = ["cached_arrays"]

Arrays = dict[str, np.ndarray]

DAMAGE = (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, AttributeError, KeyError, NotImplementedError)


def cached_arrays(path: Path, compute: Callable[[], Arrays]) -> Arrays:
    """The arrays in ``path``, or those that ``compute`` returns, which are then stored there.

    A truncated or damaged file (every array has a checksum) is replaced. The file is written atomically; if it cannot
    be written, a warning is given and the arrays are returned nevertheless.
    """
    kept = _read(path)
    if kept is not None:
        return kept
    arrays = compute()
    try:
        _write(path, arrays)
    except OSError as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        warnings.warn(
            f"`{path}` could not be written ({cause.strerror or cause}), so the data will be computed again next time; "
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
    """Several processes may compute the same arrays at once: each writes its own temporary file."""
    with whole_file(path, shared=True) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
