"""Errors that the command line tells: bad data is called that, a mistake in a program is not."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from command_line import mdrelax
from mdrelax.base.names import nearest_name
from mdrelax.base.units import energy_unit
from mdrelax.cli import is_sentence
from mdrelax.cli.sentences import memory_sentence

MISTAKES: dict[str, Callable[[], object]] = {
    "numpy's": lambda: np.zeros(3) + np.zeros(4),
    "a conversion": lambda: int("three"),
    "an unpacking": lambda: [a + b for a, b in [(1, 2, 3)]],  # type: ignore[misc]
    "the standard library's": lambda: [1].remove(2),
    "torch's": lambda: torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=-1.0),
    "within the package": lambda: nearest_name("a", [1]),  # type: ignore[list-item]
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_program_is_no_sentence(name: str) -> None:
    """Whatever the library's own type of it: exit code 1 and the type's name, not "bad data"."""
    with pytest.raises((ValueError, TypeError)) as caught:
        MISTAKES[name]()
    assert not is_sentence(caught.value)


@pytest.mark.parametrize("ask", [lambda: torch.empty(10**15), lambda: np.zeros(10**15), lambda: bytes(10**17)])
def test_memory_that_cannot_be_had_is_a_sentence(ask: Callable[[], object]) -> None:
    """Torch's, numpy's and Python's own; no other error is taken for it."""
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        ask()
    assert memory_sentence(caught.value).startswith("The memory does not suffice")
    assert not memory_sentence(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_an_error_that_the_package_raises_is_a_sentence() -> None:
    """Also from deep inside a call."""
    with pytest.raises(ValueError, match="did you mean `eV`") as caught:
        energy_unit("evs")
    assert is_sentence(caught.value)


def test_the_exit_code_tells_bad_data_from_a_mistake(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """3 for a folder without runs; 1, with the type of the error, for a bug."""
    said = mdrelax("runs", tmp_path)
    assert said.code == 3
    assert said.last_line.startswith("There is no run in")

    def broken(folders: object) -> None:
        raise_deep()

    def raise_deep() -> None:
        np.zeros(3).reshape(2)

    monkeypatch.setattr("mdrelax.analysis.runs.find_runs", broken)
    said = mdrelax("runs", tmp_path)
    assert said.code == 1
    assert said.last_line.startswith("ValueError: cannot reshape")
