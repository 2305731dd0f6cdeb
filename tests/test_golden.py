"""Golden files: what every format of every version said when it was made, it says today."""

import json
from pathlib import Path
from typing import Any

import pytest

from golden.make import main
from golden_readings import READINGS, differences, reading

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = sorted(path.parent for path in GOLDEN.glob("*/numbers.json"))
NOTED: dict[str, dict[str, Any]] = {
    folder.name: json.loads((folder / "numbers.json").read_text()) for folder in FOLDERS
}


@pytest.mark.parametrize(("version", "name"), [(version, name) for version, noted in NOTED.items() for name in noted])
def test_golden_files_say_what_they_said(
    version: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model files, checkpoints, run folders (finished, interrupted), journals, studies, packages, simulations."""
    if name == "journal":
        pytest.importorskip("tblite", reason="the data set names its version")
    monkeypatch.chdir(GOLDEN / version)  # the data of a run are named without their folder
    assert differences(reading(name, GOLDEN / version, tmp_path), NOTED[version][name]) == []


def test_another_number_is_noticed() -> None:
    """The comparison sees a changed digit, a missing entry and another word, and lets rounding pass."""
    noted = {"energy": [1.0, 2.0], "word": "a", "n": 3}
    assert differences({"energy": [1.0 + 1e-7, 2.0], "word": "a", "n": 3}, noted) == []
    for changed in ({**noted, "energy": [1.0, 2.001]}, {**noted, "energy": [1.0]}, {**noted, "word": "b"}, {"n": 3}):
        assert len(differences(changed, noted)) == 1


def test_golden_files_are_small() -> None:
    """Each under 100 kB, and a version under 600 kB."""
    assert FOLDERS
    for folder in FOLDERS:
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        assert max(sizes) < 100_000
        assert sum(sizes) < 600_000


def test_no_golden_file_is_made_again(tmp_path: Path) -> None:
    """A folder that exists is left as it is."""
    with pytest.raises(FileExistsError):
        main(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_this_version_can_make_golden_files(tmp_path: Path) -> None:
    """The script works with the present code, so that the next format has its files; every format is read."""
    pytest.importorskip("tblite")
    main(tmp_path / "new")
    noted = json.loads((tmp_path / "new" / "numbers.json").read_text())
    assert noted.keys() == READINGS.keys()
