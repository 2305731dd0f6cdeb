"""Splits: the training, validation and test frames, as index lists that are saved with the run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mdrelax.base.files import write_atomically
from mdrelax.datasets.catalogue import is_name
from mdrelax.datasets.download import cached_path
from mdrelax.datasets.indices import read_index_file

__all__ = ["Split", "index_split", "load_split", "random_split", "read_indices", "save_split"]

Indices = Sequence[int] | np.ndarray | str | Path  # a list of indices, a file of them, or a fetched name
CONFIG_KEYS = {"train": "data.train", "valid": "data.validation", "test": "data.test"}


class Split(NamedTuple):
    """Indices (from 0) into one list of frames; no frame is in two parts."""

    train: list[int]
    valid: list[int]
    test: list[int]


def random_split(
    n_frames: int,
    *,
    train: int | float,
    valid: int | float,
    test: int | float | None = None,
    generator: np.random.Generator,
) -> Split:
    """Split ``n_frames`` at random; sizes are counts (``950``) or fractions (``0.8``), ``test=None`` takes the rest.

    Raises ``ValueError`` if more frames are requested than there are, or if a requested part is empty.
    """
    sizes = {"train": _count("train", train, n_frames), "valid": _count("valid", valid, n_frames)}
    sizes["test"] = n_frames - sum(sizes.values()) if test is None else _count("test", test, n_frames)
    asked = sum(sizes.values())
    if asked > n_frames or sizes["test"] < 0:
        raise ValueError(
            f"A split into train={train}, valid={valid}, test={'the rest' if test is None else test} needs more than "
            f"the {n_frames} frames of the data; ask for fewer."
        )
    order = generator.permutation(n_frames).tolist()
    first, second = sizes["train"], sizes["train"] + sizes["valid"]
    split = Split(order[:first], order[first:second], order[second:asked])
    may_be_empty = {name for name, size in (("valid", valid), ("test", test)) if size == 0 and size is not None}
    return _checked(split, n_frames, may_be_empty)


def index_split(
    n_frames: int,
    *,
    train: Indices,
    valid: Indices | int = 0,
    test: Indices = (),
    generator: np.random.Generator | None = None,
) -> Split:
    """Split by given indices (counted from 0), or by files of them (``index_train_01.csv``, ``rmd17:index_train_01``).

    A number for ``valid`` moves that many frames out of ``train``, drawn with ``generator``. Raises ``ValueError``
    if an index is out of range, twice in a part or in two parts, and if no frame is left to train on.
    """
    training, testing = _indices(train), _indices(test)
    if isinstance(valid, (int, np.integer)):
        training, validation = _hold_out(training, int(valid), generator)
    else:
        validation = _indices(valid)
    given = {"valid": valid, "test": test}
    may_be_empty = {name for name, value in given.items() if not isinstance(value, (str, Path))}
    return _checked(Split(training, validation, testing), n_frames, may_be_empty)


def read_indices(source: str | Path) -> list[int]:
    """The frame numbers in a file, or under a fetched name such as ``rmd17:index_train_01``.

    Raises ``ValueError`` on other text and for an unknown name, ``FileNotFoundError`` if the file does not exist yet.
    """
    return read_index_file(cached_path(str(source)) if is_name(str(source)) else source)


def save_split(path: str | Path, split: Split, *, data_hash: str = "") -> None:
    """Write the indices as JSON, with the hash of the data they belong to; on ``OSError`` an existing file stays."""
    content = json.dumps({"data_hash": data_hash, **split._asdict()}) + "\n"
    write_atomically(Path(path), content.encode())


def load_split(path: str | Path, *, data_hash: str = "") -> Split:
    """Read saved indices; raises ``ValueError`` if the file is broken or belongs to data with another hash."""
    path = Path(path)
    try:
        content = json.loads(path.read_text())
        split = Split(*([int(index) for index in content[name]] for name in Split._fields))
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"`{path}` is not a split file written by mdrelax ({error!r}).") from error
    saved = content.get("data_hash", "")
    if data_hash and saved and saved != data_hash:
        raise ValueError(
            f"`{path}` was made for other data: its hash is {saved[:12]}, that of the data is {data_hash[:12]}; "
            "use the data of that run, or make a new split."
        )
    return split


def _count(name: str, size: int | float, n_frames: int) -> int:
    """A part's number of frames: counts are whole numbers, fractions lie in [0, 1] and are rounded down."""
    if isinstance(size, bool) or size < 0 or (isinstance(size, float) and size > 1):
        raise ValueError(f"`{name}` must be a count (0, 1, 2, ...) or a fraction between 0.0 and 1.0, got {size!r}.")
    # 1e-9 keeps 0.29 * 100 = 28.999999999999996 at 29.
    return int(size * n_frames + 1e-9) if isinstance(size, float) else int(size)


def _indices(source: Indices) -> list[int]:
    return read_indices(source) if isinstance(source, (str, Path)) else [int(index) for index in source]


def _hold_out(train: list[int], n_valid: int, generator: np.random.Generator | None) -> tuple[list[int], list[int]]:
    """Move ``n_valid`` random frames out of the training part."""
    if n_valid == 0:
        return train, []
    if generator is None:
        raise ValueError(f"`index_split(valid={n_valid})` draws at random and needs a `generator`.")
    if not 0 < n_valid < len(train):
        raise ValueError(
            f"`valid` (`{CONFIG_KEYS['valid']}`) must lie between 0 and the {len(train)} training frames, "
            f"got {n_valid}."
        )
    order = generator.permutation(len(train))
    return [train[k] for k in order[n_valid:]], [train[k] for k in order[:n_valid]]


def _checked(split: Split, n_frames: int, may_be_empty: set[str]) -> Split:
    """The split itself, if every index is in range and used once, and no requested part is empty."""
    part_of: dict[int, str] = {}
    for name, indices in split._asdict().items():
        if not indices and name not in may_be_empty:
            raise ValueError(f"The {name} part of the split of {n_frames} frames is empty; {_remedy(name)}.")
        for index in indices:
            if not 0 <= index < n_frames:
                raise ValueError(f"Index {index} of the {name} part is out of range: the data has {n_frames} frames.")
            if index in part_of:
                twice = f"twice in {name}" if part_of[index] == name else f"in {part_of[index]} and in {name}"
                raise ValueError(f"Frame {index} is {twice}; each frame may be used once.")
            part_of[index] = name
    return split


def _remedy(name: str) -> str:
    more = f"ask for more frames with `{name}` (in a config `{CONFIG_KEYS[name]}`)"
    return f"{more}, or for 0 to do without" if name == "test" else more
