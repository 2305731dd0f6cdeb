"""Saved configs: the settings of earlier runs, with the defaults of their time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mdrelax.base.migrations import with_published_norm
from mdrelax.base.sections import ConfigError, read_yaml
from mdrelax.runs.config import load_config

__all__ = ["read_saved", "with_defaults"]


def read_saved(path: Path) -> dict[str, Any]:
    """The config that a run saved, ``with_defaults``."""
    return with_defaults(read_yaml(path))


def with_defaults(document: dict[str, Any]) -> dict[str, Any]:
    """A config that a run saved, with the defaults of keys newer than the run; unchanged if it is invalid now.

    Configs of version 1 (without ``format_version``) get the layer norm that they were trained with, those of versions
    1 and 2 the recipe of that time for what they do not say.
    """
    try:
        current = document if "format_version" in document else _from_version_1(document)
        return load_config(current).model_dump(mode="json")
    except (ConfigError, AttributeError):
        return document


def _from_version_1(document: Mapping[str, Any]) -> dict[str, Any]:
    """The same run in version 2, whose presets no longer say ``norm_eps``; ``load_config`` knows that version."""
    network = {"name": "equiformer", "preset": "tiny", "arguments": {}, **(document.get("potential") or {})}
    of_preset = {"norm_eps": 1e-2} if network["name"] == "equiformer" and network["preset"] != "md17" else {}
    arguments = with_published_norm(network["name"], {**of_preset, **network["arguments"]})
    return {**document, "potential": {**network, "arguments": arguments}, "format_version": 2}
