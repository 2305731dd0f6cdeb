"""Sections: typed settings read from YAML, with one sentence for each mistake.

An unknown key is an error that names the nearest known one. A document is data, never code.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from mdrelax.base.documents import DocumentError, read_document
from mdrelax.base.names import nearest_name

__all__ = ["ConfigError", "Section", "apply_overrides", "explain", "load", "read_yaml", "section_of"]

Model = TypeVar("Model", bound=BaseModel)

ALTERNATIVES = ("bool", "float", "int", "str")  # of a union, as pydantic appends them to a place; others have brackets


class ConfigError(ValueError):
    """A config that cannot be used; the message names the key, the value and the remedy."""


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, no infinite numbers, no number that is true or false."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    switches: ClassVar[frozenset[str]] = frozenset()  # numbers that may be true, 1, and false, 0

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """`batch_size: true` would be 1."""
        if info.field_name in cls.switches:
            return value
        kind = str(cls.model_fields[str(info.field_name)].annotation)
        if isinstance(value, bool) and "bool" not in kind and ("int" in kind or "float" in kind):
            raise ValueError(f"input should be a number, got {value}")
        return value


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The document of a YAML file, which must be a mapping; raises ``ConfigError`` with the place otherwise."""
    try:
        document = read_document(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The config `{path}` cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"The config `{path}` is not a text file ({error.reason}).") from error
    except DocumentError as error:
        raise ConfigError(f"The config `{path}` is not valid YAML: {error}.") from error
    if not isinstance(document, dict):
        raise ConfigError(f"The config `{path}` is empty or not a mapping; `mdrelax config template` prints one.")
    return document


def apply_overrides(document: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of a document with ``section.key=value`` overrides applied; raises ``ConfigError`` on other text."""
    merged: dict[str, Any] = copy.deepcopy(dict(document))
    for override in overrides:
        _override(merged, override)
    return merged


def load(model: type[Model], document: Mapping[str, Any], *, overrides: Sequence[str] = (), place: str = "") -> Model:
    """A document as typed settings, with ``section.key=value`` overrides (values in YAML); raises ``ConfigError``.

    ``place`` is the section of the larger document that contains this one.
    """
    try:
        return model.model_validate(apply_overrides(document, overrides))
    except ValidationError as error:
        raise explain(error, model, place=place) from error


def explain(error: ValidationError, model: type[BaseModel], *, place: str = "") -> ConfigError:
    """Pydantic's findings on a document for ``model`` as an error to raise, one sentence per key."""
    first = {_place(e): e for e in reversed(error.errors())}  # the alternatives of a union type fail separately
    return ConfigError("\n".join(_sentence(e, model, place) for e in reversed(first.values())))


def _override(document: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"An override is written section.key=value, got `{override}`.")
    *parents, leaf = path.split(".")
    for parent in parents:
        document[parent] = {} if document.get(parent) is None else document[parent]
        document = document[parent]
        if not isinstance(document, dict):
            raise ConfigError(f"`{path}` cannot be set: `{parent}` is not a section.")
    try:
        document[leaf] = read_document(text)
    except DocumentError as error:
        raise ConfigError(f"The value of the override `{override:.200}` is not valid YAML: {error}.") from error


def _place(error: Any) -> tuple[str, ...]:
    """Section and key, without the alternative of a union type that pydantic appends."""
    return tuple(part for part in map(str, error["loc"]) if part not in ALTERNATIVES and "[" not in part)


def _sentence(error: Any, model: type[BaseModel], section: str) -> str:
    """One pydantic error as a sentence."""
    place = _place(error)
    where = ".".join([section, *place] if section else place) or "config"
    if error["type"] == "extra_forbidden":
        return f"Unknown config key `{where}`; {nearest_name(place[-1], list(_fields(place[:-1], model)))}"
    field = _fields(place[:-1], model).get(place[-1]) if place else None
    if error["type"] == "missing" or (error["input"] is None and field is not None and field.is_required()):
        return f"The config key `{where}` is missing; `mdrelax config template` shows all keys."
    message = error["msg"].removeprefix("Value error, ").removesuffix(", unable to parse string as a number")
    given = "" if error["type"] == "value_error" else f", got {error['input']!r:.200}"
    return f"`{where}`: {message[0].lower() + message[1:]}{given}."


def _fields(sections: Sequence[str], root: type[BaseModel]) -> dict[str, FieldInfo]:
    """Key -> field of the section at a place in a document for ``root``."""
    model: Any = root
    for section in sections:
        field = getattr(model, "model_fields", {}).get(section)
        model = section_of(field.annotation) or field.annotation if field else root
    return getattr(model, "model_fields", {})


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, also if it may be none; None for a key that holds a plain value."""
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
