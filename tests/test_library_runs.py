"""A run is a library call: trained from Python on structures in memory, rebuilt without its data, kept when refused."""

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import io
from safetensors.torch import load_file
from torch import Tensor, nn

import mdrelax
from command_line import mdrelax as command
from mdrelax import potentials
from mdrelax.base.sections import ConfigError
from mdrelax.forces.potential import Potential
from mdrelax.method.certificate import Certificate, CertificateError, EquivarianceError
from mdrelax.modelfile import load_model
from mdrelax.runs.config import load_config
from mdrelax.runs.refused import cause_of_failure
from mdrelax.runs.train import run_training
from mdrelax.structures.graph import Edges
from mdrelax.training.checkpoint import CheckpointError
from mdrelax.training.trainer import Progress
from small_runs import clusters, document, write_frames


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 labelled clusters."""
    return write_frames(tmp_path_factory.mktemp("data") / "clusters.extxyz", clusters(32))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose data file is gone."""
    folder = tmp_path_factory.mktemp("finished")
    data = write_frames(folder / "clusters.extxyz", clusters(32))
    mdrelax.train(document(data), folder=folder / "run")
    data.unlink()
    return folder / "run"


def without_source(content: dict[str, Any]) -> dict[str, Any]:
    """A config that does not say where the data are."""
    return {**content, "data": {key: value for key, value in content["data"].items() if key != "source"}}


# --- train ------------------------------------------------------------------------------------------------------------


def test_a_list_of_atoms_is_trained_on_like_its_file(tmp_path: Path, source: Path) -> None:
    """The same weights to the last bit, and the errors of the test frames; the config says where the data came from."""
    frames = io.read(source, ":")
    run = mdrelax.train(without_source(document(source)), frames, folder=tmp_path / "memory")
    assert run.certificate.passed
    assert run.results["test"]["forces_mae_meV_per_A"] > 0
    mdrelax.train(without_source(document(source)), source, folder=tmp_path / "file")
    weights, of_file = (load_file(tmp_path / name / "model.safetensors") for name in ("memory", "file"))
    assert all(torch.equal(weights[name], of_file[name]) for name in of_file)
    assert "source: memory" in (tmp_path / "memory" / "config.yaml").read_text()


def test_a_finished_run_evaluates_and_simulates_from_python(tmp_path: Path, source: Path) -> None:
    """The model file in the outcome drives the calculator and MD."""
    from mdrelax.engines.md import run_md

    frames = io.read(source, ":")
    run = mdrelax.train(without_source(document(source)), frames, folder=tmp_path)
    atoms = frames[0].copy()
    atoms.calc = mdrelax.MDRelaxCalculator.from_file(run.model_file)
    assert np.isfinite(atoms.get_forces()).all()
    assert run_md(atoms, temperature_K=50, duration_ps=0.002).log.step.iloc[-1] == 4


def test_a_run_in_memory_resumes_from_python_only(tmp_path: Path, source: Path) -> None:
    """With the same structures, bit for bit; the command cannot know them and says what to do."""

    class Stop(BaseException):
        pass

    def stop(progress: Progress) -> None:
        if progress.step == 9:
            raise Stop

    frames, content = io.read(source, ":"), without_source(document(source))
    mdrelax.train(content, frames, folder=tmp_path / "whole")
    with pytest.raises(Stop):
        mdrelax.train(content, frames, folder=tmp_path / "parts", listener=stop)
    said = command("train", tmp_path / "parts" / "config.yaml", "--out", tmp_path / "parts", "--restart", "auto")
    assert said.code == 2
    assert "continue it from Python" in said.last_line
    mdrelax.train(content, frames, folder=tmp_path / "parts", restart=True)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_preset_takes_data_of_ones_own(tmp_path: Path, source: Path) -> None:
    """Its other settings stay; a preset that is not there is named beside the nearest."""
    from mdrelax.runs.inputs import resolve

    own = resolve("ethanol-tiny", source)
    assert own.data.source == str(source)
    assert own.training == resolve("ethanol-tiny", None).training
    with pytest.raises(ConfigError, match="did you mean `ethanol-tiny`"):
        mdrelax.train("ethanol-tinny", folder=tmp_path)


def test_structures_without_labels_are_refused_like_a_file_without_them(tmp_path: Path) -> None:
    """The sentence names the keys that would be read."""
    bare = [atoms.copy() for atoms in clusters(4)]
    for atoms in bare:
        atoms.info.clear()
        for name in set(atoms.arrays) - {"numbers", "positions"}:
            del atoms.arrays[name]
    with pytest.raises(ValueError, match="energy"):
        mdrelax.train({"training": {"steps": 2}}, bare, folder=tmp_path)


# --- network.json -----------------------------------------------------------------------------------------------------


def test_the_network_is_described_before_the_first_step(tmp_path: Path, source: Path) -> None:
    """Name, arguments, elements, references, scale and symmetry are in the folder when training begins."""
    seen: list[dict[str, Any]] = []

    def look(progress: Progress) -> None:
        if progress.step == 1:
            seen.append(json.loads((tmp_path / "network.json").read_text()))

    run = mdrelax.train(document(source), folder=tmp_path, listener=look)
    found = seen[0]
    assert found["potential"]["name"] == "equiformer"
    assert found["potential"]["arguments"]["average_neighbors"] > 0
    assert found["elements"] == list(run.fit.model.elements)
    fitted = run.fit.model.reference_energies.tolist()  # again, after the last step
    assert found["reference_energies"] == pytest.approx(fitted, rel=0.1)
    assert found["scale"] == float(run.fit.model.scale)
    assert found["symmetry"] == run.certificate.symmetry


def test_a_run_is_projected_without_its_data(tmp_path: Path, finished: Path) -> None:
    """The model file has the weights and the certificate of the run's own, to the last bit."""
    said = command("project", finished, "--output", tmp_path / "again.safetensors")
    assert said.code == 0, said.err
    first, again = load_model(finished / "model.safetensors"), load_model(tmp_path / "again.safetensors")
    weights = first.force_field.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.force_field.state_dict().items())
    assert again.certificate == first.certificate
    assert again.header["potential"] == first.header["potential"]


def test_a_run_is_audited_without_its_data(finished: Path) -> None:
    """Its free maps break the symmetry, its projection does not."""
    said = command("audit", finished)
    assert said.code == 0, said.err
    assert "free maps at theta = 1" in said.out


def test_a_run_from_before_network_json_is_rebuilt_from_its_data(tmp_path: Path, source: Path) -> None:
    """As it always was: the same model file; without the data the missing file is named."""
    mdrelax.train(document(source), folder=tmp_path / "run")
    shutil.copy(source, tmp_path / "kept.extxyz")
    (tmp_path / "run" / "network.json").unlink()
    said = command("project", tmp_path / "run", "--output", tmp_path / "again.safetensors")
    assert said.code == 0, said.err
    first, again = (
        load_file(path) for path in (tmp_path / "run" / "model.safetensors", tmp_path / "again.safetensors")
    )
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_damaged_network_json_is_named(tmp_path: Path, finished: Path) -> None:
    """Cut off, or of a version to come."""
    from mdrelax.runs.checkpoints import open_checkpoint

    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "network.json"
    text = path.read_text()
    path.write_text(text[:100])
    with pytest.raises(CheckpointError, match=r"network.json` is damaged"):
        open_checkpoint(tmp_path / "run", potentials)
    path.write_text(text.replace('"format_version": 2', '"format_version": 9'))
    with pytest.raises(CheckpointError, match="format version 9"):
        open_checkpoint(tmp_path / "run", potentials)


# --- refused ----------------------------------------------------------------------------------------------------------


class BrokenNetworks:
    """The registry of the package, whose networks prefer one direction in space."""

    preset = staticmethod(potentials.preset)
    arguments_section = staticmethod(potentials.arguments_section)

    @staticmethod
    def build_potential(name: str, n_species: int, arguments: Mapping[str, Any]) -> Potential:
        """A network whose energies depend on the x of edges."""
        network = potentials.build_potential(name, n_species, arguments)
        network.register_forward_hook(prefer_x)
        return network


def prefer_x(network: nn.Module, inputs: tuple[Tensor, Edges], energies: Tensor) -> Tensor:
    """Add the x components of an atom's edges to its energy."""
    edges = inputs[1]
    return energies.index_add(0, edges.index[1], 0.1 * edges.vectors[:, 0].square())


def test_a_refused_run_is_kept_and_says_why(tmp_path: Path, source: Path) -> None:
    """The network, its errors and its certificate stay; no model file is written."""
    with pytest.raises(CertificateError) as caught:
        run_training(load_config(document(source)), tmp_path, BrokenNetworks())
    text = str(caught.value)
    assert "breaks the symmetry under rotations and reflections:" in text
    assert "translations" not in text
    assert "kept: the network as `refused.safetensors`" in text
    assert not (tmp_path / "model.safetensors").exists()
    results = json.loads((tmp_path / "results.json").read_text())
    assert not results["certificate"]["passed"]
    assert results["test"]["forces_mae_meV_per_A"] > 0
    assert not load_model(tmp_path / "refused.safetensors", certified=False).certificate.passed
    with pytest.raises(CertificateError):
        load_model(tmp_path / "refused.safetensors")


NONE, LARGE = EquivarianceError(1e-15, 1e-15, 1e-15, 1e-15), EquivarianceError(1e-6, 1e-15, 1e-15, 1e-6)
NAN = EquivarianceError(float("inf"), 0.0, 0.0, 0.0)
CAUSES: dict[str, Callable[[], Certificate]] = {
    "breaks the symmetry under rotations and permutations": lambda: Certificate("E(3)", LARGE, NONE, 1, []),
    "overflow, in float64 too": lambda: Certificate("E(3)", NAN, NAN, 1, []),
    "overflow in float32": lambda: Certificate("E(3)", NONE, NAN, 1, []),
    "float32 rounds too coarsely": lambda: Certificate("E(3)", NONE, EquivarianceError(0.1, 0, 0, 0), 1, []),
    "under reflections:": lambda: Certificate("E(3)", EquivarianceError(0, 1, 0, 0), NONE, 1, []),
}


@pytest.mark.parametrize("words", CAUSES)
def test_the_sentence_names_the_cause_of_a_refusal(words: str) -> None:
    """Each cause has its own remedy."""
    assert words in cause_of_failure(CAUSES[words]())


# --- faults -----------------------------------------------------------------------------------------------------------


def test_compiling_direct_forces_says_that_it_has_no_effect(tmp_path: Path, source: Path) -> None:
    """Nothing is compiled, and the user hears of it before training."""
    content = document(source, training={"steps": 2, "compile": True})
    content["potential"] = {"name": "equiformer-pytorch", "preset": "tiny", "cutoff": 4.0}
    content["potential"]["arguments"] = {"forces": "direct"}
    said: list[str] = []
    mdrelax.train(copy.deepcopy(content), folder=tmp_path, tell=said.append)
    assert any("`training.compile` has no effect with direct forces" in line for line in said)
