"""Fetch a public data set by name: several mirrors, checksums, resumed downloads, one clear sentence without network.

    fetch("rmd17:ethanol")                               # downloads, verifies, unpacks; the second call finds the file
    fetch("rmd17:ethanol", from_file="rmd17.tar.bz2")    # an archive obtained by other means

The known checksums are in the catalogue.
"""

import errno
import hashlib
import os
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase.formula import Formula
from ase.symbols import Symbols

from mdrelax.base.files import locked_file, write_atomically
from mdrelax.base.names import nearest_name
from mdrelax.datasets.catalogue import CATALOGUE, Item, Source
from mdrelax.datasets.indices import read_index_file

__all__ = ["Fetched", "cached_path", "data_folder", "fetch"]

CHUNK = 1 << 20  # bytes
TIMEOUT = 60.0  # seconds without a response
Progress = Callable[[int, int], None]  # bytes so far, bytes in all (0 where the server does not say)


class Fetched(NamedTuple):
    """A data file on this machine, its sha256, and a sentence on its verification."""

    path: Path
    sha256: str
    verdict: str


def fetch(
    name: str,
    *,
    folder: str | Path | None = None,
    from_file: str | Path | None = None,
    progress: Progress = lambda done, total: None,
    catalogue: Mapping[str, Item] = CATALOGUE,
) -> Fetched:
    """Get the data set ``name`` (such as ``rmd17:ethanol``) into ``folder``, the user's cache unless given.

    An existing file is verified and returned. ``from_file`` uses the archive or the single file on this machine instead
    of the network. Mirrors are tried in order, and an interrupted download resumes where it stopped.
    Raises ``ValueError`` for an unknown name or wrong content, ``ConnectionError`` if no mirror could be reached,
    ``InUseError`` while another process gets the same file, and an ``OSError`` whose ``strerror`` is a sentence if the
    folder cannot be written to (a file that is there already needs no writing).
    """
    item = _item(name, catalogue)
    target = data_folder(folder) / item.filename
    if from_file is None and target.is_file():
        return _verified(item, target, "It already existed.")
    with locked_file(target):
        if from_file is not None:
            verdict = _take(Path(from_file), item, target)
        else:
            verdict = _try_sources(name, item, target, progress)
        return _verified(item, target, verdict)


def cached_path(name: str, *, folder: str | Path | None = None, catalogue: Mapping[str, Item] = CATALOGUE) -> Path:
    """The path of a fetched data set; raises ``FileNotFoundError`` with the command to run if it is missing."""
    path = data_folder(folder) / _item(name, catalogue).filename
    if not path.is_file():
        raise FileNotFoundError(f"`{name}` is not on this machine yet; run `mdrelax data fetch {name}` first.")
    return path


def data_folder(folder: str | Path | None = None) -> Path:
    """The folder for downloads: the one given, else ``$MDRELAX_CACHE``, else the user's cache folder."""
    if folder is None:
        import pooch

        folder = os.environ.get("MDRELAX_CACHE") or pooch.os_cache("mdrelax")
    return Path(folder).expanduser()


def _item(name: str, catalogue: Mapping[str, Item]) -> Item:
    if name not in catalogue:
        raise ValueError(f"There is no data set `{name}` to fetch; {nearest_name(name, catalogue)}")
    return catalogue[name]


# --- get the file ---


def _try_sources(name: str, item: Item, target: Path, progress: Progress) -> str:
    """Download from the first mirror with the right content; returns a sentence on its origin."""
    failures = []
    for source in item.sources:
        try:
            _from_source(item, source, target, progress)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise OSError(
                    error.errno,
                    f"`{target}` cannot be written ({error.strerror}); make room, or name another folder with "
                    "MDRELAX_CACHE. What was downloaded so far is kept.",
                ) from error
            failures.append(f"{source.url}: {_reason(error)}")
        else:
            return f"It came from {source.url}{_checksum_clause(source)}."
    raise ConnectionError(
        f"`{name}` could not be downloaded; either this machine has no network, or the mirrors have changed. Download "
        f"{item.sources[0].url} (or another mirror) elsewhere and pass it with `--from-file`. "
        f"Tried: {'; '.join(failures)}."
    )


def _from_source(item: Item, source: Source, target: Path, progress: Progress) -> None:
    """One mirror: download (or find) the file or archive, verify its checksum, put the file at ``target``."""
    part = target.parent / f"{source.archive or target.name}.part"
    got = target.parent / (source.archive or f"{target.name}.unchecked")
    with locked_file(part):  # an archive is shared by the files inside
        if not got.is_file() or _wrong_sum(got, source.checksum):
            _download(source.url, part, progress)
            if wrong := _wrong_sum(part, source.checksum):
                part.unlink()
                raise ValueError(wrong)
            os.replace(part, got)
    if source.member is not None:
        _unpack(got, source.member, item, target)
    else:
        _adopt(got, item, target)


def _download(url: str, part: Path, progress: Progress) -> None:
    """Store ``url`` in ``part``, of which only the rest is requested; raises ``OSError`` if the connection breaks."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "mdrelax", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
            _save(response, part, start, progress)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # range not satisfiable: the part is the whole file; its checksum decides
            raise


def _save(response: Any, part: Path, start: int, progress: Progress) -> None:
    status = response.status
    if status not in (None, 200, 206):
        raise OSError(f"the server answered with status {status}")
    if response.headers.get_content_type() == "text/html":
        raise OSError("the server sent a web page instead of the file")
    done = start if status == 206 else 0
    length = response.headers.get("Content-Length")
    total = done + int(length) if length else 0
    with part.open("ab" if done else "wb") as file:
        while chunk := response.read(CHUNK):
            file.write(chunk)
            done += len(chunk)
            progress(done, total)
    if total and done < total:
        raise OSError(f"the connection broke after {done} of {total} bytes; the next attempt resumes there")


def _reason(error: Exception) -> str:
    """Why a mirror failed, on one line."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return " ".join(str(reason).split()).rstrip(".")


def _wrong_sum(path: Path, checksum: str | None) -> str:
    """A clause on a file whose checksum is not the published one; empty if it is, or if none is published."""
    if checksum is None:
        return ""
    kind, expected = checksum.split(":")
    found = _digest(path, kind)
    return "" if found == expected else f"its {kind} sum is {found}, expected {expected}"


def _checksum_clause(source: Source) -> str:
    if source.checksum is None:
        return ", whose publisher gives no checksum"
    kind = source.checksum.split(":")[0]
    return f", with the published {kind} sum"


# --- use a file on this machine ---


def _take(path: Path, item: Item, target: Path) -> str:
    """Copy the file out of the user's archive (its checksum verified), or take the user's single file."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file `{path}` to take `{item.filename}` from.")
    if not tarfile.is_tarfile(path):
        return _take_single(path, item, target)
    archived = next((source for source in item.sources if source.member is not None), None)
    if archived is None or archived.member is None:
        raise ValueError(f"`{item.filename}` is published as a single file, but `{path}` is an archive.")
    _require_checksum(path, archived)
    _unpack(path, archived.member, item, target)
    return f"It was unpacked from `{path.name}`{_checksum_clause(archived)}."


def _take_single(path: Path, item: Item, target: Path) -> str:
    """Copy the user's single file, verified if the checksum of the file outside an archive is known."""
    single = next((source for source in item.sources if source.member is None and source.checksum), None)
    if single is not None:
        _require_checksum(path, single)
    _copy(path, item, target)
    clause = _checksum_clause(single) if single else ", unverified: no checksum of it is known"
    return f"It was taken from `{path.name}`{clause}."


def _require_checksum(path: Path, source: Source) -> None:
    if wrong := _wrong_sum(path, source.checksum):
        raise ValueError(
            f"`{path}` is not the published {'archive' if source.archive else 'file'}, or was cut off: {wrong}. "
            "Download it again, or use an npz file as it is with `data.source: FILE`."
        )


def _unpack(archive: Path, member: str, item: Item, target: Path) -> None:
    """Write one member of a tar archive to ``target``; raises ``ValueError`` if it is not inside."""
    try:
        with tarfile.open(archive) as tar:
            found = next((entry for entry in tar if entry.name.removeprefix("./") == member and entry.isfile()), None)
            content = tar.extractfile(found) if found is not None else None
            if content is None:
                raise ValueError(f"The archive `{archive}` contains no `{member}`.")
            _write_whole(content, item, target)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"The archive `{archive}` is damaged ({error}).") from error


def _copy(path: Path, item: Item, target: Path) -> None:
    if path.resolve() != target.resolve():
        with path.open("rb") as content:
            _write_whole(content, item, target)


def _write_whole(content: Any, item: Item, target: Path) -> None:
    """Copy a stream to ``target``, which appears only when it is complete and verified."""
    part = target.with_name(target.name + ".unchecked")
    with part.open("wb") as file:
        while chunk := content.read(CHUNK):
            file.write(chunk)
    _adopt(part, item, target)


# --- verify it ---


def _adopt(path: Path, item: Item, target: Path) -> None:
    """Move a file to ``target`` if its content is right, else delete it and raise ``ValueError``."""
    try:
        _check_content(item, path)
    except ValueError:
        path.unlink()
        raise
    os.replace(path, target)


def _verified(item: Item, target: Path, verdict: str) -> Fetched:
    """Check the content, compare the sha256 with the one stored next to the file, or store it if there is none."""
    _check_content(item, target)
    sha256 = _digest(target, "sha256")
    kept = target.with_name(target.name + ".sha256")
    known = kept.read_text(errors="replace").partition(" ")[0] if kept.is_file() else None
    if known is None:
        return Fetched(target, sha256, f"{verdict} Its form is right; {_store(kept, f'{sha256}  {target.name}')}.")
    if known != sha256:
        raise ValueError(
            f"`{target}` has changed: its sha256 is {sha256}, and `{kept.name}` next to it has {known}. Delete both "
            "to fetch it again."
        )
    return Fetched(target, sha256, f"{verdict} Its form is right, and its sha256 the one first seen.")


def _store(path: Path, line: str) -> str:
    """Write a checksum; returns a clause on that, also where nothing can be written (a shared, read-only folder)."""
    try:
        write_atomically(path, f"{line}\n".encode())
    except OSError:
        return "its sha256 could not be stored, because the folder is read-only"
    return "its sha256 has been stored"


def _check_content(item: Item, path: Path) -> None:
    """Raise ``ValueError`` if members, keys, shapes or molecule do not match the name of the file."""
    if item.holds is not None:
        _check_zip(item.holds, item, path)
        return
    if item.formula is None:
        read_index_file(path)
        return
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            numbers = arrays["nuclear_charges" if "nuclear_charges" in arrays else "z"].ravel()
            shape = arrays["coords" if "coords" in arrays else "R"].shape
            damaged = arrays.zip.testzip()  # every array has its own checksum
    except Exception as error:  # zip, zlib, numpy and key errors: whatever a wrong file provokes
        raise ValueError(
            f"`{item.filename}` is not an MD17 npz file, or was cut off ({error}); fetch it again."
        ) from error
    if damaged is not None:
        raise ValueError(f"`{item.filename}` is damaged: the checksum of {damaged} is wrong; fetch it again.")
    found = Symbols(numbers.astype(int)).get_chemical_formula()
    if Formula(found).count() != Formula(item.formula).count() or shape[1:] != (len(numbers), 3):
        raise ValueError(f"`{item.filename}` holds {found} with coordinates {shape}; expected is {item.formula}.")


def _check_zip(ending: str, item: Item, path: Path) -> None:
    """A whole archive has its directory at the end, and in it the members that are read from it later."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"`{item.filename}` is no zip archive, or was cut off ({error}); fetch it again.") from error
    if not any(name.endswith(ending) for name in names):
        raise ValueError(f"`{item.filename}` holds {len(names)} files, but none ending in `{ending}`.")


def _digest(path: Path, kind: str) -> str:
    digest = hashlib.new(kind)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
