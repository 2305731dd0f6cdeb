"""docs/trust.md: its figures are those of the stored trials, and what it names exists."""

import json
import re
from pathlib import Path

import pytest

from blueprint import ROOT
from mdrelax.cli import CERTIFICATE, CONFIG, DATA, OTHER
from trials import table

PAGE = (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")
RESULTS = sorted(table.RESULTS.glob("*.json"))


def test_the_table_of_trials_is_that_of_the_stored_results() -> None:
    """`python tests/trials/table.py` would write the same page."""
    assert table.rendered(PAGE) == PAGE
    assert RESULTS
    assert all(f"results/trials/{path.name}" in PAGE for path in RESULTS)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_stored_trials_tell_their_command_versions_machine_and_date(path: Path) -> None:
    """A figure without them cannot be checked; and a trial with findings is not one to publish."""
    document = json.loads(path.read_text(encoding="utf-8"))
    assert {"date", "python", "torch", "processor", "cpu_count"} <= document["environment"].keys()
    script = document["command"].split()[1]
    assert (ROOT / script).is_file()
    assert document["figures"]
    assert document["findings"] == []


def test_the_table_shows_every_figure(tmp_path: Path) -> None:
    """And the number of findings."""
    table.write(tmp_path / "kills.json", "python tests/trials/kills.py --n 3", {"kills": 1234, "lost": 0}, ["one"])
    last = table.table(tmp_path).splitlines()[-1]
    assert last.startswith(
        "| [kills](results/trials/kills.json) | `python tests/trials/kills.py --n 3` | kills 1,234; lost 0 | 1 | 20"
    )


def test_the_exit_codes_of_the_page_are_those_of_the_command_line() -> None:
    """In the order in which the page names them."""
    (numbers,) = re.findall(
        r"exit codes are (\d) for a config .*?, (\d) for data .*?, (\d) for a network .*?, and (\d)", PAGE
    )
    assert tuple(map(int, numbers)) == (CONFIG, DATA, CERTIFICATE, OTHER)


def test_a_security_fault_is_reported_without_an_address() -> None:
    """SECURITY.md sends to the repository's private advisories: it names no address that nobody reads."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert "Report a vulnerability" in text
    assert "@" not in text
    assert "(docs/trust.md#which-files-run-code-when-they-are-loaded)" in text
