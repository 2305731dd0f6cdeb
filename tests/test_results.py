"""Results: every number in the tables of README and docs is the number in a stored result file."""

import json
import re

import pytest

from blueprint import ROOT

# | ... | force MAE | energy MAE | [file](path) |
ROW = re.compile(
    r"^\|.*\| (?P<forces>[\d.]+) \| (?P<energy>[\d.]+) \| \[.*\]\((?P<path>[\w./-]+\.json)\) \|$", re.MULTILINE
)
PAGES = ["README.md", "docs/results.md"]


@pytest.mark.parametrize("page", PAGES)
def test_tables_say_what_the_result_files_say(page):
    """Force MAE (meV/A) and energy MAE (meV) of the test set, rounded as printed; each page has such rows."""
    rows = list(ROW.finditer((ROOT / page).read_text()))
    assert rows
    for row in rows:
        test = json.loads(((ROOT / page).parent / row["path"]).read_text())["test"]
        for printed, key in ((row["forces"], "forces_mae_meV_per_A"), (row["energy"], "energy_mae_meV")):
            digits = len(printed.partition(".")[2])
            assert printed == f"{test[key]:.{digits}f}", f"{page}: {row[0]}"


@pytest.mark.parametrize("path", sorted((ROOT / "docs/results").glob("*.json")), ids=lambda path: path.name)
def test_result_files_tell_seed_versions_machine_and_date(path):
    """A number without them cannot be checked."""
    content = json.loads(path.read_text())
    assert {"seed", "date", "platform", "torch", "e3nn", "python"} <= content["environment"].keys()
    assert content["certificate"]["passed"]
    assert content["command"].startswith("mdrelax ")
    assert "/" not in content["command"].replace("runs/", ""), "result files name no paths of a machine"
