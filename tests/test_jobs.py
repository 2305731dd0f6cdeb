"""Runs side by side: what is said about them neither ends nor hides them."""

import sys
from pathlib import Path

import pytest

from mdrelax.runs.jobs import run_side_by_side

WRITE = "import sys; open(sys.argv[1] + '/done', 'w').close()"


def finished(place: Path) -> str | None:
    """A line about a run that has written its file."""
    return "done" if (place / "done").exists() else None


def test_an_exception_in_tell_ends_no_run(tmp_path: Path) -> None:
    """A closed pipe behind the first line: all four runs finish, and the error is heard at the end."""
    said: list[str] = []

    def tell(line: str) -> None:
        said.append(line)
        raise BrokenPipeError("nobody listens")

    places = [tmp_path / name for name in "abcd"]
    with pytest.raises(BrokenPipeError, match="nobody listens"):
        run_side_by_side(
            places, lambda place: [sys.executable, "-c", WRITE, str(place)], finished=finished, jobs=2, tell=tell
        )
    assert [finished(place) for place in places] == ["done"] * 4
    assert len(said) == 4


def test_the_last_words_of_a_failed_run_are_told(tmp_path: Path) -> None:
    """Its last sentence with the indented lines that belong to it; nothing is added for a run that was silent."""
    told: list[str] = []
    speaks = "print('so far, so good\\n`x` is of another config:\\n  a: 1 -> 2\\n'); raise SystemExit(2)"
    code = {"a": "raise SystemExit(3)", "b": speaks}
    with pytest.raises(RuntimeError, match=r"then run again\. `b` ended with: `x` is of another config: a: 1 -> 2$"):
        run_side_by_side(
            [tmp_path / name for name in "ba"], lambda place: [sys.executable, "-c", code[place.name]],
            finished=finished, jobs=1, tell=told.append,
        )  # fmt: skip
    assert told == [
        "[1/2] b: FAILED with exit code 2: `x` is of another config: a: 1 -> 2", "[2/2] a: FAILED with exit code 3",
    ]  # fmt: skip


def test_a_failed_run_is_named_though_telling_failed(tmp_path: Path) -> None:
    """Which runs failed matters more than that nobody listened."""

    def tell(line: str) -> None:
        raise BrokenPipeError

    with pytest.raises(RuntimeError, match="These runs failed: a"):
        run_side_by_side(
            [tmp_path / "a"], lambda place: [sys.executable, "-c", "raise SystemExit(3)"], finished=finished, jobs=1,
            tell=tell,
        )  # fmt: skip
