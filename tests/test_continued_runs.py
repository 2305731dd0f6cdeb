"""Runs that continue from a model file (``potential.start``)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mdrelax
from mdrelax import potentials
from mdrelax.base.sections import ConfigError
from mdrelax.forces.loader import frames_from_data
from mdrelax.forces.predict import predict
from mdrelax.modelfile import load_model
from mdrelax.runs.checkpoints import project_checkpoint
from mdrelax.runs.config import load_config
from mdrelax.runs.inputs import load_parts
from mdrelax.runs.train import Outcome, run_training
from mdrelax.runs.untrained import untrained
from small_runs import CLUSTER_CUTOFF, clusters, document, write_frames

OFFSET = {"H": -1.5, "O": 4.0}  # eV: another level of theory


class _Killed(Exception):
    pass


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 labelled clusters."""
    return write_frames(tmp_path_factory.mktemp("data") / "clusters.extxyz", clusters(32))


@pytest.fixture(scope="module")
def first(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A finished run."""
    return run_training(load_config(document(source)), tmp_path_factory.mktemp("first") / "run", potentials)


def continued(source: Path, first: Outcome, **training: Any) -> dict[str, Any]:
    """The document of a run that continues it."""
    base = document(source, training=training)
    return {**base, "potential": {"start": str(first.model_file)}}


def begun(content: dict[str, Any]) -> tuple[Any, list[Any]]:
    """What the run begins with, and its training frames."""
    config = load_config(content)
    start = load_model(config.potential.start)
    parts = load_parts(config.data)
    frames = frames_from_data(parts.train, cutoff=start.force_field.cutoff)
    return untrained(config, frames, parts.isolated_energies, potentials, start), frames


def test_it_begins_with_the_forces_of_the_file(source: Path, first: Outcome) -> None:
    """Network, elements, scale and cut-off are the file's; energies fit the training set as well, to rounding."""
    found, frames = begun(continued(source, first))
    old, _ = predict(load_model(first.model_file).force_field, frames)
    new, batch = predict(found.force_field, frames)
    assert torch.equal(new.forces, old.forces)
    assert found.force_field.cutoff == CLUSTER_CUTOFF
    errors = [(p.energy - batch.targets.energy).square().mean() for p in (new, old)]
    assert errors[0] <= (1 + 1e-6) * errors[1]
    assert found.origin == {"file": "model.safetensors", "content": load_model(first.model_file).header["content"]}


def test_energies_of_another_level_of_theory_move_the_references(tmp_path: Path, source: Path, first: Outcome) -> None:
    """Labels with a constant per atom: predictions follow to 1e-9 eV; with `keep` the references stay."""
    frames = clusters(32)
    shift = sum(OFFSET[symbol] for symbol in frames[0].get_chemical_symbols())
    for atoms in frames:
        atoms.info["REF_energy"] += shift
    moved = write_frames(tmp_path / "moved.extxyz", frames)
    (here, structures), (there, _) = begun(continued(source, first)), begun(continued(moved, first))
    energies = [predict(each.force_field, structures)[0].energy for each in (here, there)]
    torch.testing.assert_close(energies[1], energies[0] + shift, rtol=0, atol=1e-9)
    kept, _ = begun({**continued(moved, first), "reference_energies": "keep"})
    own, file = kept.force_field.reference_energies, load_model(first.model_file).force_field.reference_energies
    assert torch.equal(own, file)


def test_it_learns_on_and_says_where_it_came_from(tmp_path: Path, source: Path, first: Outcome) -> None:
    """The validation error falls below that of the file, relaxed or not; the model file names its origin."""
    for schedule in ("triangle", "off"):
        content = continued(source, first, steps=42, seed=1) | {"relaxation": {"schedule": schedule}}
        run = mdrelax.train(content, folder=tmp_path / schedule)
        key = "forces_mae_meV_per_A"
        assert run.results["validation"][key] < first.results["validation"][key]
        header = load_model(run.model_file).header
        assert header["card"]["started_from"]["content"] == load_model(first.model_file).header["content"]
        assert header["potential"] == load_model(first.model_file).header["potential"]


def test_a_killed_run_is_resumed_and_projected_without_the_first_models_help(
    tmp_path: Path, source: Path, first: Outcome
) -> None:
    """Resumed it ends with the numbers of the run that nobody stopped; `project` reads the run folder alone."""
    content = continued(source, first)
    whole = run_training(load_config(content), tmp_path / "whole", potentials)

    def kill(progress: Any) -> None:
        if progress.step == 16:
            raise _Killed

    with pytest.raises(_Killed):
        run_training(load_config(content), tmp_path / "parts", potentials, listener=kill)
    lost = json.loads((tmp_path / "parts" / "network.json").read_text())
    assert lost["started_from"]["file"] == "model.safetensors"
    assert project_checkpoint(tmp_path / "parts", tmp_path / "projected.safetensors", potentials).passed
    parts = run_training(load_config(content), tmp_path / "parts", potentials, restart=True)
    assert parts.results["test"] == whole.results["test"]


def test_what_cannot_be_continued_is_refused_in_a_sentence(tmp_path: Path, source: Path, first: Outcome) -> None:
    """A network beside the file's own, a file that is none, patterns that fit nothing, keys without a start."""
    for key, value in {"cutoff": 3.0, "name": "segnn", "preset": "small", "arguments": {"n_blocks": 2}}.items():
        with pytest.raises(ConfigError, match=f"leave out `{key}`: the network is that of `potential.start`"):
            load_config({**document(source), "potential": {"start": "m.safetensors", key: value}})
    with pytest.raises(RuntimeError, match="There is no model file"):
        run_training(
            load_config({**document(source), "potential": {"start": "none.safetensors"}}), tmp_path / "run", potentials
        )
    with pytest.raises(ConfigError, match=r"no parameter fits the name pattern `block`; did you mean `blocks"):
        begun({**continued(source, first), "potential": {"start": str(first.model_file), "start_where": ["block"]}})
    for key in ({"reference_energies": "keep"}, {"potential": {"start_where": ["blocks"]}}):
        with pytest.raises(ConfigError, match=r"`potential.start`"):
            load_config({**document(source), **key})
    with pytest.raises(ConfigError, match=r"`data.replay: x` is for runs with `potential.start`"):
        load_config(document(source, data={"replay": "x"}))
    content = continued(source, first)
    isolated = {**content, "reference_energies": "isolated"}
    with pytest.raises(ConfigError, match=r"needs a frame with config_type=IsolatedAtom for atomic numbers \[1, 8\]"):
        begun(isolated)
