"""Bad files: a good one of each kind that commands read, and the faults that any file may have."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import write

from mdrelax.cli import main  # noqa: F401 - the tests' own modules need the package's face first
from small_runs import clusters, document, write_config, write_frames
from trials.bad_words import VERBS, Bad
from untrained_models import saved

__all__ = ["good_files", "spoilt_files", "spoilt_frames", "spoilt_outputs"]

FOLDERS = {"run"}


def good_files(folder: Path) -> dict[str, Path]:
    """One file (or folder) of each kind."""
    frames = write_frames(folder / "frames.extxyz", clusters(32))
    short = document(frames, training={"steps": 2, "validate_every": 1, "warmup_steps": 1}) | {"md_picoseconds": 0.0}
    write(folder / "crystal.extxyz", Atoms("OH", [[0, 0, 0], [2, 2, 2]], cell=[4, 4, 4], pbc=True))
    write(folder / "water.xyz", Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]))
    run = folder / "run"
    run.mkdir()
    (run / "config.yaml").write_text("training: {steps: 3")
    (run / "results.json").write_text("{}")
    return {
        "frames": frames,
        "config": write_config(folder / "config.yaml", short),
        "model": saved(folder / "model.safetensors", 1, 8),
        "crystal": folder / "crystal.extxyz",
        "water": folder / "water.xyz",
        "run": run,
    }


Fault = Callable[[Path, Path], Path]  # of a good file: the bad one in a folder


def _missing(good: Path, folder: Path) -> Path:
    return folder / f"nowhere{good.suffix}"


def _folder(good: Path, folder: Path) -> Path:
    path = folder / f"folder{good.suffix}"
    path.mkdir(exist_ok=True)
    return path


def _content(name: str, spoil: Callable[[bytes], bytes]) -> Fault:
    def fault(good: Path, folder: Path) -> Path:
        path = folder / f"{name}{good.suffix}"
        path.write_bytes(spoil(good.read_bytes()))
        return path

    return fault


def _no_end(good: Path, folder: Path) -> Path:
    path = folder / "wrong.docx"
    shutil.copy(good, path)
    return path


def _loop(good: Path, folder: Path) -> Path:
    path = folder / f"loop{good.suffix}"
    if not path.is_symlink():
        os.symlink(path.name, path)
    return path


def _strange(good: Path, folder: Path) -> Path:
    path = folder / f"naïve 😀 (2){good.suffix}"
    path.write_bytes(b"\xff\xfe\x00" + good.read_bytes()[:100])
    return path


RANDOM = np.random.default_rng(0).integers(0, 256, 3000, dtype=np.uint8).tobytes()
FAULTS: dict[str, Fault] = {
    "missing file": _missing,
    "folder in place of a file": _folder,
    "empty file": _content("empty", lambda good: b""),
    "binary rubbish": _content("rubbish", lambda good: RANDOM),
    "zeros": _content("zeros", lambda good: bytes(5000)),
    "a third of a file": _content("third", lambda good: good[: len(good) // 3]),
    "one word": _content("word", lambda good: b"hello"),
    "json": _content("json", lambda good: json.dumps({"a": [1, None, {"b": "c"}]}).encode()),
    "brackets": _content("brackets", lambda good: b"[" * 5000),
    "one long line": _content("long", lambda good: b"a " * 100_000),
    "a picture": _content("picture", lambda good: b"\x89PNG\r\n\x1a\n" + bytes(200)),
    "wrong ending": _no_end,
    "a link to itself": _loop,
    "strange name, other encoding": _strange,
    "name too long": lambda good, folder: folder / ("n" * 300 + good.suffix),
    "path too long": lambda good, folder: Path("/" + "/".join(["d" * 100] * 60)) / good.name,
    "below a file": lambda good, folder: good / "x" if good.is_file() else good / "config.yaml" / "x",
}
OF_FOLDERS = ("missing file", "one word", "empty file", "a link to itself", "name too long", "below a file")


def spoilt_files(good: dict[str, Path], folder: Path) -> Iterator[Bad]:
    """Every verb, with each file that it reads replaced by a bad one."""
    folder.mkdir()
    for verb, words in VERBS.items():
        for place, word in enumerate(words):
            name = word.strip("{}")
            for kind, fault in FAULTS.items() if name in good else ():
                if name in FOLDERS and kind not in OF_FOLDERS:
                    continue
                source = good["config"] if name in FOLDERS else good[name]
                if name == "config" and kind == "wrong ending":
                    continue  # any file may be a config
                bad = str(fault(source, folder))
                named = (Path(bad).name[:10], bad[:60], *(["config", "`"] if name == "config" else []))
                yield Bad(kind, [*verb.split(), *words[:place], bad, *words[place + 1 :]], named)


NO_OUTPUT = {"compare", "data select", "export", "project"}  # long, or without a good input that is quick to make


def spoilt_outputs(good: dict[str, Path]) -> Iterator[Bad]:
    """Every verb that writes, into places where nothing can be written, and on a full disk."""
    for verb, words in VERBS.items():
        if verb.startswith("bench") or not any("{new}" in word for word in words) or verb in NO_OUTPUT:
            continue
        for kind, place in (
            ("output below a file", f"{good['frames']}/x"),
            ("output name too long", "y" * 300),
            ("output in no file system", "/proc/nothing/x"),
        ):
            yield Bad(kind, [*verb.split(), *(word.replace("{new}", place) for word in words)], (place[:13],))
        if verb != "data generate plume":
            yield Bad("full disk", [*verb.split(), *words], ("No space left",), full_disk=True)


# --- frames ---


def _text(symbol: str = "O", x: str = "0.0", *, count: str = "2", header: str = "", forces: str = "0 0 0") -> str:
    properties = header or "Properties=species:S:1:pos:R:3:REF_forces:R:3 REF_energy=-1.0"
    return f"{count}\n{properties}\n{symbol} {x} 0.0 0.0 {forces}\nH 0.9 0.0 0.0 {forces}\n"


FRAMES = {
    "NaN position": _text(x="nan"),
    "infinite position": _text(x="inf"),
    "a word for a number": _text(x="zero"),
    "a comma for a point": _text(x="0,5"),
    "unknown element": _text("Qq"),
    "element of digits": _text("0"),
    "NaN force": _text(forces="nan 0 0"),
    "infinite energy": _text(header="Properties=species:S:1:pos:R:3:REF_forces:R:3 REF_energy=inf"),
    "energy of a word": _text(header="Properties=species:S:1:pos:R:3:REF_forces:R:3 REF_energy=low"),
    "energy of three": _text(header='Properties=species:S:1:pos:R:3:REF_forces:R:3 REF_energy="1 2 3"'),
    "no labels": _text(header="Properties=species:S:1:pos:R:3:none:R:3"),
    "too few columns": _text(forces="0 0"),
    "too many columns": _text(forces="0 0 0 0 0"),
    "too few atoms": _text(count="3"),
    "no atoms": "0\nREF_energy=0.0\n",
    "negative count": _text(count="-2"),
    "count of a word": _text(count="two"),
    "count of a million digits": _text(count="9" * 1_000_000),
    "properties of nonsense": _text(header="Properties=species:S:1:pos:Q:3 REF_energy=1.0"),
    "properties cut off": _text(header="Properties=species:S:1:pos:R REF_energy=1.0"),
    "positions of two": _text(header="Properties=species:S:1:pos:R:2:REF_forces:R:4 REF_energy=1.0"),
    "open quote": _text(header='Lattice="1 0 0 0 1 0 0 0 Properties=species:S:1:pos:R:3 REF_energy=1.0'),
    "lattice of eight": _text(
        header='Lattice="1 0 0 0 1 0 0 0" Properties=species:S:1:pos:R:3:REF_forces:R:3 REF_energy=1.0'
    ),
    "lattice of NaN": _text(
        header='Lattice="nan 0 0 0 1 0 0 0 1" Properties=species:S:1:pos:R:3:REF_forces:R:3 REF_energy=1.0'
    ),
    "singular lattice": _text(
        header='Lattice="5 0 0 5 0 0 0 0 5" Properties=species:S:1:pos:R:3:REF_forces:R:3 REF_energy=1.0 pbc="T T T"'
    ),
    "tiny lattice": _text(
        header='Lattice="0.01 0 0 0 0.01 0 0 0 0.01" Properties=species:S:1:pos:R:3:REF_forces:R:3 REF_energy=1.0'
    ),
    "pbc of nonsense": _text(
        header='Lattice="5 0 0 0 5 0 0 0 5" Properties=species:S:1:pos:R:3:REF_forces:R:3 REF_energy=1.0 pbc="Q Q"'
    ),
    "atoms at one point": _text(x="0.9"),
    "key of a thousand letters": _text(header=f"Properties=species:S:1:pos:R:3:{'k' * 1000}:R:3 REF_energy=1.0"),
}
READERS = {
    "data stats": ["{bad}"],
    "data check": ["{bad}"],
    "data convert": ["{bad}", "--output", "{new}.extxyz"],
    "eval": ["{model}", "{bad}", "--out", "{new}"],
    "predict": ["{model}", "{bad}", "{new}.extxyz"],
    "md": ["{model}", "{bad}", "--ps", "0.001", "--trajectory", "{new}.traj", "--log", "{new}.csv"],
    "vibrations": ["{model}", "{bad}", "--out", "{new}"],
}
LABELS = {
    "NaN force",
    "infinite energy",
    "energy of a word",
    "energy of three",
    "no labels",
    "key of a thousand letters",
}
OF_LABELS = {"data stats", "data check", "data convert", "eval"}  # the rest need none
OF_MODELS = {  # data may be so; a model refuses
    "singular lattice", "tiny lattice", "atoms at one point", "no atoms", "lattice of NaN",
}  # fmt: skip


def spoilt_frames(folder: Path) -> Iterator[Bad]:
    """Every reader of structures, with each broken file."""
    for number, (kind, text) in enumerate(FRAMES.items()):
        path = folder / f"frames-{number}.extxyz"
        path.write_text(text)
        for verb, words in READERS.items():
            if (kind in LABELS and verb not in OF_LABELS) or (kind in OF_MODELS and verb.startswith("data")):
                continue
            named = (path.name, *(("atom", "cell", "lattice") if kind in OF_MODELS else ()))
            yield Bad(kind, [*verb.split(), *(word.replace("{bad}", str(path)) for word in words)], named)
