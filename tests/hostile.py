"""Files that somebody made on purpose: model files, compiled models and checkpoints whose hashes fit their content."""

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from mdrelax.base.containers import _content_hash
from mdrelax.compiled.files import DOCUMENT, _digest
from mdrelax.method.certificate import CertificateError
from mdrelax.modelfile import ModelFileError
from mdrelax.training.checkpoint import CheckpointError

DELETED = object()
VALUES: tuple[Any, ...] = (
    DELETED, None, True, 0, -1, 3.5, float("nan"), float("inf"), 10**9, 10**400, "", "x", "../../etc/passwd", [], {},
    [1], [[1]], {"a": 1}, "float16", "1000000000x0e", [10**9],
)  # fmt: skip


def places(document: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys of a document and of the objects inside."""
    for key, value in document.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from places(value, (*above, key))


def changed(document: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy with another value at a place, or without it."""
    copy = json.loads(json.dumps(document))
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    if value is DELETED:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return copy


def forged(path: Path, header: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """A model file whose hash fits, whatever is in it."""
    header = {key: value for key, value in header.items() if key != "content"}
    header["content"] = _content_hash(tensors, header)
    path.write_bytes(save(tensors, metadata={"mdrelax": json.dumps(header)}))
    return path


def forged_compiled(path: Path, original: Path, header: dict[str, Any]) -> Path:
    """A compiled model with another document, whose hash fits."""
    with zipfile.ZipFile(original) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            if name.partition("/")[2] != DOCUMENT:
                new.writestr(name, old.read(name))
        new_header = {**header, "sha256": _digest(new, header)}
        new.writestr(f"{old.namelist()[0].partition('/')[0]}/{DOCUMENT}", json.dumps(new_header))
    return path


def is_one_sentence(error: BaseException) -> bool:
    """A message of bounded length on one line, with its full stop."""
    message = str(error)
    return message.endswith(".") and "\n" not in message and len(message) < 600


def refusal(load: Callable[[Path], Any], path: Path) -> BaseException | None:
    """The error of ours with which a loader refuses a file; None if it is accepted."""
    try:
        load(path)
    except (ModelFileError, CertificateError, CheckpointError) as error:
        return error
    return None
