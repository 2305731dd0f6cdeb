"""The trial of mutations: a short slice of it, and that it finds what it looks for; the trial of lowest versions.

The trials themselves run for as long as anyone likes: `python tests/trials/mutations.py --minutes 10`.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hostile import changed
from mdrelax.base.containers import ModelFileError
from mdrelax.method.certificate import CertificateError
from trials import mutated, mutations, versions
from trials.mutations import Specimen, Watch, judged, same, specimens, trial

MUTANT = mutated.Mutant(b"other", "changed")


def test_a_few_hundred_mutants_are_refused_or_harmless() -> None:
    """Of every kind of file, always the same ones; each kind is both refused and accepted at some time."""
    found = trial(n=300, seed=0)
    assert found.findings == []
    assert found.counts.total() == 300
    assert len(found.counts) == 12
    assert min(found.notes["outcomes"][outcome] for outcome in ("refused", "same")) > 0


def test_a_mutant_is_the_same_each_time() -> None:
    """So that a finding can be made again by its number."""
    found = [trial(n=20, seed=3, first=40).notes["outcomes"] for _ in range(2)]
    assert found[0] == found[1]


def _sleep(path: Path) -> Any:
    time.sleep(20)


def _run(path: Path) -> Any:
    os.mkdir(path.parent / "made")


def _refuse(sentence: str) -> Any:
    def read(path: Path) -> Any:
        raise ModelFileError(sentence)

    return read


def _certify(path: Path) -> Any:
    raise CertificateError("It has\ntwo lines.")


def _crash(path: Path) -> Any:
    raise RecursionError("raw")


@pytest.mark.parametrize(("read", "finding"), [
    (lambda path: path.read_bytes(), "loaded with other numbers"), (_crash, "raw RecursionError"),
    (_certify, "no sentence"), (_refuse("no full stop"), "no sentence"),
    (_refuse("x" * 700 + "."), "no sentence"), (_run, "ran something"), (_sleep, "took more than"),
    (lambda path: bytearray(700 * 2**20) and b"right", "MB"),
])  # fmt: skip
def test_every_kind_of_failure_is_a_finding(
    read: Any, finding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that accepts, crashes, stutters, runs, hangs or swallows memory."""
    monkeypatch.setattr(mutations, "SECONDS", 0.2)
    specimen = Specimen("made up", tmp_path / "file", b"right", read, mutated.BYTES)
    _, wrong = judged(specimen, MUTANT, b"right", Watch())
    assert wrong is not None
    assert finding in wrong


def test_a_refusal_in_a_sentence_and_the_right_numbers_are_none(tmp_path: Path) -> None:
    """The two outcomes that are right."""
    for read, outcome in ((_refuse("Not a model."), "refused"), (lambda path: b"right", "same")):
        specimen = Specimen("made up", tmp_path / "file", b"right", read, mutated.BYTES)
        assert judged(specimen, MUTANT, b"right", Watch()) == (outcome, None)


def test_numbers_are_the_same_bit_for_bit() -> None:
    """Types too; NaN is NaN; what a forgery leaves out may be filled in, and nothing else."""
    import torch

    right = {"a": torch.tensor([1.0, float("nan")]), "b": [1, float("nan")]}
    assert same({**right, "b": [1, float("nan")]}, right)
    assert not same({**right, "b": [1.0, float("nan")]}, right)
    assert not same({**right, "a": right["a"].double()}, right)
    assert not same({**right, "c": 1}, right)
    assert same({**right, "c": 1}, right, more=True)
    assert not same(right, {**right, "c": 1}, more=True)


def test_specimens_are_what_they_claim_before_they_are_changed(tmp_path: Path) -> None:
    """Each original is read, twice alike; and there is one of every kind that is read back."""
    found = list(specimens(tmp_path))
    for each in found:
        each.path.write_bytes(each.original)
        assert same(each.read(each.path), each.read(each.path)), each.name
    assert {each.path.suffix for each in found} == {
        ".safetensors", ".pt", ".pt2", ".json", ".restart", ".journal",
    }  # fmt: skip
    assert changed({"a": 1}, ("a",), 2) == {"a": 2}


def test_floors_are_the_lowest_versions_that_were_tried() -> None:
    """pyproject.toml promises what constraints-lowest.txt was tried with; of torch, only the pin was tried."""
    lowest, floors = versions.lowest(), versions.floors()
    assert {**lowest, "torch": floors["torch"]} == floors
    assert f"torch=={lowest['torch']}\n" in (versions.ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_every_dependency_has_tests_of_its_lowest_version() -> None:
    """The core tests name each dependency, and files that exist."""
    assert versions.CORE.keys() == versions.floors().keys()
    assert [name for name in versions.tests() if not (versions.ROOT / name).is_file()] == []


@pytest.mark.slow
def test_the_lowest_versions_pass_the_core_tests(tmp_path: Path) -> None:
    """In an environment of their own; skipped where they cannot be installed."""
    found = versions.trial(sys.executable, tmp_path / "venv", local_torch=False)
    if "not_tried" in found:
        pytest.skip(found["not_tried"])
    assert found["findings"] == []
    assert found["versions"] == versions.lowest()
