"""The task packs whose networks have model files, and what the command line's verbs do with each of them.

A recipe names its pack (``pack: smoke``), a model file its kind; from there on a verb is a function of the pack.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdrelax.base.containers import read_header
from mdrelax.base.names import nearest_name
from mdrelax.base.sections import ConfigError, Section, read_yaml
from mdrelax.method.certificate import Certificate
from mdrelax.packs.modelnet import model_file as modelnet_files
from mdrelax.packs.modelnet import verbs as modelnet_verbs
from mdrelax.packs.modelnet.run import ModelNetRun, run_modelnet
from mdrelax.packs.smoke import model_file as smoke_files
from mdrelax.packs.smoke import verbs as smoke_verbs
from mdrelax.packs.smoke.run import SmokeRun, run_smoke

__all__ = ["PACKS", "Pack", "pack_of_model", "pack_of_recipe"]


@dataclass(frozen=True)
class Pack:
    """One pack: settings and functions."""

    kind: str  # of its model files
    settings: type[Section]  # of a run
    presets: Callable[[], Mapping[str, dict[str, Any]]]
    run: Callable[..., dict[str, Any]]  # run(settings, folder, listener=, tell=): the content of results.json
    predict: Callable[..., str]  # predict(model, data, output, number=): a line on what was written
    evaluate: Callable[..., dict[str, Any]]  # evaluate(model, data, number=): the errors
    audit: Callable[..., tuple[Certificate, Certificate]]  # audit(model, data, number=, operations=, seed=)


PACKS: dict[str, Pack] = {
    "modelnet": Pack(
        modelnet_files.KIND, ModelNetRun, modelnet_verbs.presets, run_modelnet, modelnet_verbs.predict,
        modelnet_verbs.evaluate, modelnet_verbs.audit,
    ),
    "smoke": Pack(
        smoke_files.KIND, SmokeRun, smoke_verbs.presets, run_smoke, smoke_verbs.predict, smoke_verbs.evaluate,
        smoke_verbs.audit,
    ),
}  # fmt: skip


def pack_of_recipe(source: str) -> tuple[Pack, dict[str, Any]] | None:
    """The pack and the document of a YAML file that names one, or of a pack's preset; None for others.

    Raises ``ConfigError`` for an unknown pack.
    """
    path = Path(source)
    if path.is_file():
        document = read_yaml(path) if path.suffix in (".yaml", ".yml") else {}
        name = document.get("pack")
        if name is None:
            return None
        if name not in PACKS:
            raise ConfigError(f"`{source}` names the pack `{name}`; {nearest_name(str(name), PACKS)}")
        return PACKS[name], document
    name = source.partition("-")[0]
    if name not in PACKS:
        return None
    known = PACKS[name].presets()
    if source not in known:
        raise ConfigError(f"There is no preset `{source}`; {nearest_name(source, known)}")
    return PACKS[name], known[source]


def pack_of_model(path: Path) -> Pack | None:
    """The pack of a model file; None for force fields, and for what is no model file at all."""
    kind = read_header(path).get("kind") if path.suffix == ".safetensors" and path.is_file() else None
    return next((pack for pack in PACKS.values() if pack.kind == kind), None)
