"""Input without limits: documents, structure files and arrays of absurd size or kind are one sentence, and quickly."""

import io
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdrelax.base.sections import ConfigError, read_yaml
from mdrelax.datasets import load_frames
from mdrelax.datasets.structure_files import read_structures

PATIENCE = 5.0  # seconds, on a busy machine; idle, each is below one
GOOD: dict[str, Any] = {
    "z": np.array([8, 1, 1]),
    "R": np.random.default_rng(0).normal(scale=2.0, size=(4, 3, 3)),
    "E": np.zeros(4),
    "F": np.zeros((4, 3, 3)),
}


@contextmanager
def soon(match: str) -> Iterator[None]:
    """A short ``ValueError`` of ours, in a short time."""
    start = time.monotonic()
    with pytest.raises(ValueError, match=match) as caught:
        yield
    assert time.monotonic() - start < PATIENCE
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    assert len(message) < 600


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (BOMB, "more than 100,000 values, those of aliases included"),
        ("a: " + "[" * 3000, "nested deeper than 40"),
        ("{a: " * 3000, "nested deeper than 40"),
        ("".join(" " * k + "a:\n" for k in range(500)), "nested deeper than 40"),
        ("a: &a [*a]", "refers to nothing before it, or to itself"),
        ("a: " + "9" * 10_000, "4300 digits"),
        ("a: 2020-99-99", "month must be in 1..12"),
        ("a: 1\nb: {c: 1, c: 2}", "the key `c` stands twice"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: \0", "special characters are not allowed"),
        ("{[1, 2]: 3}", "found unhashable key"),
    ],
)
def test_a_document_beyond_the_limits_is_one_sentence(tmp_path: Path, text: str, match: str) -> None:
    """Nine lines of aliases took 200 seconds and 4 GB."""
    (tmp_path / "c.yaml").write_text(text)
    with soon(match):
        read_yaml(tmp_path / "c.yaml")


def test_aliases_and_equal_keys_at_different_places_are_read(tmp_path: Path) -> None:
    """What people write."""
    (tmp_path / "c.yaml").write_text("a: &x [1, 2]\nb: {c: *x, a: {a: 1}}\nd: {<<: {e: 1}, f: 2}\n")
    assert read_yaml(tmp_path / "c.yaml") == {"a": [1, 2], "b": {"c": [1, 2], "a": {"a": 1}}, "d": {"e": 1, "f": 2}}
    assert issubclass(ConfigError, ValueError)


@pytest.mark.parametrize("count", ["1000000000000", "1" + "0" * 30, "1" * 5000, "-5"])
@pytest.mark.parametrize("read", [load_frames, lambda path: read_structures(Path(path))], ids=["data", "structure"])
def test_a_frame_of_absurdly_many_atoms_is_one_sentence(tmp_path: Path, read: Any, count: str) -> None:
    """ASE counts to 10^12 before it looks whether the lines are there."""
    path = tmp_path / "x.extxyz"
    path.write_text(f"{count}\nProperties=species:S:1:pos:R:3 energy=1.0\nH 0 0 0\n")
    with soon("announces"):
        read(str(path))
    path.write_text(count)
    with soon("announces"):
        read(str(path))
    path.write_text("1\nProperties=species:S:1:pos:R:1000000000000 energy=1.0\nH 0 0 0\n")
    with soon("a column of 1000000000000 numbers"):
        read(str(path))
    path.write_text("1\nProperties=species:S:1:pos:R energy=1.0\nH 0 0 0\n")
    with soon("a column without its name, type or width"):
        read(str(path))
    path.write_text("1\nProperties=species:S:1:pos:R:3 energy=1.0\nH 0 0 0 0 0\n")
    with soon("has 6 columns, and its `Properties` name 4"):  # ASE drops what has no name
        read(str(path))
    path.write_text("1\nProperties=species:S:1:pos:R:3 energy=1.0\nH 0 0 0 0 0 0\n")
    with soon("its `Properties` name 4; name the others too: Properties=species:S:1:pos:R:3:forces:R:3, if"):
        read(str(path))
    path.write_text('1\nProperties=species:S:1:pos:R:3 energy=1.0 pbc="Q Q Q"\nH 0 0 0\n')
    with soon("which is three of T and F"):  # ASE takes any word for true
        read(str(path))


@pytest.mark.parametrize("key", GOOD)
@pytest.mark.parametrize("kind", ["object", "complex", "datetime64[s]", "str", "bool"])
def test_arrays_of_another_kind_are_one_sentence(tmp_path: Path, key: str, kind: str) -> None:
    """Complex and datetime arrays were read as if they were numbers."""
    array = np.round(GOOD[key]).astype(np.int64).astype(kind)
    np.savez(tmp_path / "x.npz", **{**GOOD, key: array})
    with soon("must hold real numbers|pickled objects"):
        load_frames(str(tmp_path / "x.npz"))


@pytest.mark.parametrize("shape", [(), (1,), (4, 3), (3, 4, 3), (4, 3, 3, 1)])
@pytest.mark.parametrize("key", ["R", "F"])
def test_arrays_of_another_shape_are_one_sentence(tmp_path: Path, key: str, shape: tuple[int, ...]) -> None:
    """Nothing is broadcast."""
    np.savez(tmp_path / "x.npz", **{**GOOD, key: np.zeros(shape)})
    with soon("of shape"):
        load_frames(str(tmp_path / "x.npz"))


@pytest.mark.parametrize("numbers", [[8.7, 1, 1], [0, 1, 1], [-8, 1, 1], [119, 1, 1]])
def test_atomic_numbers_of_no_element_are_refused(tmp_path: Path, numbers: list[float]) -> None:
    """0, -8 and 8.7 were accepted."""
    np.savez(tmp_path / "x.npz", **{**GOOD, "z": np.array(numbers)})
    with soon("atomic number"):
        load_frames(str(tmp_path / "x.npz"))


def _header(text: str) -> bytes:
    head = text.encode() + b" " * (117 - len(text) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head


@pytest.mark.parametrize("shape", ["(1000000000000, 3, 3)", "(-1, 3, 3)", "(" * 500])
def test_an_array_that_announces_more_than_there_is_is_one_sentence(tmp_path: Path, shape: str) -> None:
    """65 terabytes in a file of a kilobyte."""
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for key, array in GOOD.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            content = _header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}")
            archive.writestr(f"{key}.npy", content if key == "R" else buffer.getvalue())
    with soon("cannot be read as an npz file"):
        load_frames(str(tmp_path / "x.npz"))
