"""Recipes that the package ships: a document of settings per file, in one folder of presets per pack."""

from collections.abc import Iterable
from importlib import resources
from typing import Any

import yaml

from mdrelax.base.names import nearest_name
from mdrelax.base.sections import ConfigError

__all__ = ["recipe"]

SIZES = ("published", "small")


def recipe(pack: str, what: str, size: str, *, sizes: Iterable[str] = SIZES) -> dict[str, Any]:
    """The settings of a pack for ``what`` (a network, or a kind of data) in a size, the same for all arms.

    Raises ``ConfigError`` for unknown ones, naming the nearest.
    """
    if size not in sizes:
        raise ConfigError(f"There is no recipe `{size}`; {nearest_name(size, sizes)}")
    folder = resources.files("mdrelax") / "presets" / pack
    names = [each.name for each in folder.iterdir()]
    known = sorted(name.removesuffix(f"-{size}.yaml") for name in names if name.endswith(f"-{size}.yaml"))
    if what not in known:
        raise ConfigError(f"There is no recipe of {pack} for `{what}`; {nearest_name(what, known)}")
    return yaml.safe_load((folder / f"{what}-{size}.yaml").read_text(encoding="utf-8"))
