"""No link of README, changelog, pages or notebooks dangles, and every page can be reached from the index."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from blueprint import ROOT

DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")])
LINK = re.compile(r"\]\((?P<target>[^()\s]+)\)")
MENTION = re.compile(r"\bdocs/[\w./-]+\.(?:md|ipynb)\b")
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
SOURCES = ("mdrelax", "potentials", "datasets", "analysis", "tests")


def text_of(path: Path) -> str:
    """The Markdown of a page or of a notebook's cells, without code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return CODE.sub(lambda code: re.sub(r"[^\n]", " ", code[0]), text)


def anchors_of(path: Path) -> set[str]:
    """The anchors of a page's headings as GitHub makes them: lower case, punctuation dropped, spaces to hyphens."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def links_of(path: Path) -> Iterator[tuple[str, Path, str]]:
    """Each relative link or image of a page: as written, the file it names, and its anchor."""
    for link in LINK.finditer(text_of(path)):
        target = link["target"]
        if not re.match(r"[a-z]+:", target):
            name, _, anchor = target.partition("#")
            yield target, (path.parent / name).resolve() if name else path, anchor


def test_links_in_code_are_not_taken_for_links(tmp_path: Path) -> None:
    """The reader of links sees those in the prose, with their anchors, and neither code nor the web."""
    page = tmp_path / "page.md"
    page.write_text("# A: b, `c`\n[x](y.md#z) `[u](v.md)` [w](https://w.org)\n```\n[p](q.md)\n```\n![i](i.png)")
    assert [target for target, _, _ in links_of(page)] == ["y.md#z", "i.png"]
    assert anchors_of(page) == {"a-b-c"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_and_images_resolve(path: Path) -> None:
    """To a file of the repository, and to a heading of it where an anchor is named."""
    dangling = [target for target, file, _ in links_of(path) if not file.exists()]
    assert dangling == []
    missing = [target for target, file, anchor in links_of(path) if anchor and anchor not in anchors_of(file)]
    assert missing == []


@pytest.mark.parametrize("folder", SOURCES)
def test_pages_named_in_the_source_exist(folder: str) -> None:
    """Docstrings, comments, messages and recipes that send the reader to a page."""
    files = [path for suffix in ("py", "yaml") for path in (ROOT / folder).rglob(f"*.{suffix}")]
    named = {(str(path.relative_to(ROOT)), page) for path in files for page in MENTION.findall(path.read_text())}
    assert [(path, page) for path, page in sorted(named) if not (ROOT / page).exists()] == []


def test_every_page_is_reached_from_the_index() -> None:
    """The README links to the index, and the index to every page and notebook, with one line for each."""
    assert DOCS / "index.md" in {file for _, file, _ in links_of(ROOT / "README.md")}
    linked = {file for _, file, _ in links_of(DOCS / "index.md")}
    pages = {path for path in PAGES if DOCS in path.parents and DOCS / "results" not in path.parents}
    assert pages - linked == {DOCS / "index.md"}
