"""Resume: a run that was stopped at any moment and went on is, bit for bit, the run that was never stopped."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from command_line import shell
from mdrelax import potentials
from mdrelax.base.sections import ConfigError, read_yaml
from mdrelax.runs.config import load_config
from mdrelax.runs.train import run_training
from mdrelax.training.checkpoint import CheckpointError, load_checkpoint
from mdrelax.training.trainer import Progress
from small_runs import CRYSTAL_CUTOFF, clusters, crystals, document, write_config, write_frames

CASES: dict[str, dict[str, dict[str, Any]]] = {
    "in mid-epoch": {},
    "with an edge budget": {"training": {"max_edges": 40}},
    "on a plateau": {
        "training": {
            "learning_rate_schedule": "plateau", "plateau_patience": 1, "plateau_factor": 0.3, "learning_rate": 0.1,
            "validate_every": 3, "ema": 0.0,
        }
    },
    "folding a constant theta": {
        "relaxation": {"schedule": "constant", "projection": "fold", "penalty": "weight"},
        "training": {"validate_every": 4},
    },
    "in float64 without relaxation": {"relaxation": {"schedule": "off"}, "training": {"dtype": "float64"}},
    "with adam": {"training": {"optimizer": "adam"}},
    "with muon": {"training": {"optimizer": "muon"}},
    "with soap": {"training": {"optimizer": "soap"}},
    "with normalised steps": {"training": {"optimizer": "normalised"}},
    "stopping early": {
        # Nothing is learnt at such a rate: the first validation, at step 4, stays the best, and step 20 is the last.
        "training": {"early_stopping": 4, "validate_every": 4, "learning_rate": 1e-30, "ema": 0.0, "steps": 60}
    },
}  # fmt: skip


class Stop(BaseException):
    """What ends a run in the middle, without a word to anybody."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 labelled clusters."""
    return write_frames(tmp_path_factory.mktemp("data") / "clusters.extxyz", clusters(32))


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the uninterrupted run of a case, which is left as it is."""

    @cache
    def run(name: str) -> Path:
        folder = tmp_path_factory.mktemp("whole")
        run_training(load_config(document(source, **CASES[name])), folder, potentials)
        return folder

    return run


def stop_at(step: int) -> Callable[[Progress], None]:
    """A listener that ends the run after a step."""

    def listen(progress: Progress) -> None:
        if progress.step == step:
            raise Stop

    return listen


def assert_same(a: Any, b: Any, place: str = "") -> None:
    """Two states are equal bit for bit, down to the last tensor; times aside."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), place
        for key in a.keys() - {"seconds", "cpu_seconds", "time_s"}:
            assert_same(a[key], b[key], f"{place}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), place
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{place}[{k}]")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, place
        assert torch.equal(a, b), place
    else:
        assert a == b or (a != a and b != b), f"{place}: {a} is not {b}"


def assert_same_runs(a: Path, b: Path) -> None:
    """Weights, average, optimiser, best network, counters, metrics, model file and test predictions."""
    states = [load_checkpoint(folder / "checkpoints" / "last.pt") for folder in (a, b)]
    assert {"model", "ema", "optimizer", "best", "rows", "layer_rows", "step", "epoch", "batch"} <= states[0].keys()
    assert_same(*states)
    tables = [pd.read_csv(folder / "metrics.csv", dtype=str).drop(columns="time_s") for folder in (a, b)]
    pd.testing.assert_frame_equal(*tables)
    layers = [folder / "layers.csv" for folder in (a, b)]
    assert len({path.read_bytes() if path.exists() else None for path in layers}) == 1
    assert_same(*(load_file(folder / "model.safetensors") for folder in (a, b)), "model file")
    predictions = [np.load(folder / "test_predictions.npz") for folder in (a, b)]
    assert_same(*({name: torch.from_numpy(p[name]) for name in p} for p in predictions), "predictions")


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_is_the_uninterrupted_run(tmp_path, source, whole, name):
    """Stopped two steps after a checkpoint, and again later: the lost steps are done again, with the same result."""
    config = load_config(document(source, **CASES[name]))
    for step in (9, 17):
        with pytest.raises(Stop):
            run_training(config, tmp_path, potentials, restart=True, listener=stop_at(step))
    run_training(config, tmp_path, potentials, restart=True)
    assert_same_runs(whole(name), tmp_path)


def test_the_cases_are_what_they_say(tmp_path, source, whole):
    """The plateau case lowers its rate, the early one stops early, and checkpoints fall into the middle of epochs."""
    assert pd.read_csv(whole("on a plateau") / "metrics.csv")["lr"].iloc[-1] < 0.1
    assert pd.read_csv(whole("stopping early") / "metrics.csv")["step"].iloc[-1] == 20
    with pytest.raises(Stop):
        run_training(load_config(document(source)), tmp_path, potentials, listener=stop_at(9))
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["batch"] == 2


def test_a_periodic_run_with_stress_resumes_bit_for_bit(tmp_path):
    """Cells, stress and an edge budget."""
    source = write_frames(tmp_path / "cu.extxyz", crystals(20))
    content = document(
        source,
        data={"train": 12, "validation": 4, "test": 4},
        potential={"cutoff": CRYSTAL_CUTOFF},
        training={"steps": 12, "validate_every": 4, "stress_weight": 30.0, "max_edges": 220},
    )
    run_training(load_config(content), tmp_path / "whole", potentials)
    with pytest.raises(Stop):
        run_training(load_config(content), tmp_path / "parts", potentials, listener=stop_at(6))
    run_training(load_config(content), tmp_path / "parts", potentials, restart=True)
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


def test_a_killed_process_goes_on_bit_for_bit(tmp_path, source):
    """kill -9 of a real `mdrelax train` after its second validation, then the same command with `--restart auto`."""
    config = write_config(tmp_path / "c.yaml", document(source, training={"steps": 70}))
    killed = tmp_path / "killed"
    command, environment = shell("train", config, "--out", killed, "--restart", "auto")
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, cwd=tmp_path)
        deadline = time.monotonic() + 300
        while _n_rows(killed) < 2 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "out").read_text()
    assert 2 <= _n_rows(killed) < 10
    assert not (killed / "model.safetensors").exists()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "Resumed at step" in again.stdout
    run_training(load_config(read_yaml(config)), tmp_path / "whole", potentials)
    assert_same_runs(tmp_path / "whole", killed)


def _n_rows(folder: Path) -> int:
    path = folder / "metrics.csv"
    return len(path.read_text().splitlines()) - 1 if path.is_file() else 0


def test_a_finished_run_can_be_entered_again(tmp_path, source, whole):
    """`--restart auto` on a finished run trains no step and gives the same files."""
    shutil.copytree(whole("in mid-epoch"), tmp_path / "run")
    heard: list[Progress] = []
    run_training(load_config(document(source)), tmp_path / "run", potentials, restart=True, listener=heard.append)
    assert not heard
    assert_same_runs(whole("in mid-epoch"), tmp_path / "run")


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path, source, whole):
    """There is nothing to go on from, and nothing to complain about."""
    config = load_config(document(source))
    with pytest.raises(Stop):
        run_training(config, tmp_path, potentials, listener=stop_at(3))
    run_training(config, tmp_path, potentials, restart=True)
    assert_same_runs(whole("in mid-epoch"), tmp_path)


def test_a_changed_config_is_refused_with_its_differences(source, whole):
    """One line a key with both values; nothing in the folder is touched."""
    folder = whole("in mid-epoch")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    changed = document(source, training={"steps": 30}, relaxation={"peak": 0.5})
    with pytest.raises(ConfigError, match="another config") as caught:
        run_training(load_config(changed), folder, potentials, restart=True)
    lines = str(caught.value).splitlines()[1:]
    assert [line.strip() for line in lines] == ["relaxation.peak: 1.0 -> 0.5", "training.steps: 24 -> 30"]
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_a_new_run_does_not_overwrite_an_old_one(source, whole):
    """Without `--restart auto` a folder with a run in it is left alone."""
    with pytest.raises(ConfigError, match="holds a run already; add `--restart auto`"):
        run_training(load_config(document(source)), whole("in mid-epoch"), potentials)


def test_a_run_that_never_began_does_not_block_its_folder(tmp_path, source):
    """A mistake that ends a run before its first checkpoint is corrected and tried again in the same folder."""
    with pytest.raises(ValueError, match="needs more than"):
        run_training(load_config(document(source, data={"train": 500})), tmp_path, potentials)
    assert run_training(load_config(document(source)), tmp_path, potentials).certificate.passed


def test_changed_data_are_refused(tmp_path):
    """The frames of a run are recognised by their hash: other labels under the same name are another run."""
    source = write_frames(tmp_path / "c.extxyz", clusters(32))
    with pytest.raises(Stop):
        run_training(load_config(document(source)), tmp_path / "run", potentials, listener=stop_at(9))
    write_frames(source, clusters(32, seed=1))
    with pytest.raises(ValueError, match="made for other data"):
        run_training(load_config(document(source)), tmp_path / "run", potentials, restart=True)


def test_a_checkpoint_of_another_network_is_refused(tmp_path, source):
    """A checkpoint file that was put there by hand."""
    for name, n_basis in (("a", 4), ("b", 5)):
        content = document(source)
        content["potential"]["arguments"]["n_basis"] = n_basis
        with pytest.raises(Stop):
            run_training(load_config(content), tmp_path / name, potentials, listener=stop_at(9))
    os.replace(tmp_path / "a" / "checkpoints" / "last.pt", tmp_path / "b" / "checkpoints" / "last.pt")
    with pytest.raises(CheckpointError, match="belongs to another network"):
        run_training(load_config(content), tmp_path / "b", potentials, restart=True)
