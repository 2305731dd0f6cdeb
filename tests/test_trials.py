"""The trials of tests/trials, a short slice of each with a fixed seed, and that a trial finds what is wrong."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import ROOT, shell
from trials import mutated, processes, versions
from trials.bad_words import VERBS, commands
from trials.findings import Findings
from trials.sameness import differences
from trials.verbs import VERBS as KILLED

TRIALS = ROOT / "tests" / "trials"


def trial(name: str, out: Path, *options: str) -> dict[str, object]:
    """Run a trial as its users do; the content of its result file."""
    _, environment = shell()
    command = [sys.executable, str(TRIALS / f"{name}.py"), "--out", str(out), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert out.is_file(), done.stderr  # an error of the trial itself has the code 1, too
    return json.loads(out.read_text())


@pytest.mark.slow
def test_two_hundred_bad_inputs_are_two_hundred_sentences(tmp_path: Path) -> None:
    """Of every verb and every kind some, none accepted, none with a traceback."""
    found = trial("inputs", tmp_path / "inputs.json", "--seed", "28", "--minutes", "30", "--cases", "200")
    assert found["findings"] == []
    assert found["cases"] == 200


def test_bad_calls_from_python_are_sentences(tmp_path: Path) -> None:
    """Calculators, readers, dynamics and trainings, all of them."""
    found = trial("inputs", tmp_path / "inputs.json", "--seed", "28", "--minutes", "5", "--only", "Python")
    assert found["findings"] == []
    assert found["cases"] > 100


@pytest.mark.slow
@pytest.mark.parametrize("verb", KILLED)
def test_a_killed_command_is_resumed_to_the_same_bits(tmp_path: Path, verb: str) -> None:
    """Three kills of each; longer trials are commands."""
    options = ["--seed", "28", "--minutes", "30", "--kills", "3", "--verbs", verb]
    found = trial("kills", tmp_path / "kills.json", *options)
    assert found["findings"] == []


def test_every_verb_is_tried_with_bad_inputs() -> None:
    """A new verb gets its row in trials/bad_words.py."""
    from mdrelax.cli import app

    assert {name for name, _ in commands(app)} == VERBS.keys()


def test_a_process_that_is_killed_before_its_first_word_has_said_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second start was killed before it had opened its file of words, which ended the trial of kills itself."""
    monkeypatch.setattr(processes, "_enter", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    process = processes.start(["info"], tmp_path, tmp_path / "said", cold=True)
    assert processes.ended(process, patience=60)
    assert (process.code, process.text(), process.last_line()) == (-signal.SIGKILL, "", "")


def test_mutants_leave_the_values_that_they_are_drawn_from() -> None:
    """A value put into a checkpoint was changed there by the next change, and at last contained itself."""
    before = repr(mutated.VALUES_TOO)
    for seed in range(200):
        draw, state = random.Random(seed), {"a": {}, "b": []}
        for _ in range(4):
            mutated._other_entry(state, draw)
    assert repr(mutated.VALUES_TOO) == before


def test_an_interpreter_that_is_not_here_is_not_tried(tmp_path: Path) -> None:
    """It is no finding, and its name is the one that was given."""
    result = versions.trial("python3.99", tmp_path, local_torch=True)
    assert (result["python"], result["not_tried"]) == ("3.99", "not here")
    found = Findings("versions", seed=0)
    versions.record(found, result)
    assert (list(found.counts), found.findings) == (["Python 3.99 (not tried: not here)"], [])


def test_a_lost_a_changed_and_a_leftover_file_are_differences() -> None:
    """The three things that a resumed run may do wrong with a file."""
    assert differences({"a": "1", "b": "2", ".a.part": ""}, {"a": "1", "b": "3", "c": "4"}) == [
        "`.a.part` is left behind", "`c` is missing", "`b` differs",
    ]  # fmt: skip
