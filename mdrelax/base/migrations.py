"""Migrations: what documents of older versions left unsaid, for model files and for the configs of runs."""

from collections.abc import Mapping
from typing import Any

__all__ = ["with_published_norm"]


def with_published_norm(potential: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a network from before ``norm`` was one of them, when only the published norm was built."""
    if potential == "segnn":
        return {**arguments, **({"norm": "separable"} if arguments.get("norm") == "layer" else {})}
    then = {"norm_eps": 1e-2} if potential == "equiformer-pytorch" else {}  # its default at that time
    return {"norm": "separable", **then, **arguments}
