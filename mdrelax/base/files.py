"""Atomic files: complete or absent, however the writing process ends; and locks that admit one writer.

A file is written under another name, synced to the disk and moved over the old one, which stays until then. A folder
(or a file that grows) is locked while a process works in it; the system releases the lock however the process ends.
"""

import contextlib
import datetime
import glob
import itertools
import json
import os
import secrets
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    HAS_LOCKS = False
else:
    HAS_LOCKS = True

__all__ = ["InUseError", "locked_file", "locked_folder", "whole_file", "write_atomically"]

REMAINS = 86_400  # seconds after which a temporary file of a unique name is nobody's
ATTEMPTS = 100  # to make a lock file in a folder that others remove; where none can be made (/proc) it is never there

_held: dict[Path, int] = {}  # lock file -> the thread of this process that holds it
_held_guard = threading.Lock()


class InUseError(RuntimeError):
    """Another process is working there; the message names it."""


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``; on any failure the old file stays, see ``whole_file``."""
    with whole_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def whole_file(path: Path, *, shared: bool = False) -> Iterator[BinaryIO]:
    """A binary file that replaces ``path`` when the block ends, and is on the disk by then.

    On any failure (a full disk, Ctrl-C) the old file stays and no temporary file remains; the ``strerror`` of an
    ``OSError`` is a sentence with the reason. The temporary file always has the same name, so that the remains of a
    killed process are overwritten; with ``shared`` its name is unique, so that several may write ``path``, and its
    remains are removed a day later.
    """
    own = f".{secrets.token_hex(4)}" if shared else ""
    part = path.with_name(f".{path.name}{own}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if shared:
            _remove_remains(path)
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(
                error.errno, f"`{path}` could not be written ({_reason(error)}); an older one is unchanged."
            ) from error
        raise


def _remove_remains(path: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote ``path``."""
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > REMAINS:
                old.unlink()


def _reason(error: OSError) -> str:
    if isinstance(error, FileExistsError | NotADirectoryError):  # raised by mkdir
        return "a folder of this path is a file"
    return error.strerror or str(error)


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Make ``folder`` and keep every other process and thread out of it; raises ``InUseError`` when one is inside.

    A thread may lock a folder again that it has locked already. The lock is advisory (``flock`` of the file ``.lock``):
    it keeps out processes that request it, and readers need none. A file system without locks gives a warning and no
    protection. Raises an ``OSError`` whose ``strerror`` is a sentence if the folder cannot be written to.
    """
    is_new = not folder.exists()
    try:
        with _locked(folder / ".lock", f"`{folder}`", "another folder"):
            yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()  # where nothing was put into it


@contextlib.contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """The same for one file, which need not exist; its lock file is next to it."""
    with _locked(path.with_name(f".{path.name}.lock"), f"`{path}`", "another file"):
        yield


@contextlib.contextmanager
def _locked(path: Path, name: str, other: str) -> Iterator[None]:
    key, me = path.parent.resolve() / path.name, threading.get_ident()
    with _held_guard:
        inside = _held.get(key) == me
    if inside:
        yield
        return
    file = _acquire(path, name, other)
    with _held_guard:
        _held[key] = me
    try:
        yield
    finally:
        with _held_guard:
            del _held[key]
        if file is not None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)  # before unlocking: a waiting process sees that its file is gone
            file.close()


def _acquire(path: Path, name: str, other: str) -> BinaryIO | None:
    """The open, locked lock file; None if the system has no locks."""
    for attempt in itertools.count() if HAS_LOCKS else ():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b")
        except OSError as error:
            if isinstance(error, FileNotFoundError) and attempt < ATTEMPTS:
                continue  # its last owner removed the empty folder
            raise OSError(error.errno, f"{name} cannot be written to ({_reason(error)}); choose {other}.") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(file)
            file.close()
            raise InUseError(f"{name} is in use by {holder}; wait for it, end it, or choose {other}.") from error
        except OSError as error:
            file.close()
            warnings.warn(f"{name} cannot be locked ({error.strerror}): start one process only.", stacklevel=5)
            return None
        if _is_still_there(file, path):
            _sign(file)
            return file
        file.close()  # its owner removed it between our opening and locking it
    return None


def _is_still_there(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _sign(file: BinaryIO) -> None:
    """Record who holds the lock; on a full disk it holds without a name."""
    start = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "start": start}).encode())
        file.flush()


def _holder(file: BinaryIO) -> str:
    try:
        file.seek(0)
        who = json.loads(file.read())
        return f"process {who['pid']} on host {who['host']} since {who['start']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has not written its name yet
        return "another process"
