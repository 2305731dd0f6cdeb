"""Resume: a run that was stopped at any moment and went on is, bit for bit, the run that was never stopped."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from itertools import repeat
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
from mdrelax.runs.checkpoints import open_checkpoint, project_checkpoint
from mdrelax.runs.config import load_config
from mdrelax.runs.jobs import run_side_by_side
from mdrelax.runs.train import run_training
from mdrelax.training import trainer
from mdrelax.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
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
    "under ace": {"relaxation": {"controller": "ace", "weight": 0.0, "ace_end": 0.7}},
    "with perceptrons": {"relaxation": {"free_map": "mlp"}},
    "in float64 without relaxation": {"relaxation": {"schedule": "off"}, "training": {"dtype": "float64"}},
    "with adam": {"training": {"optimizer": "adam"}},
    "with muon": {"training": {"optimizer": "muon"}},
    "with soap": {"training": {"optimizer": "soap"}},
    "with sgd and a rate that falls by epochs": {
        "training": {"optimizer": "sgd", "learning_rate_schedule": "step", "decay_epochs": 2}
    },
    "with rmsprop and a rate that falls by steps": {
        "training": {"optimizer": "rmsprop", "learning_rate_schedule": "exponential", "decay_steps": 5}
    },
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
    if name == "with soap":
        pytest.importorskip("pytorch_optimizer")
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


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_run_killed_while_it_writes_its_last_checkpoint_has_all_rows(tmp_path, source, whole, written, monkeypatch):
    """Found by tests/trials/kills.py: after the last checkpoint nothing is trained, so no other write follows."""
    n_rows = _n_rows(whole("in mid-epoch"))

    def lifetime() -> Iterator[bool]:
        yield from repeat(True, 3 * (n_rows - 1) + written)  # files
        raise Stop

    alive = lifetime()
    with monkeypatch.context() as patched:
        for name in ("write_atomically", "save_checkpoint"):
            write = getattr(trainer, name)
            patched.setattr(trainer, name, lambda *content, write=write: next(alive) and write(*content))
        with pytest.raises(Stop):
            run_training(load_config(document(source)), tmp_path, potentials)
    assert _n_rows(tmp_path) == n_rows - (written == 0)
    run_training(load_config(document(source)), tmp_path, potentials, restart=True)
    assert_same_runs(whole("in mid-epoch"), tmp_path)


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
    with pytest.raises(ConfigError, match="already contains a run; add `--restart auto` to resume it"):
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


@pytest.mark.parametrize(
    ("name", "value"), [("step", 10**9), ("step", 8), ("epoch", -1), ("batch", 2.5), ("rows", []), ("best", {})]
)
def test_a_checkpoint_with_impossible_counters_is_refused(tmp_path, source, whole, name, value):
    """Whatever made it: a step beyond the last would end the run at once, with the weights of its first steps."""
    shutil.copytree(whole("in mid-epoch"), tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    save_checkpoint(path, {**load_checkpoint(path), name: value})
    with pytest.raises(CheckpointError, match="a run of 24 steps cannot have"):
        run_training(load_config(document(source)), tmp_path / "run", potentials, restart=True)


def test_a_finished_run_without_its_checkpoint_is_not_trained_over(tmp_path, source, whole):
    """Somebody tidied up: `--restart auto` would have trained a second model in place of the first."""
    shutil.copytree(whole("in mid-epoch"), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="is finished, but has no checkpoint"):
        run_training(load_config(document(source)), tmp_path / "run", potentials, restart=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


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


# --- checkpoints of older versions ------------------------------------------------------------------------------------


def make_older(folder: Path, *, without: str = "") -> None:
    """Rename the free maps in a checkpoint as versions before their own modules did: `X.free.weight` was `X.weight`.

    A free map whose name contains ``without`` is left out: then other layers were relaxed.
    """
    path = folder / "checkpoints" / "last.pt"
    state = load_checkpoint(path)
    for tensors in (state["model"], state["ema"]["average"]):
        for name in [name for name in tensors if name.endswith(".free.weight")]:
            tensor = tensors.pop(name)
            if not (without and without in name):
                tensors[name.replace(".free.weight", ".weight")] = tensor
    save_checkpoint(path, state)


def interrupted(source: Path, folder: Path, **sections: Any) -> dict[str, Any]:
    """The document of a run that was stopped after step 9, its checkpoint of step 7 in an older form."""
    content = document(source, **sections)
    with pytest.raises(Stop):
        run_training(load_config(content), folder, potentials, listener=stop_at(9))
    return content


@pytest.mark.parametrize("name", ["in mid-epoch", "with muon"])
def test_a_run_of_an_older_version_resumes_bit_for_bit(tmp_path, source, whole, name):
    """Its free maps, their moments in the optimiser and their average are found under their old names."""
    content = interrupted(source, tmp_path, **CASES[name])
    make_older(tmp_path)
    assert not any("free" in key for key in load_checkpoint(tmp_path / "checkpoints" / "last.pt")["model"])
    run_training(load_config(content), tmp_path, potentials, restart=True)
    assert_same_runs(whole(name), tmp_path)


def test_a_run_of_an_older_version_is_projected_and_audited(tmp_path, source):
    """Its averaged network has its free maps, bit for bit, and its best network becomes a model file."""
    interrupted(source, tmp_path)
    wanted = open_checkpoint(tmp_path, potentials).unprojected().state_dict()
    make_older(tmp_path)
    run = open_checkpoint(tmp_path, potentials)
    assert_same(dict(run.unprojected().state_dict()), dict(wanted))
    assert any(name.endswith(".free.weight") for name in wanted)
    assert project_checkpoint(tmp_path, tmp_path / "model.safetensors", potentials).passed


def test_an_older_run_with_other_free_maps_is_refused_in_a_sentence(tmp_path, source):
    """Where other layers were relaxed by default then: it cannot be resumed, but its best network is projected."""
    content = interrupted(source, tmp_path)
    make_older(tmp_path, without="feed_forward")
    with pytest.raises(CheckpointError, match=r"^`.*last.pt` belongs to another network; delete it and restart\.$"):
        run_training(load_config(content), tmp_path, potentials, restart=True)
    with pytest.raises(CheckpointError, match=r"belongs to another network than `network\.json`\.$"):
        open_checkpoint(tmp_path, potentials).unprojected()
    assert project_checkpoint(tmp_path, tmp_path / "model.safetensors", potentials).passed


# --- listeners --------------------------------------------------------------------------------------------------------


def train_with_a_broken_listener(folder: Path, source: Path) -> None:
    """A run, for a process of its own, whose listener fails at step 9 while a file `broken` is in the folder."""

    def listen(progress: Progress) -> None:
        if progress.step == 9 and (folder / "broken").exists():
            raise OSError("the disk of the logs is full")

    run_training(load_config(document(source)), folder, potentials, restart=True, listener=listen)


def test_an_exception_in_a_listener_ends_its_run_only(tmp_path, source, whole):
    """Of two runs side by side the other one finishes; started again, the broken one resumes and is whole."""
    code = "import sys, pathlib; sys.path[:0] = sys.argv[3:]; from test_resume import train_with_a_broken_listener as f"
    code += "; f(*map(pathlib.Path, sys.argv[1:3]))"
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    places = [tmp_path / "a", tmp_path / "b"]
    places[0].mkdir()
    (places[0] / "broken").touch()

    def finished(place: Path) -> str | None:
        return "done" if (place / "results.json").is_file() else None

    def run() -> None:
        run_side_by_side(
            places, lambda place: [sys.executable, "-c", code, str(place), str(source), *paths],
            finished=finished, jobs=2,
        )  # fmt: skip

    with pytest.raises(RuntimeError, match="These runs failed: a;"):
        run()
    assert "the disk of the logs is full" in (places[0] / "run.log").read_text()
    assert [finished(place) for place in places] == [None, "done"]
    assert load_checkpoint(places[0] / "checkpoints" / "last.pt")["step"] == 7
    (places[0] / "broken").unlink()
    run()
    for place in places:
        assert_same_runs(whole("in mid-epoch"), place)
