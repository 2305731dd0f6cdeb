"""Mutations: what rot, mistakes and malice make of a file, each drawn from a generator.

Two sorts. *Rot* changes bytes and mends no hash: what loads must be what stood there before. *Forgeries* have hashes
that fit: they may load, but only as exactly what they state, and only if a network of theirs can exist.
"""

import io
import json
import os
import pickle
import random
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor

from hostile import DELETED, VALUES, changed, places
from mdrelax.base.containers import _content_hash
from mdrelax.compiled.files import DOCUMENT, _digest
from mdrelax.training.checkpoint import _with_hash

Draw = random.Random
VALUES_TOO = (
    *VALUES,
    "\ud800",
    "\x1b[2J\x07",
    "é" * 2000,
    -(10**30),
    1e308,
    -0.0,
    "1e5",
    [[[]]],
    {"": None},
    2**63,
    118,
)
KEYS_TOO = ("", "kind", "format_version", "\x00", "x" * 3000)


class Mutant(NamedTuple):
    """A changed file."""

    content: bytes
    change: str  # in words
    states: Any = None  # of a forgery: the numbers that it states; None: only the numbers before are right


Mutate = Callable[[bytes, Draw], Mutant]


class Trap:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


CANARY = Path(tempfile.gettempdir()) / f"mdrelax-canary-{os.getpid()}"


# --- bytes of any file ---


def flipped(content: bytes, draw: Draw) -> Mutant:
    """One bit, or a few."""
    changed_bytes, n = bytearray(content), draw.choice((1, 1, 1, 2, 8))
    where = [draw.randrange(8 * len(content)) for _ in range(n)]
    for place in where:
        changed_bytes[place // 8] ^= 1 << place % 8
    return Mutant(bytes(changed_bytes), f"bits {where} flipped")


def truncated(content: bytes, draw: Draw) -> Mutant:
    """Cut off, or cut short from the front."""
    place = draw.choice((draw.randrange(len(content)), draw.randrange(min(200, len(content))), len(content) - 1))
    return (
        Mutant(content[place:], f"from {place} on") if draw.random() < 0.2 else Mutant(content[:place], f"to {place}")
    )


def lengthened(content: bytes, draw: Draw) -> Mutant:
    """Something behind it, or before."""
    extra = draw.choice((b"\0", b"{}", content, draw.randbytes(100), b"\0" * 4096))
    return Mutant(content + extra, f"{len(extra)} bytes behind") if draw.random() < 0.7 else Mutant(
        extra + content, f"{len(extra)} bytes before")  # fmt: skip


def block_changed(content: bytes, draw: Draw) -> Mutant:
    """A block zeroed, filled, drawn anew, or put in the place of another: what a disk does."""
    size = draw.choice((1, 8, 64, 512))
    start, other = (draw.randrange(max(1, len(content) - size)) for _ in range(2))
    new = draw.choice((b"\0" * size, b"\xff" * size, draw.randbytes(size), content[other : other + size]))
    return Mutant(content[:start] + new + content[start + len(new) :], f"{len(new)} bytes at {start} replaced")


def digit_changed(content: bytes, draw: Draw) -> Mutant:
    """Another digit in a text, or another letter."""
    where = [k for k, byte in enumerate(content[:20000]) if 48 <= byte <= 57] or [0]
    place = draw.choice(where)
    new = draw.choice(b'0123456789-.eE,"[]{} ')
    return Mutant(content[:place] + bytes([new]) + content[place + 1 :], f"{chr(new)!r} at {place}")


def foreign(content: bytes, draw: Draw) -> Mutant:
    """A pickle, an archive of torch with a pickle in it, another archive, nothing, or noise."""
    kind = draw.choice(("pickle", "torch", "torch, with hash", "zip", "empty", "noise", "text", "brackets"))
    buffer = io.BytesIO()
    if kind.startswith("torch"):
        torch.save({"step": Trap(CANARY), "model": {}}, buffer)
    elif kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(
                f"m/{DOCUMENT}", draw.choice(("{}", "[]", "[" * 50_000, '{"format_version": 4}', "\ud7ff"))
            )
    made = {
        "pickle": lambda: pickle.dumps(Trap(CANARY), protocol=draw.choice((0, 2, 5))),
        "torch, with hash": lambda: _with_hash(buffer.getvalue()),
        "empty": lambda: b"",
        "noise": lambda: draw.randbytes(draw.randrange(1, 5000)),
        "text": lambda: "energy = é".encode(draw.choice(("utf-8", "latin-1", "utf-16"))),
        "brackets": lambda: struct.pack("<Q", 200_000) + b"[" * 200_000,
    }.get(kind, buffer.getvalue)()
    return Mutant(made, kind)


# --- safetensors ---


def _outer(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def _joined(text: str, data: bytes, *, length: int | None = None) -> bytes:
    head = text.encode("utf-8", "surrogatepass")
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head) if length is None else length) + head + data


def length_changed(content: bytes, draw: Draw) -> Mutant:
    """Another length of the header."""
    size = struct.unpack("<Q", content[:8])[0]
    new = draw.choice((0, 1, size - 1, size + 1, size + 8, size - 8, len(content), 2**31, 2**63, 2**64 - 1))
    return Mutant(struct.pack("<Q", new) + content[8:], f"header of {new} bytes")


def layout_changed(content: bytes, draw: Draw) -> Mutant:
    """Another dtype, shape or place of a tensor, or two of them exchanged; the hash stays."""
    outer, data = _outer(content)
    names = [name for name in outer if name != "__metadata__"]
    one, other = draw.choice(names), draw.choice(names)
    entry = outer[one]
    what = draw.choice(("dtype", "shape", "shape", "data_offsets", "exchange", "rename", "remove", "more", "metadata"))
    if what == "dtype":
        entry["dtype"] = draw.choice(
            ("F64", "F16", "BF16", "I32", "I64", "U8", "BOOL", "F8_E4M3", "C64", "X", "", 7, None)
        )
    elif what == "shape":
        shape = entry["shape"]
        entry["shape"] = draw.choice(
            (shape[::-1], [*shape, 1], [0], [-1], [2**63], [10**30, 10**30], ["1"], None, [1.5])
        )
    elif what == "data_offsets":
        a, b = entry["data_offsets"]
        entry["data_offsets"] = draw.choice(
            ([b, a], [a, b + 4], [a + 4, b + 4], [0, len(data)], [0, 2**63], [-4, b], [a], [], "x")
        )
    elif what == "exchange":
        for key in draw.choice((("data_offsets",), ("shape",), ("dtype", "shape", "data_offsets"))):
            outer[one][key], outer[other][key] = outer[other][key], outer[one][key]
    elif what in ("rename", "remove"):
        del outer[one]
        outer |= {draw.choice((f"{one}.x", "", "a" * 5000, "\x00", "../x")): entry} if what == "rename" else {}
    elif what == "more":
        outer["more"] = draw.choice((entry, {}, None, [], {**entry, "more": 1}))
    else:
        outer["__metadata__"] = draw.choice((None, [], "x", {}, {"mdrelax": 7}, {"mdrelax": "{}"}, {"mdrelax": "null"}))
    return Mutant(_joined(json.dumps(outer), data), f"{what} of `{one:.40}`")


def text_changed(content: bytes, draw: Draw) -> Mutant:
    """The header's text: a key twice, thousands of brackets or digits, letters that are none."""
    outer, data = _outer(content)
    inner = outer["__metadata__"]["mdrelax"]
    kind = draw.choice(
        ("twice", "brackets", "digits", "surrogate", "nan", "outer twice", "outer brackets", "not utf-8")
    )
    first = draw.choice(list(json.loads(inner)))
    texts = {
        "twice": f'{{"{first}": {draw.choice(("1", "null", "[]", json.dumps("x")))}, {inner[1:]}',
        "brackets": f'{{"x": {"[" * 100_000}{"]" * 100_000}, {inner[1:]}',
        "digits": f'{{"x": {"9" * 5000}, {inner[1:]}',
        "surrogate": f'{{"kind": "\\ud800\\u001b[2J", {inner[1:]}',
        "nan": f'{{"x": {draw.choice(("NaN", "Infinity", "1e999", "-0"))}, {inner[1:]}',
    }
    outer["__metadata__"]["mdrelax"] = texts.get(kind, inner)
    text = json.dumps(outer)
    if kind == "outer twice":
        text = f'{{"__metadata__": {{"mdrelax": "{{}}"}}, {text[1:]}'
    elif kind == "outer brackets":
        text = f'{{"x": {"[" * 100_000}, {text[1:]}'
    made = _joined(text, data)
    return Mutant(
        made.replace(b"format", b"\xff\xfe\xfd\x80\x80\x80") if kind == "not utf-8" else made, f"text: {kind}"
    )


def forged_header(content: bytes, draw: Draw) -> Mutant:
    """One to three keys of the header have other values; the hash fits."""
    outer, _ = _outer(content)
    header, tensors, words = json.loads(outer["__metadata__"]["mdrelax"]), load(content), []
    for _ in range(draw.choice((1, 1, 2, 3))):
        place = draw.choice([place for place in places(header) if place != ("content",)])
        value = draw.choice(VALUES_TOO)
        if draw.random() < 0.15:
            place = (*place[:-1], draw.choice(KEYS_TOO))
            value = 1 if value is DELETED else value
        header = changed(header, place, value)
        words.append(f"{'.'.join(place):.80} = {'deleted' if value is DELETED else repr(value)[:60]}")
    return _forged(header, tensors, "; ".join(words))


def forged_tensors(content: bytes, draw: Draw) -> Mutant:
    """Tensors with NaN or infinity, of another shape or dtype, exchanged, missing or too many; the hash fits."""
    outer, _ = _outer(content)
    header, tensors = json.loads(outer["__metadata__"]["mdrelax"]), load(content)
    name, word = draw.choice(sorted(tensors)), ""
    tensors[name], word = other_tensor(tensors[name], draw)
    extra = draw.random()
    if extra < 0.1:
        del tensors[name]
    elif extra < 0.2:
        tensors["more"] = torch.zeros(3)
    return _forged(header, tensors, f"`{name:.60}` {word}")


def _forged(header: dict[str, Any], tensors: dict[str, Tensor], change: str) -> Mutant:
    header = {key: value for key, value in header.items() if key != "content"}
    header["content"] = _content_hash(tensors, header)
    content = save(tensors, metadata={"mdrelax": json.dumps(header)})
    return Mutant(content, change, {"header": header, "tensors": tensors})


def other_tensor(tensor: Tensor, draw: Draw) -> tuple[Tensor, str]:
    """A tensor in the place of another, and what it is."""
    new = tensor.clone()
    kind = draw.choice(("nan", "inf", "shape", "dtype", "dtype", "empty", "longer", "transposed", "scaled", "huge"))
    if kind in ("nan", "inf") and new.is_floating_point() and new.numel():
        new.view(-1)[draw.randrange(new.numel())] = float(kind)
    elif kind == "shape":
        new = new.reshape(-1)
    elif kind == "dtype":
        new = new.to(
            draw.choice((torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool))
        )
    elif kind == "empty":
        new = new.new_empty(0)
    elif kind == "longer":
        new = torch.cat([new.reshape(-1), new.reshape(-1)])
    elif kind == "transposed":
        new = new.T.contiguous() if new.ndim == 2 else new.flip(0) if new.ndim else new
    elif kind in ("scaled", "huge"):
        new = (new * (1.5 if kind == "scaled" else 1e30)).to(new.dtype)
    return new, kind


# --- archives: checkpoints and compiled packages ---


def _members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zipped(members: Iterator[tuple[str, bytes]] | list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def member_changed(content: bytes, draw: Draw) -> Mutant:
    """A member of the archive altered, missing, twice or renamed: its checksums fit, our hash stays what it was."""
    members, kept = _members(content), content[-len(_comment(content)) :] if _comment(content) else b""
    name = draw.choice(list(members))
    pairs, what = list(members.items()), draw.choice(("altered", "missing", "twice", "renamed", "exchanged", "empty"))
    if what == "altered" and members[name]:
        pairs = [(n, flipped(d, draw).content if n == name else d) for n, d in pairs]
    elif what == "missing":
        pairs = [(n, d) for n, d in pairs if n != name]
    elif what == "twice":
        pairs.append((f"{name}.again", members[name]))
    elif what == "renamed":
        pairs = [(f"{n}x" if n == name else n, d) for n, d in pairs]
    elif what == "exchanged":
        other = draw.choice(list(members))
        pairs = [(n, members[other] if n == name else members[name] if n == other else d) for n, d in pairs]
    else:
        pairs = [(n, b"" if n == name else d) for n, d in pairs]
    made = _zipped(pairs)
    return Mutant(made[:-2] + len(kept).to_bytes(2, "little") + kept, f"member `{name:.60}` {what}")


def checksum_changed(content: bytes, draw: Draw) -> Mutant:
    """A checksum of the archive's directory, made that of other data, or drawn."""
    members = _members(content)
    name = draw.choice(list(members))
    old = struct.pack("<I", zlib.crc32(members[name]))
    new = draw.choice((draw.randbytes(4), b"\0\0\0\0", struct.pack("<I", zlib.crc32(members[name] + b"x"))))
    return Mutant(content.replace(old, new) if content.count(old) < 50 else content, f"checksum of `{name:.60}`")


def _comment(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.comment


def forged_state(content: bytes, draw: Draw) -> Mutant:
    """A checkpoint with other counters, rows, tensors or words; the hash fits."""
    state = torch.load(io.BytesIO(content), weights_only=True)
    words = []
    for _ in range(draw.choice((1, 1, 2))):
        words.append(_other_entry(state, draw))
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return Mutant(_with_hash(buffer.getvalue()), "; ".join(words), state)


def _other_entry(state: Any, draw: Draw, path: str = "") -> str:
    """Change something somewhere inside, in place; returns the place and the change."""
    keys = list(state) if isinstance(state, dict) else list(range(len(state)))
    if not keys:
        return f"{path} left as it was"
    key = draw.choice(keys)
    inner, place = state[key], f"{path}.{key}"
    if isinstance(inner, dict | list) and inner and draw.random() < 0.85:
        return _other_entry(inner, draw, place)
    if isinstance(inner, Tensor) and draw.random() < 0.8:
        state[key], word = other_tensor(inner, draw)
        return f"{place} {word}"
    value = draw.choice([value for value in VALUES_TOO if value is not DELETED and value != 10**400])
    if draw.random() < 0.2:
        del state[key]
        return f"{place} deleted"
    state[key] = deepcopy(value)  # a second change may be inside it, in place
    return f"{place} = {value!r:.60}"


def forged_package(content: bytes, draw: Draw) -> Mutant:
    """A compiled package whose document has other values; the hash fits."""
    members = _members(content)
    (name,) = [name for name in members if name.endswith(DOCUMENT)]
    header = json.loads(members.pop(name))
    place, value = draw.choice(list(places(header))), draw.choice(VALUES_TOO)
    header = changed(header, place, value)
    with zipfile.ZipFile(io.BytesIO(_zipped(list(members.items())))) as archive:
        header["sha256"] = _digest(archive, header)
    made = _zipped([*members.items(), (name, json.dumps(header).encode())])
    code = next(data for member, data in members.items() if member.endswith(".so"))
    word = "deleted" if value is DELETED else repr(value)[:60]
    return Mutant(made, f"{'.'.join(place)} = {word}", {"header": header, "code": code})


BYTES: tuple[Mutate, ...] = (flipped, flipped, flipped, truncated, lengthened, block_changed, foreign)
MODEL: tuple[Mutate, ...] = (
    *BYTES, length_changed, layout_changed, layout_changed, text_changed, forged_header, forged_header, forged_tensors,
)  # fmt: skip
ARCHIVE: tuple[Mutate, ...] = (*BYTES, member_changed, checksum_changed)
CHECKPOINT: tuple[Mutate, ...] = (*ARCHIVE, forged_state, forged_state, forged_state)
PACKAGE: tuple[Mutate, ...] = (*BYTES, digit_changed, member_changed, checksum_changed, forged_package, forged_package)
TEXT: tuple[Mutate, ...] = (*BYTES, digit_changed, digit_changed, digit_changed)
