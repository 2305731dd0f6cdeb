"""Fine-tuning: new elements, chosen and frozen weights, slower layers, replayed data, and the verb for it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from torch_geometric.data import Data

import mdrelax as package
from command_line import mdrelax
from mdrelax import potentials
from mdrelax.base.sections import ConfigError
from mdrelax.cli import CONFIG
from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.loader import frames_from_data
from mdrelax.forces.predict import predict
from mdrelax.forces.symmetry import certify
from mdrelax.modelfile import load_model, save_model
from mdrelax.potentials import build_potential, preset
from mdrelax.runs.config import load_config
from mdrelax.runs.continued import replayed
from mdrelax.runs.fine_tune import fine_tuning
from mdrelax.runs.inputs import load_parts
from mdrelax.runs.train import Outcome, run_training
from mdrelax.runs.untrained import untrained
from mdrelax.training.optimizers import make_optimizer, moving, set_rate
from molecules import batch_of, rattled, tiny_force_field
from small_runs import clusters, crystals, document, write_frames


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 labelled clusters of H and O."""
    return write_frames(tmp_path_factory.mktemp("data") / "clusters.extxyz", clusters(32))


@pytest.fixture(scope="module")
def first(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A finished run on them."""
    return run_training(load_config(document(source)), tmp_path_factory.mktemp("first") / "run", potentials)


def with_carbon(n: int) -> list[Atoms]:
    """Clusters in which a carbon stands in for the oxygen of every other frame, 5 eV lower."""
    frames = clusters(n, seed=1)
    for atoms in frames[::2]:
        atoms.symbols[0] = "C"
        atoms.info["REF_energy"] -= 5.0
    return frames


def begun(content: dict[str, Any]) -> tuple[Any, Any, list[Data]]:
    """The initial force field of a run, its config, and its training data."""
    config = load_config(content)
    start = load_model(config.potential.start)
    parts = load_parts(config.data)
    frames = frames_from_data(parts.train, cutoff=start.force_field.cutoff)
    return untrained(config, frames, parts.isolated_energies, potentials, start), config, parts.train


# --- new elements -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["equiformer", "segnn", "equiformer-pytorch"])
def test_known_elements_keep_their_forces_beside_a_new_one(name: str, tmp_path: Path, source: Path) -> None:
    """Of every network: to rounding of float32, 1e-5 of forces of order 1; the new element has forces of its own."""
    arguments = {**preset(name, "tiny"), "cutoff": 4.0, "average_neighbors": 3.0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ForceField(build_potential(name, 2, arguments), elements=(1, 8)).eval()
    graph = batch_of(*rattled(Atoms("OH3", clusters(1)[0].positions), 2, 0), cutoff=4.0)
    path = save_model(
        tmp_path / "m.safetensors", model, potential=name, arguments=arguments, certificate=certify(model, graph)
    )
    carbon = write_frames(tmp_path / "carbon.extxyz", with_carbon(32))
    found, _, _ = begun({**document(carbon), "potential": {"start": str(path)}})
    assert found.force_field.elements == (1, 6, 8)
    old, new = model(graph), found.force_field.eval()(graph)
    torch.testing.assert_close(new.forces, old.forces, rtol=0, atol=1e-5)
    swapped = graph._replace(numbers=torch.where(graph.numbers == 8, 6, graph.numbers))
    assert (found.force_field(swapped).forces - new.forces).abs().max() > 1e-4


def test_the_energy_of_a_new_element_is_fitted(tmp_path: Path, source: Path, first: Outcome) -> None:
    """Its reference takes up what all others leave: 5 eV below oxygen's label, whether the others are kept or not.

    A run then finishes with a model of all elements.
    """
    carbon = write_frames(tmp_path / "carbon.extxyz", with_carbon(32))
    for references in ("fit", "keep"):
        content = {**document(carbon), "potential": {"start": str(first.model_file)}}
        found, _, data = begun({**content, "reference_energies": references})
        frames = frames_from_data(data, cutoff=found.force_field.cutoff)
        prediction, batch = predict(found.force_field.eval(), frames)
        missed = batch.targets.energy - prediction.energy
        of_carbon = torch.tensor([6 in frame.z.tolist() for frame in data])
        assert missed[of_carbon].mean().abs() < 1e-6
        file = load_model(first.model_file).force_field.reference_energies
        kept = found.force_field.reference_energies[[0, 2]]
        assert torch.equal(kept, file) == (references == "keep")
    told: list[str] = []
    run = run_training(load_config(content), tmp_path / "run", potentials, tell=told.append)
    assert load_model(run.model_file).force_field.elements == (1, 6, 8)
    assert any(line.startswith("New elements C:") for line in told)


def test_references_of_isolated_atoms_are_those_of_the_new_data(tmp_path: Path, first: Outcome) -> None:
    """A lone atom then has exactly its energy in the data, to 1e-9 eV."""
    frames = clusters(32)
    for symbol, energy in (("H", -13.0), ("O", -430.0)):
        atom = Atoms(symbol)
        atom.info |= {"config_type": "IsolatedAtom", "REF_energy": energy}
        frames.append(atom)
    source = write_frames(tmp_path / "isolated.extxyz", frames)
    content = {**document(source), "potential": {"start": str(first.model_file)}, "reference_energies": "isolated"}
    found, _, _ = begun(content)
    lone = batch_of(Atoms("H"), Atoms("O"), cutoff=4.0)
    np.testing.assert_allclose(found.force_field.eval()(lone).energy.detach(), [-13.0, -430.0], atol=1e-9)


# --- chosen, frozen and slower weights --------------------------------------------------------------------------------


def test_only_the_chosen_weights_are_taken(source: Path, first: Outcome) -> None:
    """`start_where: [blocks]`: blocks are those of the file, everything else begins at random."""
    content = {**document(source), "potential": {"start": str(first.model_file), "start_where": ["blocks"]}}
    found, _, _ = begun(content)
    file = load_model(first.model_file).force_field.potential.state_dict()
    own = found.force_field.potential.state_dict()
    moved = {name.partition(".")[0] for name in own if not torch.equal(own[name], file[name])}
    assert {name for name in own if name.startswith("blocks") and not torch.equal(own[name], file[name])} == set()
    assert {"embedding", "radial", "energy"} <= moved


@pytest.mark.parametrize("schedule", ["off", "triangle"])
def test_frozen_weights_do_not_move_and_others_do(tmp_path: Path, source: Path, first: Outcome, schedule: str) -> None:
    """Bit for bit, beside free maps too; by the names that the network has without them."""
    content = document(source, training={"rate_fractions": {"blocks": 0.0, "radial.*": 0}, "seed": 1})
    content |= {"potential": {"start": str(first.model_file)}, "relaxation": {"schedule": schedule}}
    run = run_training(load_config(content), tmp_path / schedule, potentials)
    before = load_model(first.model_file).force_field.potential.state_dict()
    after = load_model(run.model_file).force_field.potential.state_dict()
    for name, tensor in after.items():
        frozen = name.startswith(("blocks.", "radial."))
        if frozen or name in ("embedding", "energy.weights.0"):
            assert torch.equal(tensor, before[name]) == frozen, name


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd", "normalised"])
def test_a_slower_layer_moves_by_its_fraction(kind: Any) -> None:
    """One step of each optimiser from the same gradients: a tenth of the step at a tenth of the rate, to rounding.

    The first pattern that fits counts; a frozen parameter has no part in the clipping.
    """
    steps = []
    for fractions in ({}, {"embedding": 0.1, "*": 1.0}, {"embedding": 0.0}):
        model = tiny_force_field(seed=0)
        optimizer = make_optimizer(
            model, kind=kind, lr=0.01, weight_decay=0.0, betas=(0.9, 0.99), fractions=fractions
        )  # fmt: skip
        before = [p.detach().clone() for p in model.parameters()]
        for k, p in enumerate(model.parameters()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(k), dtype=p.dtype)
        set_rate(optimizer, 0.01)
        optimizer.step()
        steps.append([p.detach() - old for p, old in zip(model.parameters(), before, strict=True)])
        still = 1 if fractions == {"embedding": 0.0} else 0
        assert len(moving(model, optimizer)) == len(before) - still
    place = [name for name, _ in tiny_force_field().named_parameters()].index("potential.embedding")
    torch.testing.assert_close(steps[1][place], 0.1 * steps[0][place], rtol=1e-6, atol=1e-12)
    assert not steps[2][place].any()
    for k, (full, slow) in enumerate(zip(steps[0], steps[1], strict=True)):
        if k != place:
            torch.testing.assert_close(slow, full, rtol=1e-9, atol=1e-14)


def test_a_pattern_that_fits_nothing_is_refused(tmp_path: Path, source: Path) -> None:
    """With the nearest name; and a fraction above 1 by its range."""
    content = document(source, training={"rate_fractions": {"embeding": 0.1}})
    with pytest.raises(ValueError, match="No parameter fits the name pattern `embeding`; did you mean `embedding`"):
        run_training(load_config(content), tmp_path / "run", potentials)
    with pytest.raises(ConfigError, match=r"`training.rate_fractions.x`: input should be less than or equal to 1"):
        load_config(document(source, training={"rate_fractions": {"x": 2}}))


# --- replay -----------------------------------------------------------------------------------------------------------


def test_replayed_frames_are_a_fraction_and_move_with_the_references(
    tmp_path: Path, source: Path, first: Outcome
) -> None:
    """New labels 7 eV an atom higher: so are the old ones when they are replayed, each frame's forces as they were."""
    frames = clusters(32, seed=2)
    for atoms in frames:
        atoms.info["REF_energy"] += 7.0 * len(atoms)
    higher = write_frames(tmp_path / "higher.extxyz", frames)
    content = document(higher, data={"replay": str(source), "replay_fraction": 0.25})
    content |= {"potential": {"start": str(first.model_file)}}
    found, config, train = begun(content)
    extra = replayed(config, found, len(train))
    assert len(extra) / (len(extra) + len(train)) == pytest.approx(0.25, abs=0.02)
    labels = {
        round(float(a.arrays["REF_forces"].sum(axis=0)[0]) + a.arrays["REF_forces"][1, 0], 6): a for a in clusters(32)
    }
    moved = []
    for frame in extra:
        forces = frame.targets.forces
        original = labels[round(float(forces.sum(0)[0]) + float(forces[1, 0]), 6)]
        moved.append(float(frame.targets.energy) - original.info["REF_energy"])
    assert np.ptp(moved) < 1e-9
    assert np.mean(moved) == pytest.approx(28.0, abs=1.0)  # what the first model misses on average is fitted, too
    told: list[str] = []
    run_training(load_config(content), tmp_path / "run", potentials, tell=told.append)
    assert any(line.startswith(f"{len(extra)} of the training frames are from") for line in told)
    copper = write_frames(tmp_path / "copper.extxyz", crystals(4))
    content["data"]["replay"] = str(copper)
    with pytest.raises(ValueError, match=r"`data.replay: .*` has atomic numbers \[29\], which neither"):
        run_training(load_config(content), tmp_path / "other", potentials)


# --- the verb ---------------------------------------------------------------------------------------------------------


def test_fine_tune_needs_no_config(tmp_path: Path, source: Path, first: Outcome) -> None:
    """Error below the first model's, the settings in a file that `mdrelax train` takes, and the same from Python."""
    said = mdrelax(
        "fine-tune", first.model_file, source, "--out", tmp_path / "tuned", "--steps", "40", "--freeze", "radial",
        "--slow", "blocks=0.5", "-r", "training.learning_rate=0.01", "-r", "data.train=20", "-r", "data.validation=6",
    )  # fmt: skip
    assert said.code == 0, said.err
    tuned = yaml.safe_load((tmp_path / "tuned" / "fine-tune.yaml").read_text())
    assert tuned["training"]["rate_fractions"] == {"radial": 0.0, "blocks": 0.5}
    assert load_config(tuned).potential.start == str(first.model_file)
    card = load_model(tmp_path / "tuned" / "model.safetensors").header["card"]
    assert card["started_from"]["content"] == load_model(first.model_file).header["content"]
    key = "forces_mae_meV_per_A"
    assert card["validation"][key] < first.results["validation"][key]
    run = package.train(
        fine_tuning(first.model_file, steps=4, relax=True, references="keep"), clusters(32), folder=tmp_path / "python"
    )
    assert run.results["n_free_parameters"] > 0
    for text in ("blocks", "blocks=2", "blocks=x"):
        refused = mdrelax("fine-tune", first.model_file, source, "--out", tmp_path / "x", "--slow", text)
        assert (refused.code, f"got `{text}`" in refused.err) == (CONFIG, True)
