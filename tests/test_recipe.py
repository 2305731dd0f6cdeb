"""The recipe for data that nothing is known of: its defaults, and training from a data file in place of a config."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ase import io

import mdrelax
from command_line import mdrelax as command
from mdrelax import datasets
from mdrelax.base.sections import ConfigError
from mdrelax.cli import CONFIG
from mdrelax.cli.train import run_name
from mdrelax.forces.loader import Loader, frames_from_data
from mdrelax.forces.settings import STRESS_WEIGHT, TrainingConfig
from mdrelax.runs.config import load_config
from mdrelax.runs.inputs import load_parts, open_config
from small_runs import CLUSTER_CUTOFF, CRYSTAL_CUTOFF, NETWORK, clusters, crystals, data_of, document, write_frames

# --- lengths that follow the number of steps -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "warm_up", "interval"), [(20, 1, 1), (300, 15, 15), (3000, 150, 150), (50000, 2500, 2500)]
)
def test_warm_up_and_validations_follow_the_length(steps: int, warm_up: int, interval: int) -> None:
    """A twentieth of the steps each; numbers that are given stay what they are."""
    training = TrainingConfig(steps=steps)
    assert training.rate(steps).warmup_steps == warm_up
    assert training.validation_interval(steps) == interval
    given = TrainingConfig(steps=steps, warmup_steps=7, validate_every=9)
    assert (given.rate(steps).warmup_steps, given.validation_interval(steps)) == (7, 9)
    assert TrainingConfig(steps=steps, warmup_steps=0).rate(steps).warmup_steps == 0


@pytest.mark.parametrize("key", ["warmup_steps", "validate_every"])
def test_a_length_is_a_whole_number_or_a_fraction(key: str) -> None:
    """2.5 steps are neither."""
    with pytest.raises(ConfigError, match=rf"`training\.{key}`: this must be a whole number or a fraction below 1"):
        load_config({"data": {"source": "a"}, "training": {key: 2.5}})
    assert getattr(load_config({"data": {"source": "a"}, "training": {key: 30.0}}).training, key) == 30


def test_a_few_steps_of_the_defaults_are_worth_their_number(tmp_path: Path) -> None:
    """20 steps learn: with the warm-up of 100 of the old defaults, the rate never rises above a fifth."""
    source = write_frames(tmp_path / "clusters.extxyz", clusters(32))
    errors = {}
    for name, keys in {"now": {}, "before": {"warmup_steps": 100}}.items():
        content: dict[str, Any] = {
            "data": {"source": str(source)}, "potential": {"cutoff": CLUSTER_CUTOFF, "arguments": NETWORK},
            "training": {"steps": 20, **keys},
        }  # fmt: skip
        run = mdrelax.train(content, folder=tmp_path / name)
        errors[name] = run.results["test"]["forces_mae_meV_per_A"]
        mean = run.results["baselines"]["mean"]["forces_mae_meV_per_A"]
    assert errors["now"] < 0.8 * errors["before"]
    assert errors["now"] < 0.5 * mean


# --- the other defaults ----------------------------------------------------------------------------------------------


def test_other_optimisers_have_their_own_momentum() -> None:
    """Only Muon gains from a memory of 50 steps; what is given is taken."""
    assert TrainingConfig().betas == (0.98, 0.99)
    assert TrainingConfig(optimizer="adamw").betas == (0.9, 0.99)
    assert TrainingConfig(optimizer="adamw", betas=(0.95, 0.99)).betas == (0.95, 0.99)


@pytest.mark.parametrize(
    ("keys", "weight"),
    [({}, STRESS_WEIGHT), ({"stress_weight": 0.0}, 0.0), ({"stress_weight": 3.0}, 3.0)],
)
def test_a_stress_is_trained_on_where_there_is_one(tmp_path: Path, keys: dict[str, float], weight: float) -> None:
    """Unless the weight says otherwise; the model card has the weight that was used."""
    source = write_frames(tmp_path / "crystals.extxyz", crystals(12))
    content = document(
        source, data={"train": 8, "validation": 2, "test": 2}, training={"steps": 2, "validate_every": 1, **keys},
        potential={"cutoff": CRYSTAL_CUTOFF},
    )  # fmt: skip
    run = mdrelax.train(content, folder=tmp_path / "run")
    assert ("stress_mae_meV_per_A3" in run.results["test"]) == (weight > 0)
    card = mdrelax.load_model(run.model_file).header["card"]
    assert card["config"]["training"]["stress_weight"] == weight
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["training"]["stress_weight"] == keys.get("stress_weight")  # so that a resumed run decides again


def test_no_stress_is_asked_of_data_or_networks_without(tmp_path: Path) -> None:
    """Molecules, and direct forces on crystals, train with the defaults."""
    molecules = write_frames(tmp_path / "clusters.extxyz", clusters(12))
    cells = write_frames(tmp_path / "crystals.extxyz", crystals(12))
    direct = {"name": "equiformer-pytorch", "cutoff": CRYSTAL_CUTOFF, "arguments": {"forces": "direct"}}
    tiny = {"cutoff": CLUSTER_CUTOFF, "arguments": NETWORK}
    for name, source, potential in (("a", molecules, tiny), ("b", cells, direct)):
        content = {"data": {"source": str(source)}, "potential": potential, "training": {"steps": 2}}
        assert "stress_mae_meV_per_A3" not in mdrelax.train(content, folder=tmp_path / name).results["test"]


def test_an_edge_budget_that_never_binds_changes_no_batch(tmp_path: Path) -> None:
    """Four clusters of 12 edges are far from 6,000; with 30, two make a batch."""
    frames = frames_from_data(data_of(tmp_path / "c.extxyz", clusters(10)), cutoff=CLUSTER_CUTOFF)
    plain = Loader(frames, batch_size=4)
    loose, tight = (Loader(frames, batch_size=4, max_edges=n) for n in (6000, 30))
    assert not loose.limited_by_edges
    assert loose.positions(3) == plain.positions(3)
    assert loose.n_steps(5) == plain.n_steps(5) == 15
    assert tight.limited_by_edges
    assert max(map(len, tight.positions(3))) == 2


def test_a_small_set_keeps_a_frame_to_validate_on(tmp_path: Path) -> None:
    """A tenth of nine frames is one of them, not none."""
    source = write_frames(tmp_path / "nine.extxyz", clusters(9))
    parts = load_parts(load_config({"data": {"source": str(source)}}).data)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (7, 1, 1)


# --- data in place of a config ---------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Clusters as an extxyz in the folder where commands run."""
    monkeypatch.chdir(tmp_path)
    return write_frames(Path("mine.extxyz"), clusters(12))


def test_a_data_file_is_trained_with_the_default_recipe(data: Path) -> None:
    """The shortest path: recipe, split and steps are said, and the config is in runs/NAME, where it trains the same."""
    said = command("train", data, "-r", "training.steps=3", "-r", f"potential.cutoff={CLUSTER_CUTOFF}")
    assert said.code == 0, said.err
    folder = Path("runs/mine")
    sentence = (
        "The default recipe for data: equiformer `tiny` with cut-off 4 A, relaxed (triangle); muon at 0.005, 3 steps "
        "of up to 8 structures and 6,000 edges; split 0.8 to train, 0.1 to validate, the rest to test, drawn with "
        "seed 0."
    )
    assert sentence in said.out
    assert sentence in (folder / "train.log").read_text()
    assert "9 training, 1 validation and 2 test frames" in said.out
    assert (folder / "model.safetensors").is_file()
    assert open_config(str(folder / "config.yaml"), []) == open_config(
        str(data), ["training.steps=3", f"potential.cutoff={CLUSTER_CUTOFF}"]
    )
    again = command("train", data, "-r", "training.steps=3", "-r", f"potential.cutoff={CLUSTER_CUTOFF}")
    assert again.code == CONFIG
    assert "already contains a run; add `--restart auto`" in again.err


def test_whatever_is_a_source_is_a_config(data: Path) -> None:
    """Files by their endings, names of data sets, and a file of another ending whose format is named."""
    io.write("mine.traj", io.read(data, ":"))
    Path("mine.dat").write_text(data.read_text())
    Path("OUTCAR").write_text("")
    for source in (str(data), "mine.traj", "OUTCAR", "sample:ethanol", "nbody:charged", "rmd17:ethanol"):
        assert datasets.is_source(source)
        assert open_config(source, []) == load_config({"data": {"source": source}})
    assert not any(map(datasets.is_source, ("ethanol-tiny", "nowhere.extxyz", "mine.dat", "c.yaml")))
    assert open_config("mine.dat", ["data.format=extxyz"]).data.source == "mine.dat"
    with pytest.raises(ConfigError, match=r"name their format: `-r data\.format=ase`"):
        open_config("mine.dat", [])
    with pytest.raises(ConfigError, match=r"no config file `nowhere\.extxyz`, no data file and no preset"):
        open_config("nowhere.extxyz", [])


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("data/mine.extxyz", "mine"), ("mine.xyz.gz", "mine"), ("run-0.5.yaml", "run-0.5"), ("silicon", "silicon"),
        ("sample:ethanol", "sample-ethanol"), ("scf/OUTCAR", "OUTCAR"),
    ],
)  # fmt: skip
def test_a_run_has_the_name_of_its_data(source: str, name: str) -> None:
    """The folder below runs/."""
    assert run_name(source) == name
