"""docs/trust.md: its figures are those of the stored trials, and what it names exists."""

import json
import re
from pathlib import Path

import pytest

from blueprint import ROOT
from mdrelax.cli import CERTIFICATE, CONFIG, DATA, OTHER
from trials import table
from trials.findings import Findings

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
    assert document["cases"] > 0
    assert document["findings"] == []


def test_the_table_shows_cases_and_findings(tmp_path: Path) -> None:
    """Each kind, as long as there are few."""
    found = Findings("kills", seed=0)
    found.count("train", 1234)
    found.count("md", 2)
    found.report("md", "A frame is lost.", "python tests/trials/kills.py --seed 0")
    found.finish(tmp_path / "kills.json")
    cells = [cell.strip() for cell in table.table(tmp_path).splitlines()[-1].split("|")]
    assert cells[1] == "[kills](results/trials/kills.json)"
    assert cells[3:6] == ["1,236: md 2, train 1,234", "1", "0.0"]
    for k in range(7):
        found.count(f"kind {k}")
    found.finish(tmp_path / "kills.json")
    assert "| 1,243: of 9 kinds |" in table.table(tmp_path)


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
