"""Sealed documents: no changed digit in network.json, a simulation's state or a journal passes; older ones are read."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hostile import forged, is_one_sentence
from mdrelax import potentials
from mdrelax.base.containers import ModelFileError, read_container
from mdrelax.base.sealed import SEAL, seal, unseal
from mdrelax.datasets.journal import Journal
from mdrelax.engines.md_files import read_state
from mdrelax.runs.checkpoints import open_checkpoint, project_checkpoint
from mdrelax.runs.network import read_network
from mdrelax.training.checkpoint import CheckpointError

GOLDEN = Path(__file__).parent / "golden" / "2026-11"
HEADER = {"seed": 1}


def _network(path: Path) -> Any:
    found = read_network(path.parent)
    assert found is not None
    return found._replace(structures=[structure.pos.tolist() for structure in found.structures])


def _state(path: Path) -> Any:
    return read_state(path, json.loads((GOLDEN / "md.restart").read_text())["settings"])


def _journal(path: Path) -> Any:
    return Journal(path, HEADER).rows("label")


def _written(path: Path) -> Path:
    journal = Journal(path, HEADER)
    for index in range(3):
        journal.add({"kind": "label", "index": index, "energy": -1.25 * index, "forces": [[0.5, 1e-3, -2.0]]})
    return path


FILES: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Path]]] = {
    "network.json": (_network, lambda path: Path(shutil.copy(GOLDEN / "relaxed" / "network.json", path))),
    "md.restart": (_state, lambda path: Path(shutil.copy(GOLDEN / "md.restart", path))),
    "journal": (_journal, _written),
}


@pytest.mark.parametrize("name", FILES)
def test_no_changed_digit_passes(name: str, tmp_path: Path) -> None:
    """Another digit in a cut-off, a momentum or a label would be another number: the file is refused in a sentence."""
    read, make = FILES[name]
    path = make(tmp_path / name)
    content, right, draw = path.read_bytes(), str(read(path)), random.Random(0)
    digits = [place for place, byte in enumerate(content) if chr(byte).isdigit()]
    for place in draw.sample(digits, 100):
        other = draw.choice([digit for digit in b"0123456789" if digit != content[place]])
        path.write_bytes(content[:place] + bytes([other]) + content[place + 1 :])
        try:
            found = read(path)
        except (ValueError, CheckpointError) as error:
            assert is_one_sentence(error), str(error)  # noqa: PT017 - most changes are refused, some change nothing
            continue
        assert str(found) == right, place  # the last digits of a float may be beyond its precision


@pytest.mark.parametrize("name", FILES)
def test_a_document_without_its_hash_is_refused(name: str, tmp_path: Path) -> None:
    """Deleting the hash of a file of this version does not make it one of an older version."""
    read, make = FILES[name]
    path = make(tmp_path / name)
    lines = [json.loads(line) for line in (path.read_text().splitlines() if name == "journal" else [path.read_text()])]
    del lines[-1][SEAL]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises((ValueError, CheckpointError), match="match its hash"):
        read(path)


def test_a_network_definition_of_an_older_version_is_read(tmp_path: Path) -> None:
    """Version 1 had no hash."""
    path = Path(shutil.copy(GOLDEN / "relaxed" / "network.json", tmp_path))
    right = _network(path)
    path.write_text(json.dumps({**unseal(json.loads(path.read_text())), "format_version": 1}))
    assert _network(path) == right


def test_a_state_of_an_older_version_is_read(tmp_path: Path) -> None:
    """So did the state of a simulation."""
    path = Path(shutil.copy(GOLDEN / "md.restart", tmp_path / "md.restart"))
    right = _state(path)
    path.write_text(json.dumps({**unseal(json.loads(path.read_text())), "format_version": 1}))
    assert _state(path) == right


def test_a_journal_of_an_older_version_is_continued_as_it_is(tmp_path: Path) -> None:
    """Its rows have no hashes, and the new ones get none: an older mdrelax can still read it."""
    path = _written(tmp_path / "journal")
    bare = [unseal(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in bare))
    Journal(path, HEADER).add({"kind": "label", "index": 3})
    assert [row["index"] for row in _journal(path)] == [0, 1, 2, 3]
    assert SEAL not in path.read_text()


def test_the_numbers_of_a_document_are_those_that_were_sealed() -> None:
    """NaN, tuples and keys that are no words are sealed as JSON reads them back."""
    document = {"a": float("nan"), "b": (1, 2), "c": {3: "é"}}
    again = unseal(json.loads(json.dumps(seal(document))))
    assert str(again) == str({"a": float("nan"), "b": [1, 2], "c": {"3": "é"}})


def test_a_network_that_cannot_be_built_is_one_sentence(tmp_path: Path) -> None:
    """A definition whose hash fits: an unknown argument was a raw error, and a huge one took all memory."""
    run = shutil.copytree(GOLDEN / "relaxed", tmp_path / "run")
    path = run / "network.json"
    document = unseal(json.loads(path.read_text()))
    for change in ({"nonlinear_messagEs": True}, {"n_blocks": 10**9}, {"irreps": "1000000000x0e"}):
        arguments = {**document["potential"]["arguments"], **change}
        path.write_text(json.dumps(seal({**document, "potential": {**document["potential"], "arguments": arguments}})))
        with pytest.raises(RuntimeError, match="cannot build") as caught:
            open_checkpoint(run, potentials)
        assert is_one_sentence(caught.value)


def test_reference_energies_are_projected_from_the_model_file(tmp_path: Path) -> None:
    """They were fitted after the last checkpoint; the hash of the model file tells that they are still the same."""
    run = shutil.copytree(GOLDEN / "relaxed", tmp_path / "run")
    path, out = run / "model.safetensors", tmp_path / "out.safetensors"
    header, tensors = read_container(path)
    moved = tensors["reference_energies"] + 1.5
    forged(path, header, {**tensors, "reference_energies": moved})
    project_checkpoint(run, out, potentials)
    assert read_container(out)[1]["reference_energies"].tolist() == moved.tolist()
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="was altered"):
        project_checkpoint(run, out, potentials)
