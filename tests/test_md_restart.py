"""Molecular dynamics that was stopped and continued is, bit for bit, the run that was never stopped."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.io import read

from command_line import mdrelax
from mdrelax.cli import CONFIG
from mdrelax.engines import md
from mdrelax.engines.md import MDResult, run_md
from untrained_models import saved

SHORT = {"temperature_K": 300, "duration_ps": 0.02, "log_interval": 3, "trajectory_interval": 5, "seed": 4}


class Stop(BaseException):
    """What ends a run in the middle."""


def _methanol() -> Atoms:
    atoms = molecule("CH3OH")
    atoms.calc = EMT()
    return atoms


def _run(folder: Path, suffix: str, *, stop: int | None = None, **settings: Any) -> MDResult:
    """A run with its files in a folder, ended at the first logged step from ``stop`` on."""

    def progress(done: int, total: int) -> None:
        if stop is not None and done >= stop:
            raise Stop

    folder.mkdir(exist_ok=True)
    return run_md(
        _methanol(), trajectory=folder / f"md{suffix}", log=folder / "md.csv", restart=folder / "md.restart",
        progress=progress, **{**SHORT, **settings},
    )  # fmt: skip


def _assert_same(a: Path, b: Path, suffix: str) -> None:
    """Log and trajectory, to the last bit."""
    assert (a / "md.csv").read_bytes() == (b / "md.csv").read_bytes()
    frames = [read(folder / f"md{suffix}", ":") for folder in (a, b)]
    assert len(frames[0]) == len(frames[1])
    for one, other in zip(*frames, strict=True):
        for name in ("positions", "momenta"):
            np.testing.assert_array_equal(one.arrays[name], other.arrays[name])
        assert one.info == other.info
    if suffix == ".extxyz":
        assert (a / f"md{suffix}").read_bytes() == (b / f"md{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", [".traj", ".extxyz"])
@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
@pytest.mark.parametrize("seconds", [0.0, 1e9])  # a state after every step, and one at the very beginning only
def test_a_stopped_run_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ensemble: str, suffix: str, seconds: float
) -> None:
    """Momenta, the thermostat's random numbers, log, trajectory, temperature and drift; stopped twice."""
    monkeypatch.setattr(md, "SAVE_SECONDS", seconds)
    whole = _run(tmp_path / "whole", suffix, ensemble=ensemble)
    for stop in (7, 22):
        with pytest.raises(Stop):
            _run(tmp_path / "parts", suffix, ensemble=ensemble, stop=stop)
    rest = _run(tmp_path / "parts", suffix, ensemble=ensemble)
    _assert_same(tmp_path / "whole", tmp_path / "parts", suffix)
    pd.testing.assert_frame_equal(rest.log, whole.log, check_exact=True)
    np.testing.assert_array_equal(rest.atoms.positions, whole.atoms.positions)
    assert rest[1:3] == whole[1:3] or ensemble == "nvt"


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    """20 and then 40 steps are 40 steps: the last row, which stood between two intervals, is not in the longer log."""
    _run(tmp_path / "whole", ".traj", ensemble="nvt")
    first = _run(tmp_path / "parts", ".traj", ensemble="nvt", duration_ps=0.01)
    assert first.log.step.iloc[-1] == 20
    _run(tmp_path / "parts", ".traj", ensemble="nvt")
    _assert_same(tmp_path / "whole", tmp_path / "parts", ".traj")
    again = _run(tmp_path / "parts", ".traj", ensemble="nvt")  # nothing is left to do
    assert again.log.step.iloc[-1] == 40
    _assert_same(tmp_path / "whole", tmp_path / "parts", ".traj")


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"seed": 5}, "seed"), ({"timestep_fs": 0.25}, "timestep_fs"), ({"origin": {"model": "other"}}, "model")],
)
def test_a_run_is_continued_with_its_own_settings_only(tmp_path: Path, changes: dict[str, Any], name: str) -> None:
    """Half a trajectory of one model and half of another would look like one."""
    _run(tmp_path / "run", ".traj")
    with pytest.raises(ValueError, match=f"belongs to a run with another `{name}`"):
        _run(tmp_path / "run", ".traj", **changes)


@pytest.mark.parametrize("content", ["", "{}", "[]", "[" * 10_000, '{"format_version": 2}'])
def test_a_damaged_state_is_one_sentence(tmp_path: Path, content: str) -> None:
    """It says what to do."""
    _run(tmp_path / "run", ".traj")
    (tmp_path / "run" / "md.restart").write_text(content)
    with pytest.raises(ValueError, match="is damaged or not the state of a simulation"):
        _run(tmp_path / "run", ".traj")


@pytest.mark.parametrize("name", ["md.csv", "md.traj"])
def test_files_that_were_cut_are_noticed(tmp_path: Path, name: str) -> None:
    """A trajectory with a gap would be read as if nothing were missing."""
    _run(tmp_path / "run", ".traj")
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=f"{name}` lacks what was written before the last saved state"):
        _run(tmp_path / "run", ".traj", duration_ps=0.03)


def test_the_command_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--restart auto` goes on, without it an older run is in the way, and `--overwrite` begins again."""
    monkeypatch.chdir(tmp_path)
    model = saved(tmp_path / "m.safetensors", 1, 8)
    (tmp_path / "w.xyz").write_text("3\n\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n")
    options = ["--temperature", "1", "--equilibrate", "0.002", "--ensemble", "nvt"]
    command = ["md", str(model), "w.xyz", *options]
    assert mdrelax(*command, "--ps", "0.01", "--restart", "auto").code == 0
    said = mdrelax(*command, "--ps", "0.02")
    assert said.code == 2
    assert "`md.csv.restart` is the state of a run: continue it with `--restart auto`" in said.last_line
    assert mdrelax(*command, "--ps", "0.02", "--restart", "auto").code == 0
    outputs = ("--log", "whole.csv", "--trajectory", "whole.traj")
    assert mdrelax(*command, "--ps", "0.02", *outputs).code == 0
    assert (tmp_path / "md.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert json.loads((tmp_path / "md.csv.restart").read_text())["step"] == 40
    assert mdrelax(*command, "--ps", "0.005", "--overwrite").code == 0
    assert json.loads((tmp_path / "md.csv.restart").read_text())["step"] == 10


@pytest.mark.parametrize("rows", [0, 1])
def test_a_run_that_was_killed_before_its_first_state_begins_again(tmp_path, rows):
    """Log and trajectory may have the start, and the resuming command refused them; with more it still does."""
    model, water = saved(tmp_path / "m.safetensors", 1, 8), tmp_path / "water.xyz"
    water.write_text("3\n\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n")
    log, frames = tmp_path / "l.csv", tmp_path / "t.extxyz"
    command = ["md", model, water, "--ps", "0.005", "--temperature", "1", "--log", log, "--trajectory", frames]
    assert mdrelax(*command).code == 0
    whole = log.read_bytes(), frames.read_bytes()
    assert len(whole[0].splitlines()) == 3  # the header, steps 0 and 10
    log.with_name("l.csv.restart").unlink()
    assert mdrelax(*command, "--restart", "auto").code == CONFIG
    log.write_bytes(b"".join(whole[0].splitlines(keepends=True)[: 1 + rows]))
    assert mdrelax(*command, "--restart", "auto").code == 0
    assert (log.read_bytes(), frames.read_bytes()) == whole
