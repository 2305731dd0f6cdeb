"""Containers: tensors and one JSON document in a `.safetensors` file that never executes code when it is read.

The document is the header; its entry `content` is the SHA-256 over the tensors and the rest of it.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from mdrelax.base.budget import within_budget
from mdrelax.base.files import write_atomically
from mdrelax.base.names import printable

__all__ = [
    "ModelFileError",
    "check_header",
    "read_container",
    "read_header",
    "rebuilt",
    "refuse_others",
    "refuse_versions",
    "write_container",
]


class ModelFileError(RuntimeError):
    """A file that is not a model, or has changed since it was saved."""

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))


def write_container(path: str | Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> Path:
    """Write tensors and header atomically; raises ``OSError`` if the disk is full (the old file stays)."""
    header = {**header, "content": _content_hash(tensors, header)}
    path = Path(path)
    write_atomically(path, save(tensors, metadata={"mdrelax": json.dumps(header)}))
    return path


def read_container(
    path: str | Path, *, refuse: Callable[[Path, dict[str, Any]], None] = lambda path, header: None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file; raises ``ModelFileError`` if it is missing, truncated, foreign or altered.

    ``refuse(path, header)`` may raise before the content is compared with its hash.
    """
    path = Path(path)
    header, tensors = _read(path)
    refuse(path, header)
    if header.get("content") != _content_hash(tensors, {k: v for k, v in header.items() if k != "content"}):
        raise ModelFileError(f"`{path}` was altered after it was saved: its content does not match its hash.")
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ModelFileError(f"`{path}` holds numbers that are NaN or infinite, in `{broken[0]:.60}`; train it again.")
    return header, tensors


def read_header(path: str | Path) -> dict[str, Any]:
    """The header of a file, as it stands there: neither tensors nor hash are read; raises as ``read_container``."""
    path = Path(path)
    with _opened(path) as file:
        document = (file.metadata() or {}).get("mdrelax")
    return _document(path, document)


def refuse_others(kind: str, version: int) -> Callable[[Path, dict[str, Any]], None]:
    """For ``read_container``: raise ``ModelFileError`` for a file of another ``kind``, or newer than ``version``."""

    def refuse(path: Path, header: dict[str, Any]) -> None:
        if header.get("kind") != kind:
            raise ModelFileError(f"`{path}` does not hold {kind}; `mdrelax info` shows its content.")
        refuse_versions(path, header, oldest=1, newest=version)

    return refuse


def refuse_versions(path: Path, header: dict[str, Any], *, oldest: int, newest: int) -> None:
    """Raise ``ModelFileError`` for a header of a version that is newer than ``newest``, or that never was."""
    version = header.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < oldest:
        raise ModelFileError(f"The header of `{path}` is damaged: `format_version` is {version!r:.40}.")
    if version > newest:
        raise ModelFileError(
            f"`{path}` has format version {version!s:.20}; this mdrelax reads up to {newest}: upgrade mdrelax."
        )


@contextmanager
def rebuilt(path: Path, arguments: Any, tensors: dict[str, Tensor]) -> Iterator[None]:
    """Inside the context the network of a file is built from ``arguments`` (JSON) and given its ``tensors``.

    Raises ``ModelFileError`` for a network that is larger than its file, before it is allocated, and for everything
    else that goes wrong.
    """
    try:
        with within_budget(arguments, tensors):
            yield
    except Exception as error:  # networks and e3nn raise anything for impossible arguments
        reason = " ".join(str(error).split())
        raise ModelFileError(f"`{path}` describes a network that this mdrelax cannot build ({reason:.200}).") from error


def check_header(path: Path, header: dict[str, Any], form: type[BaseModel]) -> None:
    """Raise ``ModelFileError``, in one sentence, for a header that has not the keys and types of ``form``."""
    try:
        form.model_validate(header)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ModelFileError(f"The header of `{path}` is damaged: `{place:.60}`: {first['msg'].lower()}.") from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with _opened(path) as file:
        document = (file.metadata() or {}).get("mdrelax")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    return _document(path, document), tensors


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The open file; everything that is wrong with it is a ``ModelFileError``."""
    if not path.is_file():
        raise ModelFileError(f"There is no model file `{path}`.")
    if path.suffix == ".pt2":
        raise ModelFileError(
            f"`{path}` is a compiled model: loading it would run the code in it. If you made it yourself, or "
            'trust its author, use `MDRelaxCalculator.from_compiled("...")`; else ask for the .safetensors file.'
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except Exception as error:  # safetensors and torch raise several types, for offsets, shapes and dtypes
        reason = " ".join(str(error).split())
        raise ModelFileError(f"`{path}` is truncated or not a safetensors file ({reason:.200}).") from error


def _document(path: Path, document: str | None) -> dict[str, Any]:
    if document is None:
        raise ModelFileError(f"`{path}` is a safetensors file, but not one of mdrelax.")
    try:
        header = json.loads(document)
        json.dumps(header, sort_keys=True)  # as for the hash: numbers of thousands of digits cannot be written
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"The header of `{path}` is damaged ({error!s:.200}).") from error
    if not isinstance(header, dict):
        raise ModelFileError(f"The header of `{path}` is damaged (no object).")
    return header


def _content_hash(tensors: dict[str, Tensor], header: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
