"""Files that are whole or not there at all, whatever stops the process that writes them.

A file is written beside its place, synced to the disk and moved over the old one, which stays until then.
"""

import contextlib
import os
from pathlib import Path

__all__ = ["write_atomically"]


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``; on any failure (a full disk) the old file stays and ``OSError`` says why.

    The error's sentence is its ``strerror``.
    """
    part = path.with_name(f".{path.name}.part")  # always the same name: what a killed run leaves is overwritten
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise OSError(
                error.errno, f"`{path}` could not be written ({reason}); an older one is untouched."
            ) from error
        raise
