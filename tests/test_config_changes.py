"""Saved configs: runs of older versions are read as they were meant when they were made."""

import pytest
import yaml

from mdrelax.base.migrations import with_published_norm
from mdrelax.base.sections import ConfigError
from mdrelax.runs.config import load_config
from mdrelax.runs.config_changes import changed_keys, read_saved, refuse_changes

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


def test_a_run_of_version_2_is_read_as_it_stands(tmp_path):
    """Its network is the one of today's presets."""
    path = tmp_path / "config.yaml"
    document = load_config(OF_VERSION_1).model_dump(mode="json")
    path.write_text(yaml.safe_dump(document))
    assert read_saved(path) == document
    assert document["format_version"] == 2


def test_an_old_run_does_not_go_on_with_another_network(tmp_path):
    """`--restart auto` with the same file refuses, and says which keys bring the old network back."""
    read(tmp_path)
    saved, given = read_saved(tmp_path / "config.yaml"), load_config(OF_VERSION_1).model_dump(mode="json")
    with pytest.raises(ConfigError, match=r"potential.arguments.norm: separable -> not set"):
        refuse_changes(saved, given, found="`runs/x` was made with another config", choose="`--out`")
    again = load_config(
        OF_VERSION_1, overrides=["potential.arguments.norm=separable", "potential.arguments.norm_eps=0.01"]
    )
    assert changed_keys(saved, again.model_dump(mode="json")) == []


def test_arguments_of_a_model_file_keep_what_they_say():
    """Those of a file hold the eps already; only the name of the norm is added."""
    assert with_published_norm("equiformer", {"norm_eps": 1e-2}) == {"norm": "separable", "norm_eps": 1e-2}
    assert with_published_norm("segnn", {"channels": 8}) == {"channels": 8}
