"""Index files: frame numbers (from 0) as text, such as rMD17's official splits."""

from pathlib import Path

__all__ = ["read_index_file"]


def read_index_file(path: str | Path) -> list[int]:
    """The whole numbers of a text file, separated by lines, commas or blanks; raises ``ValueError`` on other text."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no index file `{path}`.")
    indices = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        for word in line.replace(",", " ").split():
            if not word.isdecimal():
                raise ValueError(f"`{path}`, line {number}: `{word:.20}` is not an index (a whole number from 0 on).")
            indices.append(int(word))
    if not indices:
        raise ValueError(f"The index file `{path}` is empty.")
    return indices
