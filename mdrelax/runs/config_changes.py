"""Saved configs: the settings of earlier runs, with the defaults of their time, and differences of configs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mdrelax.base.migrations import with_published_norm
from mdrelax.base.sections import ConfigError, read_yaml
from mdrelax.runs.config import load_config

__all__ = [
    "changed_keys",
    "differing_keys",
    "read_saved",
    "refuse_changes",
    "with_defaults",
]


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


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The difference of two resolved configs as lines ``section.key: old -> new``; empty if they are equal.

    Settings of the relaxation are ignored if neither config relaxes the constraint.
    """
    if _never_relaxed(old) and _never_relaxed(new):
        old, new = ({key: value for key, value in each.items() if key != "relaxation"} for each in (old, new))
    before, after = dict(_flat(old)), dict(_flat(new))
    return [
        f"{key}: {before.get(key, 'not set')} -> {after.get(key, 'not set')}"
        for key in sorted({**before, **after})
        if before.get(key) != after.get(key)
    ]


def refuse_changes(saved: Mapping[str, Any], given: Mapping[str, Any], *, found: str, choose: str) -> None:
    """Raise ``ConfigError`` with the differences of two resolved configs, if there are any.

    ``found`` names the item with another config, ``choose`` the item to choose differently.
    """
    if difference := changed_keys(saved, given):
        raise ConfigError(
            f"{found}; choose another {choose}, or undo these changes (saved -> given):\n  " + "\n  ".join(difference)
        )


def differing_keys(documents: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each resolved config its values ``section.key`` of the keys in which the configs differ; None: not set."""
    flat = [dict(_flat(document)) for document in documents]
    keys = [key for key in dict.fromkeys(key for each in flat for key in each)
            if any(each.get(key) != flat[0].get(key) for each in flat)]  # fmt: skip
    return [{key: each.get(key) for key in keys} for each in flat]


def _never_relaxed(document: Mapping[str, Any]) -> bool:
    relaxation = document.get("relaxation")
    return isinstance(relaxation, Mapping) and relaxation.get("schedule") == "off"


def _flat(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
