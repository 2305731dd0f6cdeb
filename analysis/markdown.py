"""Tables in Markdown with aligned columns, readable in a terminal too."""

from collections.abc import Sequence

__all__ = ["markdown"]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table from its rows, the header first; all columns but the first are right-aligned."""
    first, *others = ([row[column] for row in rows] for column in range(len(rows[0])))
    columns = [_column(first, "<"), *(_column(cells, ">") for cells in others)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in zip(*columns, strict=True))


def _column(cells: Sequence[str], side: str) -> list[str]:
    """Cells padded to one width, with the rule of Markdown below the first."""
    width = max(map(len, cells))
    rule = "-" * (width - 1) + ("-" if side == "<" else ":")
    head, *rest = (f"{cell:{side}{width}}" for cell in cells)
    return [head, rule, *rest]
