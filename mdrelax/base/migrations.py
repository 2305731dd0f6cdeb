"""Migrations: settings that documents of older versions left implicit, for model files and run configs."""

from collections.abc import Mapping
from typing import Any

__all__ = ["with_published_norm"]


def with_published_norm(potential: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a network saved before ``norm`` existed, when the published norm was the only one."""
    if potential == "segnn":
        return {**arguments, **({"norm": "separable"} if arguments.get("norm") == "layer" else {})}
    then = {"norm_eps": 1e-2} if potential == "equiformer-pytorch" else {}  # its default at that time
    return {"norm": "separable", **then, **arguments}
