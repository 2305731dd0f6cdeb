"""Results of trials as files, and the table of docs/trust.md: the latest figures of every trial.

    python tests/trials/table.py

Each `docs/results/trials/*.json` is a row, so the table is right for whichever of them there are.
"""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results" / "trials"
PAGE = ROOT / "docs" / "trust.md"
PLACE = re.compile(
    r"(?<=<!-- trials: rendered by tests/trials/table\.py -->\n).*?(?=<!-- end of trials -->)", re.DOTALL
)


def write(path: Path, command: str, figures: dict[str, Any], findings: list[Any], **more: Any) -> None:
    """Write the result of a trial: its command, versions, machine and date, figures for the table, and findings."""
    from mdrelax.base.provenance import environment, portable

    made = environment(device="cpu", seed=more.pop("seed", 0))
    document = {"command": portable(command), "environment": made, "figures": figures, "findings": findings, **more}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def row(path: Path) -> list[str]:
    """The cells of a result: trial, command, what was done, findings, date and machine."""
    document = json.loads(path.read_text(encoding="utf-8"))
    figures = "; ".join(f"{name} {_number(value)}" for name, value in document["figures"].items())
    made = document["environment"]
    machine = f"{made['processor']}, {made['cpu_count']} cores, Python {made['python']}, torch {made['torch']}"
    link = f"[{path.stem}](results/trials/{path.name})"
    return [link, f"`{document['command']}`", figures, str(len(document["findings"])), made["date"][:10], machine]


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def table(results: Path = RESULTS) -> str:
    """All rows as Markdown."""
    cells = [["trial", "command", "figures", "findings", "date", "machine"], ["---"] * 6]
    cells += [row(path) for path in sorted(results.glob("*.json"))]
    return "".join(f"| {' | '.join(each)} |\n" for each in cells)


def rendered(page: str) -> str:
    """The page with the present table."""
    return PLACE.sub(lambda _: table(), page)


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
