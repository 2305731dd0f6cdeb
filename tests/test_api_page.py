"""docs/api.md is made from the docstrings, and is as new as they are."""

import importlib.util
from pathlib import Path
from types import ModuleType

import mdrelax

DOCS = Path(__file__).parent.parent / "docs"


def _maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_api", DOCS / "make_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_that_of_the_docstrings() -> None:
    """Otherwise run `python docs/make_api.py`."""
    assert (DOCS / "api.md").read_text(encoding="utf-8") == _maker().page()


def test_every_name_of_the_face_is_on_the_page() -> None:
    """What `import mdrelax` offers is documented, with a signature and without an address of this process."""
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    assert [name for name in mdrelax.__all__ if f"### {name}\n" not in text] == []
    assert " at 0x" not in text


def test_examples_stand_as_code() -> None:
    """Three angle brackets at the start of a line would be a quotation in a quotation in a quotation."""
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    outside_of_code = "".join(text.split("```")[::2])
    assert ">>> " in text
    assert ">>> " not in outside_of_code
