"""Files that are whole or not there at all, and folders that only one process writes to.

A file is written beside its place, synced to the disk and moved over the old one, which stays until then. A folder is
locked with ``flock`` on a small file in it that names its owner. The system releases the lock when the process ends,
however it ends; where there is no ``flock`` (Windows) folders are not locked.
"""

import contextlib
import datetime
import json
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["FolderInUseError", "locked", "whole_file", "write_atomically"]

LOCK = "lock"  # of a folder, in it: host, process and start of its owner


# --- files -----------------------------------------------------------------------------------------------------------


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``; on any failure the old file stays, see ``whole_file``."""
    with whole_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def whole_file(path: Path, *, shared: bool = False) -> Iterator[BinaryIO]:
    """A binary file that replaces ``path`` when the block ends, and is on the disk by then.

    On any failure (a full disk, Ctrl-C) the old file stays and nothing is left beside it; an ``OSError`` says why in
    its ``strerror``, a sentence. The file beside ``path`` always has the same name, so that what a killed process
    leaves is overwritten; with ``shared`` it has a name of its own, so that several processes may write ``path``.
    """
    own = f".{secrets.token_hex(4)}" if shared else ""
    part = path.with_name(f".{path.name}{own}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            yield file
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


# --- folders ---------------------------------------------------------------------------------------------------------


class FolderInUseError(RuntimeError):
    """Another process works in this folder; the message names it."""


_held: dict[Path, int] = {}  # lock files of this process, and how many blocks hold each


@contextlib.contextmanager
def locked(folder: Path, *, output: str | None = None) -> Iterator[None]:
    """Keep other processes out of ``folder``, which is made if need be, while the block runs.

    With ``output``, the name of a file in it, only those that would write that file. Raises ``FolderInUseError`` with
    host, process and start of the one that is there. A process may lock again what it has locked: a run locks its
    folder within a verb that has locked it for longer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / (f".{output}.{LOCK}" if output else f".{LOCK}")
    descriptor = None if fcntl is None or _held.get(path) else _acquire(path, folder / (output or ""))
    _held[path] = _held.get(path, 0) + 1
    try:
        yield
    finally:
        _held[path] -= 1
        if descriptor is not None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)  # before the release: afterwards it may be another's
            os.close(descriptor)


def _acquire(path: Path, place: Path) -> int:
    """The descriptor of the lock file ``path``, locked, with this process written into it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still_there(path, descriptor):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, _owner().encode())
                return descriptor
        except BlockingIOError:
            sentence = f"`{place}` is in use by {_owner_of(descriptor)}; wait for it, end it, or choose another place."
            os.close(descriptor)
            raise FolderInUseError(sentence) from None
        except OSError:  # a file system without locks, or a full disk: nobody is kept out, but nothing is lost either
            return descriptor
        os.close(descriptor)  # its last owner removed the file between our opening and locking it


def _is_still_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _owner() -> str:
    start = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "start": start})


def _owner_of(descriptor: int) -> str:
    """The process that holds a lock, in words; without its number where it has not written it yet."""
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {owner['pid']} on {owner['host']}, started {owner['start']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
