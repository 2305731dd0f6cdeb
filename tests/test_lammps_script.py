"""The LAMMPS input: where it is cut, and what is refused before LAMMPS starts. Needs no LAMMPS."""

from pathlib import Path

import pytest

from mdrelax.engines.lammps.models import SwappedElementsWarning, elements_by_mass, warn_of_masses
from mdrelax.engines.lammps.script import ScriptError, read_script

FIX = "fix m all external pf/callback 1 1\n"


def script(tmp_path: Path, text: str):
    """The parts of an input with this text."""
    (tmp_path / "in.lmp").write_text(text)
    return read_script(tmp_path / "in.lmp")


def test_the_input_is_cut_behind_the_line_of_the_fix(tmp_path: Path) -> None:
    """Comments and continued lines are LAMMPS' own; the id and the skin are those of the input."""
    before, after = "units metal # fix a all external\nneighbor &\n 1.5 bin\n", "run 1\n"
    found = script(tmp_path, before + "fix ml all external &\n  pf/callback 1 1 # here\n" + after)
    assert found.after == after
    assert found.before.startswith(before)
    assert found.before.endswith("# here\n")
    assert (found.fix, found.skin) == ("ml", 1.5)
    assert script(tmp_path, FIX.strip()).skin == 2.0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("run 1\n", "must have one line .*, and has 0"),
        (FIX + FIX, "and has 2"),
        ("fix m all external pf/array 1\n", "would not apply the model to every atom"),
        ("fix m all external pf/callback 2 1\n", "in every step"),
        ("group h type 1\nfix m h external pf/callback 1 1\n", "to every atom"),
        (FIX + "run_style respa 2 2\n", "write|use verlet"),
        (FIX + "comm_modify cutoff 2\n", "could take away ghost atoms"),
        (FIX + "clear\n", "removes the model"),
        ("atom_modify map yes id no\n" + FIX, "remove it: ghost atoms are found by their ids"),
        ("neighbor ${s} bin\n" + FIX, "must be a plain number"),
    ],
)
def test_an_input_that_would_give_wrong_results_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    """A sentence with the line and the remedy."""
    with pytest.raises(ScriptError, match=sentence):
        script(tmp_path, text)


def test_elements_in_another_order_than_the_masses_are_warned_of() -> None:
    """Water in the wrong order; neither deuterium nor masses that all are the same, nor masses that were not set."""
    with pytest.warns(SwappedElementsWarning, match=r"type 1 is H, but its mass of 15\.999 is that of O"):
        warn_of_masses([15.999, 1.008], [1, 8])
    for masses in ([1.008, 15.999], [2.014, 15.999], [4.0, 13.0], [20.0, 20.0], [0.0, 15.999], []):
        warn_of_masses(masses, [1, 8])  # a warning would be an error here
    assert elements_by_mass([0.0, 1.008], [1, 8]) == ""


def test_a_missing_input_is_a_sentence(tmp_path: Path) -> None:
    """The path is named."""
    with pytest.raises(ScriptError, match="cannot be read"):
        read_script(tmp_path / "none.lmp")
