"""Pre-training: two stages that are one run, on labels from the training frames alone."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from ase import io
from safetensors.torch import load_file

import mdrelax as package
from command_line import mdrelax
from mdrelax import potentials
from mdrelax.analysis.runs import find_runs
from mdrelax.base.sections import ConfigError
from mdrelax.datasets import bursts
from mdrelax.modelfile import load_model
from mdrelax.runs import pretrain
from mdrelax.runs.checkpoints import open_checkpoint, project_checkpoint
from mdrelax.runs.config import load_config
from mdrelax.runs.inputs import load_parts
from mdrelax.runs.pretrain import first_stage, second_stage
from mdrelax.runs.train import Outcome, run_training
from mdrelax.training.trainer import Progress
from small_runs import clusters, document, write_frames

FRAMES = 30
FIRST = 17  # of 24 steps, the default share
SETTINGS = {"frames": FRAMES, "burst_frames": 5, "interval_fs": 2.0}


class Stop(BaseException):
    """What ends a run in the middle."""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Labels go into a folder of this module."""
    pytest.importorskip("tblite")
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("MDRELAX_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 labelled clusters of H and O."""
    return write_frames(tmp_path_factory.mktemp("data") / "clusters.extxyz", clusters(32))


def settings(source: Path, **sections: Any) -> dict[str, Any]:
    """The document of a short run with both stages."""
    return document(source, **{**sections, "pretrain": {**SETTINGS, **sections.get("pretrain", {})}})


@pytest.fixture(scope="module")
def whole(source: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A finished run that was never stopped."""
    return run_training(load_config(settings(source)), tmp_path_factory.mktemp("whole") / "run", potentials)


def labels_of(folder: Path) -> dict[str, Any]:
    """What a run says of its labels."""
    found: dict[str, Any] = json.loads((folder / "pretrain" / "labels.json").read_text())
    return found


# --- two stages, one run ----------------------------------------------------------------------------------------------


def test_the_model_says_on_what_it_was_pre_trained(whole: Outcome) -> None:
    """Certificate, model card, results and network.json: method, number of frames and of steps."""
    sentence = "pre-trained for 17 steps on 30 frames labelled with GFN2-xTB (600 K bursts from 20 geometries)"
    header = load_model(whole.model_file).header
    assert load_model(whole.model_file).certificate.history == whole.certificate.history == sentence
    assert header["card"]["started_from"]["pretrained"] == sentence
    assert header["card"]["config"]["pretrain"]["frames"] == FRAMES
    facts = json.loads((whole.folder / "pretrain" / "results.json").read_text())
    for found in (header["card"]["pretrained"], whole.results["pretrained"]):
        assert found["summary"] == sentence
        assert (found["method"], found["frames"], found["starts"], found["steps"]) == ("GFN2-xTB", FRAMES, 20, FIRST)
        assert found["cpu_seconds"] == facts["cpu_seconds"]
        assert found["labels_cpu_seconds"] > 0
    assert whole.results["steps"] == 24 - FIRST


def test_the_second_stage_begins_with_the_first_ones_network(whole: Outcome, source: Path, tmp_path: Path) -> None:
    """At a vanishing rate and without averaging the weights stay those of the first stage, references and scale aside.

    Muon moves a weight by the rate or less: 7 steps of 1e-12 are below the rounding of float32.
    """
    content = settings(source, training={"learning_rate": 0.01, "ema": 0.0})
    content["pretrain"]["learning_rate_fraction"] = 1e-10
    run = run_training(load_config(content), tmp_path / "run", potentials)
    first, last = (load_file(path) for path in (tmp_path / "run" / "pretrain" / "model.safetensors", run.model_file))
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert moved <= {"reference_energies", "scale"}
    assert "reference_energies" in moved


def test_references_are_fitted_to_the_runs_own_labels(whole: Outcome) -> None:
    """xTB's energies of these clusters are about -140 eV, the labels about -5: the mean error is below 1 eV."""
    assert abs(whole.results["test"]["energy_mae_meV"]) < 1000
    first = load_model(whole.folder / "pretrain" / "model.safetensors").force_field
    assert float(first.reference_energies.sum()) < -20


def test_no_label_comes_from_a_validation_or_test_frame(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The starting geometries are the training frames, all of them and no other, without their labels."""
    asked: list[Any] = []

    def record(starts: Any, *args: Any, **kwargs: Any) -> Any:
        asked.extend(starts)
        raise Stop

    monkeypatch.setattr(pretrain, "label_bursts", record)
    config = load_config(settings(source, pretrain={"seed": 5}))
    with pytest.raises(Stop):
        run_training(config, tmp_path / "run", potentials)
    parts = load_parts(config.data)
    assert sorted(a.positions.tobytes() for a in asked) == sorted(f.pos.numpy().tobytes() for f in parts.train)
    held_out = {frame.pos.numpy().tobytes() for frame in (*parts.validation, *parts.test)}
    assert not held_out & {atoms.positions.tobytes() for atoms in asked}
    assert all(set(atoms.info) == {"charge"} and set(atoms.arrays) == {"numbers", "positions"} for atoms in asked)


def test_further_starts_are_sampled_too_but_never_a_held_out_frame(source: Path, tmp_path: Path) -> None:
    """A file of geometries without labels counts; one with a test frame in it is refused, and named."""
    content = settings(source)
    parts = load_parts(load_config(content).data)
    fresh, leaked = tmp_path / "fresh.xyz", tmp_path / "leaked.extxyz"
    io.write(fresh, [atoms[:] for atoms in clusters(2, seed=9)], format="xyz")
    frame = clusters(32)[parts.split.test[0]]
    io.write(leaked, [*clusters(1, seed=9), frame], format="extxyz")
    content["pretrain"]["starts"] = [str(fresh)]
    place = tmp_path / "run" / "pretrain"
    pretrain.label_frames(load_config(content), place)
    assert labels_of(tmp_path / "run")["starts"] == 22
    content["pretrain"]["starts"] = [str(leaked)]
    with pytest.raises(ConfigError, match=r"frame 1 of `starts: .*leaked.extxyz` is a validation or test frame"):
        pretrain.label_frames(load_config(content), place)


def test_the_last_bursts_validate_the_first_stage(whole: Outcome) -> None:
    """No burst is in both parts: frames of one burst are a few fs apart."""
    place = whole.folder / "pretrain"
    train, validation = (np.loadtxt(place / f"{name}.txt", dtype=int) for name in ("train", "validation"))
    assert [*train, *validation] == list(range(FRAMES))
    assert validation.tolist() == list(range(25, 30))
    assert not {k // 5 for k in train} & {k // 5 for k in validation}


def test_progress_counts_the_steps_of_both_stages(source: Path, tmp_path: Path) -> None:
    """From 1 to `training.steps`, once."""
    steps: list[tuple[int, int]] = []

    def listen(progress: Progress) -> None:
        steps.append((progress.step, progress.n_steps))

    run_training(load_config(settings(source)), tmp_path / "run", potentials, listener=listen)
    assert steps == [(k, 24) for k in range(1, 25)]


# --- resume -----------------------------------------------------------------------------------------------------------


def stop_at(step: int) -> Callable[[Progress], None]:
    """A listener that ends the run at a step."""

    def listen(progress: Progress) -> None:
        if progress.step == step:
            raise Stop

    return listen


def test_a_run_stopped_in_either_stage_is_the_uninterrupted_one(whole: Outcome, source: Path, tmp_path: Path) -> None:
    """In the first stage before and after a checkpoint, at its last step, and in the second: the same bits."""
    config = load_config(settings(source))
    for step in (5, 9, FIRST, FIRST + 1, 23):
        with pytest.raises(Stop):
            run_training(config, tmp_path / "run", potentials, restart=True, listener=stop_at(step))
    run_training(config, tmp_path / "run", potentials, restart=True)
    for part in (".", "pretrain"):
        a, b = (load_file(folder / part / "model.safetensors") for folder in (whole.folder, tmp_path / "run"))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a), part
        tables = [
            pd.read_csv(f / part / "metrics.csv").drop(columns="time_s") for f in (whole.folder, tmp_path / "run")
        ]
        pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_a_run_stopped_while_labelling_goes_on(
    whole: Outcome, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels out of the cache, which the interrupted run had begun to fill."""
    monkeypatch.setenv("MDRELAX_CACHE", str(tmp_path / "cache"))
    burst, made = bursts._burst, []

    def stopped(turn: Any, number: int, chosen: Any) -> Any:
        if len(made) == 2:
            raise Stop
        made.append(number)
        return burst(turn, number, chosen)

    monkeypatch.setattr(bursts, "_burst", stopped)
    config = load_config(settings(source))
    with pytest.raises(Stop):
        run_training(config, tmp_path / "run", potentials)
    monkeypatch.setattr(bursts, "_burst", lambda turn, k, chosen: made.append(k) or burst(turn, k, chosen))
    run_training(config, tmp_path / "run", potentials)  # nothing was trained, so that `restart` is not needed
    assert made == [0, 1, 2, 3, 4, 5]
    frames = [io.read(folder / "pretrain" / "frames.extxyz", ":") for folder in (whole.folder, tmp_path / "run")]
    for a, b in zip(*frames, strict=True):  # eight digits in the file; sums over threads differ by less
        np.testing.assert_allclose(a.positions, b.positions, atol=1e-6)


def test_a_begun_first_stage_is_a_run(source: Path, tmp_path: Path) -> None:
    """Without `restart` it is refused as any run, and with another config too; more steps keep a finished stage."""
    config = load_config(settings(source))
    with pytest.raises(Stop):
        run_training(config, tmp_path, potentials, listener=stop_at(9))
    with pytest.raises(ConfigError, match="already contains a run; add `--restart auto`"):
        run_training(config, tmp_path, potentials)
    other = load_config(settings(source, pretrain={"temperature": 300.0}))
    with pytest.raises(ConfigError, match=r"pretrain\.temperature: 600\.0 -> 300\.0"):
        run_training(other, tmp_path, potentials, restart=True)
    run_training(config, tmp_path, potentials, restart=True)
    before = (tmp_path / "pretrain" / "model.safetensors").read_bytes()
    longer = run_training(load_config(settings(source, training={"steps": 40})), tmp_path, potentials, restart=True)
    assert (tmp_path / "pretrain" / "model.safetensors").read_bytes() == before
    assert longer.results["steps"] == 40 - 28


def test_other_training_frames_are_not_fine_tuned_on(whole: Outcome, source: Path, tmp_path: Path) -> None:
    """They could be frames that validate or test the first stage's network."""
    changed = write_frames(tmp_path / "changed.extxyz", clusters(32, seed=4))
    parts = load_parts(load_config(settings(changed)).data)
    with pytest.raises(ConfigError, match="was sampled from other training frames"):
        pretrain.require_same_starts(load_config(settings(source)), parts, whole.folder / "pretrain")


# --- the stages' settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("relaxed", "stages"),
    [("pre-training", ("triangle", "off")), ("fine-tuning", ("off", "triangle")), ("both", ("triangle", "triangle"))],
)
def test_the_stage_that_is_named_is_relaxed(
    relaxed: str, stages: tuple[str, str], whole: Outcome, source: Path
) -> None:
    """And `relaxation: off` relaxes neither; the first stage's free maps are counted in its results."""
    content = settings(source, pretrain={"relaxed": relaxed})
    config = load_config(content)
    found = first_stage(config, whole.folder / "pretrain"), second_stage(config)
    assert tuple(stage.relaxation.schedule for stage in found) == stages
    never = load_config({**content, "relaxation": {"schedule": "off"}})
    assert first_stage(never, whole.folder / "pretrain").relaxation.schedule == "off"
    assert second_stage(never).relaxation.schedule == "off"
    assert whole.results["pretrained"]["n_free_parameters"] > 0
    assert whole.results["n_free_parameters"] == 0
    assert not (whole.folder / "layers.csv").exists()


@pytest.mark.parametrize(("share", "first"), [(0.25, 6), (0.01, 1), (20, 20), (0.9, 22)])
def test_both_stages_share_the_steps(share: float, first: int, whole: Outcome, source: Path) -> None:
    """A fraction or a number of them; the fine-tuning has the rest, at its share of the rate."""
    config = load_config(settings(source, pretrain={"steps": share, "learning_rate_fraction": 0.5}))
    stages = first_stage(config, whole.folder / "pretrain"), second_stage(config)
    assert [stage.training.steps for stage in stages] == [first, 24 - first]
    assert [stage.training.learning_rate for stage in stages] == [0.01, 0.005]


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"pretrain": {"method": "PBE"}}, r"`pretrain\.method`: input should be 'GFN2-xTB' or 'GFN1-xTB', got 'PBE'"),
        ({"pretrain": {"frames": 3}}, r"`pretrain\.frames`: input should be greater than or equal to 10, got 3"),
        ({"pretrain": {"frmes": 30}}, r"Unknown config key `pretrain\.frmes`; did you mean `frames`\?"),
        ({"pretrain": {"steps": 24}}, r"`pretrain\.steps: 24` takes 24 of the 24 steps .* leaves none"),
        ({"pretrain": {"steps": 1.5}}, "a whole number or a fraction below 1, got 1.5"),
        ({"pretrain": {"timestep_fs": 3.0}}, "`timestep_fs` must not exceed `interval_fs`, got 3.0 and 2.0"),
        ({"training": {"epochs": 2, "steps": None}}, r"shares out `training\.steps`: give those instead"),
        ({"potential": {"start": "m.safetensors"}}, "leave out `pretrain`, or `potential.start`, m.safetensors"),
    ],
)
def test_settings_that_cannot_be_are_sentences(sections: Any, sentence: str, source: Path) -> None:
    """Before any work."""
    content = settings(source, **sections)
    if "start" in content["potential"]:
        content["potential"] = {"start": "m.safetensors"}
    with pytest.raises(ConfigError, match=sentence):
        load_config(content)


def test_without_tblite_there_is_a_sentence(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the key, the method and the command to install it."""
    monkeypatch.setitem(sys.modules, "tblite.ase", None)
    config = load_config(settings(source, pretrain={"seed": 6}))
    with pytest.raises(ConfigError, match=r"`pretrain\.method: GFN2-xTB` cannot be used here: .*mdrelax\[generate\]"):
        run_training(config, tmp_path / "run", potentials)


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"reference_energies": "isolated"}, "needs a frame with config_type=IsolatedAtom for atomic numbers"),
        ({"training": {"stress_weight": 3.0}}, "but no training frame has a stress"),
        ({"training": {"device": "toaster"}}, "`training.device: toaster` cannot be used here"),
        ({"potential": {"preset": "tyni"}}, "did you mean `tiny`"),
    ],
)
def test_what_the_second_stage_would_refuse_is_refused_first(
    sections: Any, sentence: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any label is made."""
    monkeypatch.setattr(pretrain, "label_bursts", lambda *args, **kwargs: pytest.fail("it was labelled"))
    content = settings(source, **{name: keys for name, keys in sections.items() if isinstance(keys, dict)})
    content |= {name: value for name, value in sections.items() if isinstance(value, str)}
    with pytest.raises(ConfigError, match=sentence):
        run_training(load_config(content), tmp_path / "run", potentials)


def test_frames_that_xtb_does_not_know_are_named(tmp_path: Path) -> None:
    """With the file's name for them."""
    frames = clusters(32)
    for atoms in frames:
        atoms.symbols[0] = "Am"
    path = write_frames(tmp_path / "am.extxyz", frames)
    with pytest.raises(ConfigError, match=r"`pretrain`: GFN2-xTB cannot label frame [0-9]+ of `am\.extxyz`: it has Am"):
        run_training(load_config(settings(path)), tmp_path / "run", potentials)


# --- lone atoms -------------------------------------------------------------------------------------------------------


def test_lone_atoms_stay_exact_through_both_stages(tmp_path: Path) -> None:
    """With `reference_energies: isolated` a lone atom has the energy of the file, and clusters are right on average."""
    frames = clusters(32)
    for symbol, energy in (("O", -2.0), ("H", -0.5)):
        lone = clusters(1)[0][[0 if symbol == "O" else 1]]
        lone.info, lone.positions[:] = {"config_type": "IsolatedAtom", "REF_energy": energy}, 0.0
        lone.arrays["REF_forces"] = np.zeros((1, 3))
        frames.append(lone)
    path = write_frames(tmp_path / "lone.extxyz", frames)
    run = run_training(load_config({**settings(path), "reference_energies": "isolated"}), tmp_path / "run", potentials)
    calculator = package.MDRelaxCalculator.from_file(run.model_file)
    lone = frames[-2].copy()
    lone.calc = calculator
    assert lone.get_potential_energy() == pytest.approx(-2.0, abs=1e-5)
    assert run.results["test"]["energy_mae_meV"] < 1000


# --- the doors --------------------------------------------------------------------------------------------------------


def test_data_and_one_key_are_enough_on_the_command_line(source: Path, tmp_path: Path) -> None:
    """`mdrelax train data -r pretrain.frames=...`: certificate and report say it, and the first stage is no rival."""
    keys = [f"pretrain.{key}={value}" for key, value in SETTINGS.items()]
    keys += ["data.train=20", "data.validation=6", "training.steps=24", "potential.cutoff=4.0"]
    said = mdrelax("train", source, "--out", tmp_path / "run", *(word for key in keys for word in ("-r", key)))
    assert said.code == 0, said.err
    assert "24 steps, 17 of them to pre-train on 30 frames labelled with GFN2-xTB," in said.out
    sentence = "pre-trained for 17 steps on 30 frames labelled with GFN2-xTB"
    assert f"the network was {sentence}" in said.out
    assert sentence in (tmp_path / "run" / "report.html").read_text()
    assert find_runs([tmp_path]) == [tmp_path / "run"]


def test_structures_in_memory_are_pre_trained_from(source: Path, whole: Outcome, tmp_path: Path) -> None:
    """As their file: the same model to the last bit."""
    content = settings(source)
    content["data"] = {key: value for key, value in content["data"].items() if key != "source"}
    run = package.train(content, io.read(source, ":"), folder=tmp_path / "run")
    a, b = load_file(run.model_file), load_file(whole.model_file)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_checkpoint_of_the_second_stage_can_be_projected(whole: Outcome, tmp_path: Path) -> None:
    """Its network has no free maps though the config has a relaxation, and the file says how it began."""
    certificate = project_checkpoint(whole.folder, tmp_path / "m.safetensors", potentials)
    assert certificate.history == whole.certificate.history
    a, b = load_file(tmp_path / "m.safetensors"), load_file(whole.model_file)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert open_checkpoint(whole.folder, potentials).config.relaxation.schedule == "off"
