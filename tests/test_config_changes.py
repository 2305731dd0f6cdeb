"""Saved configs: runs of older versions are read as they were meant when they were made."""

import pytest
import yaml

from mdrelax.base.migrations import with_published_norm
from mdrelax.base.sections import ConfigError
from mdrelax.runs.config import load_config
from mdrelax.runs.config_changes import read_saved
from mdrelax.training.folders import changed_keys, refuse_changes

OF_VERSION_1 = {"data": {"source": "frames.extxyz"}, "training": {"steps": 10}}


def read(tmp_path, **potential):
    """A run folder's config of version 1, as it is read now: its network."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**OF_VERSION_1, **({"potential": potential} if potential else {})}))
    return read_saved(path)["potential"]


@pytest.mark.parametrize(
    ("potential", "arguments"),
    [
        ({}, {"norm": "separable", "norm_eps": 1e-2}),
        ({"name": "equiformer", "preset": "small"}, {"norm": "separable", "norm_eps": 1e-2}),
        ({"name": "equiformer", "preset": "md17"}, {"norm": "separable"}),
        ({"preset": "tiny", "arguments": {"norm_eps": 1e-3}}, {"norm": "separable", "norm_eps": 1e-3}),
        ({"name": "segnn"}, {}),
        ({"name": "segnn", "arguments": {"norm": "layer"}}, {"norm": "separable"}),
        ({"name": "equiformer-pytorch"}, {"norm": "separable", "norm_eps": 1e-2}),
    ],
)
def test_a_run_of_version_1_names_the_norm_it_was_trained_with(tmp_path, potential, arguments):
    """The published norm, with the eps that its preset or its network had as default then."""
    assert read(tmp_path, **potential)["arguments"] == arguments


def test_a_run_of_version_3_is_read_as_it_stands(tmp_path):
    """Its network and its recipe are those of today's defaults."""
    path = tmp_path / "config.yaml"
    document = load_config(OF_VERSION_1).model_dump(mode="json")
    path.write_text(yaml.safe_dump(document))
    assert read_saved(path) == document
    assert document["format_version"] == 3


@pytest.mark.parametrize("version", [{}, {"format_version": 2}])
def test_a_run_of_an_older_version_keeps_the_recipe_it_did_not_name(tmp_path, version):
    """Versions 1 and 2 were trained by AdamW unless they said something else, and without stress."""
    path = tmp_path / "config.yaml"
    said = {"steps": 10, "warmup_steps": 3}
    path.write_text(yaml.safe_dump({**OF_VERSION_1, **version, "training": said}))
    training = read_saved(path)["training"]
    assert (training["optimizer"], training["betas"], training["learning_rate"]) == ("adamw", [0.9, 0.99], 5e-3)
    assert (training["warmup_steps"], training["validate_every"], training["ema"]) == (3, 500, 0.999)
    assert (training["max_edges"], training["stress_weight"]) == (None, 0.0)


def test_a_file_of_version_2_is_trained_as_it_was_meant():
    """`mdrelax train` of a saved config.yaml; one without a version has the defaults of today."""
    old = load_config({**OF_VERSION_1, "format_version": 2, "training": {"epochs": 4}}, overrides=["training.ema=0.9"])
    assert (old.training.optimizer, old.training.epochs, old.training.ema) == ("adamw", 4, 0.9)
    assert old.format_version == 3
    assert load_config(OF_VERSION_1).training.optimizer == "muon"


def test_an_old_run_does_not_go_on_with_another_network(tmp_path):
    """`--restart auto` with the same file refuses, and says which keys bring the old network and recipe back."""
    read(tmp_path)
    saved, given = read_saved(tmp_path / "config.yaml"), load_config(OF_VERSION_1).model_dump(mode="json")
    with pytest.raises(ConfigError, match=r"potential.arguments.norm: separable -> not set"):
        refuse_changes(saved, given, found="`runs/x` was made with another config", choose="`--out`")
    again = load_config(
        {**OF_VERSION_1, "format_version": 2},
        overrides=["potential.arguments.norm=separable", "potential.arguments.norm_eps=0.01"],
    )
    assert changed_keys(saved, again.model_dump(mode="json")) == []


def test_arguments_of_a_model_file_keep_what_they_say():
    """Those of a file hold the eps already; only the name of the norm is added."""
    assert with_published_norm("equiformer", {"norm_eps": 1e-2}) == {"norm": "separable", "norm_eps": 1e-2}
    assert with_published_norm("segnn", {"channels": 8}) == {"channels": 8}
