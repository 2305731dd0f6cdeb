"""Bad configs, made from the settings themselves: every key misspelt, and with values of another kind."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from mdrelax.runs.config import Config
from trials.bad_words import Bad

__all__ = ["spoilt_configs"]

VALUES: tuple[Any, ...] = ("nonsense", -1, float("nan"), float("inf"), [1, [2]], {"a": 1}, True, "2020-99-99", 10**30)
TEXTS = {
    "no YAML": "a: [1, 2",
    "a list": "- 1\n- 2\n",
    "a word": "hello\n",
    "a number": "3\n",
    "a date": "2020-01-01\n",
    "two documents": "a: 1\n---\nb: 2\n",
    "a tab": "data:\n\tsource: x\n",
    "a python object": "data: !!python/object/apply:os.system [ls]\n",
    "nothing but a comment": "# hello\n",
    "a null section": "data:\n",
    "numbers as keys": "1: 2\n",
    "a section of words": "training: fast\n",
    "an endless alias": "a: &a [*a]\n",
    "a control character": "a: \0\n",
}


def spoilt_configs(good: Path, folder: Path) -> Iterator[Bad]:
    """`config validate` and `train` with spoilt configs."""
    folder.mkdir()
    document = yaml.safe_load(good.read_text())
    for number, (kind, text) in enumerate(TEXTS.items()):
        path = folder / f"text-{number}.yaml"
        path.write_text(text)
        for words in (["config", "validate", str(path)], ["train", str(path), "--out", "{new}"]):
            yield Bad(f"config: {kind}", words, (path.name, "data", "training", "source"))
    for number, (place, kind, content) in enumerate(_changed(document)):
        path = folder / f"changed-{number}.yaml"
        path.write_text(yaml.safe_dump(content))
        words = ["config", "validate", str(path)] if number % 2 else ["train", str(path), "--out", "{new}"]
        yield Bad(f"config: {kind}", words, place)


def _changed(document: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], str, dict[str, Any]]]:
    """Names of which the message has one, the kind, and the document with one change."""
    for section, field in Config.model_fields.items():
        wrong = _misspelt(section)
        renamed = {wrong if key == section else key: value for key, value in document.items()}
        yield (wrong,), "misspelt section", {wrong: 1, **renamed}
        model = field.annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            continue
        yield (section,), "a list for a section", {**document, section: [1, 2]}
        given = document.get(section, {})
        for key, inner in model.model_fields.items():
            wrong = _misspelt(key)
            yield (wrong,), "misspelt key", {**document, section: {**given, wrong: given.get(key, 1)}}
            for value in VALUES:
                switch = value is True and key in getattr(model, "switches", ())
                if not switch and _is_wrong(str(inner.annotation), value):
                    yield (key,), "value of another kind", {**document, section: {**given, key: value}}


def _misspelt(name: str) -> str:
    return name[:1] + name[2:] if len(name) > 3 else f"{name}x"


def _is_wrong(annotation: str, value: Any) -> bool:
    """Whether a value can never be right for a field of this type."""
    allows = {
        str: "str" in annotation or "Literal" in annotation,
        bool: "bool" in annotation,
        list: any(word in annotation for word in ("list", "tuple", "Sequence")),
        dict: any(word in annotation for word in ("dict", "Mapping")),
        int: "int" in annotation or "float" in annotation,
        float: "float" in annotation,
    }
    if "Literal" in annotation and isinstance(value, str):
        return True
    if isinstance(value, float):
        return True  # neither NaN nor infinity is ever meant
    return not allows[type(value)] and "Any" not in annotation
