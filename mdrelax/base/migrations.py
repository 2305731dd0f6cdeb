"""Migrations: settings that documents of older versions left implicit, for model files and run configs."""

from collections.abc import Mapping
from typing import Any

__all__ = ["with_published_norm", "with_recipe_of_version_2"]

RECIPE_OF_VERSION_2 = {  # of the section `training`, in configs up to format version 2
    "optimizer": "adamw", "betas": [0.9, 0.99], "warmup_steps": 100, "validate_every": 500, "max_edges": None,
    "stress_weight": 0.0,
}  # fmt: skip


def with_published_norm(potential: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a network saved before ``norm`` existed, when the published norm was the only one."""
    if potential == "segnn":
        return {**arguments, **({"norm": "separable"} if arguments.get("norm") == "layer" else {})}
    then = {"norm_eps": 1e-2} if potential == "equiformer-pytorch" else {}  # its default at that time
    return {"norm": "separable", **then, **arguments}


def with_recipe_of_version_2(document: Mapping[str, Any]) -> dict[str, Any]:
    """A config of version 2 as one of version 3: keys of ``training`` that it leaves out have their old defaults."""
    training = {**RECIPE_OF_VERSION_2, **(document.get("training") or {})}
    return {**document, "training": training, "format_version": 3}
