"""What a command leaves behind: its run folder, and nothing in the user's home."""

import subprocess
from pathlib import Path

from command_line import shell

STEPS = ("-r", "training.steps=2", "-r", "training.validate_every=1", "-r", "md_picoseconds=0")
FEW = ("-r", "data.train=4", "-r", "data.validation=2", "-r", "data.test=2")


def test_training_leaves_nothing_outside_its_folder_and_prints_nothing_of_a_library(tmp_path: Path):
    """With an empty home and equiformer-pytorch, whose own couplings would be printed about and kept in the home."""
    home, place, temporary = (tmp_path / name for name in ("home", "place", "temporary"))
    for folder in (home, place, temporary):
        folder.mkdir()
    command, environment = shell(
        "train", "ethanol-tiny", "--out", "run", "-r", "potential.name=equiformer-pytorch", *STEPS, *FEW
    )
    clean = {name: value for name, value in environment.items() if not name.startswith(("XDG_", "MPL"))}
    clean |= {"HOME": str(home), "TMPDIR": str(temporary)}
    ended = subprocess.run(command, cwd=place, env=clean, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert [path.name for path in place.iterdir()] == ["run"]
    assert (place / "run" / "report.html").is_file()
    assert not [path for folder in (home, temporary) for path in folder.rglob("*") if path.is_file()]
    assert "compute" not in ended.stdout + ended.stderr
    assert "save " not in ended.stdout + ended.stderr
