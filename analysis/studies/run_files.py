"""Files of a study: its runs and their results, the comparable part of their configs, the record, and figures."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from mdrelax.analysis.drawing import save
from mdrelax.analysis.tables import read_json, read_optional
from mdrelax.base.sections import Section, load
from mdrelax.runs.config_changes import with_defaults
from mdrelax.training.folders import prepare_folder

__all__ = ["Config", "Done", "Results", "Run", "arm_runs", "draw", "portable_config", "read_arm", "read_results",
           "recipe", "record", "resolve_settings", "start_arm"]  # fmt: skip

Config = Mapping[str, Any]
Results = Mapping[str, Any]


class Run(NamedTuple):
    """One arm with one seed in one setting."""

    name: str  # of its folder
    factors: dict[str, Any]  # the setting's, arm, seed
    config: dict[str, Any]  # resolved


class Done(NamedTuple):
    """A finished run and its results."""

    run: Run
    results: Results


def resolve_settings(model: type[Section], base: Config, changes: Sequence[str]) -> dict[str, Any]:
    """``Study.resolve`` of runs whose settings are a section; raises ``ConfigError``."""
    return load(model, base, overrides=changes).model_dump(mode="json")


def read_arm(needs: Sequence[str], place: Path, config: Config) -> Results | None:
    """``Study.read`` of runs that write results.json with the keys ``needs``."""
    return read_results(place / "results.json", needs)


def arm_runs(
    folder: Path, needs: Sequence[str], levels: Callable[[str, Config], dict[str, Any]]
) -> tuple[list[Done], list[str]]:
    """Every finished run below a folder, and the names of those that have only begun.

    ``levels(name, config)`` are the run's factors apart from arm and seed. Raises ``ValueError`` for unreadable files.
    """
    done, begun = [], []
    for place in sorted({path.parent for name in ("run.yaml", "results.json") for path in folder.glob(f"*/{name}")}):
        results = read_arm(needs, place, {})
        if results is None:
            begun.append(place.name)
            continue
        config = results["run"]
        factors = {**levels(place.name, config), "arm": config["arm"], "seed": config["training"]["seed"]}
        own = {key: value for key, value in results.items() if key != "run"}
        done.append(Done(Run(place.name, factors, config), own))
    return done, begun


def start_arm(model: type[Section], place: Path, config: Config) -> list[str]:
    """``Study.start`` of runs that begin with their folder's run.yaml."""
    prepare_folder(model.model_validate(config), place)
    return [str(place)]


def read_results(path: Path, needs: Sequence[str]) -> dict[str, Any] | None:
    """A run's results.json; None without the file. Raises ``ValueError`` if required keys are missing."""
    found: dict[str, Any] | None = read_optional(path, read_json, remedy="Delete it and run again.")
    if found is not None and (lacking := [name for name in needs if name not in found]):
        raise ValueError(f"`{path}` lacks {', '.join(lacking)}; delete it and run again.")
    return found


def draw(drawings: Mapping[str, Callable[[], Figure]], folder: Path) -> dict[Path, bytes]:
    """Every figure that is not empty, as a PNG in its own folder; older figures there are removed."""
    for path in folder.glob("*.png"):
        path.unlink()
    contents = {folder / f"{name}.png": save(folder / f"{name}.png", drawing) for name, drawing in drawings.items()}
    return {path: content for path, content in contents.items() if content is not None}


def portable_config(config: Any) -> Any:
    """A config with file names instead of paths, which mean nothing on another machine."""
    if isinstance(config, Mapping):
        return {key: portable_config(value) for key, value in config.items()}
    return Path(config).name if isinstance(config, str) and Path(config).is_absolute() else config


def recipe(config: Config, *, seeds: Sequence[str] = ()) -> dict[str, Any]:
    """The settings shared by all runs of an arm: the config without seed and settings that affect only speed.

    ``seeds`` are further keys, as ``section.key``, that follow a run's seed.
    """
    known = {key: value for key, value in with_defaults(portable_config(config)).items() if key != "compile"}
    for section, _, own in (name.partition(".") for name in ("training.seed", "training.compile", *seeds)):
        if known[section] is not None:
            known[section] = {key: value for key, value in known[section].items() if key != own}
    return known


def record(path: Path, done: Sequence[Done], unfinished: Sequence[str], summary: pd.DataFrame, command: str) -> str:
    """The JSON with all that is needed to check a number; commands in an existing file are kept, each once."""
    known: list[str | None] = []
    with contextlib.suppress(OSError, ValueError, AttributeError):  # none yet, or none of ours
        old = json.loads(path.read_text(encoding="utf-8"))
        known = [*old.get("earlier_commands", []), old.get("command")]
    commands = [*(text for text in known if text and text != command), *([command] if command else [])]
    document = {
        "command": commands[-1] if commands else None,
        "earlier_commands": commands[:-1],
        "unfinished": list(unfinished),
        "summary": json.loads(summary.to_json(orient="records")),
        "runs": [
            {"name": each.run.name, **each.run.factors, "config": portable_config(each.run.config), **each.results}
            for each in done
        ],
    }
    return json.dumps(document, indent=2) + "\n"
