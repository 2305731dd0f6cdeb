"""Run folders: the settings in them, whether a run in one is resumed or refused, and differences of settings.

Runs of task packs keep their settings in run.yaml, fine-tunings of peers in fine-tune.yaml.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mdrelax.base.files import write_atomically
from mdrelax.base.sections import ConfigError, Section, load, read_yaml

__all__ = [
    "RESULTS",
    "begun_already",
    "changed_keys",
    "differing_keys",
    "enter",
    "load_run",
    "prepare_folder",
    "refuse_begun",
    "refuse_changes",
]

RESULTS = "results.json"
SETTINGS = "run.yaml"
Settings = TypeVar("Settings", bound=Section)


def enter(settings: Section, folder: Path, *, restart: bool, file: str = SETTINGS) -> bool:
    """Write the settings; True if there is a checkpoint to resume from.

    Raises ``ConfigError`` for a folder with other settings, for one with a run if ``restart`` is off, and for a
    finished run whose checkpoint is gone.
    """
    if not restart:
        refuse_begun(folder)
    prepare_folder(settings, folder, file=file)
    has_checkpoint = _checkpoint(folder).exists()
    if (folder / RESULTS).is_file() and not has_checkpoint:
        raise ConfigError(
            f"`{folder}` is finished, but has no checkpoint any more: training it again would replace its results. "
            "Choose another folder."
        )
    return has_checkpoint


def refuse_begun(folder: Path) -> None:
    """Raise ``ConfigError`` for a folder with a run; one that ended before its first checkpoint does not count."""
    if _checkpoint(folder).exists() or (folder / RESULTS).exists():
        raise begun_already(folder)


def begun_already(folder: Path) -> ConfigError:
    """The error to raise for a folder with a run that is not to be resumed."""
    return ConfigError(
        f"`{folder}` already contains a run; add `--restart auto` to resume it, or choose another `--out`."
    )


def _checkpoint(folder: Path) -> Path:
    return folder / "checkpoints" / "last.pt"


def prepare_folder(settings: Section, folder: Path, *, file: str = SETTINGS) -> None:
    """Make a run's folder with its settings; raises ``ConfigError`` if it contains a run with others.

    Keys that a run of an older version lacks have their defaults.
    """
    saved = folder / file
    if saved.is_file():
        try:
            found = load_run(type(settings), folder, file=file)
        except ConfigError as error:
            raise ConfigError(f"`{saved}` holds no settings of such a run; choose another folder. {error}") from error
        given = settings.model_dump(mode="json")
        refuse_changes(
            found.model_dump(mode="json"), given, found=f"`{folder}` holds a run with other settings", choose="folder"
        )
    write_atomically(saved, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False).encode())


def load_run(model: type[Settings], folder: Path, *, file: str = SETTINGS) -> Settings:
    """The settings in a prepared folder; raises ``ConfigError``."""
    return load(model, read_yaml(folder / file))


# --- differences ---


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
