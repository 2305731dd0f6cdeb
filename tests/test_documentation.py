"""The examples on the pages for programmers run, and print what stands below them."""

import contextlib
import io
import re
from collections.abc import Iterator

import pytest
import torch

from blueprint import ROOT
from mdrelax.method.free_maps import FOLDS
from mdrelax.method.sites import SITES

PAGES = ["docs/own-networks.md"]
BLOCKS = re.compile(r"```python\n(?P<code>.*?)```\n(?:```text\n(?P<prints>.*?)```)?", re.DOTALL)


@pytest.fixture
def own_tables() -> Iterator[None]:
    """What an example adds to the tables of layers is taken out again, and its random numbers are its own."""
    before = [(table, dict(table)) for table in (SITES, FOLDS)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    for table, content in before:
        table.clear()
        table.update(content)  # type: ignore[arg-type]


@pytest.mark.usefixtures("own_tables")
@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run_and_print_what_it_says(page: str) -> None:
    """In their order, each with what the ones before it defined."""
    text = (ROOT / page).read_text()
    blocks = list(BLOCKS.finditer(text))
    assert len(blocks) == text.count("```python") >= 3
    names: dict[str, object] = {"__name__": page}
    for block in blocks:
        line = text[: block.start()].count("\n") + 2
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * (line - 1) + block["code"], page, "exec"), names)
        assert printed.getvalue() == (block["prints"] or ""), f"{page}:{line}"
