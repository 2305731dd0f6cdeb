"""Downloads: mirrors, checksums, resumption, archives from this machine, and one clear sentence without network.

Everything is served by a server of our own on this machine, or from ``file://``; nothing is asked of the network.
"""

import errno
import hashlib
import io
import os
import socket
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from lock_holder import held_by_another_process
from mdrelax.base.files import InUseError
from mdrelax.datasets import load_frames
from mdrelax.datasets.catalogue import Item, Source
from mdrelax.datasets.download import cached_path, data_folder, fetch
from mdrelax.datasets.md17 import load_md17
from mdrelax.datasets.split import read_indices

MEMBER = "rmd17/npz_data/rmd17_water.npz"


def npz(numbers: tuple[int, ...] = (8, 1, 1), seed: int = 0) -> bytes:
    """The bytes of a tiny npz in rMD17's layout."""
    rng = np.random.default_rng(seed)
    shape = (20, len(numbers), 3)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        nuclear_charges=np.array(numbers, dtype=np.uint8),
        coords=rng.normal(size=shape),
        energies=rng.normal(size=20),
        forces=rng.normal(size=shape),
    )
    return buffer.getvalue()


def archive() -> bytes:
    """A tar.bz2 with the file and an index file, as rMD17 is published."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:bz2") as tar:
        for name, content in ((MEMBER, npz()), ("rmd17/splits/index_train_01.csv", b"3\n1\n2\n")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    """A checksum as the catalogue writes it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Server(ThreadingHTTPServer):
    """Serves ``content`` by path; ``log`` lists what was asked for, with the first byte wanted."""

    daemon_threads = True
    break_after: int | None = None  # bytes, of the next answer only
    content_type = "application/octet-stream"

    def __init__(self, content: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.log = content, []

    def url(self, path: str) -> str:
        """The address of a path."""
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    """Answers with whole files, or from the byte that ``Range`` asks for."""

    server: Server

    def do_GET(self) -> None:
        """One file."""
        content, start = self.server.content.get(self.path), self._start()
        self.server.log.append((self.path, start))
        if content is None:
            self.send_error(404)
        elif start >= len(content):
            self.send_error(416)
        else:
            self._answer(content[start:], 206 if start else 200)

    def _start(self) -> int:
        return int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))

    def _answer(self, content: bytes, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", self.server.content_type)
        self.end_headers()
        self.wfile.write(content[: self.server.break_after])
        self.server.break_after = None

    def log_message(self, *args: object) -> None:
        """Stay silent."""


@pytest.fixture
def server() -> Iterator[Server]:
    """A server with the file, the archive and a wrong file."""
    with Server({"/water.npz": npz(), "/rmd17.tar.bz2": archive(), "/wrong.npz": npz(seed=1)}) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def single(*urls: str, checksum: str | None = None) -> dict[str, Item]:
    """A catalogue of water as a single file."""
    return {"rmd17:water": Item("rmd17_water.npz", tuple(Source(url, checksum) for url in urls), "H2O")}


def archived(url: str, checksum: str | None = None) -> dict[str, Item]:
    """A catalogue of water and of an index file in one archive."""
    members = {"water": MEMBER, "index_train_01": "rmd17/splits/index_train_01.csv"}
    return {
        f"rmd17:{name}": Item(
            f"rmd17_{name}.{'npz' if name == 'water' else 'csv'}",
            (Source(url, checksum, "rmd17.tar.bz2", member),),
            "H2O" if name == "water" else None,
        )
        for name, member in members.items()
    }


def test_a_file_is_fetched_verified_and_found_again(server, tmp_path):
    """The second call asks nothing of the network."""
    catalogue = single(server.url("/water.npz"), checksum=sha256(npz()))
    seen = []
    first = fetch("rmd17:water", folder=tmp_path, catalogue=catalogue, progress=lambda *now: seen.append(now))
    assert first.path.read_bytes() == npz()
    assert f"sha256:{first.sha256}" == sha256(npz())
    assert "published sha256" in first.verdict
    assert seen[-1] == (len(npz()), len(npz()))
    again = fetch("rmd17:water", folder=tmp_path, catalogue=catalogue)
    assert "already existed" in again.verdict
    assert len(server.log) == 1
    assert len(load_md17(cached_path("rmd17:water", folder=tmp_path, catalogue=catalogue)).data) == 20


def test_mirrors_are_tried_in_order(server, tmp_path):
    """A missing file, wrong bytes and a dead server; then the right one."""
    urls = [server.url(path) for path in ("/gone.npz", "/wrong.npz", "/water.npz")]
    catalogue = single("http://127.0.0.1:9/water.npz", *urls, checksum=sha256(npz()))
    assert fetch("rmd17:water", folder=tmp_path, catalogue=catalogue).path.read_bytes() == npz()
    assert [path for path, _ in server.log] == ["/gone.npz", "/wrong.npz", "/water.npz"]


def test_a_broken_download_goes_on_where_it_stopped(server, tmp_path):
    """The part that arrived is kept, and only the rest is asked for."""
    catalogue = single(server.url("/water.npz"), checksum=sha256(npz()))
    server.break_after = 1000
    with pytest.raises(ConnectionError, match=f"the connection broke after 1000 of {len(npz())} bytes"):
        fetch("rmd17:water", folder=tmp_path, catalogue=catalogue)
    assert not (tmp_path / "rmd17_water.npz").exists()
    assert fetch("rmd17:water", folder=tmp_path, catalogue=catalogue).path.read_bytes() == npz()
    assert [start for _, start in server.log] == [0, 1000]
    assert not list(tmp_path.glob("*.part"))


def test_a_part_that_is_the_whole_file_is_taken(server, tmp_path):
    """Killed between the last byte and the renaming: the server has nothing left to send."""
    (tmp_path / "rmd17_water.npz.part").write_bytes(npz())
    catalogue = single(server.url("/water.npz"), checksum=sha256(npz()))
    assert fetch("rmd17:water", folder=tmp_path, catalogue=catalogue).path.read_bytes() == npz()


def test_a_web_page_is_not_taken_for_a_file(server, tmp_path):
    """Portals and robot checks answer every address with a page."""
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(ConnectionError, match="a web page instead of the file"):
        fetch("rmd17:water", folder=tmp_path, catalogue=single(server.url("/water.npz")))


def test_without_network_there_is_one_clear_sentence(tmp_path):
    """What to do, where to get the file, what was tried; nothing is left behind."""
    catalogue = single("http://127.0.0.1:9/water.npz", "http://name.invalid/water.npz")
    with pytest.raises(ConnectionError) as caught:
        fetch("rmd17:water", folder=tmp_path, catalogue=catalogue)
    message = str(caught.value)
    for part in ("no network", "`--from-file`", "http://127.0.0.1:9/water.npz", "http://name.invalid/water.npz: "):
        assert part in message
    assert "\n" not in message
    assert not list(tmp_path.iterdir())


def test_an_archive_is_downloaded_once_and_unpacked_for_each_file(server, tmp_path):
    """The molecule and the official indices come out of the same archive."""
    catalogue = archived(server.url("/rmd17.tar.bz2"), sha256(archive()))
    assert fetch("rmd17:water", folder=tmp_path, catalogue=catalogue).path.read_bytes() == npz()
    indices = fetch("rmd17:index_train_01", folder=tmp_path, catalogue=catalogue)
    assert read_indices(indices.path) == [3, 1, 2]
    assert len(server.log) == 1


def test_file_addresses_work(tmp_path):
    """A mirror may be a shared folder."""
    (tmp_path / "water.npz").write_bytes(npz())
    catalogue = single((tmp_path / "water.npz").as_uri(), checksum=sha256(npz()))
    assert fetch("rmd17:water", folder=tmp_path / "cache", catalogue=catalogue).path.read_bytes() == npz()


@pytest.mark.parametrize("kind", ["archive", "npz"])
def test_a_file_from_this_machine_needs_no_network(tmp_path, kind):
    """``from_file`` takes the published archive, or the npz that somebody unpacked."""
    path = tmp_path / f"mine.{kind}"
    path.write_bytes(archive() if kind == "archive" else npz())
    catalogue = archived("http://127.0.0.1:9/rmd17.tar.bz2", sha256(archive()))
    fetched = fetch("rmd17:water", folder=tmp_path / "cache", from_file=path, catalogue=catalogue)
    assert fetched.path == tmp_path / "cache" / "rmd17_water.npz"
    assert fetched.path.read_bytes() == npz()
    assert path.exists()


def flipped(content: bytes) -> bytes:
    """One bit of the forces turned over, behind the header of their array."""
    where = content.find(b"forces.npy") + 300
    return content[:where] + bytes([content[where] ^ 1]) + content[where + 1 :]


def spoilt(kind: str) -> bytes:
    """Bytes of a file that is not what was published."""
    if kind == "other archive":
        return archive() + b"\0"
    return {"other molecule": npz((6, 1, 1)), "cut off": npz()[:900], "flipped": flipped(npz()), "text": b"hello\n"}[
        kind
    ]


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("other archive", "is not the published archive, or was cut off: its sha256 sum is"),
        ("other molecule", "holds CH2 with coordinates .* expected is H2O"),
        ("cut off", "is not an MD17 npz file, or was cut off"),
        ("text", "is not an MD17 npz file"),
        ("flipped", "is damaged: the checksum of forces.npy is wrong"),
    ],
)
def test_a_wrong_file_from_this_machine_is_refused(tmp_path, kind, sentence):
    """And it is not kept for the next call to find."""
    path = tmp_path / "mine"
    path.write_bytes(spoilt(kind))
    catalogue = archived("http://127.0.0.1:9/rmd17.tar.bz2", sha256(archive()))
    with pytest.raises(ValueError, match=sentence):
        fetch("rmd17:water", folder=tmp_path / "cache", from_file=path, catalogue=catalogue)
    assert not list((tmp_path / "cache").iterdir())


def test_a_mirror_with_other_content_is_passed_over(server, tmp_path):
    """Where no checksum is known, the molecule decides."""
    server.content["/other.npz"] = npz((6, 1, 1))
    catalogue = single(server.url("/other.npz"), server.url("/water.npz"))
    assert fetch("rmd17:water", folder=tmp_path, catalogue=catalogue).path.read_bytes() == npz()
    assert {path.name for path in tmp_path.iterdir()} == {"rmd17_water.npz", "rmd17_water.npz.sha256"}


def test_a_download_that_was_ended_before_its_check_is_not_repeated(server, tmp_path, monkeypatch):
    """Only the whole part is left: a temporary file of another name stayed for ever."""
    catalogue = single(server.url("/water.npz"), checksum=sha256(npz()))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mdrelax.datasets.download._wrong_sum", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch("rmd17:water", folder=tmp_path, catalogue=catalogue)
    assert {path.name for path in tmp_path.iterdir()} == {"rmd17_water.npz.part"}
    assert fetch("rmd17:water", folder=tmp_path, catalogue=catalogue).path.read_bytes() == npz()
    assert [start for _, start in server.log] == [0, len(npz())]
    assert {path.name for path in tmp_path.iterdir()} == {"rmd17_water.npz", "rmd17_water.npz.sha256"}


def test_a_missing_file_from_this_machine_is_named(tmp_path):
    """A typing error in ``from_file``."""
    with pytest.raises(FileNotFoundError, match=r"no file .*nothing\.tar"):
        fetch("rmd17:ethanol", folder=tmp_path, from_file=tmp_path / "nothing.tar")


def test_without_a_published_checksum_the_first_one_seen_is_kept(server, tmp_path):
    """Trust on first use: the sha256 stands beside the file, and a file that changed is refused."""
    catalogue = single(server.url("/water.npz"))
    first = fetch("rmd17:water", folder=tmp_path, catalogue=catalogue)
    assert "publisher gives no checksum" in first.verdict
    assert (tmp_path / "rmd17_water.npz.sha256").read_text().split() == [first.sha256, "rmd17_water.npz"]
    first.path.write_bytes(npz(seed=1))
    with pytest.raises(ValueError, match="has changed: its sha256 is"):
        fetch("rmd17:water", folder=tmp_path, catalogue=catalogue)


def test_two_downloads_do_not_share_a_part(server, tmp_path):
    """Neither of one file, nor of two files in one archive; whoever comes second hears who the first is."""
    here = socket.gethostname()
    catalogue = archived(server.url("/rmd17.tar.bz2"))
    for path, name in (("rmd17_water.npz", "water"), ("rmd17.tar.bz2.part", "index_train_01")):
        with held_by_another_process("file", tmp_path / path) as first, pytest.raises(InUseError) as caught:
            fetch(f"rmd17:{name}", folder=tmp_path, catalogue=catalogue)
        assert f"{path}` is in use by process {first.pid} on host {here}" in str(caught.value)
    assert server.log == []


def test_a_file_in_a_read_only_folder_is_found(server, tmp_path, monkeypatch):
    """A shared folder of data sets: nothing is written, and the verdict says so."""
    catalogue = single(server.url("/water.npz"))
    fetch("rmd17:water", folder=tmp_path, catalogue=catalogue)
    (tmp_path / "rmd17_water.npz.sha256").unlink()
    monkeypatch.setattr(Path, "open", refusing(Path.open))
    found = fetch("rmd17:water", folder=tmp_path, catalogue=catalogue)
    assert found.verdict.endswith("its sha256 could not be stored, because the folder is read-only.")
    with pytest.raises(OSError, match="Read-only file system") as caught:
        fetch("rmd17:index_train_01", folder=tmp_path, catalogue=archived(server.url("/rmd17.tar.bz2")))
    assert caught.value.strerror.endswith("cannot be written to (Read-only file system); choose another file.")


def refusing(opened):
    """``Path.open`` on a file system that is mounted read-only."""

    def open_to_read(path, mode="r", *arguments, **keywords):
        if set(mode) & set("wa+"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, mode, *arguments, **keywords)

    return open_to_read


def test_a_killed_fetch_leaves_no_half_checksum(server, tmp_path, monkeypatch):
    """The checksum file appears as a whole: an empty one would accuse a sound file of having changed."""
    catalogue = single(server.url("/water.npz"))

    def killed(*_):
        raise KeyboardInterrupt

    move = os.replace
    with monkeypatch.context() as patch:
        patch.setattr("mdrelax.base.files.os.replace", lambda a, b: killed() if "sha256" in str(b) else move(a, b))
        with pytest.raises(KeyboardInterrupt):
            fetch("rmd17:water", folder=tmp_path, catalogue=catalogue)
    assert fetch("rmd17:water", folder=tmp_path, catalogue=catalogue).verdict.endswith("its sha256 has been stored.")


def test_unknown_names_name_the_nearest(tmp_path):
    """A misspelt molecule."""
    with pytest.raises(ValueError, match="did you mean `rmd17:ethanol`"):
        fetch("rmd17:ethanoll", folder=tmp_path)


def test_a_set_that_was_not_fetched_names_the_command(monkeypatch, tmp_path):
    """Loading never downloads by itself; the cache can be moved with an environment variable."""
    monkeypatch.setenv("MDRELAX_CACHE", str(tmp_path))
    assert data_folder() == tmp_path
    with pytest.raises(FileNotFoundError, match="run `mdrelax data fetch rmd17:aspirin` first"):
        load_frames("rmd17:aspirin")
