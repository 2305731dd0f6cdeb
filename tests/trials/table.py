"""The table of docs/trust.md: the latest figures of every trial, from the files that the trials wrote.

    python tests/trials/table.py

Each `docs/results/trials/*.json` is a row, so the table is right for whichever of them there are.
"""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results" / "trials"
PAGE = ROOT / "docs" / "trust.md"
BEGIN, END = "<!-- trials: rendered by tests/trials/table.py -->\n", "<!-- end of trials -->"
HEADER = ("trial", "command", "cases", "findings", "minutes", "date", "machine")
MOST_KINDS = 8  # that a cell lists


def row(path: Path) -> list[str]:
    """The cells of a result."""
    document = json.loads(path.read_text(encoding="utf-8"))
    counts, made = document["counts"], document["environment"]
    listed = ", ".join(f"{kind} {number:,}" for kind, number in counts.items())
    kinds = listed if len(counts) <= MOST_KINDS else f"of {len(counts)} kinds"
    machine = f"{made['processor']}, {made['cpu_count']} cores, Python {made['python']}, torch {made['torch']}"
    return [
        f"[{path.stem}](results/trials/{path.name})", f"`{document['command']}`", f"{document['cases']:,}: {kinds}",
        str(len(document["findings"])), f"{document['seconds'] / 60:.1f}", made["date"][:10], machine,
    ]  # fmt: skip


def table(results: Path = RESULTS) -> str:
    """All rows as Markdown."""
    cells = [HEADER, ["---"] * len(HEADER), *(row(path) for path in sorted(results.glob("*.json")))]
    return "".join(f"| {' | '.join(each)} |\n" for each in cells)


def rendered(page: str) -> str:
    """The page with the present table."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
