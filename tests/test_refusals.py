"""The door refuses in one sentence: wrong words, numbers that are none, ranges, and messages of any length."""

from pathlib import Path

import pytest

from command_line import mdrelax
from mdrelax.base.names import nearest_name
from mdrelax.cli import CONFIG, DATA, OTHER
from mdrelax.cli.sentences import one_line


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("md a b --pss 3", "No such option: --pss"),
        ("md", "Missing argument"),
        ("md a b --ps abc", "Invalid value for '--ps'"),
        ("md a b --ps", "Option '--ps' requires an argument"),
        ("data fech x", "No such command 'fech'"),
        ("info a b c", "unexpected extra argument"),
    ],
)
def test_a_usage_error_is_one_sentence_that_names_the_help(words: str, sentence: str) -> None:
    """click writes three or four lines, of which the last has no full stop."""
    said = mdrelax(*words.split())
    place = "mdrelax data" if words.startswith("data") else f"mdrelax {words.split()[0]}"
    place = "mdrelax" if "requires" in sentence else place  # click does not say of which command
    assert said.code == CONFIG
    assert len(said.err.splitlines()) == 1
    assert sentence in said.err
    assert said.err.endswith(f"ee `{place} --help`.\n")


def test_a_bare_group_shows_its_help() -> None:
    """`mdrelax data` is a question, not a mistake."""
    said = mdrelax("data")
    assert "Usage: mdrelax data" in said.out + said.err


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["md", "m", "s", "--ps"], "--ps"),
        (["md", "m", "s", "--stop-above"], "--stop-above"),
        (["eval", "m", "d", "--temperature"], "--temperature"),
        (["data", "split", "d", "--out", "o", "--train"], "--train"),
        (["bench", "lammps-paper", "--kib"], "--kib"),
    ],
)
def test_no_option_takes_a_number_without_end(words: list[str], option: str, value: str) -> None:
    """NaN passes every comparison: `eval --temperature nan` wrote an evaluation, `data split` failed in Python."""
    said = mdrelax(*words, value)
    assert said.code == CONFIG
    bounded = f"Invalid value for '{option}'"  # where the option has a range, some versions of typer refuse first
    assert said.err == f"`{option}` must be a finite number, got {value}.\n" or bounded in said.last_line


@pytest.mark.parametrize(
    "words",
    [
        "predict m d o --number -7", "audit m d --operations -7", "audit m d --structures -7", "eval m d --worst -7",
        "eval m d --nve -1", "fine-tune m d --rank -7", "bench backbones --repeats -7", "bench speed --threads -7",
        "bench nbody-md m --duration -1", "bench nbody --epochs 0", "data split d --out o --validation -1",
    ],
)  # fmt: skip
def test_an_impossible_number_is_refused_before_any_work(words: str) -> None:
    """They were taken as they are, or ended in an error of a library."""
    said = mdrelax(*words.split())
    assert said.code == CONFIG
    assert len(said.err.splitlines()) == 1
    assert f"'{words.split()[-2]}'" in said.err


def test_a_message_is_bounded_whatever_the_value() -> None:
    """A word of 4,000 letters, a path of sixty folders, and characters that would move the cursor."""
    assert one_line(f"No `{'x' * 4000}`.") == f"No {'`' + 'x' * 59}...{'x' * 55}`."
    assert one_line("a\tb\x1b[2Jc") == r"a\tb\x1b[2Jc"
    assert len(one_line(" ".join(["word"] * 1000))) < 600
    assert one_line("First sentence.\nSecond sentence.") == "First sentence.\nSecond sentence."
    said = mdrelax("data", "stats", "x" * 4000)
    assert said.code in (DATA, OTHER)
    assert len(said.err) < 600


def test_of_many_known_names_the_nearest_are_listed() -> None:
    """The catalogue's 41 names made a message of 800 characters."""
    known = [f"set:{k}" for k in range(100)]
    clause = nearest_name("set:7x", known)
    assert clause.startswith("did you mean `set:7")
    assert clause.endswith(" and 84 more.")
    assert len(clause) < 250


def test_a_benchmark_names_the_implementation_that_is_none() -> None:
    """It was "There is no potential ``", of whatever was before the first hyphen."""
    said = mdrelax("bench", "operators", "--implementations", "../x", "--case", "ethanol-b8")
    assert said.code == DATA
    assert said.last_line.startswith("Implementation `../x`: There is no potential")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["bench", "modelnet", "--data", "nowhere"], "There is no folder or zip file `nowhere`"),
        (["bench", "ranks", "--source", "nowhere.extxyz"], "There is no file `nowhere.extxyz`"),
        (["bench", "lammps", "--dtype", "float16"], "`--dtype` must be float32 or float64, got 'float16'."),
        (["bench", "lammps", "--halo", "thin"], "`--halo` must be exchange or wide, got 'thin'."),
        (["bench", "torch-sim", "--dtype", "float16"], "`--dtype` must be float32 or float64, got 'float16'."),
    ],
)
def test_a_benchmark_refuses_before_it_starts_processes(tmp_path: Path, words: list[str], sentence: str) -> None:
    """The mistake was found by each of the processes, a minute later, in a log or a traceback."""
    said = mdrelax(*words, "--out", tmp_path / "out")
    assert said.code in (CONFIG, DATA)
    assert sentence in said.last_line
    assert not (tmp_path / "out").exists()
